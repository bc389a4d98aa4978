/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrite, NVML's memory.  What a device keeps for its driver is nobody's to
 * allocate, and CUDA does not count it: a limited slice is shown without it, so
 * that CUDA and NVML name one number even for a slice as large as its device.
 */
#include "nvml_view.h"

static uint64_t lesser(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Version 1 does not tell what the driver keeps; version 2 does, if it is there. */
static uint64_t reserved_bytes(const struct driver *driver, nvmlDevice_t device)
{
	nvmlMemory_v2_t detail = {.version = NVML_MEMORY_V2};

	return FORWARD(driver->real.nvmlDeviceGetMemoryInfo_v2(device, &detail)) ? 0
										 : detail.reserved;
}

static struct view view_of(const struct driver *driver, struct tenant *tenant, nvmlDevice_t device,
			   uint64_t total, uint64_t reserved, uint64_t free)
{
	return vgpu_view(tenant, vgpu_nvml_device(driver, tenant, device).slice,
			 total - lesser(reserved, total), free);
}

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	struct view view;
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetMemoryInfo, device, memory);
	rc = FORWARD(driver->real.nvmlDeviceGetMemoryInfo(device, memory));
	if (rc)
		return rc;
	view = view_of(driver, tenant, device, memory->total, reserved_bytes(driver, device),
		       memory->free);
	if (!view.is_limited)
		return rc;
	memory->total = view.total;
	memory->free = view.free;
	memory->used = view.total - view.free;
	return rc;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	struct view view;
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetMemoryInfo_v2, device, memory);
	rc = FORWARD(driver->real.nvmlDeviceGetMemoryInfo_v2(device, memory));
	if (rc)
		return rc;
	view = view_of(driver, tenant, device, memory->total, memory->reserved, memory->free);
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
	struct view view;
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetBAR1MemoryInfo, device, memory);
	rc = FORWARD(driver->real.nvmlDeviceGetBAR1MemoryInfo(device, memory));
	if (rc)
		return rc;
	view = view_of(driver, tenant, device, UINT64_MAX, 0, UINT64_MAX);
	if (!view.is_limited)
		return rc;
	memory->bar1Total = lesser(memory->bar1Total, view.total);
	memory->bar1Used = lesser(memory->bar1Used, memory->bar1Total);
	memory->bar1Free = memory->bar1Total - memory->bar1Used;
	return rc;
}
