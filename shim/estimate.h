/* SPDX-License-Identifier: Apache-2.0
 *
 * What one launch of a function costs, by function and size of its grid.
 */
#ifndef VGPU_ESTIMATE_H
#define VGPU_ESTIMATE_H

#include <stdint.h>

#define ESTIMATES 4096

/* Words are read and written whole by any thread; an update that is lost to
 * another one's is made good by the next sample. */
struct estimate {
	uint64_t key;             /* function and grid; 0: free */
	uint64_t ns;              /* what a launch is debited; 0: unknown */
	uint64_t floor_ns;        /* about the shortest sample of late */
	uint64_t launches;        /* launches debited at all */
	uint64_t guessed_ns;      /* their debits while nothing was known */
	uint64_t run_launches;    /* launches when the present run of long samples began */
	uint64_t run_shortest_ns; /* shortest sample of that run */
	uint32_t run_length;      /* samples of that run; 0: no run */
	uint32_t padding;
};

struct estimates {
	struct estimate table[ESTIMATES];
	struct estimate others; /* shared by all that found no place */
};

struct estimate *vgpu_estimate_of(struct estimates *estimates, const void *function,
				  uint64_t blocks);

/* Take a sample: the launch after the first `launches` was debited `cost_ns` and
 * took `sample_ns`.  Returns by how much debits so far were too small. */
int64_t vgpu_estimate_learn(struct estimate *estimate, uint64_t launches, uint64_t cost_ns,
			    uint64_t sample_ns);

#endif
