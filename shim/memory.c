/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: memory is charged before the driver is asked for it, so that at no
 * moment more is held than charged, whoever races.  Each allocation is
 *
 *	charge against the quota, for all processes of the tenant at once
 *	ask the driver
 *	enter what was charged under the new pointer, or give it back
 *
 * and each free the same backwards.  A pointer that we know nothing of, NULL
 * and sizes of 0 go to the driver, whose answers they are.  Stream-ordered
 * memory is refunded when its free is accepted; what the driver's pool keeps
 * of it for later is not counted.
 */
#include "markers.h"

/* Why this is no place for the dead: the sweep reads a file for each row. */
#define ONCE_A_TICK 1

/* Width is rounded up to this before the driver says what the pitch is. */
#define PITCH_GUESS 512

struct claim {
	const struct driver *driver;
	const struct tenant *tenant;
	struct process *process;
	struct record *record; /* NULL: nothing is charged, the driver decides */
};

/* A slice without a limit is charged all the same, for the process list. */
static uint64_t quota_of(const struct tenant *tenant, uint32_t slice)
{
	struct vgpu_quota quota;

	vgpu_quota_read(tenant->grant, slice, &quota);
	return quota.memory >= quota.device_memory ? UINT64_MAX : quota.memory;
}

static int charge(const struct claim *claim, const struct record *record, uint64_t bytes)
{
	struct vgpu_ledger *ledger = claim->tenant->ledger;
	uint64_t quota = quota_of(claim->tenant, record->slice);

	if (likely(!vgpu_charge(ledger, record->row, record->slice, bytes, quota)))
		return 0;
	/* Perhaps what is in the way belongs to processes that are gone. */
	vgpu_process_sweep(claim->tenant, claim->process, ONCE_A_TICK);
	if (!vgpu_charge(ledger, record->row, record->slice, bytes, quota))
		return 0;
	__atomic_fetch_add(&ledger->slices[record->slice].refusals, 1, __ATOMIC_RELAXED);
	return -1;
}

static void give_back(const struct claim *claim, struct record *record)
{
	vgpu_refund(claim->tenant->ledger, record->row, record->slice, record->bytes);
	vgpu_record_free(&claim->process->records, record);
}

/* Charge `bytes` on `slice`; CUDA_SUCCESS also when there is nothing to charge yet. */
static CUresult stake(struct claim *claim, int slice, uint64_t bytes)
{
	struct record *record;
	int row;

	claim->record = NULL;
	if (slice == SLICE_UNKNOWN)
		return CUDA_SUCCESS;
	if (slice == SLICE_NOT_GRANTED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	row = vgpu_process_row(claim->tenant, claim->process);
	record = row < 0 ? NULL : vgpu_record_new(&claim->process->records);
	if (!record)
		return CUDA_ERROR_OUT_OF_MEMORY;
	vgpu_process_active(claim->tenant, row, slice);
	record->slice = (uint32_t)slice;
	record->row = (uint32_t)row;
	record->bytes = bytes;
	if (charge(claim, record, bytes)) {
		vgpu_record_free(&claim->process->records, record);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	claim->record = record;
	return CUDA_SUCCESS;
}

static CUresult stake_here(struct claim *claim, const struct driver *driver,
			   const struct tenant *tenant, uint64_t bytes)
{
	*claim = (struct claim){driver, tenant, vgpu_process(), NULL};
	if (tenant->is_faulty || !claim->process)
		return CUDA_ERROR_OUT_OF_MEMORY;
	return stake(claim, vgpu_current_slice(driver, tenant, claim->process), bytes);
}

static CUresult stake_on_stream(struct claim *claim, const struct driver *driver,
				const struct tenant *tenant, uint64_t bytes, struct stream stream)
{
	int slice;

	*claim = (struct claim){driver, tenant, vgpu_process(), NULL};
	if (tenant->is_faulty || !claim->process)
		return CUDA_ERROR_OUT_OF_MEMORY;
	slice = vgpu_stream_slice(driver, tenant, claim->process, stream.handle, stream.per_thread);
	return stake(claim, slice, bytes);
}

/* The driver has answered `rc`. */
static CUresult conclude(struct claim *claim, CUresult rc, const CUdeviceptr *pointer)
{
	struct record *record = claim->record, *stale;

	if (!record) {
		/* The driver was not set up when we asked and is now: once more, please. */
		if (!rc)
			claim->driver->real.cuMemFree_v2(*pointer);
		return rc ? rc : CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (rc) {
		give_back(claim, record);
		return rc;
	}
	record->pointer = *pointer;
	if (claim->driver->used.cuCtxGetCurrent(&record->context))
		record->context = NULL;
	stale = vgpu_record_enter(&claim->process->records, record);
	if (stale)
		give_back(claim, stale);
	return rc;
}

static int is_charged(const struct tenant *tenant)
{
	return tenant->ledger || tenant->is_faulty;
}

/* ---- allocations -------------------------------------------------------------------------- */

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct claim claim;
	CUresult rc;

	if (!is_charged(tenant) || !pointer || !bytes)
		return driver->real.cuMemAlloc_v2(pointer, bytes);
	rc = stake_here(&claim, driver, tenant, bytes);
	return rc ? rc : conclude(&claim, driver->real.cuMemAlloc_v2(pointer, bytes), pointer);
}

/* In full, wherever its pages are: they may all come to the device. */
CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned int flags)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct claim claim;
	CUresult rc;

	if (!is_charged(tenant) || !pointer || !bytes)
		return driver->real.cuMemAllocManaged(pointer, bytes, flags);
	rc = stake_here(&claim, driver, tenant, bytes);
	return rc ? rc
		  : conclude(&claim, driver->real.cuMemAllocManaged(pointer, bytes, flags),
			     pointer);
}

/* The driver has chosen the pitch: what it costs more than was guessed has to
 * fit as well. */
static CUresult true_up(struct claim *claim, uint64_t bytes)
{
	struct record *record = claim->record;

	if (bytes > record->bytes) {
		if (charge(claim, record, bytes - record->bytes))
			return CUDA_ERROR_OUT_OF_MEMORY;
	} else if (bytes < record->bytes) {
		vgpu_refund(claim->tenant->ledger, record->row, record->slice,
			    record->bytes - bytes);
	}
	record->bytes = bytes;
	return CUDA_SUCCESS;
}

CUresult cuMemAllocPitch_v2(CUdeviceptr *pointer, size_t *pitch, size_t width, size_t height,
			    unsigned int element_bytes)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct claim claim;
	size_t bytes;
	CUresult rc;

	/* A size beyond 64 bits is the driver's to refuse. */
	if (!is_charged(tenant) || !pointer || !pitch || !width || !height ||
	    width > SIZE_MAX - PITCH_GUESS ||
	    __builtin_mul_overflow((width + PITCH_GUESS - 1) / PITCH_GUESS * PITCH_GUESS, height,
				   &bytes))
		return driver->real.cuMemAllocPitch_v2(pointer, pitch, width, height,
						       element_bytes);
	rc = stake_here(&claim, driver, tenant, bytes);
	if (rc)
		return rc;
	rc = driver->real.cuMemAllocPitch_v2(pointer, pitch, width, height, element_bytes);
	if (!rc && claim.record && true_up(&claim, (uint64_t)*pitch * height)) {
		driver->real.cuMemFree_v2(*pointer);
		rc = CUDA_ERROR_OUT_OF_MEMORY;
	}
	return conclude(&claim, rc, pointer);
}

/* Shared by the twins, which differ in what the null stream is. */
static CUresult alloc_async(CUdeviceptr *pointer, size_t bytes, struct stream stream)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	__typeof__(&cuMemAllocAsync) real = stream.per_thread ? driver->real.cuMemAllocAsync_ptsz
							      : driver->real.cuMemAllocAsync;
	struct claim claim;
	CUresult rc;

	/* What is captured becomes part of a graph, and takes memory when that runs. */
	if (!is_charged(tenant) || !pointer || !bytes || vgpu_is_capturing(driver, stream))
		return real(pointer, bytes, stream.handle);
	rc = stake_on_stream(&claim, driver, tenant, bytes, stream);
	return rc ? rc : conclude(&claim, real(pointer, bytes, stream.handle), pointer);
}

CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return alloc_async(pointer, bytes, (struct stream){stream, 0});
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return alloc_async(pointer, bytes, (struct stream){stream, 1});
}

/* ---- frees ------------------------------------------------------------------------------------
 */

/* The record is taken out first: once the driver has freed, another thread may
 * be given the same address. */
static struct record *withdraw(struct claim *claim, CUdeviceptr pointer)
{
	const struct tenant *tenant = vgpu_tenant();

	*claim = (struct claim){NULL, tenant, NULL, NULL};
	if (!tenant->ledger || !pointer)
		return NULL;
	claim->process = vgpu_process();
	if (!claim->process)
		return NULL;
	return vgpu_record_take(&claim->process->records, pointer);
}

static CUresult settle(const struct claim *claim, struct record *record, CUresult rc)
{
	if (record && rc)
		vgpu_record_enter(&claim->process->records, record);
	else if (record)
		give_back(claim, record);
	return rc;
}

CUresult cuMemFree_v2(CUdeviceptr pointer)
{
	struct claim claim;
	struct record *record = withdraw(&claim, pointer);

	return settle(&claim, record, vgpu_driver(LIBRARY_CUDA)->real.cuMemFree_v2(pointer));
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream)
{
	struct claim claim;
	struct record *record = withdraw(&claim, pointer);

	return settle(&claim, record,
		      vgpu_driver(LIBRARY_CUDA)->real.cuMemFreeAsync(pointer, stream));
}

CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream)
{
	struct claim claim;
	struct record *record = withdraw(&claim, pointer);

	return settle(&claim, record,
		      vgpu_driver(LIBRARY_CUDA)->real.cuMemFreeAsync_ptsz(pointer, stream));
}
