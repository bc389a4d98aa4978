/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that the driver keeps in stock and hands out itself: pools of stream-
 * ordered memory, and for each device what its graphs allocate.  A pool is
 * charged what the driver has reserved for it, whoever uses how much of that.
 */
#ifndef VGPU_POOLS_H
#define VGPU_POOLS_H

#include "process.h"

/* What is asked of a pool: how to ask the driver for it. */
struct pool_request {
	const struct driver *driver;
	const struct tenant *tenant;
	struct process *process;
	struct pool *pool;
	uint64_t provision; /* charged for growth that may come */
	uint64_t bytes;
};

/* The pool of a handle, or with `is_graph` of a device's graphs; noted if it is
 * new.  NULL: there is no memory to note it. */
struct pool *vgpu_pool_of(struct process *process, uint64_t handle, int is_graph, int slice);
/* The pool if it is known; NULL otherwise. */
struct pool *vgpu_pool_known(struct process *process, uint64_t handle, int is_graph);

/* The slice that is charged, or SLICE_NOT_GRANTED, or SLICE_NONE. */
int vgpu_pool_slice(const struct pool *pool);

/* Before the driver is asked for `bytes`: charge that the pool may grow by them.
 * CUDA_ERROR_OUT_OF_MEMORY, or success also when the pool has that much idle. */
CUresult vgpu_pool_provide(struct pool_request *request);
/* After it: the pool is charged what it has reserved now.  0, or -1 when it has
 * grown by more than there is room for. */
int vgpu_pool_settle(const struct pool_request *request);
/* `bytes` were handed out. */
void vgpu_pool_used(struct pool *pool, uint64_t bytes);
/* `bytes` of it were freed: the driver lets go of them when it next synchronises. */
void vgpu_pool_freed(const struct tenant *tenant, struct process *process, struct pool *pool,
		     uint64_t bytes);
/* The program has set what the pool may keep when it is idle. */
void vgpu_pool_keeps(struct process *process, struct pool *pool, uint64_t bytes);
/* The handle is gone; the memory goes with the last allocation. */
void vgpu_pool_closed(const struct tenant *tenant, struct process *process, struct pool *pool);

/* Whether some pool may hold less than it is charged. */
static inline int vgpu_pools_are_dirty(const struct process *process)
{
	return __atomic_load_n(&process->pools_dirty, __ATOMIC_RELAXED) != 0;
}

/* Read again what those pools have reserved. */
void vgpu_pools_refresh(const struct driver *driver, const struct tenant *tenant,
			struct process *process);
/* A context has ended, and perhaps the pools of its device. */
void vgpu_pools_check(const struct driver *driver, const struct tenant *tenant,
		      struct process *process);
/* Have this process' pools on a slice let go of what they keep for later.
 * Whether any did. */
int vgpu_pools_shrink(const struct driver *driver, const struct tenant *tenant,
		      struct process *process, int slice);

#endif
