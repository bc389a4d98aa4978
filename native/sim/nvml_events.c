/* SPDX-License-Identifier: Apache-2.0
 *
 * Event sets.
 *
 * A simulated device never fails, so no event ever comes; a watcher may register,
 * wait as long as it likes, and hears of the end of its time. */
#include <errno.h>
#include <stdlib.h>
#include <time.h>

#include "nvml_device.h"

enum { SINGLE_BIT_ECC = 1, DOUBLE_BIT_ECC = 2, CRITICAL_ERROR = 8 };

struct nvmlEventSet_st {
	unsigned long long types; /* registered for */
};

NVML_FACT(nvmlDeviceGetSupportedEventTypes, unsigned long long, 1,
	  is->ecc ? SINGLE_BIT_ECC | DOUBLE_BIT_ECC | CRITICAL_ERROR : CRITICAL_ERROR)

nvmlReturn_t nvmlEventSetCreate(nvmlEventSet_t *set)
{
	if (!nvml_ready())
		return NVML_ERROR_UNINITIALIZED;
	if (!set)
		return NVML_ERROR_INVALID_ARGUMENT;
	*set = calloc(1, sizeof(**set));
	return *set ? NVML_SUCCESS : NVML_ERROR_MEMORY;
}

nvmlReturn_t nvmlEventSetFree(nvmlEventSet_t set)
{
	if (!nvml_ready())
		return NVML_ERROR_UNINITIALIZED;
	if (!set)
		return NVML_ERROR_INVALID_ARGUMENT;
	free(set);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceRegisterEvents(nvmlDevice_t device, unsigned long long types,
				      nvmlEventSet_t set)
{
	unsigned long long supported = 0;
	nvmlReturn_t rc = nvmlDeviceGetSupportedEventTypes(device, &supported);

	if (rc != NVML_SUCCESS)
		return rc;
	if (!set)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (types & ~supported)
		return NVML_ERROR_NOT_SUPPORTED;
	set->types |= types;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlEventSetWait_v2(nvmlEventSet_t set, nvmlEventData_t *data, unsigned int timeout_ms)
{
	struct timespec left = {.tv_sec = timeout_ms / 1000,
				.tv_nsec = (long)(timeout_ms % 1000) * 1000000};

	if (!nvml_ready())
		return NVML_ERROR_UNINITIALIZED;
	if (!set || !data)
		return NVML_ERROR_INVALID_ARGUMENT;
	while (nanosleep(&left, &left) && errno == EINTR)
		;
	return NVML_ERROR_TIMEOUT;
}
