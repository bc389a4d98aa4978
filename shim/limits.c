/* SPDX-License-Identifier: Apache-2.0
 *
 * Limits of a context: room for stacks, for what kernels print and allocate.  It is
 * memory of the context, which is charged with it: by how much CUDA's figure for the
 * device's free memory falls when a limit is raised, and rises when one is lowered,
 * but no more than such a limit can take, for other tenants change that figure too.
 */
#include "overhead.h"

/* What the driver adds to what was asked for, and what limits take that nobody can compute. */
#define ROUNDING (4ull << 20)
#define UNKNOWN_MOST (256ull << 20)

/* The most that `difference` more, or less, of a limit takes on the current device. */
static uint64_t most(const struct driver *driver, CUlimit limit, uint64_t difference)
{
	int processors = 0, threads = 0;
	uint64_t bytes = difference;
	CUdevice device;

	if (limit != CU_LIMIT_STACK_SIZE && limit != CU_LIMIT_PRINTF_FIFO_SIZE &&
	    limit != CU_LIMIT_MALLOC_HEAP_SIZE)
		return UNKNOWN_MOST;
	if (limit == CU_LIMIT_STACK_SIZE &&
	    (driver->used.cuCtxGetDevice(&device) ||
	     driver->used.cuDeviceGetAttribute(&processors,
					       CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT, device) ||
	     driver->used.cuDeviceGetAttribute(
		     &threads, CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR, device) ||
	     __builtin_mul_overflow(bytes, (uint64_t)processors * (uint64_t)threads, &bytes)))
		return UINT64_MAX;
	return bytes > UINT64_MAX - bytes / 4 - ROUNDING ? UINT64_MAX
							 : bytes + bytes / 4 + ROUNDING;
}

/* How much more is charged, or with a negative sign given back. */
static int64_t change(const struct driver *driver, CUlimit limit, size_t earlier, size_t value,
		      int64_t grown)
{
	uint64_t cap;

	if (value > earlier && grown > 0) {
		cap = most(driver, limit, value - earlier);
		return (uint64_t)grown > cap ? (int64_t)cap : grown;
	}
	if (value < earlier && grown < 0) {
		cap = most(driver, limit, earlier - value);
		return (uint64_t)-grown > cap ? -(int64_t)cap : grown;
	}
	return 0;
}

static int add(struct record *record, void *bytes)
{
	record->bytes += *(const uint64_t *)bytes;
	return 0;
}

/* No more than the context was charged: what it gives back was perhaps never seen. */
static int subtract(struct record *record, void *argument)
{
	uint64_t *bytes = argument;

	if (*bytes > record->bytes)
		*bytes = record->bytes;
	record->bytes -= *bytes;
	return 0;
}

/* Charged to the context; 0, or -1 when it does not fit. */
static int charge(struct claim *claim, CUcontext context, int slice, uint64_t bytes)
{
	int row = vgpu_process_row(claim->tenant, claim->process);

	if (row < 0 || vgpu_try_charge(claim, (uint32_t)row, (uint32_t)slice, bytes))
		return -1;
	/* A context that is not charged at all is not begun with. */
	if (vgpu_record_visit(&claim->process->records, RECORD_CONTEXT, (uintptr_t)context, add,
			      &bytes) < 0)
		vgpu_refund(claim->tenant->ledger, (uint32_t)row, (uint32_t)slice, bytes);
	return 0;
}

static void refund(struct claim *claim, CUcontext context, int slice, uint64_t bytes)
{
	int row = vgpu_process_row(claim->tenant, claim->process);

	if (row >= 0 && !vgpu_record_visit(&claim->process->records, RECORD_CONTEXT,
					   (uintptr_t)context, subtract, &bytes))
		vgpu_refund(claim->tenant->ledger, (uint32_t)row, (uint32_t)slice, bytes);
}

CUresult cuCtxSetLimit(CUlimit limit, size_t value)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	int64_t before, after, bytes;
	CUcontext context;
	struct claim claim;
	size_t earlier;
	CUresult rc;
	int slice;

	if (!tenant->ledger || vgpu_claim(&claim, driver, tenant) ||
	    !vgpu_is_limited(tenant, slice = vgpu_current_slice(driver, tenant, claim.process)) ||
	    driver->used.cuCtxGetCurrent(&context) || !context ||
	    driver->used.cuCtxGetLimit(&earlier, limit))
		return driver->real.cuCtxSetLimit(limit, value);
	before = vgpu_device_used(driver);
	rc = driver->real.cuCtxSetLimit(limit, value);
	after = vgpu_device_used(driver);
	if (rc || before < 0 || after < 0)
		return rc;
	bytes = change(driver, limit, earlier, value, after - before);
	if (bytes < 0)
		refund(&claim, context, slice, (uint64_t)-bytes);
	else if (bytes && charge(&claim, context, slice, (uint64_t)bytes)) {
		driver->real.cuCtxSetLimit(limit, earlier);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return rc;
}
