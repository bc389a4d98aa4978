/* SPDX-License-Identifier: Apache-2.0
 *
 * How much memory a graph allocates when it runs.
 */
#ifndef VGPU_GRAPHS_H
#define VGPU_GRAPHS_H

#include "account.h"

/* Bytes on each slice.  Nodes are taken in the order in which they were made. */
struct graph_need {
	uint64_t now[VGPU_MAX_SLICES];  /* held after the last node */
	uint64_t peak[VGPU_MAX_SLICES]; /* held at once, at most: it never takes less */
	uint64_t sum[VGPU_MAX_SLICES];  /* of all allocations: it never takes more */
	int is_refused;                 /* it allocates on a device that is not granted */
};

void vgpu_graph_measure(const struct driver *driver, const struct tenant *tenant,
			struct process *process, CUgraph graph, struct graph_need *need);

#endif
