/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrite, NVML's utilisation of processes: the driver's samples of the tenant's
 * own.  The percents stay those of the whole device, as all of NVML's rates are.
 * When nothing of the tenant's is left, there is nothing newer: "not found".
 */
#include <stddef.h>

#include "nvml_view.h"

static nvmlReturn_t rewrite_samples(const struct driver *driver, struct tenant *tenant,
				    const struct nvml_list *list, unsigned int *count, void *to)
{
	struct nvml_process own[NVML_MAX_LISTED];
	unsigned int there;
	size_t mapped = 0;
	void *entries;
	nvmlReturn_t rc = vgpu_nvml_fetch(list, &entries, &there, &mapped);

	if (!rc && there)
		there = vgpu_nvml_keep_own(list, entries, there, own,
					   vgpu_nvml_processes(tenant, 0, own));
	if (!rc && !to)
		*count = 0; /* room without a place for it is none */
	if (!rc)
		rc = there ? vgpu_nvml_deliver(list, entries, there, count, to)
			   : NVML_ERROR_NOT_FOUND;
	vgpu_nvml_drop(entries, mapped);
	return rc;
}

static nvmlReturn_t ask_samples(const struct nvml_list *list, unsigned int *count, void *entries)
{
	__typeof__(&nvmlDeviceGetProcessUtilization) real =
		(__typeof__(&nvmlDeviceGetProcessUtilization))list->real;

	return FORWARD(real(list->device, entries, count, list->newer_than));
}

nvmlReturn_t nvmlDeviceGetProcessUtilization(nvmlDevice_t device,
					     nvmlProcessUtilizationSample_t *samples,
					     unsigned int *count, unsigned long long newer_than)
{
	struct nvml_list list = {.ask = ask_samples,
				 .device = device,
				 .entry_size = sizeof(*samples),
				 .pid_at = offsetof(nvmlProcessUtilizationSample_t, pid),
				 .newer_than = newer_than};

	BEGIN(nvmlDeviceGetProcessUtilization, device, samples, count, newer_than);
	list.real = (void *)driver->real.nvmlDeviceGetProcessUtilization;
	if (!count)
		return ask_samples(&list, count, samples);
	return rewrite_samples(driver, tenant, &list, count, samples);
}

static nvmlReturn_t ask_info(const struct nvml_list *list, unsigned int *count, void *entries)
{
	__typeof__(&nvmlDeviceGetProcessesUtilizationInfo) real =
		(__typeof__(&nvmlDeviceGetProcessesUtilizationInfo))list->real;
	nvmlProcessesUtilizationInfo_v1_t info = {list->version, *count, list->newer_than, entries};
	nvmlReturn_t rc = FORWARD(real(list->device, &info));

	*count = info.processSamplesCount;
	return rc;
}

nvmlReturn_t nvmlDeviceGetProcessesUtilizationInfo(nvmlDevice_t device,
						   nvmlProcessesUtilizationInfo_v1_t *info)
{
	struct nvml_list list = {.ask = ask_info,
				 .device = device,
				 .entry_size = sizeof(nvmlProcessUtilizationInfo_v1_t),
				 .pid_at = offsetof(nvmlProcessUtilizationInfo_v1_t, pid)};
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetProcessesUtilizationInfo, device, info);
	if (!info)
		return FORWARD(driver->real.nvmlDeviceGetProcessesUtilizationInfo(device, info));
	list.real = (void *)driver->real.nvmlDeviceGetProcessesUtilizationInfo;
	list.version = info->version;
	list.newer_than = info->lastSeenTimeStamp;
	rc = vgpu_nvml_known_version(driver, &list, NVML_PROCESSES_UTILIZATION_INFO_V1);
	return rc ? rc
		  : rewrite_samples(driver, tenant, &list, &info->processSamplesCount,
				    info->procUtilArray);
}
