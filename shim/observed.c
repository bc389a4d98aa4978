/* SPDX-License-Identifier: Apache-2.0
 *
 * Asking NVML, on our own account: see observed.h.  It is begun and ended for each
 * question, so that a program's own NVML is up when it says so and at no other time.
 */
#include "observed.h"

#include <string.h>
#include <unistd.h>

/* ---- asking --------------------------------------------------------------------------- */

static void write_uuid(char *text, const char *prefix, const uint8_t *uuid)
{
	static const char digits[] = "0123456789abcdef";

	while (*prefix)
		*text++ = *prefix++;
	for (int i = 0; i < VGPU_UUID_SIZE; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*text++ = '-';
		*text++ = digits[uuid[i] >> 4];
		*text++ = digits[uuid[i] & 15];
	}
	*text = 0;
}

static int find_device(const struct driver *driver, const uint8_t *uuid, nvmlDevice_t *device)
{
	char text[48];

	write_uuid(text, "GPU-", uuid);
	if (!driver->real.nvmlDeviceGetHandleByUUID(text, device))
		return 0;
	write_uuid(text, "MIG-", uuid);
	return driver->real.nvmlDeviceGetHandleByUUID(text, device) ? -1 : 0;
}

static void read_list(const struct driver *driver, nvmlDevice_t device, struct observation *seen)
{
	char list[OBSERVED_PROCESSES * sizeof(nvmlProcessDetail_v1_t)];
	size_t size = (size_t)driver->nvml_process_v3_size;
	unsigned int count = OBSERVED_PROCESSES;

	if (driver->real.nvmlDeviceGetComputeRunningProcesses_v3(device, &count,
								 (nvmlProcessInfo_v2_t *)list))
		return;
	seen->count = (int)count;
	for (unsigned int i = 0; i < count; i++) {
		/* Entries of all versions begin alike. */
		nvmlProcessInfo_v2_t entry;

		memcpy(&entry, list + i * size, sizeof(entry));
		seen->pids[i] = entry.pid;
		seen->bytes[i] = entry.usedGpuMemory;
	}
}

void vgpu_observe(const struct tenant *tenant, int slice, struct observation *seen)
{
	const struct driver *driver = vgpu_driver(LIBRARY_NVML);
	nvmlDevice_t device;
	nvmlMemory_t memory;

	seen->count = -1;
	seen->device = -1;
	vgpu_nvml_enter();
	if (!driver->real.nvmlInit_v2()) {
		if (!find_device(driver, tenant->grant->slices[slice].device, &device)) {
			read_list(driver, device, seen);
			if (!driver->real.nvmlDeviceGetMemoryInfo(device, &memory))
				seen->device = (int64_t)(memory.total - memory.free);
		}
		driver->used.nvmlShutdown();
	}
	vgpu_nvml_leave();
}

/* ---- who is who ------------------------------------------------------------------------ */

/* Place in the list, or -1. */
static int find(const struct observation *seen, uint32_t pid)
{
	for (int i = 0; i < seen->count; i++)
		if (seen->pids[i] == pid)
			return i;
	return -1;
}

/* NVML has a value for "not available", beyond all memory. */
static int64_t bytes_at(const struct observation *seen, int place)
{
	return place >= 0 && seen->bytes[place] <= INT64_MAX ? (int64_t)seen->bytes[place] : -1;
}

int64_t vgpu_observed_own(const struct process *process, const struct observation *seen)
{
	uint32_t pid = __atomic_load_n(&process->nvml_pid, __ATOMIC_RELAXED);

	return bytes_at(seen, find(seen, pid ? pid : (uint32_t)getpid()));
}

/* The one that was not there before; among several, the one with our own pid. */
static int find_new(const struct observation *before, const struct observation *after)
{
	int found = -1, count = 0;

	for (int i = 0; i < after->count; i++) {
		if (find(before, after->pids[i]) >= 0)
			continue;
		if (after->pids[i] == (uint32_t)getpid())
			return i;
		found = i;
		count++;
	}
	return count == 1 ? found : -1;
}

int64_t vgpu_observed_growth(struct process *process, const struct observation *before,
			     const struct observation *after, int is_new)
{
	int64_t earlier, now;

	if (before->count < 0 || after->count < 0)
		return -1;
	if (is_new) {
		int place = find_new(before, after);

		if (place < 0)
			return -1;
		__atomic_store_n(&process->nvml_pid, after->pids[place], __ATOMIC_RELAXED);
		return bytes_at(after, place);
	}
	earlier = vgpu_observed_own(process, before);
	now = vgpu_observed_own(process, after);
	return earlier < 0 || now < earlier ? -1 : now - earlier;
}
