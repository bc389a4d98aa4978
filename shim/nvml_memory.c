/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrite, NVML's memory.  What a device keeps for its driver is nobody's to
 * allocate, and CUDA does not count it: a limited slice is shown without it, so
 * that CUDA and NVML name one number even for a slice as large as its device.
 */
#include "nvml_view.h"

/* Version 1 does not tell what the driver keeps; version 2 does, if it is there. */
static uint64_t reserved_bytes(const struct driver *driver, nvmlDevice_t device)
{
	nvmlMemory_v2_t detail = {.version = NVML_MEMORY_V2};

	return FORWARD(driver->real.nvmlDeviceGetMemoryInfo_v2(device, &detail)) ? 0
										 : detail.reserved;
}

/* Until it is known whose the device is, the program is told nothing of it: NVML
 * may have ended since it answered. */
static nvmlReturn_t view_of(const struct driver *driver, struct tenant *tenant, nvmlDevice_t handle,
			    uint64_t total, uint64_t free, struct view *view)
{
	struct nvml_device device;
	nvmlReturn_t rc = vgpu_nvml_device(driver, tenant, handle, &device);

	if (!rc)
		*view = vgpu_view(tenant, device.slice, total, free);
	return rc;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	nvmlMemory_t real;
	struct view view;
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetMemoryInfo, device, memory);
	rc = FORWARD(driver->real.nvmlDeviceGetMemoryInfo(device, memory ? &real : NULL));
	if (!rc)
		rc = view_of(driver, tenant, device,
			     real.total - lesser(reserved_bytes(driver, device), real.total),
			     real.free, &view);
	if (rc)
		return rc;
	*memory = real;
	if (!view.is_limited)
		return rc;
	memory->total = view.total;
	memory->free = view.free;
	memory->used = view.total - view.free;
	return rc;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	nvmlMemory_v2_t real = {.version = memory ? memory->version : 0};
	struct view view;
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetMemoryInfo_v2, device, memory);
	rc = FORWARD(driver->real.nvmlDeviceGetMemoryInfo_v2(device, memory ? &real : NULL));
	if (!rc)
		rc = view_of(driver, tenant, device, real.total - lesser(real.reserved, real.total),
			     real.free, &view);
	if (rc)
		return rc;
	*memory = real;
	if (!view.is_limited)
		return rc;
	memory->total = view.total;
	memory->free = view.free;
	memory->used = view.used;
	/* Nothing, as long as the device has what the slice has a right to. */
	memory->reserved = view.total - view.used - view.free;
	return rc;
}

/* The window through which the processor reaches the device's memory: more of it
 * than there is memory is of no use.  Who maps what through it nobody tells. */
nvmlReturn_t nvmlDeviceGetBAR1MemoryInfo(nvmlDevice_t device, nvmlBAR1Memory_t *memory)
{
	nvmlBAR1Memory_t real;
	struct view view;
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetBAR1MemoryInfo, device, memory);
	rc = FORWARD(driver->real.nvmlDeviceGetBAR1MemoryInfo(device, memory ? &real : NULL));
	if (!rc)
		rc = view_of(driver, tenant, device, UINT64_MAX, UINT64_MAX, &view);
	if (rc)
		return rc;
	*memory = real;
	if (!view.is_limited)
		return rc;
	memory->bar1Total = lesser(real.bar1Total, view.total);
	memory->bar1Used = lesser(real.bar1Used, memory->bar1Total);
	memory->bar1Free = memory->bar1Total - memory->bar1Used;
	return rc;
}
