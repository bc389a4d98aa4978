/* SPDX-License-Identifier: Apache-2.0
 *
 * The beginning and the end of the driver's objects.  The end of a context
 * frees its allocations, and its events, without a word to anyone: what was
 * charged for the first is refunded, the second must not be touched again.
 */
#include "markers.h"

CUresult cuInit(unsigned int flags)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);

	if (vgpu_tenant()->is_faulty)
		return FAULTY_CUDA;
	return driver->real.cuInit(flags);
}

/* ---- the end of a context ------------------------------------------------------------- */

static struct process *tracked(void)
{
	return vgpu_tenant()->ledger ? vgpu_process() : NULL;
}

static void refund_context(struct process *process, CUcontext context)
{
	struct record *record = vgpu_record_take_context(&process->records, context);

	while (record) {
		struct record *next = record->next;

		vgpu_refund(vgpu_tenant()->ledger, record->row, record->slice, record->bytes);
		vgpu_record_free(&process->records, record);
		record = next;
	}
}

typedef CUresult (*end_context)(CUcontext);

static CUresult end(end_context real, CUcontext context)
{
	struct process *process = context ? tracked() : NULL;
	CUresult rc;

	/* Before, not after: other threads read events that are about to go. */
	if (process)
		vgpu_markers_forget(process, context);
	rc = real(context);
	if (process && !rc)
		refund_context(process, context);
	return rc;
}

CUresult cuCtxDestroy(CUcontext context)
{
	return end(vgpu_driver(LIBRARY_CUDA)->real.cuCtxDestroy, context);
}

CUresult cuCtxDestroy_v2(CUcontext context)
{
	return end(vgpu_driver(LIBRARY_CUDA)->real.cuCtxDestroy_v2, context);
}

/* One use of the context less; it ends with the last. */
CUresult cuCtxDetach(CUcontext context)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = context ? tracked() : NULL;
	unsigned int version;
	CUresult rc;

	if (process)
		vgpu_markers_forget(process, context);
	rc = driver->real.cuCtxDetach(context);
	if (process && !rc && driver->used.cuCtxGetApiVersion(context, &version))
		refund_context(process, context);
	return rc;
}

/* ---- the end of a device's primary context ---------------------------------------------- */

static int primary_is_active(const struct driver *driver, CUdevice device)
{
	unsigned int flags;
	int active = 0;

	return !driver->used.cuDevicePrimaryCtxGetState(device, &flags, &active) && active;
}

/* The handle of a primary context that is there; NULL if it is not. */
static CUcontext primary_context(const struct driver *driver, CUdevice device)
{
	CUcontext context = NULL;

	if (!primary_is_active(driver, device) ||
	    driver->used.cuDevicePrimaryCtxRetain(&context, device))
		return NULL;
	/* It stays: the program holds it. */
	if (driver->real.cuDevicePrimaryCtxRelease_v2(device) == CUDA_ERROR_NOT_SUPPORTED)
		driver->real.cuDevicePrimaryCtxRelease(device);
	return context;
}

typedef CUresult (*end_primary)(CUdevice);

static CUresult end_of_primary(end_primary real, CUdevice device)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = tracked();
	CUcontext context = process ? primary_context(driver, device) : NULL;
	CUresult rc;

	if (context)
		vgpu_markers_forget(process, context);
	rc = real(device);
	/* A release ends the context only if it was the last. */
	if (context && !rc && !primary_is_active(driver, device))
		refund_context(process, context);
	return rc;
}

CUresult cuDevicePrimaryCtxRelease(CUdevice device)
{
	return end_of_primary(vgpu_driver(LIBRARY_CUDA)->real.cuDevicePrimaryCtxRelease, device);
}

CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device)
{
	return end_of_primary(vgpu_driver(LIBRARY_CUDA)->real.cuDevicePrimaryCtxRelease_v2, device);
}

CUresult cuDevicePrimaryCtxReset(CUdevice device)
{
	return end_of_primary(vgpu_driver(LIBRARY_CUDA)->real.cuDevicePrimaryCtxReset, device);
}

CUresult cuDevicePrimaryCtxReset_v2(CUdevice device)
{
	return end_of_primary(vgpu_driver(LIBRARY_CUDA)->real.cuDevicePrimaryCtxReset_v2, device);
}
