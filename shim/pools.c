/* SPDX-License-Identifier: Apache-2.0
 *
 * What a pool has reserved only the driver knows, and only after the fact.  So
 * each request charges a provision first, that the pool may grow by it, and
 * then takes over what it has grown by.  At all moments
 *
 *	reserved <= charged + provisions of the requests under way
 *
 * A reading of the driver's figure is used only if no other was used since it
 * was begun (`version`): an old one would forget what others have taken over.
 * No lock is held while the driver is asked.
 *
 * Memory that a pool keeps for later is charged, and handing it out again is
 * not refused.  When the quota has no room, pools are trimmed first; what they
 * cannot let go of yet (its work is not done) they can still hand out, and then
 * the driver is asked with whatever provision there is.  Nothing waits for work.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "account.h"
#include "pools.h"

#define SETTLE_TRIES 8
#define LARGEST_STEP (64ull << 20)

struct pool {
	struct pool *next; /* of all pools of the process; never unlinked */
	uint64_t handle;   /* CUmemoryPool, or the CUdevice of graphs; see is_open */
	int is_graph;
	int slice; /* or SLICE_NOT_GRANTED, or SLICE_NONE */
	int is_open;
	struct lock lock; /* for what follows */
	uint64_t version;
	uint64_t charged;    /* taken over from provisions */
	uint64_t provisions; /* of requests under way */
	uint64_t live;       /* bytes handed out and not freed */
	uint64_t keeps;      /* bytes that it may keep when idle */
	uint64_t step;       /* it has been seen to grow by no less than this */
	uint32_t row;
	int is_closing; /* POOL_...: its handle is gone; 0: not so */
};

#define POOL_CLOSING 1
#define POOL_ENDING 2

/* ---- finding ------------------------------------------------------------------------------ */

struct pool *vgpu_pool_known(struct process *process, uint64_t handle, int is_graph)
{
	struct pool *pool = __atomic_load_n(&process->pools, __ATOMIC_ACQUIRE);

	for (; pool; pool = pool->next)
		if (__atomic_load_n(&pool->is_open, __ATOMIC_ACQUIRE) && pool->handle == handle &&
		    pool->is_graph == is_graph)
			return pool;
	return NULL;
}

static struct pool *new_pool(struct process *process)
{
	struct pool *pool = __atomic_load_n(&process->pools, __ATOMIC_ACQUIRE);

	/* One that is closed, and that nobody holds memory of. */
	for (; pool; pool = pool->next)
		if (!__atomic_load_n(&pool->is_open, __ATOMIC_ACQUIRE) && !pool->is_closing)
			return pool;
	pool = mmap(NULL, sizeof(*pool), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		    0);
	if (pool == MAP_FAILED)
		return NULL;
	madvise(pool, sizeof(*pool), MADV_DONTFORK);
	pool->next = process->pools;
	__atomic_store_n(&process->pools, pool, __ATOMIC_RELEASE);
	return pool;
}

struct pool *vgpu_pool_of(struct process *process, uint64_t handle, int is_graph, int slice)
{
	struct pool *pool = vgpu_pool_known(process, handle, is_graph);

	if (pool)
		return pool;
	vgpu_lock_and_sleep(&process->pools_lock);
	pool = vgpu_pool_known(process, handle, is_graph);
	if (!pool && (pool = new_pool(process))) {
		pool->handle = handle;
		pool->is_graph = is_graph;
		pool->slice = slice;
		/* Graph memory stays until it is trimmed. */
		pool->keeps = is_graph ? UINT64_MAX : 0;
		pool->charged = pool->provisions = pool->live = pool->step = 0;
		__atomic_store_n(&pool->is_open, 1, __ATOMIC_RELEASE);
	}
	vgpu_unlock(&process->pools_lock);
	return pool;
}

int vgpu_pool_slice(const struct pool *pool)
{
	return pool->slice;
}

/* ---- what the driver says -------------------------------------------------------------------- */

static CUresult ask(const struct driver *driver, const struct pool *pool, int is_reserved,
		    uint64_t *bytes)
{
	*bytes = 0;
	if (pool->is_graph)
		return driver->used.cuDeviceGetGraphMemAttribute(
			(CUdevice)pool->handle,
			is_reserved ? CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT
				    : CU_GRAPH_MEM_ATTR_USED_MEM_CURRENT,
			bytes);
	return driver->used.cuMemPoolGetAttribute((CUmemoryPool)pool->handle,
						  is_reserved ? CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT
							      : CU_MEMPOOL_ATTR_USED_MEM_CURRENT,
						  bytes);
}

static void trim(const struct driver *driver, const struct pool *pool)
{
	if (pool->is_graph)
		driver->real.cuDeviceGraphMemTrim((CUdevice)pool->handle);
	else
		driver->real.cuMemPoolTrimTo((CUmemoryPool)pool->handle, 0);
}

/* ---- settling ----------------------------------------------------------------------------------
 */

/* With the pool's lock: `reserved` is what it has, `provision` the caller brings.
 * Returns what is to be refunded; -1 through `short_of` when growth has no cover. */
static uint64_t take_over(const struct tenant *tenant, struct pool *pool, uint64_t reserved,
			  uint64_t provision, int *short_of)
{
	uint64_t grown, back;

	if (reserved <= pool->charged) {
		back = pool->charged - reserved + provision;
		pool->charged = reserved;
		return back;
	}
	grown = reserved - pool->charged;
	if (grown <= provision) {
		pool->charged = reserved;
		return provision - grown;
	}
	/* The rest was perhaps taken for requests that are still under way. */
	if (grown - provision <= pool->provisions) {
		pool->charged += provision;
		return 0;
	}
	if (vgpu_charge_if_room(tenant, pool->row, (uint32_t)pool->slice, grown - provision)) {
		pool->charged += provision;
		*short_of = -1;
		return 0;
	}
	pool->charged = reserved;
	return 0;
}

static void learn_step(struct pool *pool, uint64_t bytes, uint64_t grown)
{
	/* It grew by more than it was asked for, so it grows in steps of at least... */
	while (grown > bytes && pool->step <= grown - bytes && pool->step < LARGEST_STEP)
		pool->step = pool->step ? 2 * pool->step : 1;
}

static int settle(const struct driver *driver, const struct tenant *tenant, struct pool *pool,
		  uint64_t provision, uint64_t bytes)
{
	uint64_t reserved, back = 0;
	int short_of = 0;

	for (int tries = 1;; tries++) {
		uint64_t version = __atomic_load_n(&pool->version, __ATOMIC_ACQUIRE);
		CUresult rc = ask(driver, pool, 1, &reserved);

		vgpu_lock(&pool->lock);
		if (pool->version != version && tries < SETTLE_TRIES) {
			vgpu_unlock(&pool->lock);
			continue;
		}
		pool->provisions -= provision;
		/* Not to be had, or old: too much is charged rather than too little. */
		if (rc || (pool->version != version && reserved < pool->charged + provision))
			reserved = pool->charged + provision;
		pool->version++;
		if (bytes && reserved > pool->charged && !pool->provisions)
			learn_step(pool, bytes, reserved - pool->charged);
		back = take_over(tenant, pool, reserved, provision, &short_of);
		vgpu_unlock(&pool->lock);
		break;
	}
	if (back)
		vgpu_refund(tenant->ledger, pool->row, (uint32_t)pool->slice, back);
	return short_of;
}

int vgpu_pool_settle(const struct pool_request *request)
{
	if (request->pool->slice < 0)
		return 0;
	return settle(request->driver, request->tenant, request->pool, request->provision,
		      request->bytes);
}

/* ---- providing ---------------------------------------------------------------------------------
 */

static int charge_provision(struct pool_request *request, uint64_t bytes)
{
	struct pool *pool = request->pool;

	if (vgpu_charge_if_room(request->tenant, pool->row, (uint32_t)pool->slice, bytes))
		return -1;
	vgpu_lock(&pool->lock);
	pool->provisions += bytes;
	vgpu_unlock(&pool->lock);
	request->provision = bytes;
	return 0;
}

/* Handing out again what the pool has idle takes nothing.  What can be charged of
 * the bytes all the same covers a driver that does not find it good enough. */
static int has_idle(struct pool_request *request, uint64_t bytes)
{
	struct pool *pool = request->pool;
	uint64_t reserved, used, quota, charged, room;

	if (ask(request->driver, pool, 1, &reserved) || ask(request->driver, pool, 0, &used) ||
	    reserved < used || reserved - used < request->bytes)
		return 0;
	quota = vgpu_quota_of(request->tenant->grant, (uint32_t)pool->slice);
	charged = vgpu_charged(request->tenant->ledger, (uint32_t)pool->slice);
	room = charged < quota ? quota - charged : 0;
	if (room && bytes && charge_provision(request, room < bytes ? room : bytes))
		request->provision = 0;
	return 1;
}

CUresult vgpu_pool_provide(struct pool_request *request)
{
	struct pool *pool = request->pool;
	const struct claim claim = {request->driver, request->tenant, request->process, NULL};
	uint64_t bytes = request->bytes, step = __atomic_load_n(&pool->step, __ATOMIC_RELAXED);
	int row;

	request->provision = 0;
	if (pool->slice < 0)
		return pool->slice == SLICE_NOT_GRANTED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
	row = vgpu_process_row(request->tenant, request->process);
	if (row < 0)
		return CUDA_ERROR_OUT_OF_MEMORY;
	__atomic_store_n(&pool->row, (uint32_t)row, __ATOMIC_RELAXED);
	vgpu_process_active(request->tenant, row, pool->slice);
	/* A graph that is launched again finds its memory as it left it. */
	if (pool->is_graph && has_idle(request, 0))
		return CUDA_SUCCESS;
	if (step && bytes <= UINT64_MAX - step)
		bytes = (bytes + step - 1) & ~(step - 1);
	if (likely(!charge_provision(request, bytes)))
		return CUDA_SUCCESS;
	vgpu_pools_shrink(request->driver, request->tenant, request->process, pool->slice);
	if (!charge_provision(request, bytes) || has_idle(request, bytes))
		return CUDA_SUCCESS;
	/* With a sweep of the dead, and the refusal counted. */
	if (vgpu_try_charge(&claim, pool->row, (uint32_t)pool->slice, bytes))
		return CUDA_ERROR_OUT_OF_MEMORY;
	vgpu_lock(&pool->lock);
	pool->provisions += bytes;
	vgpu_unlock(&pool->lock);
	request->provision = bytes;
	return CUDA_SUCCESS;
}

/* ---- use
 * ------------------------------------------------------------------------------------------ */

static void mark_dirty(struct process *process)
{
	__atomic_store_n(&process->pools_dirty, 1, __ATOMIC_RELAXED);
}

void vgpu_pool_used(struct pool *pool, uint64_t bytes)
{
	__atomic_fetch_add(&pool->live, bytes, __ATOMIC_RELAXED);
}

void vgpu_pool_keeps(struct process *process, struct pool *pool, uint64_t bytes)
{
	__atomic_store_n(&pool->keeps, bytes, __ATOMIC_RELAXED);
	mark_dirty(process);
}

/* All that is charged; the driver cannot be asked any more. */
static void drop_charge(const struct tenant *tenant, struct pool *pool)
{
	uint64_t back;

	vgpu_lock(&pool->lock);
	back = pool->charged;
	pool->charged = 0;
	pool->version++;
	vgpu_unlock(&pool->lock);
	if (back)
		vgpu_refund(tenant->ledger, pool->row, (uint32_t)pool->slice, back);
}

/* Of the threads that see a closed pool empty, one drops what it is charged. */
static void end_closed(const struct tenant *tenant, struct pool *pool)
{
	int closing = POOL_CLOSING;

	if (!__atomic_compare_exchange_n(&pool->is_closing, &closing, POOL_ENDING, 0,
					 __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		return;
	drop_charge(tenant, pool);
	__atomic_store_n(&pool->is_closing, 0, __ATOMIC_RELEASE);
}

void vgpu_pool_freed(const struct tenant *tenant, struct process *process, struct pool *pool,
		     uint64_t bytes)
{
	uint64_t live = __atomic_load_n(&pool->live, __ATOMIC_RELAXED), left;

	/* A pool that went with its context left records behind. */
	do {
		left = live > bytes ? live - bytes : 0;
	} while (!__atomic_compare_exchange_n(&pool->live, &live, left, 1, __ATOMIC_ACQ_REL,
					      __ATOMIC_RELAXED));
	mark_dirty(process);
	if (!left)
		end_closed(tenant, pool);
}

void vgpu_pool_closed(const struct tenant *tenant, struct process *process, struct pool *pool)
{
	mark_dirty(process);
	__atomic_store_n(&pool->is_closing, POOL_CLOSING, __ATOMIC_RELEASE);
	__atomic_store_n(&pool->is_open, 0, __ATOMIC_RELEASE);
	if (!__atomic_load_n(&pool->live, __ATOMIC_ACQUIRE))
		end_closed(tenant, pool);
}

/* ---- what they let go of
 * ---------------------------------------------------------------------------- */

/* Whether a pool may still let go of something by itself. */
static int is_expected_to_shrink(const struct pool *pool)
{
	uint64_t live = __atomic_load_n(&pool->live, __ATOMIC_RELAXED);
	uint64_t keeps = __atomic_load_n(&pool->keeps, __ATOMIC_RELAXED);

	return __atomic_load_n(&pool->charged, __ATOMIC_RELAXED) > (live > keeps ? live : keeps);
}

static struct pool *next_open(struct pool *pool)
{
	while (pool && !(__atomic_load_n(&pool->is_open, __ATOMIC_ACQUIRE) && pool->slice >= 0))
		pool = pool->next;
	return pool;
}

static struct pool *first_open(struct process *process)
{
	return next_open(__atomic_load_n(&process->pools, __ATOMIC_ACQUIRE));
}

void vgpu_pools_refresh(const struct driver *driver, const struct tenant *tenant,
			struct process *process)
{
	int is_dirty = 0;

	/* First: a free in the meantime marks them anew. */
	__atomic_store_n(&process->pools_dirty, 0, __ATOMIC_RELAXED);
	for (struct pool *pool = first_open(process); pool; pool = next_open(pool->next)) {
		if (!is_expected_to_shrink(pool))
			continue;
		settle(driver, tenant, pool, 0, 0);
		is_dirty |= is_expected_to_shrink(pool);
	}
	if (is_dirty)
		mark_dirty(process);
}

void vgpu_pools_check(const struct driver *driver, const struct tenant *tenant,
		      struct process *process)
{
	for (struct pool *pool = first_open(process); pool; pool = next_open(pool->next)) {
		uint64_t reserved;
		CUresult rc = pool->charged ? ask(driver, pool, 1, &reserved) : CUDA_SUCCESS;

		/* A pool that went with its context. */
		if (rc == CUDA_ERROR_INVALID_VALUE || rc == CUDA_ERROR_INVALID_HANDLE ||
		    rc == CUDA_ERROR_INVALID_CONTEXT) {
			drop_charge(tenant, pool);
			__atomic_store_n(&pool->live, 0, __ATOMIC_RELAXED);
		} else if (!rc) {
			settle(driver, tenant, pool, 0, 0);
		}
	}
}

int vgpu_pools_shrink(const struct driver *driver, const struct tenant *tenant,
		      struct process *process, int slice)
{
	int did_shrink = 0;

	for (struct pool *pool = first_open(process); pool; pool = next_open(pool->next)) {
		uint64_t before = __atomic_load_n(&pool->charged, __ATOMIC_RELAXED);

		if (pool->slice != slice ||
		    (!pool->is_graph && before <= __atomic_load_n(&pool->live, __ATOMIC_RELAXED)))
			continue;
		trim(driver, pool);
		settle(driver, tenant, pool, 0, 0);
		did_shrink |= __atomic_load_n(&pool->charged, __ATOMIC_RELAXED) < before;
	}
	return did_shrink;
}
