/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrite, NVML's lists of running processes: the tenant's alone, under the
 * pids that it knows.
 *
 * The ledger says who computes, because the driver may name processes by the
 * node's pids, or not at all.  Who draws, or computes through the multi-process
 * server, only the driver knows: its list is filtered, and memory is the
 * ledger's where that has any.  A question that the driver would refuse, it
 * refuses: it is asked with room for nothing, which tells as much.
 */
#include <string.h>

#include "nvml_view.h"

/* Entries of all lists begin alike: pid, memory, then the two instance ids, and
 * memory of confidential computing. */
static void write_entry(char *entry, size_t size, const struct nvml_process *process)
{
	nvmlProcessDetail_v1_t full = {process->pid, process->memory, NVML_NO_INSTANCE,
				       NVML_NO_INSTANCE, 0};

	memcpy(entry, &full, size);
}

static nvmlReturn_t list_users(const struct nvml_list *list, const struct nvml_process *own,
			       unsigned int owns, unsigned int *count, void *infos)
{
	unsigned int there = 0, capacity = *count;

	for (unsigned int i = 0; i < owns; i++)
		there += own[i].is_user;
	*count = there;
	if (there > capacity)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	if (there && !infos)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (unsigned int i = 0, at = 0; i < owns; i++)
		if (own[i].is_user)
			write_entry((char *)infos + at++ * list->entry_size, list->entry_size,
				    &own[i]);
	return NVML_SUCCESS;
}

static nvmlReturn_t filter_list(const struct nvml_list *list, const struct nvml_process *own,
				unsigned int owns, unsigned int *count, void *infos)
{
	unsigned int there;
	size_t mapped = 0;
	void *entries;
	nvmlReturn_t rc = vgpu_nvml_fetch(list, &entries, &there, &mapped);

	if (!rc) {
		there = vgpu_nvml_keep_own(list, entries, there, own, owns);
		for (unsigned int i = 0; i < there; i++) {
			char *entry = (char *)entries + (size_t)i * list->entry_size;
			nvmlProcessInfo_v1_t known;

			memcpy(&known, entry, sizeof(known));
			for (unsigned int k = 0; k < owns; k++)
				if (own[k].pid == known.pid && own[k].is_user)
					known.usedGpuMemory = own[k].memory;
			memcpy(entry, &known, sizeof(known));
		}
		rc = vgpu_nvml_deliver(list, entries, there, count, infos);
	}
	vgpu_nvml_drop(entries, mapped);
	return rc;
}

static nvmlReturn_t rewrite_list(const struct driver *driver, struct tenant *tenant,
				 const struct nvml_list *list, unsigned int *count, void *infos)
{
	struct nvml_process own[NVML_MAX_LISTED];
	struct nvml_device device;
	unsigned int none = 0, owns;
	nvmlReturn_t rc;

	if (!count)
		return list->ask(list, count, infos);
	rc = list->ask(list, &none, NULL);
	if (rc != NVML_SUCCESS && rc != NVML_ERROR_INSUFFICIENT_SIZE)
		return rc;
	rc = vgpu_nvml_device(driver, tenant, list->device, &device);
	if (rc)
		return rc;
	owns = vgpu_nvml_processes(tenant, device.slices, own);
	return list->mode == NVML_PROCESS_MODE_COMPUTE ? list_users(list, own, owns, count, infos)
						       : filter_list(list, own, owns, count, infos);
}

/* ---- nine lists -------------------------------------------------------------------------- */

static nvmlReturn_t ask_list(const struct nvml_list *list, unsigned int *count, void *entries)
{
	nvmlReturn_t (*real)(nvmlDevice_t, unsigned int *, void *) =
		(nvmlReturn_t (*)(nvmlDevice_t, unsigned int *, void *))list->real;

	return FORWARD(real(list->device, count, entries));
}

#define LIST(symbol, mode_, size)                                                                  \
	BEGIN(symbol, device, count, infos);                                                       \
	return rewrite_list(driver, tenant,                                                        \
			    &(struct nvml_list){.ask = ask_list,                                   \
						.real = (void *)driver->real.symbol,               \
						.device = device,                                  \
						.entry_size = (uint32_t)(size),                    \
						.mode = NVML_PROCESS_MODE_##mode_},                \
			    count, infos)

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
						  nvmlProcessInfo_v1_t *infos)
{
	LIST(nvmlDeviceGetComputeRunningProcesses, COMPUTE, sizeof(*infos));
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
						     nvmlProcessInfo_v2_t *infos)
{
	LIST(nvmlDeviceGetComputeRunningProcesses_v2, COMPUTE, sizeof(*infos));
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
						     nvmlProcessInfo_v2_t *infos)
{
	LIST(nvmlDeviceGetComputeRunningProcesses_v3, COMPUTE, driver->nvml_process_v3_size);
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses(nvmlDevice_t device, unsigned int *count,
						   nvmlProcessInfo_v1_t *infos)
{
	LIST(nvmlDeviceGetGraphicsRunningProcesses, GRAPHICS, sizeof(*infos));
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
						      nvmlProcessInfo_v2_t *infos)
{
	LIST(nvmlDeviceGetGraphicsRunningProcesses_v2, GRAPHICS, sizeof(*infos));
}

nvmlReturn_t nvmlDeviceGetGraphicsRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
						      nvmlProcessInfo_v2_t *infos)
{
	LIST(nvmlDeviceGetGraphicsRunningProcesses_v3, GRAPHICS, driver->nvml_process_v3_size);
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
						     nvmlProcessInfo_v1_t *infos)
{
	LIST(nvmlDeviceGetMPSComputeRunningProcesses, MPS, sizeof(*infos));
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
							nvmlProcessInfo_v2_t *infos)
{
	LIST(nvmlDeviceGetMPSComputeRunningProcesses_v2, MPS, sizeof(*infos));
}

nvmlReturn_t nvmlDeviceGetMPSComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
							nvmlProcessInfo_v2_t *infos)
{
	LIST(nvmlDeviceGetMPSComputeRunningProcesses_v3, MPS, driver->nvml_process_v3_size);
}

/* ---- the one that has them all -------------------------------------------------------------- */

static nvmlReturn_t ask_detail(const struct nvml_list *list, unsigned int *count, void *entries)
{
	__typeof__(&nvmlDeviceGetRunningProcessDetailList) real =
		(__typeof__(&nvmlDeviceGetRunningProcessDetailList))list->real;
	nvmlProcessDetailList_v1_t detail = {list->version, list->mode, *count, entries};
	nvmlReturn_t rc = FORWARD(real(list->device, &detail));

	*count = detail.numProcArrayEntries;
	return rc;
}

nvmlReturn_t nvmlDeviceGetRunningProcessDetailList(nvmlDevice_t device,
						   nvmlProcessDetailList_v1_t *detail)
{
	struct nvml_list list = {.ask = ask_detail, .device = device};
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetRunningProcessDetailList, device, detail);
	if (!detail)
		return FORWARD(driver->real.nvmlDeviceGetRunningProcessDetailList(device, detail));
	list.real = (void *)driver->real.nvmlDeviceGetRunningProcessDetailList;
	list.entry_size = sizeof(*detail->procArray);
	list.version = detail->version;
	list.mode = detail->mode;
	rc = vgpu_nvml_known_version(driver, &list, NVML_PROCESS_DETAIL_LIST_V1);
	return rc ? rc
		  : rewrite_list(driver, tenant, &list, &detail->numProcArrayEntries,
				 detail->procArray);
}
