/* SPDX-License-Identifier: Apache-2.0 */
/* A pool, as the files that are about pools see it. */
#ifndef VGPU_SIM_CUDA_POOL_H
#define VGPU_SIM_CUDA_POOL_H

#include "cuda_share.h"
#include "cuda_work.h"

struct pool {
	struct object object;
	struct pool *next; /* of all pools of the process */
	struct heap heap;
	uint64_t threshold;
	uint64_t limit; /* 0: none */
	uint64_t used_high, reserved_high;
	uint64_t free_target; /* the newest free takes effect there */
	int reuse[3];
	uint32_t peers; /* bit: that device may use the memory */
	bool closing;   /* destroyed, with allocations left */
	bool imported;  /* another process's: what it gives is imported one by one */
	uint32_t shared;
};

CUresult pool_of(CUmemoryPool handle, struct pool **pool);
struct pool *pool_new(struct device *device);
void pool_drop(struct pool *pool); /* it goes with its last allocation */

#endif
