/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: memory that graphs allocate when they run.  The driver keeps it in
 * stock for each device, reports how much that is, and holds it until it is
 * trimmed: a pool (pools.c).  It maps a graph's memory when the graph is first
 * launched, or uploaded, and leaves it mapped; graphs that follow one another on
 * one stream share it.
 *
 * So the first launch is covered by all that the graph allocates.  Where that has
 * no room, it is covered by what the driver should need at least, and uploaded
 * first: a launch cannot be taken back, an upload can.  A graph that is launched
 * again, after nothing that could have taken its memory, is not looked at.
 */
#include "graphs.h"
#include "pools.h"

#define FLAG_UPLOAD 2

/* ---- launching ---------------------------------------------------------------------- */

/* Memory of one launch on one slice. */
struct part {
	struct pool_request request;
	struct record record; /* a copy */
	int is_unsure;        /* the graph may take more than is covered */
};

struct fuel {
	struct part parts[VGPU_MAX_SLICES];
	uint32_t count;
	uint64_t stream;
};

typedef CUresult (*start)(CUgraphExec, CUstream);

static void prepare(struct fuel *fuel, const struct driver *driver, const struct tenant *tenant,
		    CUgraphExec exec, struct stream stream)
{
	struct process *process = vgpu_process();

	fuel->count = 0;
	fuel->stream = vgpu_stream_key(driver, stream);
	for (uint32_t slice = 0; slice < tenant->grant->slice_count; slice++) {
		struct part *part = &fuel->parts[fuel->count];
		struct pool *pool;
		int device;

		if (vgpu_graph_known(process, exec, slice, &part->record))
			continue;
		device = vgpu_device_of_slice(process, (int)slice);
		pool = device < 0 ? NULL : vgpu_pool_of(process, (uint64_t)device, 1, (int)slice);
		if (!pool)
			continue;
		part->is_unsure = 0;
		part->request = (struct pool_request){
			.driver = driver, .tenant = tenant, .process = process, .pool = pool};
		fuel->count++;
	}
}

/* Whether all memory is as the graph has left it. */
static int is_mapped(const struct fuel *fuel)
{
	for (uint32_t i = 0; i < fuel->count; i++) {
		const struct part *part = &fuel->parts[i];
		struct pool *pool = part->request.pool;

		if (part->record.stream != fuel->stream ||
		    part->record.epoch != (uint32_t)vgpu_pool_figure(pool, &pool->epoch))
			return 0;
	}
	return 1;
}

/* Whether the driver should give it memory that it, or a graph before it, has had. */
static int can_share(const struct part *part, uint64_t stream)
{
	struct pool *pool = part->request.pool;
	int can;

	vgpu_lock(&pool->lock);
	can = (pool->stream == stream && !pool->is_mixed) ||
	      (part->record.stream == stream && part->record.trims == (uint32_t)pool->trims);
	vgpu_unlock(&pool->lock);
	return can;
}

static CUresult provide_part(struct part *part, uint64_t stream)
{
	struct pool_request *request = &part->request;
	CUresult rc = vgpu_pool_enter(request);
	uint64_t needed = part->record.bytes;

	if (rc || !vgpu_pool_cover(request, part->record.sum))
		return rc;
	part->is_unsure = 1;
	if (can_share(part, stream)) {
		needed -= vgpu_pool_cover_by_own(request, needed);
		if (!needed || !vgpu_pool_cover(request, needed))
			return CUDA_SUCCESS;
		vgpu_pool_settle(request);
		needed = part->record.bytes;
	}
	return vgpu_pool_insist(request, needed) ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

static int settle(struct fuel *fuel)
{
	int short_of = 0;

	for (uint32_t i = 0; i < fuel->count; i++) {
		short_of |= vgpu_pool_settle(&fuel->parts[i].request);
		vgpu_pool_done(&fuel->parts[i].request);
	}
	return short_of;
}

static CUresult provide(struct fuel *fuel, int *is_unsure)
{
	*is_unsure = 0;
	for (uint32_t i = 0; i < fuel->count; i++) {
		CUresult rc = provide_part(&fuel->parts[i], fuel->stream);

		if (rc) {
			settle(fuel);
			return rc;
		}
		*is_unsure |= fuel->parts[i].is_unsure;
	}
	return CUDA_SUCCESS;
}

/* Before: graphs that are launched meanwhile must not count on what this one may take. */
static void begin(struct fuel *fuel)
{
	for (uint32_t i = 0; i < fuel->count; i++) {
		struct part *part = &fuel->parts[i];
		struct pool *pool = part->request.pool;

		vgpu_lock(&pool->lock);
		if (pool->stream && pool->stream != fuel->stream)
			pool->is_mixed = 1;
		pool->is_mixed |= part->record.is_holding;
		pool->stream = fuel->stream;
		if (pool->is_mixed)
			pool->epoch++;
		vgpu_unlock(&pool->lock);
	}
}

/* It has its memory, until the pool's numbers change. */
static void end(struct fuel *fuel)
{
	for (uint32_t i = 0; i < fuel->count; i++) {
		struct part *part = &fuel->parts[i];
		struct pool *pool = part->request.pool;

		vgpu_lock(&pool->lock);
		part->record.stream = fuel->stream;
		part->record.trims = (uint32_t)pool->trims;
		part->record.epoch = (uint32_t)pool->epoch;
		vgpu_unlock(&pool->lock);
		vgpu_graph_note_launch(part->request.process, &part->record);
	}
}

static CUresult upload(const struct driver *driver, CUgraphExec exec, struct stream stream)
{
	CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
	CUresult rc;

	driver->used.cuThreadExchangeStreamCaptureMode(&mode);
	rc = stream.per_thread ? driver->real.cuGraphUpload_ptsz(exec, stream.handle)
			       : driver->real.cuGraphUpload(exec, stream.handle);
	driver->used.cuThreadExchangeStreamCaptureMode(&mode);
	return rc == CUDA_ERROR_NOT_SUPPORTED ? CUDA_SUCCESS : rc;
}

/* It has taken more than there is room for: what it does not use yet goes back. */
static CUresult give_up(struct fuel *fuel)
{
	for (uint32_t i = 0; i < fuel->count; i++) {
		const struct pool_request *request = &fuel->parts[i].request;

		vgpu_pool_trim(request->driver, request->tenant, request->pool);
		vgpu_count_refusal(request->tenant, (uint32_t)request->pool->slice);
	}
	return CUDA_ERROR_OUT_OF_MEMORY;
}

static CUresult bring_and_start(struct fuel *fuel, start real, CUgraphExec exec,
				struct stream stream)
{
	const struct driver *driver = fuel->parts[0].request.driver;
	int is_unsure;
	CUresult rc = provide(fuel, &is_unsure);

	if (rc)
		return rc;
	begin(fuel);
	if (is_unsure) {
		rc = upload(driver, exec, stream);
		if (settle(fuel))
			return give_up(fuel);
	}
	if (!rc)
		rc = real(exec, stream.handle);
	settle(fuel);
	if (!rc)
		end(fuel);
	return rc;
}

static __attribute__((noinline)) CUresult start_with_memory(start real, const struct driver *driver,
							    CUgraphExec exec, struct stream stream)
{
	const struct tenant *tenant = vgpu_tenant();
	struct fuel fuel;
	CUresult rc;

	if (!tenant->ledger || vgpu_may_be_capturing(driver, stream))
		return real(exec, stream.handle);
	prepare(&fuel, driver, tenant, exec, stream);
	if (!fuel.count)
		return real(exec, stream.handle);
	if (!is_mapped(&fuel))
		return bring_and_start(&fuel, real, exec, stream);
	rc = real(exec, stream.handle);
	if (!is_mapped(&fuel))
		settle(&fuel);
	return rc;
}

#define START(symbol, is_per_thread)                                                               \
	CUresult symbol(CUgraphExec exec, CUstream stream)                                         \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		const struct process *process = vgpu_process_if_any();                             \
                                                                                                   \
		if (likely(!process ||                                                             \
			   !__atomic_load_n(&process->graphs_with_memory, __ATOMIC_RELAXED)))      \
			return driver->real.symbol(exec, stream);                                  \
		return start_with_memory(driver->real.symbol, driver, exec,                        \
					 (struct stream){stream, is_per_thread});                  \
	}

START(cuGraphLaunch, 0)
START(cuGraphLaunch_ptsz, 1)
START(cuGraphUpload, 0)
START(cuGraphUpload_ptsz, 1)

/* ---- instantiating ------------------------------------------------------------------ */

struct birth {
	const struct driver *driver;
	const struct tenant *tenant;
	struct process *process; /* NULL: not looked at */
	struct graph_need need;
};

/* 1: the graph never fits the slices. */
static int is_refused(struct birth *birth, CUgraph graph)
{
	const struct tenant *tenant = vgpu_tenant();

	birth->driver = vgpu_driver(LIBRARY_CUDA);
	birth->tenant = tenant;
	birth->process = tenant->ledger && graph ? vgpu_process() : NULL;
	if (!birth->process)
		return 0;
	vgpu_graph_measure(birth->driver, tenant, birth->process, graph, &birth->need);
	for (uint32_t slice = 0; slice < VGPU_MAX_SLICES; slice++)
		if (birth->need.peak[slice] > vgpu_quota_of(tenant->grant, slice)) {
			vgpu_count_refusal(tenant, slice);
			return 1;
		}
	return birth->need.is_refused;
}

static CUresult born(const struct birth *birth, CUgraphExec *exec, CUresult rc)
{
	if (rc || !birth->process)
		return rc;
	rc = vgpu_graph_note(birth->process, &birth->need, *exec);
	if (rc)
		birth->driver->real.cuGraphExecDestroy(*exec);
	return rc;
}

#define INSTANTIATE(symbol, parameters, arguments)                                                 \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		struct birth birth;                                                                \
                                                                                                   \
		if (is_refused(&birth, graph))                                                     \
			return CUDA_ERROR_OUT_OF_MEMORY;                                           \
		return born(&birth, exec, birth.driver->real.symbol arguments);                    \
	}

INSTANTIATE(cuGraphInstantiate,
	    (CUgraphExec * exec, CUgraph graph, CUgraphNode *error, char *log, size_t log_bytes),
	    (exec, graph, error, log, log_bytes))
INSTANTIATE(cuGraphInstantiate_v2,
	    (CUgraphExec * exec, CUgraph graph, CUgraphNode *error, char *log, size_t log_bytes),
	    (exec, graph, error, log, log_bytes))
INSTANTIATE(cuGraphInstantiateWithFlags,
	    (CUgraphExec * exec, CUgraph graph, unsigned long long flags), (exec, graph, flags))

static int has_memory(const struct birth *birth)
{
	for (uint32_t slice = 0; birth->process && slice < VGPU_MAX_SLICES; slice++)
		if (birth->need.peak[slice])
			return 1;
	return 0;
}

typedef CUresult (*instantiate)(CUgraphExec *, CUgraph, CUDA_GRAPH_INSTANTIATE_PARAMS *);

/* This form may upload at once, which takes the memory: then it is done apart. */
static CUresult instantiate_with(instantiate real, CUgraphExec *exec, CUgraph graph,
				 CUDA_GRAPH_INSTANTIATE_PARAMS *parameters, int per_thread)
{
	struct birth birth;
	struct stream stream;
	CUresult rc;

	if (is_refused(&birth, graph))
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (!parameters || !(parameters->flags & FLAG_UPLOAD) || !has_memory(&birth))
		return born(&birth, exec, real(exec, graph, parameters));
	parameters->flags -= FLAG_UPLOAD;
	rc = born(&birth, exec, real(exec, graph, parameters));
	parameters->flags += FLAG_UPLOAD;
	if (rc)
		return rc;
	stream = (struct stream){parameters->hUploadStream, per_thread};
	rc = start_with_memory(per_thread ? birth.driver->real.cuGraphUpload_ptsz
					  : birth.driver->real.cuGraphUpload,
			       birth.driver, *exec, stream);
	if (rc) {
		vgpu_graph_forget(birth.process, *exec);
		birth.driver->real.cuGraphExecDestroy(*exec);
	}
	return rc;
}

CUresult cuGraphInstantiateWithParams(CUgraphExec *exec, CUgraph graph,
				      CUDA_GRAPH_INSTANTIATE_PARAMS *parameters)
{
	return instantiate_with(vgpu_driver(LIBRARY_CUDA)->real.cuGraphInstantiateWithParams, exec,
				graph, parameters, 0);
}

CUresult cuGraphInstantiateWithParams_ptsz(CUgraphExec *exec, CUgraph graph,
					   CUDA_GRAPH_INSTANTIATE_PARAMS *parameters)
{
	return instantiate_with(vgpu_driver(LIBRARY_CUDA)->real.cuGraphInstantiateWithParams_ptsz,
				exec, graph, parameters, 1);
}

/* ---- ending ------------------------------------------------------------------------- */

CUresult cuGraphExecDestroy(CUgraphExec exec)
{
	struct process *process = vgpu_process_if_any();

	/* First: the handle may be another graph's as soon as it is free. */
	if (process && exec)
		vgpu_graph_forget(process, exec);
	return vgpu_driver(LIBRARY_CUDA)->real.cuGraphExecDestroy(exec);
}

CUresult cuDeviceGraphMemTrim(CUdevice device)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	CUresult rc = driver->real.cuDeviceGraphMemTrim(device);
	struct process *process = rc ? NULL : vgpu_process_if_any();
	struct pool *pool =
		process ? vgpu_pool_known(process, (uint64_t)device, 1, POOL_OPEN) : NULL;

	if (pool)
		vgpu_pool_reread(driver, vgpu_tenant(), pool);
	return rc;
}
