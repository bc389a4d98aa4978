/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrite, CUDA's half: the driver answers first, with the program's own
 * arguments, and what it then says of a limited slice is changed to the view.
 * All of CUDA and NVML derive their numbers from vgpu_view, so that they agree.
 */
#include "account.h"

/* The dead hold memory until somebody sweeps: looking often must not cost much. */
#define SWEEP_PERIOD_NS 100000000

struct view vgpu_view(struct tenant *tenant, int slice, uint64_t total, uint64_t free)
{
	struct process *process = vgpu_process();
	struct vgpu_quota quota;
	struct view view = {total, free, total - lesser(free, total), 0};
	uint64_t device_part, used, spilled;

	if (slice < 0)
		return view;
	vgpu_quota_read(tenant->grant, (uint32_t)slice, &quota);
	device_part = vgpu_device_part(&quota);
	if (device_part == UINT64_MAX && !quota.memory_spill)
		return view;
	if (process)
		vgpu_process_sweep(tenant, process, SWEEP_PERIOD_NS);
	view.is_limited = 1;
	device_part = lesser(total, device_part);
	used = lesser(device_part, vgpu_charged(tenant->ledger, (uint32_t)slice));
	/* Other users of the device may have left less than the slice has a right to. */
	view.free = lesser(device_part - used, free);
	/* What lies in host memory is the slice's as well. */
	spilled = lesser(quota.memory_spill, vgpu_charged(tenant->ledger, VGPU_SPILL + slice));
	view.free += quota.memory_spill - spilled;
	view.total = device_part + quota.memory_spill;
	view.used = used + spilled;
	return view;
}

CUresult cuMemGetInfo_v2(size_t *available, size_t *total)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct tenant *tenant = vgpu_tenant();
	struct process *process;
	struct view view;
	CUresult rc;

	if (unlikely(tenant->is_faulty))
		return FAULTY_CUDA;
	rc = driver->real.cuMemGetInfo_v2(available, total);
	if (rc || !tenant->ledger || !(process = vgpu_process()))
		return rc;
	/* Either may be left out, and then counts as unbounded. */
	view = vgpu_view(tenant, vgpu_current_slice(driver, tenant, process),
			 total ? *total : SIZE_MAX, available ? *available : SIZE_MAX);
	if (!view.is_limited)
		return rc;
	if (total)
		*total = view.total;
	if (available)
		*available = view.free;
	return rc;
}

/* From before CUDA 3.2: what does not fit the type is shown as the most that does. */
CUresult cuMemGetInfo(unsigned int *available, unsigned int *total)
{
	size_t wide_available, wide_total;
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	CUresult rc;

	if (unlikely(vgpu_tenant()->is_faulty))
		return FAULTY_CUDA;
	rc = driver->real.cuMemGetInfo(available, total);
	if (rc || !vgpu_tenant()->ledger || cuMemGetInfo_v2(&wide_available, &wide_total))
		return rc;
	if (available)
		*available = (unsigned int)lesser(wide_available, UINT32_MAX);
	if (total)
		*total = (unsigned int)lesser(wide_total, UINT32_MAX);
	return rc;
}

CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct tenant *tenant = vgpu_tenant();
	struct process *process;
	struct view view;
	CUresult rc;

	if (unlikely(tenant->is_faulty))
		return FAULTY_CUDA;
	rc = driver->real.cuDeviceTotalMem_v2(bytes, device);
	if (rc || !bytes || !tenant->ledger || !(process = vgpu_process()))
		return rc;
	view = vgpu_view(tenant, vgpu_slice_of_device(driver, tenant, process, device), *bytes,
			 *bytes);
	if (view.is_limited)
		*bytes = view.total;
	return rc;
}

CUresult cuDeviceTotalMem(unsigned int *bytes, CUdevice device)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	size_t wide;
	CUresult rc;

	if (!vgpu_is_charged(vgpu_tenant()) || !bytes)
		return driver->real.cuDeviceTotalMem(bytes, device);
	rc = cuDeviceTotalMem_v2(&wide, device);
	if (!rc)
		*bytes = (unsigned int)lesser(wide, UINT32_MAX);
	return rc;
}
