/* SPDX-License-Identifier: Apache-2.0
 *
 * Covering a request: the provision that it brings to its pool (pools.c).
 *
 * Memory that a pool keeps for later is charged.  A request that will get such
 * memory must not need room of its own: then the provision comes out of what the
 * pool is charged.  That it will is certain only of a block as large that was
 * freed on the same stream, whatever that stream has still to do; a guess from
 * how much is idle in all would let pools grow beyond the quota.  And no other
 * request may be on its way to take that block.
 */
#include <sched.h>

#include "account.h"
#include "pools.h"

/* Sizes from here on no device has. */
#define LARGEST_SIZE (1ull << 60)
/* How often a request gives way to those before it, that are in the driver. */
#define CLAIM_TRIES 1000

/* ---- covering ----------------------------------------------------------------------- */

CUresult vgpu_pool_enter(const struct pool_request *request)
{
	struct pool *pool = request->pool;
	int row;

	if (pool->slice < 0)
		return pool->slice == SLICE_NOT_GRANTED ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
	row = vgpu_process_row(request->tenant, request->process);
	if (row < 0)
		return CUDA_ERROR_OUT_OF_MEMORY;
	__atomic_store_n(&pool->row, (uint32_t)row, __ATOMIC_RELAXED);
	vgpu_process_active(request->tenant, row, pool->slice);
	return CUDA_SUCCESS;
}

static void add_provision(struct pool_request *request, uint64_t bytes)
{
	vgpu_lock(&request->pool->lock);
	request->pool->provisions += bytes;
	vgpu_unlock(&request->pool->lock);
	request->provision += bytes;
}

/* 0 also for a size that no device has: the driver refuses it. */
static uint64_t in_steps(uint64_t step, uint64_t bytes)
{
	return bytes > UINT64_MAX - step ? bytes : (bytes + step - 1) & ~(step - 1);
}

/* From now on it may take any idle block.  Returns what it has to be covered by: if
 * it takes the one that another request counts on, that one has to grow. */
static uint64_t depart(struct pool_request *request, uint64_t bytes)
{
	struct pool *pool = request->pool;
	uint64_t step;
	uint32_t claims;

	vgpu_lock(&pool->lock);
	pool->in_flight += !request->is_in_flight;
	request->is_in_flight = 1;
	claims = pool->claims;
	step = pool->step;
	vgpu_unlock(&pool->lock);
	return in_steps(step, claims && bytes < LARGEST_SIZE ? bytes + bytes / 4 : bytes);
}

void vgpu_pool_done(struct pool_request *request)
{
	struct pool *pool = request->pool;

	if (!request->is_in_flight)
		return;
	vgpu_lock(&pool->lock);
	pool->in_flight--;
	pool->claims -= (uint32_t)request->is_claim;
	vgpu_unlock(&pool->lock);
	request->is_in_flight = request->is_claim = 0;
}

int vgpu_pool_cover(struct pool_request *request, uint64_t bytes)
{
	const struct pool *pool = request->pool;

	bytes = depart(request, bytes);
	if (vgpu_charge_if_room(request->tenant, vgpu_pool_row(pool), (uint32_t)pool->slice,
				bytes)) {
		if (!request->provision)
			vgpu_pool_done(request);
		return -1;
	}
	add_provision(request, bytes);
	return 0;
}

static void remove_spare(struct pool *pool, uint32_t index)
{
	pool->spare_count--;
	for (uint32_t i = index; i < pool->spare_count; i++)
		pool->spares[i] = pool->spares[i + 1];
}

/* The newest one first; a driver splits no block that is much too large. */
static int find_spare(const struct pool *pool, uint64_t stream, uint64_t bytes)
{
	for (uint32_t i = pool->spare_count; i--;)
		if (pool->spares[i].stream == stream && pool->spares[i].bytes >= bytes &&
		    pool->spares[i].bytes - bytes <= bytes / 4)
			return (int)i;
	return -1;
}

/* With the pool's lock.  Returns the size of the block. */
static uint64_t claim_spare(struct pool_request *request, int index)
{
	struct pool *pool = request->pool;
	uint64_t bytes = pool->spares[index].bytes;

	remove_spare(pool, (uint32_t)index);
	if (bytes > pool->charged)
		return 0;
	pool->charged -= bytes;
	pool->provisions += bytes;
	pool->in_flight++;
	pool->claims++;
	request->is_in_flight = request->is_claim = 1;
	request->provision += bytes;
	return bytes;
}

int vgpu_pool_cover_by_spare(struct pool_request *request, uint64_t stream, uint64_t bytes)
{
	struct pool *pool = request->pool;

	for (int tries = 0; tries < CLAIM_TRIES; tries++) {
		uint64_t found = 0;
		int index;

		vgpu_lock(&pool->lock);
		index = find_spare(pool, stream, bytes);
		if (index >= 0 && !pool->in_flight)
			found = claim_spare(request, index);
		vgpu_unlock(&pool->lock);
		if (found || index < 0)
			return found ? 0 : -1;
		sched_yield();
	}
	return -1;
}

uint64_t vgpu_pool_cover_by_own(struct pool_request *request, uint64_t bytes)
{
	struct pool *pool = request->pool;

	vgpu_lock(&pool->lock);
	if (bytes > pool->charged)
		bytes = pool->charged;
	pool->charged -= bytes;
	pool->provisions += bytes;
	vgpu_unlock(&pool->lock);
	request->provision += bytes;
	return bytes;
}

int vgpu_pool_insist(struct pool_request *request, uint64_t bytes)
{
	const struct claim claim = {request->driver, request->tenant, request->process, NULL};
	const struct pool *pool = request->pool;

	bytes = depart(request, bytes);
	if (vgpu_try_charge(&claim, vgpu_pool_row(pool), (uint32_t)pool->slice, bytes)) {
		vgpu_pool_done(request);
		return -1;
	}
	add_provision(request, bytes);
	return 0;
}

void vgpu_pool_cancel(struct pool_request *request)
{
	struct pool *pool = request->pool;

	if (!request->provision)
		return;
	vgpu_lock(&pool->lock);
	pool->provisions -= request->provision;
	vgpu_unlock(&pool->lock);
	vgpu_refund(request->tenant->ledger, vgpu_pool_row(pool), (uint32_t)pool->slice,
		    request->provision);
	request->provision = 0;
}

/* ---- use ---------------------------------------------------------------------------- */

void vgpu_pool_used(const struct pool_request *request, uint64_t stream)
{
	struct pool *pool = request->pool;
	int index;

	vgpu_lock(&pool->lock);
	pool->live += request->bytes;
	pool->uses++;
	/* It got some idle block: this one, or we do not know which.  Nor do we when
	 * others have asked at the same time: what grew may have grown for them. */
	index = find_spare(pool, stream, request->bytes);
	if (pool->in_flight > 1 || (!request->has_grown && index < 0))
		pool->spare_count = 0;
	else if (!request->has_grown)
		remove_spare(pool, (uint32_t)index);
	vgpu_unlock(&pool->lock);
}

void vgpu_pool_add_spare(struct pool *pool, uint64_t uses, uint64_t stream, uint64_t bytes)
{
	vgpu_lock(&pool->lock);
	if (pool->uses == uses && !pool->in_flight) {
		if (pool->spare_count == POOL_SPARES)
			remove_spare(pool, 0);
		pool->spares[pool->spare_count++] = (struct spare){stream, bytes};
	}
	vgpu_unlock(&pool->lock);
}

void vgpu_pool_freed(struct process *process, struct pool *pool, uint64_t bytes)
{
	vgpu_lock(&pool->lock);
	/* A pool that went with its context may have left records behind. */
	pool->live = pool->live > bytes ? pool->live - bytes : 0;
	vgpu_unlock(&pool->lock);
	vgpu_pools_mark_dirty(process);
}

void vgpu_pool_keeps(struct process *process, struct pool *pool, uint64_t bytes)
{
	__atomic_store_n(&pool->keeps, bytes, __ATOMIC_RELAXED);
	vgpu_pools_mark_dirty(process);
}
