/* SPDX-License-Identifier: Apache-2.0
 *
 * What a pool has reserved only the driver knows, and only after the fact.  So
 * each request brings a provision, that the pool may grow by it, and then takes
 * over what it has grown by.  At all moments
 *
 *	reserved <= charged + provisions of the requests under way
 *
 * A reading of the driver's figure is used only if no other was used since it
 * was begun (`version`): an old one would forget what others have taken over.
 * No lock is held while the driver is asked.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sys/mman.h>

#include "account.h"
#include "pools.h"

#define SETTLE_TRIES 8
#define LARGEST_STEP (64ull << 20)

/* ---- finding ------------------------------------------------------------------------ */

static uint32_t state_of(const struct pool *pool)
{
	return __atomic_load_n(&pool->state, __ATOMIC_ACQUIRE);
}

struct pool *vgpu_pool_known(struct process *process, uint64_t handle, int is_graph,
			     enum pool_state state)
{
	struct pool *pool = __atomic_load_n(&process->pools, __ATOMIC_ACQUIRE);

	for (; pool; pool = pool->next)
		if (state_of(pool) == state && pool->handle == handle && pool->is_graph == is_graph)
			return pool;
	return NULL;
}

static struct pool *unused_pool(struct process *process)
{
	struct pool *pool = process->pools;

	while (pool && state_of(pool) != POOL_UNUSED)
		pool = pool->next;
	if (pool)
		return pool;
	pool = mmap(NULL, sizeof(*pool), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1,
		    0);
	if (pool == MAP_FAILED)
		return NULL;
	/* A child of fork begins without pools. */
	madvise(pool, sizeof(*pool), MADV_DONTFORK);
	pool->next = process->pools;
	__atomic_store_n(&process->pools, pool, __ATOMIC_RELEASE);
	return pool;
}

/* With the list's lock.  What is left in an unused pool is of no account. */
static struct pool *open_pool(struct process *process, const struct pool *like)
{
	struct pool *pool = unused_pool(process), *next;

	if (!pool)
		return NULL;
	next = pool->next;
	*pool = *like;
	pool->next = next;
	pool->row = NO_ROW;
	pool->step = POOL_BLOCK;
	pool->epoch = 1; /* no graph that was never launched has it */
	__atomic_store_n(&pool->state, POOL_OPEN, __ATOMIC_RELEASE);
	return pool;
}

struct pool *vgpu_pool_of(struct process *process, uint64_t handle, int is_graph, int slice)
{
	struct pool *pool = vgpu_pool_known(process, handle, is_graph, POOL_OPEN);

	if (pool)
		return pool;
	vgpu_lock_and_sleep(&process->pools_lock);
	pool = vgpu_pool_known(process, handle, is_graph, POOL_OPEN);
	if (!pool) /* graph memory stays until it is trimmed */
		pool = open_pool(process, &(struct pool){.handle = handle,
							 .is_graph = is_graph,
							 .slice = slice,
							 .keeps = is_graph ? UINT64_MAX : 0});
	vgpu_unlock(&process->pools_lock);
	return pool;
}

struct pool *vgpu_pool_made(const struct tenant *tenant, struct process *process, uint64_t handle,
			    int slice)
{
	struct pool *pool, *earlier;

	vgpu_lock_and_sleep(&process->pools_lock);
	earlier = vgpu_pool_known(process, handle, 0, POOL_OPEN);
	if (earlier) {
		/* It went without a word, as with its device's last context. */
		vgpu_pool_drop(tenant, earlier);
		__atomic_store_n(&earlier->state, POOL_UNUSED, __ATOMIC_RELEASE);
	}
	pool = open_pool(process, &(struct pool){.handle = handle, .is_made = 1, .slice = slice});
	vgpu_unlock(&process->pools_lock);
	return pool;
}

uint64_t vgpu_stream_key(const struct driver *driver, struct stream stream)
{
	uintptr_t handle = (uintptr_t)stream.handle;
	CUcontext context = NULL;

	if (handle > CU_STREAM_PER_THREAD_VALUE)
		return handle;
	driver->used.cuCtxGetCurrent(&context);
	/* Addresses are even; so neither is another's, nor a stream's. */
	if (handle == CU_STREAM_PER_THREAD_VALUE || (!handle && stream.per_thread))
		return ((uintptr_t)context ^ (uintptr_t)pthread_self() << 8) | 1;
	return (uintptr_t)context + 3;
}

/* ---- what the driver says ----------------------------------------------------------- */

static CUresult ask_reserved(const struct driver *driver, const struct pool *pool, uint64_t *bytes)
{
	*bytes = 0;
	return pool->is_graph
		       ? driver->used.cuDeviceGetGraphMemAttribute(
				 (CUdevice)pool->handle, CU_GRAPH_MEM_ATTR_RESERVED_MEM_CURRENT,
				 bytes)
		       : driver->used.cuMemPoolGetAttribute((CUmemoryPool)pool->handle,
							    CU_MEMPOOL_ATTR_RESERVED_MEM_CURRENT,
							    bytes);
}

uint64_t vgpu_pool_figure(struct pool *pool, const uint64_t *figure)
{
	uint64_t value;

	vgpu_lock(&pool->lock);
	value = *figure;
	vgpu_unlock(&pool->lock);
	return value;
}

/* ---- settling: all with the pool's lock --------------------------------------------- */

/* What was known of memory that it had holds no longer. */
static void forget_memory(struct pool *pool)
{
	pool->spare_count = 0;
	pool->uses++;
	pool->epoch++;
	pool->trims++;
	if (!pool->charged && !pool->provisions) {
		pool->live = 0;
		pool->stream = 0;
		pool->is_mixed = 0;
	}
}

/* More than any provision: it is there, so it is charged, whatever the quota says. */
static int charge_surplus(const struct tenant *tenant, const struct pool *pool, uint64_t bytes)
{
	if (!vgpu_charge_if_room(tenant, vgpu_pool_row(pool), (uint32_t)pool->slice, bytes))
		return 0;
	vgpu_charge(tenant->ledger, vgpu_pool_row(pool), (uint32_t)pool->slice, bytes, UINT64_MAX);
	return -1;
}

/* `reserved` is what it has, `provision` the caller brings.  Returns what is to be
 * refunded; -1 through `short_of` when there was no room for its growth. */
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
	*short_of = charge_surplus(tenant, pool, grown - provision);
	pool->charged = reserved;
	return 0;
}

/* It grew by more than it was asked for, so it grows in steps of at least... */
static void learn_step(struct pool *pool, uint64_t bytes, uint64_t grown)
{
	while (grown > bytes && pool->step <= grown - bytes && pool->step < LARGEST_STEP)
		pool->step *= 2;
}

struct settling {
	uint64_t provision, bytes, back;
	int short_of, has_grown, is_old;
};

/* What was read is used; `is_old`: perhaps it is not what the pool has now. */
static void apply(const struct tenant *tenant, struct pool *pool, uint64_t reserved, int is_old,
		  struct settling *settling)
{
	uint64_t before = pool->charged, provision = settling->provision;

	/* All that is covered stays charged until it is read again. */
	if (is_old)
		reserved = before + provision;
	pool->is_unsure = settling->is_old = is_old;
	pool->version++;
	pool->provisions -= provision;
	if (settling->bytes && reserved > before && !pool->provisions)
		learn_step(pool, settling->bytes, reserved - before);
	settling->back = take_over(tenant, pool, reserved, provision, &settling->short_of);
	settling->has_grown = pool->charged > before;
	if (pool->charged < before)
		forget_memory(pool);
}

static void settle(const struct driver *driver, const struct tenant *tenant, struct pool *pool,
		   struct settling *settling)
{
	for (int tries = 1;; tries++) {
		uint64_t version = vgpu_pool_figure(pool, &pool->version), reserved;
		CUresult rc = ask_reserved(driver, pool, &reserved);
		int is_old;

		vgpu_lock(&pool->lock);
		is_old = rc || pool->version != version;
		if (!rc && is_old && tries < SETTLE_TRIES) {
			vgpu_unlock(&pool->lock);
			continue;
		}
		apply(tenant, pool, rc ? 0 : reserved, is_old, settling);
		vgpu_unlock(&pool->lock);
		break;
	}
	if (settling->back)
		vgpu_refund(tenant->ledger, vgpu_pool_row(pool), (uint32_t)pool->slice,
			    settling->back);
}

int vgpu_pool_settle(struct pool_request *request)
{
	struct settling settling = {.provision = request->provision, .bytes = request->bytes};

	if (request->pool->slice < 0)
		return 0;
	settle(request->driver, request->tenant, request->pool, &settling);
	if (settling.is_old)
		vgpu_pools_mark_dirty(request->process);
	request->provision = 0;
	request->has_grown = settling.has_grown;
	return settling.short_of;
}

void vgpu_pool_reread(const struct driver *driver, const struct tenant *tenant, struct pool *pool)
{
	if (pool->slice >= 0 && vgpu_pool_row(pool) != NO_ROW)
		settle(driver, tenant, pool, &(struct settling){0});
}

void vgpu_pool_drop(const struct tenant *tenant, struct pool *pool)
{
	uint64_t back;

	vgpu_lock(&pool->lock);
	back = pool->charged;
	pool->charged = 0;
	pool->version++;
	forget_memory(pool);
	vgpu_unlock(&pool->lock);
	if (back)
		vgpu_refund(tenant->ledger, vgpu_pool_row(pool), (uint32_t)pool->slice, back);
}
