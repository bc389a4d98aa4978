/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Executable graphs: instantiating and launching.
 *
 * A graph is flattened into a list of steps, each with a copy of its node's
 * work.  A launch does the steps in order and asks for the device time of all
 * kernels, copies and fills between two host functions at once, so that it is
 * one entry in the stream's queue, however many kernels it holds.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_work.h"

#define AUTO_FREE 1u
#define KNOWN_FLAGS 15u

static CUresult add_step(struct exec *exec, const struct node *node)
{
	if (exec->count == exec->room) {
		size_t room = exec->room ? exec->room * 2 : 16;
		struct step *grown = realloc(exec->steps, room * sizeof(*grown));
		if (!grown)
			return CUDA_ERROR_OUT_OF_MEMORY;
		exec->steps = grown;
		exec->room = room;
	}
	exec->steps[exec->count++] = (struct step){.node = node, .work = *node->work};
	exec->topology =
		(exec->topology ^ node->work->type ^ node->after_count << 8) * 1099511628211u;
	return CUDA_SUCCESS;
}

CUresult exec_flatten(struct exec *exec, struct graph *graph)
{
	CUresult result = CUDA_SUCCESS;
	struct node **order = graph_order(graph);
	if (!order)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; !result && i < graph->count; i++)
		result = order[i]->work->type == CU_GRAPH_NODE_TYPE_GRAPH
				 ? exec_flatten(exec, order[i]->work->child)
				 : add_step(exec, order[i]);
	free(order);
	return result;
}

static CUresult instantiate(CUgraphExec *handle, CUgraph from, uint64_t flags)
{
	ENTER();
	struct graph *graph = object_of(from, OBJECT_GRAPH);
	if (!handle || !graph || flags & ~(uint64_t)KNOWN_FLAGS)
		return CUDA_ERROR_INVALID_VALUE;
	struct exec *exec = object_new(OBJECT_EXEC, NULL);
	if (!exec)
		return CUDA_ERROR_OUT_OF_MEMORY;
	exec->flags = flags;
	CUresult result = exec_flatten(exec, graph);
	if (!result)
		result = user_references_copy(&exec->users, graph->users);
	if (result) {
		user_references_drop(&exec->users);
		free(exec->steps);
		object_free(exec);
		return result;
	}
	*handle = (CUgraphExec)exec;
	return CUDA_SUCCESS;
}

/* The two oldest forms report where a graph is wrong; ours is never so. */
static CUresult instantiate_old(CUgraphExec *exec, CUgraph graph, CUgraphNode *error, char *log,
				size_t size)
{
	if (error)
		*error = NULL;
	if (log && size)
		*log = 0;
	return instantiate(exec, graph, 0);
}

API cuGraphInstantiate(CUgraphExec *exec, CUgraph graph, CUgraphNode *error, char *log, size_t size)
{
	return instantiate_old(exec, graph, error, log, size);
}

API cuGraphInstantiate_v2(CUgraphExec *exec, CUgraph graph, CUgraphNode *error, char *log,
			  size_t size)
{
	return instantiate_old(exec, graph, error, log, size);
}

API cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags)
{
	return instantiate(exec, graph, flags);
}

static CUresult instantiate_with(CUgraphExec *exec, CUgraph graph,
				 CUDA_GRAPH_INSTANTIATE_PARAMS *parameters)
{
	if (!parameters)
		return CUDA_ERROR_INVALID_VALUE;
	CUresult result = instantiate(exec, graph, parameters->flags);
	parameters->hErrNode_out = NULL;
	parameters->result_out = result ? 1 : 0;
	return result;
}

TWINS(cuGraphInstantiateWithParams, ptsz,
      (CUgraphExec * exec, CUgraph graph, CUDA_GRAPH_INSTANTIATE_PARAMS *parameters),
      ((void)per_thread, instantiate_with(exec, graph, parameters)))

static struct exec *exec_of(CUgraphExec handle)
{
	return object_of(handle, OBJECT_EXEC);
}

API cuGraphExecDestroy(CUgraphExec handle)
{
	ENTER();
	struct exec *exec = exec_of(handle);
	if (!exec)
		return CUDA_ERROR_INVALID_VALUE;
	free(exec->steps);
	user_references_drop(&exec->users);
	object_free(exec);
	return CUDA_SUCCESS;
}

API cuGraphExecGetFlags(CUgraphExec handle, uint64_t *flags)
{
	ENTER();
	const struct exec *exec = exec_of(handle);
	if (!exec || !flags)
		return CUDA_ERROR_INVALID_VALUE;
	*flags = exec->flags;
	return CUDA_SUCCESS;
}

/* ---- launching ---- */

/* Device time asked for but not yet put on the stream. */
struct batch {
	uint64_t ns;
	uint32_t kernels;
	bool any;
};

static CUresult flush(struct batch *batch, struct stream *stream)
{
	struct batch full = *batch;
	*batch = (struct batch){0};
	return full.any ? stream_work(stream, full.ns, full.kernels) : CUDA_SUCCESS;
}

static void count(struct batch *batch, uint64_t ns, uint32_t kernels)
{
	batch->ns += ns;
	batch->kernels += kernels;
	batch->any = true;
}

static CUresult do_memory(const struct work *work, bool automatic)
{
	struct allocation found;
	uintptr_t pointer = (uintptr_t)work->memory.pointer;
	struct range *range = range_at(pointer);
	if (!range)
		return CUDA_ERROR_INVALID_VALUE;
	if (work->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC) {
		if (automatic)
			graph_memory_free(range);
		return graph_memory_alloc(range);
	}
	if (!find_allocation(pointer, &found) || found.base != pointer)
		return CUDA_ERROR_INVALID_VALUE;
	allocation_free(&found);
	return CUDA_SUCCESS;
}

static CUresult do_event(const struct work *work, struct stream *stream)
{
	if (!object_of(work->event, OBJECT_EVENT))
		return CUDA_ERROR_INVALID_HANDLE;
	return work->type == CU_GRAPH_NODE_TYPE_EVENT_RECORD ? event_record_now(work->event, stream)
							     : event_wait(work->event, stream);
}

static CUresult do_step(const struct work *work, struct stream *stream, struct batch *batch,
			bool automatic)
{
	switch (work->type) {
	case CU_GRAPH_NODE_TYPE_KERNEL:
		if (!object_of(work->kernel.launch.function, OBJECT_FUNCTION))
			return CUDA_ERROR_INVALID_HANDLE; /* its module was unloaded */
		kernel_run(work->kernel.launch.function, work->kernel.arguments);
		count(batch, kernel_ns(work->kernel.launch.function, work->kernel.arguments), 1);
		return CUDA_SUCCESS;
	case CU_GRAPH_NODE_TYPE_MEMCPY:
		copy_run(&work->memcpy.copy);
		count(batch,
		      copy_ns(work->memcpy.copy.width * work->memcpy.copy.height *
			      work->memcpy.copy.depth),
		      0);
		return CUDA_SUCCESS;
	case CU_GRAPH_NODE_TYPE_MEMSET:
		fill_run(&work->memset);
		count(batch,
		      copy_ns(work->memset.element * work->memset.width * work->memset.height), 0);
		return CUDA_SUCCESS;
	case CU_GRAPH_NODE_TYPE_HOST:
		TRY(flush(batch, stream));
		return callback_start(stream, &(struct callback){.function = work->host.fn,
								 .data = work->host.userData});
	case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
	case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
		TRY(flush(batch, stream));
		return do_event(work, stream);
	case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
	case CU_GRAPH_NODE_TYPE_MEM_FREE:
		return do_memory(work, automatic);
	default:
		return CUDA_SUCCESS; /* an empty node */
	}
}

CUresult work_do(const struct work *work, struct stream *stream)
{
	struct batch batch = {0};
	TRY(do_step(work, stream, &batch, false));
	return flush(&batch, stream);
}

static CUresult launch_step(const struct work *work, struct stream *stream, struct batch *batch,
			    bool automatic)
{
	if (!stream_held(stream))
		return do_step(work, stream, batch, automatic);
	TRY(flush(batch, stream));
	return later_work(stream, work);
}

static CUresult launch(CUgraphExec handle, CUstream on, bool per_thread)
{
	struct batch batch = {0};
	struct stream *stream;
	ENTER();
	struct exec *exec = exec_of(handle);
	if (!exec)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(stream_of(on, per_thread, &stream));
	if (stream->capture)
		return CUDA_ERROR_NOT_SUPPORTED;
	TRY(capture_forbids_sync(stream));
	uint32_t generation = exec->object.generation;
	for (size_t i = 0; i < exec->count; i++) {
		/* A step may have to wait, and its wait may see the end of the graph. */
		if (exec->object.generation != generation || exec->object.kind != OBJECT_EXEC)
			return CUDA_ERROR_INVALID_VALUE;
		struct work work = exec->steps[i].work;
		if (!exec->steps[i].disabled)
			TRY(launch_step(&work, stream, &batch, exec->flags & AUTO_FREE));
	}
	return flush(&batch, stream);
}

static CUresult upload(CUgraphExec handle, CUstream on, bool per_thread)
{
	struct stream *stream;
	ENTER();
	const struct exec *exec = exec_of(handle);
	if (!exec)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(stream_of(on, per_thread, &stream));
	return graph_memory_bring(exec);
}

TWINS(cuGraphLaunch, ptsz, (CUgraphExec exec, CUstream stream), launch(exec, stream, per_thread))
TWINS(cuGraphUpload, ptsz, (CUgraphExec exec, CUstream stream), upload(exec, stream, per_thread))
