/* SPDX-License-Identifier: Apache-2.0
 *
 * What becomes of pools: letting go, ending, and going with a context.
 *
 * A pool that the program ends may hold memory for work that is not done yet,
 * and then nobody could ask any more how much.  So such a pool is taken from the
 * program's sight, told to keep nothing, and ended for the driver when it is
 * empty.
 */
#include "account.h"
#include "late.h"
#include "pools.h"

static uint32_t state_of(const struct pool *pool)
{
	return __atomic_load_n(&pool->state, __ATOMIC_ACQUIRE);
}

static int become(struct pool *pool, uint32_t from, uint32_t to)
{
	return __atomic_compare_exchange_n(&pool->state, &from, to, 0, __ATOMIC_ACQ_REL,
					   __ATOMIC_RELAXED);
}

static uint64_t charged(struct pool *pool)
{
	return vgpu_pool_figure(pool, &pool->charged);
}

static uint64_t live(struct pool *pool)
{
	return vgpu_pool_figure(pool, &pool->live);
}

static struct pool *next_in_use(struct pool *pool)
{
	while (pool &&
	       (pool->slice < 0 || (state_of(pool) != POOL_OPEN && state_of(pool) != POOL_CLOSING)))
		pool = pool->next;
	return pool;
}

static struct pool *first_in_use(struct process *process)
{
	return next_in_use(__atomic_load_n(&process->pools, __ATOMIC_ACQUIRE));
}

/* ---- letting go --------------------------------------------------------------------- */

/* The program may be capturing a stream, on this thread or another: our calls are
 * nothing to that. */
void vgpu_pool_trim(const struct driver *driver, const struct tenant *tenant, struct pool *pool)
{
	CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;

	driver->used.cuThreadExchangeStreamCaptureMode(&mode);
	if (pool->is_graph)
		driver->real.cuDeviceGraphMemTrim((CUdevice)pool->handle);
	else
		driver->real.cuMemPoolTrimTo((CUmemoryPool)pool->handle, 0);
	driver->used.cuThreadExchangeStreamCaptureMode(&mode);
	vgpu_pool_reread(driver, tenant, pool);
}

int vgpu_pools_shrink(const struct driver *driver, const struct tenant *tenant,
		      struct process *process, int slice)
{
	int is_left, did_shrink = vgpu_late_settle(driver, tenant, process, &is_left);

	for (struct pool *pool = first_in_use(process); pool; pool = next_in_use(pool->next)) {
		uint64_t before = charged(pool);

		if (pool->slice != slice || !before || (!pool->is_graph && before <= live(pool)))
			continue;
		vgpu_pool_trim(driver, tenant, pool);
		did_shrink |= charged(pool) < before;
	}
	return did_shrink;
}

/* Whether it may still let go of something by itself. */
static int is_expected_to_shrink(struct pool *pool)
{
	uint64_t stays;
	int is_expected;

	vgpu_lock(&pool->lock);
	stays = pool->live > pool->keeps ? pool->live : pool->keeps;
	is_expected = pool->charged > stays || pool->is_unsure;
	vgpu_unlock(&pool->lock);
	return is_expected;
}

/* A pool that the program has ended.  1: it is not empty yet. */
static int is_kept_open(const struct driver *driver, struct pool *pool)
{
	if (live(pool) || charged(pool) || vgpu_pool_figure(pool, &pool->provisions))
		return 1;
	if (become(pool, POOL_CLOSING, POOL_ENDING)) {
		driver->real.cuMemPoolDestroy((CUmemoryPool)pool->handle);
		__atomic_store_n(&pool->state, POOL_UNUSED, __ATOMIC_RELEASE);
	}
	return 0;
}

void vgpu_pools_refresh(const struct driver *driver, const struct tenant *tenant,
			struct process *process)
{
	int is_dirty = 0;

	/* First: a free in the meantime marks them anew. */
	__atomic_exchange_n(&process->pools_dirty, 0, __ATOMIC_ACQ_REL);
	vgpu_late_settle(driver, tenant, process, &is_dirty);
	for (struct pool *pool = first_in_use(process); pool; pool = next_in_use(pool->next)) {
		if (is_expected_to_shrink(pool)) {
			vgpu_pool_reread(driver, tenant, pool);
			is_dirty |= is_expected_to_shrink(pool);
		}
		if (state_of(pool) == POOL_CLOSING)
			is_dirty |= is_kept_open(driver, pool);
	}
	if (is_dirty)
		vgpu_pools_mark_dirty(process);
}

/* ---- ending ------------------------------------------------------------------------- */

/* As the driver does: the device goes on with its own pool. */
static void leave_device(const struct driver *driver, const struct process *process,
			 const struct pool *pool)
{
	CUdevice device = vgpu_device_of_slice(process, pool->slice);
	CUmemoryPool current = NULL, own = NULL;

	if (device < 0 || driver->used.cuDeviceGetMemPool(&current, device) ||
	    (uintptr_t)current != pool->handle ||
	    driver->used.cuDeviceGetDefaultMemPool(&own, device))
		return;
	driver->used.cuDeviceSetMemPool(device, own);
}

CUresult vgpu_pool_end(const struct driver *driver, const struct tenant *tenant,
		       struct process *process, struct pool *pool)
{
	CUmemoryPool handle = (CUmemoryPool)pool->handle;
	uint64_t nothing = 0;
	CUresult rc;

	/* Before: the handle may be a new pool's as soon as the driver is done. */
	if (!become(pool, POOL_OPEN, POOL_CLOSING))
		return CUDA_ERROR_INVALID_VALUE;
	if (charged(pool))
		vgpu_pool_trim(driver, tenant, pool);
	if (pool->slice < 0 || (!live(pool) && !charged(pool))) {
		become(pool, POOL_CLOSING, POOL_ENDING);
		rc = driver->real.cuMemPoolDestroy(handle);
		__atomic_store_n(&pool->state, rc ? POOL_OPEN : POOL_UNUSED, __ATOMIC_RELEASE);
		return rc;
	}
	rc = driver->real.cuMemPoolSetAttribute(handle, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD,
						&nothing);
	if (rc) {
		become(pool, POOL_CLOSING, POOL_OPEN);
		return rc;
	}
	leave_device(driver, process, pool);
	vgpu_pool_keeps(process, pool, 0);
	return CUDA_SUCCESS;
}

/* ---- going with a context ----------------------------------------------------------- */

static int is_of_pool(const struct record *record, const void *pool)
{
	return record->kind == RECORD_POINTER && record->pool == pool;
}

static void forget_allocations(struct process *process, const struct pool *pool)
{
	struct record *record = vgpu_record_take_all(&process->records, is_of_pool, pool);

	while (record) {
		struct record *next = record->next;

		vgpu_record_free(&process->records, record);
		record = next;
	}
}

static int is_gone(const struct driver *driver, const struct pool *pool)
{
	uint64_t bytes;
	CUresult rc;

	if (pool->is_graph)
		return 0;
	rc = driver->used.cuMemPoolGetAttribute((CUmemoryPool)pool->handle,
						CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT, &bytes);
	return rc == CUDA_ERROR_INVALID_VALUE || rc == CUDA_ERROR_INVALID_HANDLE;
}

void vgpu_pools_check(const struct driver *driver, const struct tenant *tenant,
		      struct process *process)
{
	for (struct pool *pool = first_in_use(process); pool; pool = next_in_use(pool->next)) {
		int had_memory = live(pool) || charged(pool);

		if (!had_memory && state_of(pool) == POOL_OPEN)
			continue;
		if (is_gone(driver, pool)) {
			vgpu_pool_drop(tenant, pool);
			become(pool, POOL_CLOSING, POOL_UNUSED);
		} else {
			vgpu_pool_reread(driver, tenant, pool);
		}
		if (had_memory && !charged(pool))
			forget_allocations(process, pool);
		if (state_of(pool) == POOL_CLOSING)
			is_kept_open(driver, pool);
	}
}
