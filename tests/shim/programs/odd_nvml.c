/* SPDX-License-Identifier: Apache-2.0
 *
 * An NVML as some drivers and cards have it and the simulated one does not:
 *
 *	- MIG: $ODD_INSTANCES names the instances, all on the last device;
 *	- the same handles mean other devices each time that NVML begins anew;
 *	- processes that draw or use the multi-process server: $ODD_PIDS;
 *	- with LONG_ENTRIES, the longer entries of `_v3` lists, which clients tell
 *	  by the names that such a driver has and lacks.
 *
 * $ODD_DEVICES names the devices.  It calls itself through its exports, and
 * counts how often it is asked for a UUID.
 */
#include <stdlib.h>
#include <string.h>

#include "nvml.h"

#define DEVICES 8
#define MEMORY (64ull << 30)
#define PROCESS_MEMORY (7ull << 20)

struct nvmlDevice_st {
	char used;
};

static struct nvmlDevice_st handles[2 * DEVICES]; /* devices, then instances */
static int begun, turns;
static int uuids_asked;

/* ---- the machine --------------------------------------------------------------------- */

/* The text at a place of a list in the environment, or -1. */
static int text_at(const char *variable, int place, char *text)
{
	const char *at = getenv(variable);
	size_t length;

	for (int i = 0; at && *at && i < place; i++) {
		at = strchr(at, ',');
		at = at ? at + 1 : NULL;
	}
	if (!at || !*at)
		return -1;
	length = strcspn(at, ",");
	memcpy(text, at, length);
	text[length] = 0;
	return 0;
}

static int how_many(const char *variable)
{
	char text[128];
	int count = 0;

	while (!text_at(variable, count, text))
		count++;
	return count;
}

/* Devices change places with every turn. */
static nvmlDevice_t handle_of(int number)
{
	int count = how_many("ODD_DEVICES");

	return &handles[(number + turns) % count];
}

static int number_of(nvmlDevice_t device)
{
	for (int i = 0; i < how_many("ODD_DEVICES"); i++)
		if (handle_of(i) == device)
			return i;
	return -1;
}

static int instance_of(nvmlDevice_t device)
{
	int number = device ? (int)(device - handles) - DEVICES : -1;

	return number >= 0 && number < how_many("ODD_INSTANCES") ? number : -1;
}

static nvmlReturn_t judge(nvmlDevice_t device, const void *out)
{
	if (!begun)
		return NVML_ERROR_UNINITIALIZED;
	if ((number_of(device) < 0 && instance_of(device) < 0) || !out)
		return NVML_ERROR_INVALID_ARGUMENT;
	return NVML_SUCCESS;
}

/* For tests: what no public function hands out. */
nvmlDevice_t odd_handle(int number);
int odd_uuids_asked(void);

nvmlDevice_t odd_handle(int number)
{
	return handle_of(number);
}

int odd_uuids_asked(void)
{
	return uuids_asked;
}

/* ---- the library ------------------------------------------------------------------------ */

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	(void)flags;
	if (!begun++)
		turns++;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlInit_v2(void)
{
	return nvmlInitWithFlags(0);
}

nvmlReturn_t nvmlInit(void)
{
	return nvmlInit_v2();
}

nvmlReturn_t nvmlShutdown(void)
{
	if (begun)
		begun--;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	if (!begun)
		return NVML_ERROR_UNINITIALIZED;
	if (!count)
		return NVML_ERROR_INVALID_ARGUMENT;
	*count = (unsigned int)how_many("ODD_DEVICES");
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	if (!begun)
		return NVML_ERROR_UNINITIALIZED;
	if (!device || index >= (unsigned int)how_many("ODD_DEVICES"))
		return NVML_ERROR_INVALID_ARGUMENT;
	*device = handle_of((int)index);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
	nvmlReturn_t rc = judge(device, index);

	if (!rc)
		*index = (unsigned int)(instance_of(device) < 0 ? number_of(device)
								: instance_of(device));
	return rc;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
	nvmlReturn_t rc = judge(device, uuid);

	uuids_asked++;
	if (rc)
		return rc;
	if (length < 96)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	if (instance_of(device) >= 0)
		text_at("ODD_INSTANCES", instance_of(device), uuid);
	else
		text_at("ODD_DEVICES", number_of(device), uuid);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
	char text[128];

	uuids_asked++;
	if (!begun)
		return NVML_ERROR_UNINITIALIZED;
	if (!uuid || !device)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (int i = 0; i < how_many("ODD_DEVICES"); i++)
		if (!text_at("ODD_DEVICES", i, text) && !strcmp(text, uuid)) {
			*device = handle_of(i);
			return NVML_SUCCESS;
		}
	for (int i = 0; i < how_many("ODD_INSTANCES"); i++)
		if (!text_at("ODD_INSTANCES", i, text) && !strcmp(text, uuid)) {
			*device = &handles[DEVICES + i];
			return NVML_SUCCESS;
		}
	return NVML_ERROR_NOT_FOUND;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	nvmlReturn_t rc = judge(device, memory);

	if (!rc)
		*memory = (nvmlMemory_t){MEMORY, MEMORY, 0};
	return rc;
}

/* ---- instances ---------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
						 nvmlDevice_t *mig)
{
	nvmlReturn_t rc = judge(device, mig);

	if (rc)
		return rc;
	if (number_of(device) != how_many("ODD_DEVICES") - 1)
		return NVML_ERROR_NOT_SUPPORTED;
	if (index >= DEVICES)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (index >= (unsigned int)how_many("ODD_INSTANCES"))
		return NVML_ERROR_NOT_FOUND;
	*mig = &handles[DEVICES + index];
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetDeviceHandleFromMigDeviceHandle(nvmlDevice_t mig, nvmlDevice_t *device)
{
	nvmlReturn_t rc = judge(mig, device);

	if (!rc && instance_of(mig) < 0)
		rc = NVML_ERROR_INVALID_ARGUMENT;
	if (!rc)
		*device = handle_of(how_many("ODD_DEVICES") - 1);
	return rc;
}

/* ---- processes ------------------------------------------------------------------------------ */

static nvmlReturn_t list(nvmlDevice_t device, unsigned int *count, char *infos, size_t size)
{
	unsigned int there = (unsigned int)how_many("ODD_PIDS"), capacity;
	nvmlReturn_t rc = judge(device, count);
	char text[128];

	if (rc)
		return rc;
	capacity = *count;
	*count = there;
	if (there > capacity)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	for (unsigned int i = 0; i < there; i++) {
		nvmlProcessDetail_v1_t entry = {0, PROCESS_MEMORY, 11, 12, 13};

		text_at("ODD_PIDS", (int)i, text);
		entry.pid = (unsigned int)atoi(text);
		memcpy(infos + i * size, &entry, size);
	}
	return NVML_SUCCESS;
}

#ifdef LONG_ENTRIES
#define ENTRY_V3 sizeof(nvmlProcessDetail_v1_t)
#else
#define ENTRY_V3 sizeof(nvmlProcessInfo_v2_t)
#endif

#define LISTS(name)                                                                                \
	nvmlReturn_t name(nvmlDevice_t device, unsigned int *count, nvmlProcessInfo_v1_t *infos)   \
	{                                                                                          \
		return list(device, count, (char *)infos, sizeof(*infos));                         \
	}                                                                                          \
	nvmlReturn_t name##_v3(nvmlDevice_t device, unsigned int *count,                           \
			       nvmlProcessInfo_v2_t *infos)                                        \
	{                                                                                          \
		return list(device, count, (char *)infos, ENTRY_V3);                               \
	}                                                                                          \
	/* Itself through an export, when the entries are alike. */                                \
	nvmlReturn_t name##_v2(nvmlDevice_t device, unsigned int *count,                           \
			       nvmlProcessInfo_v2_t *infos)                                        \
	{                                                                                          \
		return ENTRY_V3 == sizeof(*infos)                                                  \
			       ? name##_v3(device, count, infos)                                   \
			       : list(device, count, (char *)infos, sizeof(*infos));               \
	}

LISTS(nvmlDeviceGetComputeRunningProcesses)
LISTS(nvmlDeviceGetGraphicsRunningProcesses)
LISTS(nvmlDeviceGetMPSComputeRunningProcesses)

#ifdef LONG_ENTRIES
nvmlReturn_t nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t device, void *info);
nvmlReturn_t nvmlDeviceGetConfComputeMemSizeInfo(nvmlDevice_t device, void *info)
{
	nvmlReturn_t rc = judge(device, info);

	return rc ? rc : NVML_ERROR_NOT_SUPPORTED;
}
#else
nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
						   nvmlProcessDetailList_v1_t *detail)
{
	nvmlReturn_t rc = judge(device, detail);

	if (rc)
		return rc;
	if (detail->version != NVML_PROCESS_DETAIL_LIST_V1)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	if (detail->mode > NVML_PROCESS_MODE_MPS)
		return NVML_ERROR_INVALID_ARGUMENT;
	return list(device, &detail->numProcArrayEntries, (char *)detail->procArray,
		    sizeof(*detail->procArray));
}
#endif
