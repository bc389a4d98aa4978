/* SPDX-License-Identifier: Apache-2.0
 *
 * Adding up what the nodes of a graph allocate.  Which of its allocations can
 * share memory the driver decides, from what depends on what; we know the sum,
 * and how much is held at once when the nodes run one after the other.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "graphs.h"
#include "pools.h"

#define NODE_TYPE_GRAPH 4
#define NODE_TYPE_MEM_ALLOC 10
#define NODE_TYPE_MEM_FREE 11
#define DEEPEST_CHILD 8

/* An allocation node seen so far. */
struct grain {
	CUdeviceptr pointer;
	uint64_t bytes;
	int slice;
};

/* Memory for as many entries as a graph has nodes. */
struct scratch {
	CUgraphNode *nodes;
	struct grain *grains;
	size_t count, grain_count, bytes;
};

struct walk {
	const struct driver *driver;
	const struct tenant *tenant;
	struct process *process;
	struct graph_need *need;
};

static void add(struct walk *walk, struct scratch *scratch,
		const CUDA_MEM_ALLOC_NODE_PARAMS *memory)
{
	struct graph_need *need = walk->need;
	uint64_t bytes = (memory->bytesize + POOL_BLOCK - 1) / POOL_BLOCK * POOL_BLOCK;
	int slice;

	slice = vgpu_slice_of_location(walk->driver, walk->tenant, walk->process,
				       &memory->poolProps.location);
	if (slice == SLICE_NONE)
		return;
	if (slice < 0) {
		need->is_refused = 1;
		return;
	}
	/* Beyond 64 bits it fits nowhere. */
	if (bytes < memory->bytesize ||
	    __builtin_add_overflow(need->sum[slice], bytes, &need->sum[slice])) {
		need->is_refused = 1;
		return;
	}
	need->now[slice] += bytes;
	if (need->now[slice] > need->peak[slice])
		need->peak[slice] = need->now[slice];
	scratch->grains[scratch->grain_count++] = (struct grain){memory->dptr, bytes, slice};
}

/* What a free node frees was allocated by a node before it, if by this graph. */
static void subtract(struct walk *walk, struct scratch *scratch, CUdeviceptr pointer)
{
	for (size_t i = scratch->grain_count; i--;) {
		struct grain *grain = &scratch->grains[i];

		if (grain->pointer != pointer)
			continue;
		walk->need->now[grain->slice] -= grain->bytes;
		*grain = scratch->grains[--scratch->grain_count];
		return;
	}
}

static void walk_graph(struct walk *walk, CUgraph graph, int depth);

static void walk_nodes(struct walk *walk, struct scratch *scratch, int depth)
{
	const struct driver *driver = walk->driver;

	for (size_t i = 0; i < scratch->count; i++) {
		CUDA_MEM_ALLOC_NODE_PARAMS memory;
		CUgraphNode node = scratch->nodes[i];
		CUdeviceptr pointer;
		unsigned int type;
		CUgraph child;

		if (driver->used.cuGraphNodeGetType(node, &type))
			continue;
		if (type == NODE_TYPE_MEM_ALLOC &&
		    !driver->used.cuGraphMemAllocNodeGetParams(node, &memory))
			add(walk, scratch, &memory);
		else if (type == NODE_TYPE_MEM_FREE &&
			 !driver->used.cuGraphMemFreeNodeGetParams(node, &pointer))
			subtract(walk, scratch, pointer);
		else if (type == NODE_TYPE_GRAPH &&
			 !driver->used.cuGraphChildGraphNodeGetGraph(node, &child))
			walk_graph(walk, child, depth + 1);
	}
}

static void walk_graph(struct walk *walk, CUgraph graph, int depth)
{
	struct scratch scratch = {0};

	if (depth > DEEPEST_CHILD ||
	    walk->driver->used.cuGraphGetNodes(graph, NULL, &scratch.count) || !scratch.count)
		return;
	scratch.bytes = scratch.count * (sizeof(*scratch.nodes) + sizeof(*scratch.grains));
	scratch.grains = mmap(NULL, scratch.bytes, PROT_READ | PROT_WRITE,
			      MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (scratch.grains == MAP_FAILED) {
		walk->need->is_refused = 1; /* what is not known cannot be charged */
		return;
	}
	scratch.nodes = (CUgraphNode *)(scratch.grains + scratch.count);
	if (!walk->driver->used.cuGraphGetNodes(graph, scratch.nodes, &scratch.count))
		walk_nodes(walk, &scratch, depth);
	munmap(scratch.grains, scratch.bytes);
}

void vgpu_graph_measure(const struct driver *driver, const struct tenant *tenant,
			struct process *process, CUgraph graph, struct graph_need *need)
{
	struct walk walk = {driver, tenant, process, need};

	*need = (struct graph_need){.is_refused = 0};
	walk_graph(&walk, graph, 0);
}
