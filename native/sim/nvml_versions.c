/* SPDX-License-Identifier: Apache-2.0
 *
 * Older names of functions, each by way of the newer one.
 *
 * They call through the exported symbol, which anything loaded before us can
 * take over: the vendor's library is linked without -Bsymbolic and behaves so,
 * and an interposer has to bear being entered from inside its own call. */
#include <stdlib.h>

#pragma GCC visibility push(default)
#include "nvml.h"
#pragma GCC visibility pop

nvmlReturn_t nvmlInit(void)
{
	return nvmlInit_v2();
}

nvmlReturn_t nvmlInit_v2(void)
{
	return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion(int *version)
{
	return nvmlSystemGetCudaDriverVersion_v2(version);
}

nvmlReturn_t nvmlEventSetWait(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
	return nvmlEventSetWait_v2(set, data, timeout_ms);
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *count)
{
	return nvmlDeviceGetCount_v2(count);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
	return nvmlDeviceGetHandleByIndex_v2(index, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device)
{
	return nvmlDeviceGetHandleByPciBusId_v2(bus_id, device);
}

nvmlReturn_t nvmlDeviceGetPciInfo(nvmlDevice_t device, nvmlPciInfo_v2_t *pci)
{
	return nvmlDeviceGetPciInfo_v2(device, pci);
}

nvmlReturn_t nvmlDeviceGetPowerState(nvmlDevice_t device, unsigned int *state)
{
	return nvmlDeviceGetPerformanceState(device, state);
}

/* Version 1 counts as used what version 2 names as reserved. */
nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	nvmlMemory_v2_t detail = {.version = NVML_MEMORY_V2};
	nvmlReturn_t rc = nvmlDeviceGetMemoryInfo_v2(device, memory ? &detail : NULL);

	if (rc != NVML_SUCCESS)
		return rc;
	memory->total = detail.total;
	memory->free = detail.free;
	memory->used = detail.used + detail.reserved;
	return NVML_SUCCESS;
}

typedef nvmlReturn_t (*process_list)(nvmlDevice_t, unsigned int *, nvmlProcessInfo_v2_t *);

/* Version 1 has no instance numbers, hence shorter entries: the longer ones are
 * asked for into an array of the caller's capacity, so that its capacity rule
 * and count come from one place. */
static nvmlReturn_t narrow(process_list list, nvmlDevice_t device, unsigned int *count,
			   nvmlProcessInfo_v1_t *infos)
{
	enum { ENOUGH = 1 << 16 }; /* more processes than a device can have */
	nvmlProcessInfo_v2_t *wide = NULL;
	nvmlReturn_t rc;

	if (count && *count && infos) {
		if (*count > ENOUGH)
			*count = ENOUGH;
		wide = calloc(*count, sizeof(*wide));
		if (!wide)
			return NVML_ERROR_MEMORY;
	}
	rc = list(device, count, wide);
	for (unsigned int i = 0; rc == NVML_SUCCESS && wide && i < *count; i++) {
		infos[i].pid = wide[i].pid;
		infos[i].usedGpuMemory = wide[i].usedGpuMemory;
	}
	free(wide);
	return rc;
}

#define OLDER_LISTS(name)                                                                          \
	nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v1_t *infos)   \
	{                                                                                          \
		return narrow(name##_v3, device, count, infos);                                    \
	}                                                                                          \
	nvmlReturn_t name##_v2(nvmlDevice_t device, unsigned int *count,                           \
			       nvmlProcessInfo_v2_t *infos)                                        \
	{                                                                                          \
		return name##_v3(device, count, infos);                                            \
	}

OLDER_LISTS(nvmlDeviceGetComputeRunningProcesses)
OLDER_LISTS(nvmlDeviceGetGraphicsRunningProcesses)
OLDER_LISTS(nvmlDeviceGetMPSComputeRunningProcesses)
