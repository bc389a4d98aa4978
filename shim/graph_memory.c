/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: memory that graphs allocate when they run.  The driver keeps it in
 * stock for each device, reports how much that is, and holds it until it is
 * trimmed: a pool (pools.c).  How much a graph may need is added up when it is
 * instantiated, and charged while it is launched.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "account.h"
#include "markers.h"
#include "pools.h"

#define NODE_TYPE_GRAPH 4
#define NODE_TYPE_MEM_ALLOC 10
#define NODE_TYPE_MEM_FREE 11
#define DEEPEST_CHILD 8

/* Memory comes to a device in blocks of this size. */
#define BLOCK (2ull << 20)

/* What a graph holds on each slice while it runs through its nodes, at most and in the end. */
struct need {
	uint64_t now[VGPU_MAX_SLICES], peak[VGPU_MAX_SLICES];
};

struct walk {
	const struct driver *driver;
	const struct tenant *tenant;
	struct process *process;
	struct need need;
	int is_refused; /* it allocates on a device that is not granted */
};

/* ---- adding up ------------------------------------------------------------------------------ */

static void add(struct walk *walk, const CUDA_MEM_ALLOC_NODE_PARAMS *memory, int sign)
{
	uint64_t bytes = (memory->bytesize + BLOCK - 1) / BLOCK * BLOCK;
	int slice;

	if (memory->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
		return;
	slice = vgpu_slice_of_device(walk->driver, walk->tenant, walk->process,
				     memory->poolProps.location.id);
	if (slice < 0) {
		walk->is_refused = 1;
		return;
	}
	walk->need.now[slice] += sign > 0 ? bytes : -bytes;
	if (sign > 0 && walk->need.now[slice] > walk->need.peak[slice])
		walk->need.peak[slice] = walk->need.now[slice];
}

/* What a free node frees was allocated by a node before it, if by this graph. */
static void subtract(struct walk *walk, const CUgraphNode *nodes, size_t before, CUgraphNode node)
{
	CUDA_MEM_ALLOC_NODE_PARAMS memory;
	CUdeviceptr pointer;
	unsigned int type;

	if (walk->driver->used.cuGraphMemFreeNodeGetParams(node, &pointer))
		return;
	while (before--)
		if (!walk->driver->used.cuGraphNodeGetType(nodes[before], &type) &&
		    type == NODE_TYPE_MEM_ALLOC &&
		    !walk->driver->used.cuGraphMemAllocNodeGetParams(nodes[before], &memory) &&
		    memory.dptr == pointer) {
			add(walk, &memory, -1);
			return;
		}
}

static void walk_graph(struct walk *walk, CUgraph graph, int depth);

/* Nodes are listed as they were made, and none can depend on a later one. */
static void walk_nodes(struct walk *walk, const CUgraphNode *nodes, size_t count, int depth)
{
	for (size_t i = 0; i < count; i++) {
		CUDA_MEM_ALLOC_NODE_PARAMS memory;
		unsigned int type;
		CUgraph child;

		if (walk->driver->used.cuGraphNodeGetType(nodes[i], &type))
			continue;
		if (type == NODE_TYPE_MEM_ALLOC &&
		    !walk->driver->used.cuGraphMemAllocNodeGetParams(nodes[i], &memory))
			add(walk, &memory, 1);
		else if (type == NODE_TYPE_MEM_FREE)
			subtract(walk, nodes, i, nodes[i]);
		else if (type == NODE_TYPE_GRAPH &&
			 !walk->driver->used.cuGraphChildGraphNodeGetGraph(nodes[i], &child))
			walk_graph(walk, child, depth + 1);
	}
}

static void walk_graph(struct walk *walk, CUgraph graph, int depth)
{
	CUgraphNode *nodes;
	size_t count = 0, bytes;

	if (depth > DEEPEST_CHILD || walk->driver->used.cuGraphGetNodes(graph, NULL, &count) ||
	    !count)
		return;
	bytes = count * sizeof(*nodes);
	nodes = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (nodes == MAP_FAILED)
		return;
	if (!walk->driver->used.cuGraphGetNodes(graph, nodes, &count))
		walk_nodes(walk, nodes, count, depth);
	munmap(nodes, bytes);
}

/* ---- instantiating -----------------------------------------------------------------------------
 */

/* 1: the graph never fits the slices.  0 also when nothing is known of it. */
static int measure(struct walk *walk, CUgraph graph)
{
	const struct tenant *tenant = vgpu_tenant();

	*walk = (struct walk){.driver = vgpu_driver(LIBRARY_CUDA), .tenant = tenant};
	walk->process = tenant->ledger && graph ? vgpu_process() : NULL;
	if (!walk->process)
		return 0;
	walk_graph(walk, graph, 0);
	for (uint32_t slice = 0; slice < VGPU_MAX_SLICES; slice++)
		if (walk->need.peak[slice] > vgpu_quota_of(tenant->grant, slice))
			walk->is_refused = 1;
	return walk->is_refused;
}

/* Records of one graph are told apart by their slice: no two handles are that close. */
static uint64_t key_of(CUgraphExec exec, uint32_t slice)
{
	return (uintptr_t)exec + slice;
}

static void forget(struct process *process, CUgraphExec exec)
{
	for (uint32_t slice = 0; slice < VGPU_MAX_SLICES; slice++) {
		struct record *record =
			vgpu_record_take(&process->records, RECORD_GRAPH, key_of(exec, slice));

		if (!record)
			continue;
		vgpu_record_free(&process->records, record);
		__atomic_fetch_sub(&process->graphs_with_memory, 1, __ATOMIC_RELAXED);
	}
}

static CUresult note(const struct walk *walk, CUgraphExec exec)
{
	struct records *records = &walk->process->records;

	for (uint32_t slice = 0; slice < VGPU_MAX_SLICES; slice++) {
		struct record *record;

		if (!walk->need.peak[slice])
			continue;
		record = vgpu_record_new(records);
		if (!record) {
			forget(walk->process, exec);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
		*record = (struct record){.kind = RECORD_GRAPH,
					  .key = key_of(exec, slice),
					  .account = (uint8_t)slice,
					  .bytes = walk->need.peak[slice]};
		__atomic_fetch_add(&walk->process->graphs_with_memory, 1, __ATOMIC_RELAXED);
		record = vgpu_record_enter(records, record);
		if (record) {
			vgpu_record_free(records, record);
			__atomic_fetch_sub(&walk->process->graphs_with_memory, 1, __ATOMIC_RELAXED);
		}
	}
	return CUDA_SUCCESS;
}

static CUresult instantiated(const struct walk *walk, CUgraphExec *exec, CUresult rc)
{
	if (rc || !walk->process)
		return rc;
	rc = note(walk, *exec);
	if (rc)
		walk->driver->real.cuGraphExecDestroy(*exec);
	return rc;
}

#define INSTANTIATE(symbol, parameters, arguments)                                                 \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		struct walk walk;                                                                  \
                                                                                                   \
		if (measure(&walk, graph))                                                         \
			return CUDA_ERROR_OUT_OF_MEMORY;                                           \
		return instantiated(&walk, exec, walk.driver->real.symbol arguments);              \
	}

INSTANTIATE(cuGraphInstantiate,
	    (CUgraphExec * exec, CUgraph graph, CUgraphNode *error, char *log, size_t log_bytes),
	    (exec, graph, error, log, log_bytes))
INSTANTIATE(cuGraphInstantiate_v2,
	    (CUgraphExec * exec, CUgraph graph, CUgraphNode *error, char *log, size_t log_bytes),
	    (exec, graph, error, log, log_bytes))
INSTANTIATE(cuGraphInstantiateWithFlags,
	    (CUgraphExec * exec, CUgraph graph, unsigned long long flags), (exec, graph, flags))
INSTANTIATE(cuGraphInstantiateWithParams,
	    (CUgraphExec * exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *parameters),
	    (exec, graph, parameters))
INSTANTIATE(cuGraphInstantiateWithParams_ptsz,
	    (CUgraphExec * exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *parameters),
	    (exec, graph, parameters))

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
	struct process *process = vgpu_process_if_any();
	CUresult rc;

	/* First: the handle may be another graph's as soon as it is free. */
	if (process && exec)
		forget(process, exec);
	rc = vgpu_driver(LIBRARY_CUDA)->real.cuGraphExecDestroy(exec);
	return rc;
}

/* ---- launching ----------------------------------------------------------------------------------
 */

/* Memory of one launch, by slice. */
struct fuel {
	struct pool_request requests[VGPU_MAX_SLICES];
	uint32_t count;
};

static int read_bytes(struct record *record, void *bytes)
{
	*(uint64_t *)bytes = record->bytes;
	return 0;
}

static CUresult provide(struct fuel *fuel)
{
	for (uint32_t i = 0; i < fuel->count; i++) {
		CUresult rc = vgpu_pool_provide(&fuel->requests[i]);

		if (rc) {
			while (i--)
				vgpu_pool_settle(&fuel->requests[i]);
			return rc;
		}
	}
	return CUDA_SUCCESS;
}

static int settle(const struct fuel *fuel)
{
	int short_of = 0;

	for (uint32_t i = 0; i < fuel->count; i++)
		short_of |= vgpu_pool_settle(&fuel->requests[i]);
	return short_of;
}

static void prepare(struct fuel *fuel, const struct driver *driver, const struct tenant *tenant,
		    struct process *process, CUgraphExec exec)
{
	fuel->count = 0;
	for (uint32_t slice = 0; slice < tenant->grant->slice_count; slice++) {
		struct pool *pool;
		uint64_t bytes;
		int device;

		if (vgpu_record_visit(&process->records, RECORD_GRAPH, key_of(exec, slice),
				      read_bytes, &bytes))
			continue;
		device = vgpu_device_of_slice(process, (int)slice);
		pool = device < 0 ? NULL : vgpu_pool_of(process, (uint64_t)device, 1, (int)slice);
		if (pool)
			fuel->requests[fuel->count++] =
				(struct pool_request){driver, tenant, process, pool, 0, bytes};
	}
}

static CUresult upload(const struct driver *driver, CUgraphExec exec, struct stream stream)
{
	return stream.per_thread ? driver->real.cuGraphUpload_ptsz(exec, stream.handle)
				 : driver->real.cuGraphUpload(exec, stream.handle);
}

/* A launch cannot be taken back, an upload can: where the graph needs new memory
 * it is brought there first, and what it has taken is looked at. */
static CUresult bring(struct fuel *fuel, const struct driver *driver, CUgraphExec exec,
		      struct stream stream)
{
	uint64_t provision = 0;
	CUresult rc = provide(fuel);

	if (rc)
		return rc;
	for (uint32_t i = 0; i < fuel->count; i++)
		provision += fuel->requests[i].provision;
	if (!provision)
		return CUDA_SUCCESS;
	rc = upload(driver, exec, stream);
	if (rc || settle(fuel)) {
		if (rc)
			settle(fuel);
		for (uint32_t i = 0; i < fuel->count; i++)
			vgpu_pools_shrink(driver, fuel->requests[i].tenant,
					  fuel->requests[i].process,
					  vgpu_pool_slice(fuel->requests[i].pool));
		return rc ? rc : CUDA_ERROR_OUT_OF_MEMORY;
	}
	return provide(fuel);
}

static int has_memory(struct process *process)
{
	return process && __atomic_load_n(&process->graphs_with_memory, __ATOMIC_RELAXED);
}

typedef CUresult (*start)(CUgraphExec, CUstream);

static __attribute__((noinline)) CUresult start_with_memory(start real, const struct driver *driver,
							    CUgraphExec exec, struct stream stream)
{
	const struct tenant *tenant = vgpu_tenant();
	struct fuel fuel;
	CUresult rc;

	if (!tenant->ledger || vgpu_is_capturing(driver, stream))
		return real(exec, stream.handle);
	prepare(&fuel, driver, tenant, vgpu_process(), exec);
	rc = bring(&fuel, driver, exec, stream);
	if (rc)
		return rc;
	rc = real(exec, stream.handle);
	settle(&fuel);
	return rc;
}

#define START(symbol, is_per_thread)                                                               \
	CUresult symbol(CUgraphExec exec, CUstream stream)                                         \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
                                                                                                   \
		if (likely(!has_memory(vgpu_process_if_any())))                                    \
			return driver->real.symbol(exec, stream);                                  \
		return start_with_memory(driver->real.symbol, driver, exec,                        \
					 (struct stream){stream, is_per_thread});                  \
	}

START(cuGraphLaunch, 0)
START(cuGraphLaunch_ptsz, 1)
START(cuGraphUpload, 0)
START(cuGraphUpload_ptsz, 1)

CUresult cuDeviceGraphMemTrim(CUdevice device)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	CUresult rc = driver->real.cuDeviceGraphMemTrim(device);
	struct process *process = vgpu_process_if_any();
	struct pool *pool = process ? vgpu_pool_known(process, (uint64_t)device, 1) : NULL;

	if (!rc && pool)
		vgpu_pool_settle(&(struct pool_request){.driver = driver,
							.tenant = vgpu_tenant(),
							.process = process,
							.pool = pool});
	return rc;
}
