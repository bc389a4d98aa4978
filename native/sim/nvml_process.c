/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory, and the processes that hold it.
 *
 * The lists keep the driver's capacity rule to the letter, because an interposer
 * filters them: the caller's count is its capacity; too small a one becomes the
 * number of entries there are, with NVML_ERROR_INSUFFICIENT_SIZE and no entry
 * written. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nvml_device.h"

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	const struct sim_identity *is;
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, memory, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	if (memory->version != NVML_MEMORY_V2)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	is = &sim_attach()->devices[index].identity;
	memory->total = is->memory_total;
	memory->reserved = is->memory_reserved;
	memory->used = sim_memory_used(index);
	memory->free = memory->total - memory->reserved - memory->used;
	return NVML_SUCCESS;
}

/* The window through which the processor reaches device memory: nothing maps it
 * here, since device memory is host memory. */
nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, memory, &is);

	if (rc != NVML_SUCCESS)
		return rc;
	memory->bar1Total = is->bar1_total;
	memory->bar1Free = is->bar1_total;
	memory->bar1Used = 0;
	return NVML_SUCCESS;
}

NVML_FACT(nvmlDeviceGetMemoryBusWidth, unsigned int, is->memory_bus_bits, is->memory_bus_bits)

/* *usages is the caller's to free, also when there are none. */
static nvmlReturn_t processes(nvmlDevice_t device, const void *out, struct sim_usage **usages,
			      unsigned int *count)
{
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, out, &index);

	*usages = NULL;
	if (rc != NVML_SUCCESS)
		return rc;
	if (!sim_attach()->knobs.process_view)
		return NVML_ERROR_NOT_SUPPORTED;
	*usages = calloc(SIM_PROCESSES, sizeof(**usages));
	if (!*usages)
		return NVML_ERROR_MEMORY;
	*count = (unsigned int)sim_usages(index, *usages, SIM_PROCESSES);
	return NVML_SUCCESS;
}

/* The capacity rule; *count becomes `there`. */
static nvmlReturn_t room(unsigned int there, unsigned int *count, const void *entries)
{
	unsigned int capacity = *count;

	*count = there;
	if (there > capacity)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	return there && !entries ? NVML_ERROR_INVALID_ARGUMENT : NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
						     nvmlProcessInfo_v2_t *infos)
{
	struct sim_usage *usages;
	unsigned int there = 0;
	nvmlReturn_t rc = processes(device, count, &usages, &there);

	if (rc == NVML_SUCCESS)
		rc = room(there, count, infos);
	for (unsigned int i = 0; rc == NVML_SUCCESS && i < there; i++)
		infos[i] = (nvmlProcessInfo_v2_t){
			.pid = (unsigned int)usages[i].pid,
			.usedGpuMemory = usages[i].memory,
			.gpuInstanceId = NVML_NO_INSTANCE,
			.computeInstanceId = NVML_NO_INSTANCE,
		};
	free(usages);
	return rc;
}

/* Nothing here draws, and there is no multi-process server: these lists are
 * there and empty. */
static nvmlReturn_t none(nvmlDevice_t device, unsigned int *count)
{
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, count, &index);

	if (rc == NVML_SUCCESS && !sim_attach()->knobs.process_view)
		rc = NVML_ERROR_NOT_SUPPORTED;
	if (rc == NVML_SUCCESS)
		*count = 0;
	return rc;
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
						      nvmlProcessInfo_v2_t *infos)
{
	(void)infos;
	return none(device, count);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
							nvmlProcessInfo_v2_t *infos)
{
	(void)infos;
	return none(device, count);
}

nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
						   nvmlProcessDetailList_v1_t *list)
{
	struct sim_usage *usages;
	unsigned int there = 0;
	nvmlReturn_t rc = processes(device, list, &usages, &there);

	if (rc == NVML_SUCCESS && list->version != NVML_PROCESS_DETAIL_LIST_V1)
		rc = NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	if (rc == NVML_SUCCESS && list->mode > NVML_PROCESS_MODE_MPS)
		rc = NVML_ERROR_INVALID_ARGUMENT;
	if (rc == NVML_SUCCESS && list->mode != NVML_PROCESS_MODE_COMPUTE)
		there = 0;
	if (rc == NVML_SUCCESS)
		rc = room(there, &list->numProcArrayEntries, list->procArray);
	for (unsigned int i = 0; rc == NVML_SUCCESS && i < there; i++)
		list->procArray[i] = (nvmlProcessDetail_v1_t){
			.pid = (unsigned int)usages[i].pid,
			.usedGpuMemory = usages[i].memory,
			.gpuInstanceId = NVML_NO_INSTANCE,
			.computeInstanceId = NVML_NO_INSTANCE,
			.usedGpuCcProtectedMemory = 0,
		};
	free(usages);
	return rc;
}

/* Any process has a name, not only those that use a device. */
static int name_from_proc(unsigned int pid, char *name, size_t size)
{
	char path[64];
	ssize_t length;
	int file;

	snprintf(path, sizeof(path), "/proc/%u/cmdline", pid);
	file = open(path, O_RDONLY | O_CLOEXEC);
	if (file < 0)
		return -1;
	length = read(file, name, size - 1);
	close(file);
	if (length <= 0)
		return -1;
	name[length] = 0; /* arguments are separated by zeros: the first remains */
	return 0;
}

nvmlReturn_t nvmlSystemGetProcessName(unsigned int pid, char *name, unsigned int length)
{
	struct sim_machine *machine = nvml_machine();
	char text[1024];
	struct sim_usage usage;

	if (!machine)
		return NVML_ERROR_UNINITIALIZED;
	if (!name || !length)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (sim_find_process((int32_t)pid, &usage) == 0)
		snprintf(text, sizeof(text), "%s", usage.name);
	else if (machine->knobs.pid_offset || name_from_proc(pid, text, sizeof(text)))
		return NVML_ERROR_NOT_FOUND;
	snprintf(name, length, "%s", text); /* cropped, not refused */
	return NVML_SUCCESS;
}
