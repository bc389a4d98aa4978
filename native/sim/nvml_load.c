/* SPDX-License-Identifier: Apache-2.0
 *
 * How busy a device and its processes are.
 *
 * All of it comes from samples that the machine's file keeps, so that a program
 * which reads once and ends sees the load as one that watches does. */
#include <stdlib.h>

#include "nvml_device.h"

nvmlReturn_t nvmlDeviceGetUtilizationRates(nvmlDevice_t device, nvmlUtilization_t *rates)
{
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, rates, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	rates->gpu = sim_utilisation(index);
	rates->memory = 0; /* traffic to memory is not modelled */
	return NVML_SUCCESS;
}

/* No encoder and no decoder is modelled: they are idle. */
static nvmlReturn_t idle(nvmlDevice_t device, unsigned int *percent, unsigned int *period_us)
{
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, percent && period_us ? percent : NULL, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	*percent = 0;
	*period_us = (unsigned int)(sim_attach()->knobs.sample_ns / 1000);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetEncoderUtilization(nvmlDevice_t device, unsigned int *percent,
					     unsigned int *period_us)
{
	return idle(device, percent, period_us);
}

nvmlReturn_t nvmlDeviceGetDecoderUtilization(nvmlDevice_t device, unsigned int *percent,
					     unsigned int *period_us)
{
	return idle(device, percent, period_us);
}

/* The newest sample of each process that was busy after `newer_than`.  *loads
 * is the caller's to free. */
static nvmlReturn_t process_loads(nvmlDevice_t device, const void *out, uint64_t newer_than,
				  struct sim_load **loads, unsigned int *count)
{
	enum { CAPACITY = SIM_PROCESSES * SIM_SAMPLES };
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, out, &index);
	int all, kept = 0;

	*loads = NULL;
	if (rc != NVML_SUCCESS)
		return rc;
	if (!sim_attach()->knobs.process_view)
		return NVML_ERROR_NOT_SUPPORTED;
	*loads = calloc(CAPACITY, sizeof(**loads));
	if (!*loads)
		return NVML_ERROR_MEMORY;
	all = sim_process_loads(index, newer_than, *loads, CAPACITY);
	for (int i = 0; i < all && i < CAPACITY; i++) {
		int place = 0;
		while (place < kept && (*loads)[place].pid != (*loads)[i].pid)
			place++;
		if (place == kept)
			kept++;
		(*loads)[place] = (*loads)[i];
	}
	*count = (unsigned int)kept;
	return kept ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
					     nvmlProcessUtilizationSample_t *samples,
					     unsigned int *count, unsigned long long newer_than)
{
	struct sim_load *loads;
	unsigned int there = 0, capacity;
	nvmlReturn_t rc = process_loads(device, count, newer_than, &loads, &there);

	if (rc == NVML_SUCCESS) {
		capacity = samples ? *count : 0;
		*count = there;
		if (there > capacity)
			rc = NVML_ERROR_INSUFFICIENT_SIZE;
	}
	for (unsigned int i = 0; rc == NVML_SUCCESS && i < there; i++)
		samples[i] = (nvmlProcessUtilizationSample_t){
			.pid = (unsigned int)loads[i].pid,
			.timeStamp = loads[i].stamp_us,
			.smUtil = loads[i].percent,
		};
	free(loads);
	return rc;
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
						   nvmlProcessesUtilizationInfo_v1_t *info)
{
	struct sim_load *loads;
	unsigned int there = 0, capacity;
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, info, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	if (info->version != NVML_PROCESSES_UTILIZATION_INFO_V1)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	rc = process_loads(device, info, info->lastSeenTimeStamp, &loads, &there);
	if (rc == NVML_SUCCESS) {
		capacity = info->procUtilArray ? info->processSamplesCount : 0;
		info->processSamplesCount = there;
		if (there > capacity)
			rc = NVML_ERROR_INSUFFICIENT_SIZE;
	}
	for (unsigned int i = 0; rc == NVML_SUCCESS && i < there; i++)
		info->procUtilArray[i] = (nvmlProcessUtilizationInfo_v1_t){
			.pid = (unsigned int)loads[i].pid,
			.timeStamp = loads[i].stamp_us,
			.smUtil = loads[i].percent,
		};
	free(loads);
	return rc;
}

/* Without an array the answer is how many samples there can be. */
nvmlReturn_t nvmlDeviceGetSamples(nvmlDevice_t device, nvmlSamplingType_t type,
				  unsigned long long newer_than, nvmlValueType_t *value_type,
				  unsigned int *count, nvmlSample_t *samples)
{
	struct sim_load loads[SIM_SAMPLES];
	uint32_t index;
	int there, skipped;
	nvmlReturn_t rc = nvml_index(device, value_type && count ? count : NULL, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	if (type != NVML_GPU_UTILIZATION_SAMPLES)
		return NVML_ERROR_NOT_SUPPORTED;
	*value_type = NVML_VALUE_TYPE_UNSIGNED_INT;
	if (!samples) {
		*count = SIM_SAMPLES;
		return NVML_SUCCESS;
	}
	there = sim_device_loads(index, newer_than, loads, SIM_SAMPLES);
	if (there > SIM_SAMPLES)
		there = SIM_SAMPLES;
	/* Too little room keeps the newest. */
	skipped = (unsigned int)there > *count ? there - (int)*count : 0;
	*count = (unsigned int)(there - skipped);
	for (int i = skipped; i < there; i++)
		samples[i - skipped] = (nvmlSample_t){
			.timeStamp = loads[i].stamp_us,
			.sampleValue.uiVal = loads[i].percent,
		};
	return there ? NVML_SUCCESS : NVML_ERROR_NOT_FOUND;
}
