/* SPDX-License-Identifier: Apache-2.0
 *
 * The beginning and the end of contexts.  A context takes memory for itself
 * before the program has asked for any: that is charged first and corrected when
 * it is there (overhead.c).  Its end frees its allocations, and its events, without
 * a word to anyone: what was charged for the first is refunded, the second must
 * not be touched again.
 */
#include "blocks.h"
#include "markers.h"
#include "overhead.h"
#include "pools.h"

CUresult cuInit(unsigned int flags)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);

	if (vgpu_tenant()->is_faulty)
		return FAULTY_CUDA;
	return driver->real.cuInit(flags);
}

/* ---- the beginning ---------------------------------------------------------------------- */

static int primary_is_active(const struct driver *driver, CUdevice device)
{
	unsigned int flags;
	int active = 0;

	return !driver->used.cuDevicePrimaryCtxGetState(device, &flags, &active) && active;
}

static void undo_create(const struct driver *driver, CUcontext context, CUdevice device)
{
	if (driver->real.cuCtxDestroy_v2(context) == CUDA_ERROR_NOT_SUPPORTED)
		driver->real.cuCtxDestroy(context);
}

static void undo_retain(const struct driver *driver, CUcontext context, CUdevice device)
{
	if (driver->real.cuDevicePrimaryCtxRelease_v2(device) == CUDA_ERROR_NOT_SUPPORTED)
		driver->real.cuDevicePrimaryCtxRelease(device);
}

#define BEGIN(symbol, undo, exists, parameters, arguments)                                         \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		struct overhead overhead;                                                          \
		CUresult rc, answer;                                                               \
                                                                                                   \
		if (!context || !vgpu_tenant()->ledger || exists)                                  \
			return driver->real.symbol arguments;                                      \
		rc = vgpu_context_begin(&overhead, driver, device);                                \
		/* Another thread may have made it while this one waited for room. */              \
		if (rc)                                                                            \
			return exists ? driver->real.symbol arguments : rc;                        \
		rc = driver->real.symbol arguments;                                                \
		answer = vgpu_context_begun(&overhead, rc, context);                               \
		if (answer && !rc)                                                                 \
			undo(driver, *context, device);                                            \
		return answer;                                                                     \
	}

BEGIN(cuCtxCreate, undo_create, 0, (CUcontext * context, unsigned int flags, CUdevice device),
      (context, flags, device))
BEGIN(cuCtxCreate_v2, undo_create, 0, (CUcontext * context, unsigned int flags, CUdevice device),
      (context, flags, device))
BEGIN(cuCtxCreate_v3, undo_create, 0,
      (CUcontext * context, CUexecAffinityParam *affinity, int count, unsigned int flags,
       CUdevice device),
      (context, affinity, count, flags, device))
BEGIN(cuCtxCreate_v4, undo_create, 0,
      (CUcontext * context, CUctxCreateParams *parameters, unsigned int flags, CUdevice device),
      (context, parameters, flags, device))
BEGIN(cuGLCtxCreate, undo_create, 0, (CUcontext * context, unsigned int flags, CUdevice device),
      (context, flags, device))
BEGIN(cuGLCtxCreate_v2, undo_create, 0, (CUcontext * context, unsigned int flags, CUdevice device),
      (context, flags, device))
/* Each use of a primary context is counted; it takes memory with the first. */
BEGIN(cuDevicePrimaryCtxRetain, undo_retain, primary_is_active(driver, device),
      (CUcontext * context, CUdevice device), (context, device))

/* ---- the end of a context ------------------------------------------------------------- */

static int is_of_context(const struct record *record, const void *context)
{
	return record->context == context;
}

static void refund_records(const struct driver *driver, struct process *process,
			   struct record *record)
{
	const struct tenant *tenant = vgpu_tenant();

	while (record) {
		struct record *next = record->next;

		if (record->kind == RECORD_CONTEXT)
			vgpu_context_ended(process, record->account);
		vgpu_give_back(tenant, process, record);
		record = next;
	}
	vgpu_pools_check(driver, tenant, process);
}

static void refund_context(const struct driver *driver, struct process *process, CUcontext context)
{
	refund_records(driver, process,
		       vgpu_record_take_all(&process->records, is_of_context, context));
}

static void restore_records(struct process *process, struct record *record)
{
	while (record) {
		struct record *next = record->next;

		vgpu_settled(&(struct claim){NULL, vgpu_tenant(), process, NULL}, record,
			     CUDA_ERROR_INVALID_CONTEXT);
		record = next;
	}
}

typedef CUresult (*end_context)(CUcontext);

static CUresult end(end_context real, CUcontext context)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = context ? vgpu_accounted() : NULL;
	struct record *taken = NULL;
	CUresult rc;

	/* Before, not after: other threads read events that are about to go, and may
	 * be given a context of the same number as soon as the driver is done. */
	if (process) {
		vgpu_markers_forget(process, context);
		taken = vgpu_record_take_all(&process->records, is_of_context, context);
	}
	rc = real(context);
	if (process && rc)
		restore_records(process, taken);
	else if (process)
		refund_records(driver, process, taken);
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
	struct process *process = context ? vgpu_accounted() : NULL;
	unsigned int version;
	CUresult rc;

	if (process)
		vgpu_markers_forget(process, context);
	rc = driver->real.cuCtxDetach(context);
	if (process && !rc && driver->used.cuCtxGetApiVersion(context, &version))
		refund_context(driver, process, context);
	return rc;
}

/* ---- the end of a device's primary context ---------------------------------------------- */

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
	struct process *process = vgpu_accounted();
	CUcontext context = process ? primary_context(driver, device) : NULL;
	CUresult rc;

	if (context)
		vgpu_markers_forget(process, context);
	rc = real(device);
	/* A release ends the context only if it was the last. */
	if (context && !rc && !primary_is_active(driver, device))
		refund_context(driver, process, context);
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

/* ---- green contexts --------------------------------------------------------------------- */

/* Each uses its device's primary context, and may be the first to do so. */
CUresult cuGreenCtxCreate(CUgreenCtx *green, CUdevResourceDesc resources, CUdevice device,
			  unsigned int flags)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct overhead overhead;
	CUcontext context;
	CUresult rc, answer;

	if (!green || !vgpu_tenant()->ledger || primary_is_active(driver, device))
		return driver->real.cuGreenCtxCreate(green, resources, device, flags);
	rc = vgpu_context_begin(&overhead, driver, device);
	if (rc)
		return rc;
	rc = driver->real.cuGreenCtxCreate(green, resources, device, flags);
	context = rc ? NULL : primary_context(driver, device);
	/* One that left the primary context alone has taken nothing. */
	answer = vgpu_context_begun(&overhead, rc || context ? rc : CUDA_ERROR_NOT_FOUND, &context);
	if (!rc && !context)
		return rc;
	if (answer && !rc)
		driver->real.cuGreenCtxDestroy(*green);
	return answer;
}

/* ... and the last. */
CUresult cuGreenCtxDestroy(CUgreenCtx green)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	CUcontext primaries[VGPU_MAX_SLICES] = {NULL};
	CUresult rc;

	for (int slice = 0; process && slice < VGPU_MAX_SLICES; slice++) {
		CUdevice device = vgpu_device_of_slice(process, slice);

		if (device >= 0 && __atomic_load_n(&process->contexts[slice], __ATOMIC_RELAXED))
			primaries[slice] = primary_context(driver, device);
	}
	rc = driver->real.cuGreenCtxDestroy(green);
	for (int slice = 0; !rc && slice < VGPU_MAX_SLICES; slice++) {
		if (!primaries[slice] ||
		    primary_is_active(driver, vgpu_device_of_slice(process, slice)))
			continue;
		vgpu_markers_forget(process, primaries[slice]);
		refund_context(driver, process, primaries[slice]);
	}
	return rc;
}
