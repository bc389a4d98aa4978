/* SPDX-License-Identifier: Apache-2.0
 *
 * Which devices are near: all are behind one processor, and no two share
 * anything nearer to them than that. */
#include <stddef.h>

#include "nvml_device.h"

/* Every device but one; `room` for nothing asks how many there are. */
static nvmlReturn_t all_but(nvmlDevice_t left_out, unsigned int *room, nvmlDevice_t *devices)
{
	const struct sim_machine *machine = nvml_machine();
	unsigned int there = 0;

	if (!machine)
		return NVML_ERROR_UNINITIALIZED;
	if (!room)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (uint32_t i = 0; i < machine->device_count; i++) {
		if (nvml_handle(i) == left_out)
			continue;
		if (devices && there < *room)
			devices[there] = nvml_handle(i);
		there++;
	}
	if (!*room || !devices || there < *room)
		*room = there;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetTopologyGpuSet(unsigned int cpu, unsigned int *count,
					 nvmlDevice_t *devices)
{
	(void)cpu; /* all cores belong to the one processor */
	return all_but(NULL, count, devices);
}

nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t level,
					      unsigned int *count, nvmlDevice_t *devices)
{
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, count, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	if (level == NVML_TOPOLOGY_NODE)
		return all_but(device, count, devices);
	*count = 0;
	return NVML_SUCCESS;
}
