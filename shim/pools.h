/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that the driver keeps in stock and hands out itself: pools of stream-
 * ordered memory, and for each device what its graphs allocate.  A pool is
 * charged what the driver has reserved for it, whoever uses how much of that.
 */
#ifndef VGPU_POOLS_H
#define VGPU_POOLS_H

#include "markers.h"
#include "process.h"

/* Device memory comes in blocks of this size; no pool grows by less. */
#define POOL_BLOCK (2ull << 20)
/* Freed blocks that a pool is known to have, at most; older ones are forgotten. */
#define POOL_SPARES 16

#define NO_ROW UINT32_MAX

enum pool_state {
	POOL_UNUSED = 0,
	POOL_OPEN,
	POOL_CLOSING, /* for the program it is gone; for us, when it is empty */
	POOL_ENDING,  /* some thread is ending it now */
};

/* Freed on a stream, and not asked for since: what comes next on that stream and
 * is of that size will get it. */
struct spare {
	uint64_t stream, bytes;
};

struct pool {
	struct pool *next; /* of all pools of the process; never unlinked */
	uint64_t handle;   /* CUmemoryPool, or the CUdevice of graphs */
	uint32_t state;
	int is_graph;
	int is_made;        /* by the program, which may also end it */
	int slice;          /* or SLICE_NOT_GRANTED, or SLICE_NONE */
	uint32_t row;       /* NO_ROW until something is asked of it */
	struct lock lock;   /* for what follows */
	uint64_t is_unsure; /* what it is charged may be more than it has */
	uint64_t version;
	uint64_t charged;    /* what it has reserved, but for provisions */
	uint64_t provisions; /* of requests under way */
	uint64_t live;       /* bytes handed out and not freed */
	uint64_t keeps;      /* bytes that it may keep when idle */
	uint64_t step;       /* it has been seen to grow in steps of this */
	struct spare spares[POOL_SPARES];
	uint64_t spare_count;
	uint32_t in_flight; /* requests that may take a spare block */
	uint32_t claims;    /* ... that count on one */
	uint64_t uses;      /* times that something was handed out or let go of */
	/* What is known of a graph's memory holds as long as its number here. */
	uint64_t epoch;
	uint64_t trims;  /* times that it has let go of something */
	uint64_t stream; /* on which graphs were launched; 0: none yet */
	int is_mixed;    /* ... on others too, or graphs that hold memory after their end */
};

static inline uint32_t vgpu_pool_row(const struct pool *pool)
{
	return __atomic_load_n(&pool->row, __ATOMIC_RELAXED);
}

/* What is asked of a pool. */
struct pool_request {
	const struct driver *driver;
	const struct tenant *tenant;
	struct process *process;
	struct pool *pool;
	uint64_t bytes;
	uint64_t provision; /* charged for growth that may come */
	int is_in_flight, is_claim;
	int has_grown; /* afterwards: by some of the provision */
};

/* ---- pools.c ---------------------------------------------------------------------------- */

/* The pool of a handle, or with `is_graph` of a device's graphs; noted if it is
 * new.  NULL: there is no memory to note it. */
struct pool *vgpu_pool_of(struct process *process, uint64_t handle, int is_graph, int slice);
/* A pool that the program has made now; its handle may have been another's. */
struct pool *vgpu_pool_made(const struct tenant *tenant, struct process *process, uint64_t handle,
			    int slice);
/* The pool if it is known in that state; NULL otherwise. */
struct pool *vgpu_pool_known(struct process *process, uint64_t handle, int is_graph,
			     enum pool_state state);

/* A stream as a number, different for all streams of all contexts and threads. */
uint64_t vgpu_stream_key(const struct driver *driver, struct stream stream);

/* The driver has done what it was asked: the pool is charged what it has reserved now.
 * 0, or -1 when it has grown by more than was covered and there is room for. */
int vgpu_pool_settle(struct pool_request *request);
/* The same without a request. */
void vgpu_pool_reread(const struct driver *driver, const struct tenant *tenant, struct pool *pool);

/* One of the figures under the pool's lock. */
uint64_t vgpu_pool_figure(struct pool *pool, const uint64_t *figure);
/* All that it is charged; the driver has no such pool any more. */
void vgpu_pool_drop(const struct tenant *tenant, struct pool *pool);

/* ---- pool_cover.c ----------------------------------------------------------------------- */

/* Take a row of the ledger for the pool.  CUDA_ERROR_OUT_OF_MEMORY: the pool's device is
 * not granted, or there is no row. */
CUresult vgpu_pool_enter(const struct pool_request *request);
/* Ways to cover that the pool may grow by `bytes`; each 0, or -1 when there is no room. */
int vgpu_pool_cover(struct pool_request *request, uint64_t bytes);
/* By a block that was freed on the stream and will be handed out again. */
int vgpu_pool_cover_by_spare(struct pool_request *request, uint64_t stream, uint64_t bytes);
/* By memory that it has, at most `bytes`.  Returns how much. */
uint64_t vgpu_pool_cover_by_own(struct pool_request *request, uint64_t bytes);
/* By room that is made: all that can be let go of is.  Counts a refusal. */
int vgpu_pool_insist(struct pool_request *request, uint64_t bytes);
/* Give back the provisions: nothing was asked of the driver. */
void vgpu_pool_cancel(struct pool_request *request);
/* `bytes` were handed out. */
void vgpu_pool_used(const struct pool_request *request, uint64_t stream);
/* The request is over, whatever came of it. */
void vgpu_pool_done(struct pool_request *request);
/* `bytes` were freed; `uses` is the pool's number from before that, by which we know
 * whether the block is still there to be counted on. */
void vgpu_pool_add_spare(struct pool *pool, uint64_t uses, uint64_t stream, uint64_t bytes);
void vgpu_pool_freed(struct process *process, struct pool *pool, uint64_t bytes);
/* The program has set what the pool may keep when it is idle. */
void vgpu_pool_keeps(struct process *process, struct pool *pool, uint64_t bytes);

/* ---- pool_care.c ------------------------------------------------------------------------ */

/* Whether some pool may hold less than it is charged. */
static inline int vgpu_pools_are_dirty(const struct process *process)
{
	return __atomic_load_n(&process->pools_dirty, __ATOMIC_RELAXED) != 0;
}

static inline void vgpu_pools_mark_dirty(struct process *process)
{
	__atomic_store_n(&process->pools_dirty, 1, __ATOMIC_RELEASE);
}

/* The program ends a pool that it has made. */
CUresult vgpu_pool_end(const struct driver *driver, const struct tenant *tenant,
		       struct process *process, struct pool *pool);
/* Have it let go of what it can. */
void vgpu_pool_trim(const struct driver *driver, const struct tenant *tenant, struct pool *pool);
/* Read again what those pools have reserved that may hold less than charged. */
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
