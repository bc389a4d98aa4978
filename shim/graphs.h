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

/* graph_need.c */
void vgpu_graph_measure(const struct driver *driver, const struct tenant *tenant,
			struct process *process, CUgraph graph, struct graph_need *need);

/* ---- graph_notes.c: a record for each executable graph and slice ---- */

/* Note what a new graph needs; an earlier one of that handle is forgotten. */
CUresult vgpu_graph_note(struct process *process, const struct graph_need *need, CUgraphExec exec);
void vgpu_graph_forget(struct process *process, CUgraphExec exec);
/* A copy of the record; 0, or -1 when the graph allocates nothing there. */
int vgpu_graph_known(struct process *process, CUgraphExec exec, uint32_t slice,
		     struct record *copy);
/* It was launched on the stream, and at the moment, that `record` says. */
void vgpu_graph_note_launch(struct process *process, const struct record *record);

#endif
