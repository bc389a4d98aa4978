/* SPDX-License-Identifier: Apache-2.0 */
/* Graph nodes: making them from parameters, and the parameters of those made. */
#include <string.h>

#include "cuda_work.h"

/* Version 1 of the parameters ends before `kern`. */
CUresult work_of_kernel(const CUDA_KERNEL_NODE_PARAMS *p, bool second_version, struct work *work)
{
	struct context *context;
	TRY(context_current(&context));
	struct function *function = object_of(p->func, OBJECT_FUNCTION);
	if (!function && second_version && !p->func)
		function = object_of(p->kern, OBJECT_FUNCTION);
	if (!function)
		return CUDA_ERROR_INVALID_VALUE;
	*work = (struct work){
		.type = CU_GRAPH_NODE_TYPE_KERNEL,
		.kernel.launch =
			{
				.function = function,
				.grid = {p->gridDimX, p->gridDimY, p->gridDimZ},
				.block = {p->blockDimX, p->blockDimY, p->blockDimZ},
				.shared = p->sharedMemBytes,
				.arguments = p->kernelParams,
				.extra = p->extra,
			},
	};
	TRY(launch_check(&work->kernel.launch, context));
	return kernel_arguments(&work->kernel.launch, work->kernel.arguments);
}

CUresult work_of_copy(const CUDA_MEMCPY3D *parameters, struct work *work)
{
	*work = (struct work){.type = CU_GRAPH_NODE_TYPE_MEMCPY, .memcpy.parameters = *parameters};
	return copy_parse(parameters, &work->memcpy.copy);
}

CUresult work_of_fill(const CUDA_MEMSET_NODE_PARAMS *p, struct work *work)
{
	*work = (struct work){
		.type = CU_GRAPH_NODE_TYPE_MEMSET,
		.memset = {(char *)(uintptr_t)p->dst, p->pitch, p->value, p->elementSize, p->width,
			   p->height},
	};
	return copy_check_fill(&work->memset);
}

static CUresult add(CUgraphNode *handle, CUgraph to, const CUgraphNode *after, size_t count,
		    const struct work *work)
{
	struct graph *graph = object_of(to, OBJECT_GRAPH);
	if (!handle || !graph || (count && !after))
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++) {
		const struct node *node = object_of(after[i], OBJECT_NODE);
		if (!node || node->graph != graph)
			return CUDA_ERROR_INVALID_VALUE;
	}
	struct node *node = graph_add(graph, work, (struct node *const *)after, count);
	*handle = (CUgraphNode)node;
	return node ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

#define NODE_PARAMETERS CUgraphNode *node, CUgraph graph, const CUgraphNode *after, size_t count

static CUresult add_kernel(NODE_PARAMETERS, const CUDA_KERNEL_NODE_PARAMS *parameters,
			   bool second_version)
{
	struct work work;
	ENTER();
	if (!parameters)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(work_of_kernel(parameters, second_version, &work));
	return add(node, graph, after, count, &work);
}

API cuGraphAddKernelNode(NODE_PARAMETERS, const CUDA_KERNEL_NODE_PARAMS *parameters)
{
	return add_kernel(node, graph, after, count, parameters, false);
}

API cuGraphAddKernelNode_v2(NODE_PARAMETERS, const CUDA_KERNEL_NODE_PARAMS *parameters)
{
	return add_kernel(node, graph, after, count, parameters, true);
}

API cuGraphAddMemcpyNode(NODE_PARAMETERS, const CUDA_MEMCPY3D *parameters, CUcontext context)
{
	struct work work;
	ENTER();
	(void)context;
	if (!parameters)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(work_of_copy(parameters, &work));
	return add(node, graph, after, count, &work);
}

API cuGraphAddMemsetNode(NODE_PARAMETERS, const CUDA_MEMSET_NODE_PARAMS *parameters,
			 CUcontext context)
{
	struct work work;
	ENTER();
	(void)context;
	if (!parameters)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(work_of_fill(parameters, &work));
	return add(node, graph, after, count, &work);
}

API cuGraphAddHostNode(NODE_PARAMETERS, const CUDA_HOST_NODE_PARAMS *parameters)
{
	ENTER();
	if (!parameters || !parameters->fn)
		return CUDA_ERROR_INVALID_VALUE;
	struct work work = {.type = CU_GRAPH_NODE_TYPE_HOST, .host = *parameters};
	return add(node, graph, after, count, &work);
}

API cuGraphAddEmptyNode(NODE_PARAMETERS)
{
	ENTER();
	struct work work = {.type = CU_GRAPH_NODE_TYPE_EMPTY};
	return add(node, graph, after, count, &work);
}

/* The node keeps a copy of the graph as it is now. */
API cuGraphAddChildGraphNode(NODE_PARAMETERS, CUgraph child)
{
	ENTER();
	struct graph *original = object_of(child, OBJECT_GRAPH);
	if (!original || child == graph)
		return CUDA_ERROR_INVALID_VALUE;
	struct work work = {.type = CU_GRAPH_NODE_TYPE_GRAPH, .child = graph_clone(original)};
	if (!work.child)
		return CUDA_ERROR_OUT_OF_MEMORY;
	work.child->child = true;
	CUresult result = add(node, graph, after, count, &work);
	if (result)
		graph_free(work.child);
	return result;
}

static CUresult add_event(NODE_PARAMETERS, CUevent handle, unsigned type)
{
	struct event *event;
	ENTER();
	TRY(event_of(handle, &event));
	struct work work = {.type = type, .event = event};
	return add(node, graph, after, count, &work);
}

API cuGraphAddEventRecordNode(NODE_PARAMETERS, CUevent event)
{
	return add_event(node, graph, after, count, event, CU_GRAPH_NODE_TYPE_EVENT_RECORD);
}

API cuGraphAddEventWaitNode(NODE_PARAMETERS, CUevent event)
{
	return add_event(node, graph, after, count, event, CU_GRAPH_NODE_TYPE_WAIT_EVENT);
}

API cuGraphAddMemAllocNode(NODE_PARAMETERS, CUDA_MEM_ALLOC_NODE_PARAMS *parameters)
{
	struct work work = {.type = CU_GRAPH_NODE_TYPE_MEM_ALLOC};
	ENTER();
	if (!parameters || !parameters->bytesize ||
	    parameters->poolProps.location.type != CU_MEM_LOCATION_TYPE_DEVICE)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(device_of(parameters->poolProps.location.id, &work.memory.device));
	work.memory.bytes = parameters->bytesize;
	TRY(graph_reserve(&work));
	CUresult result = add(node, graph, after, count, &work);
	if (result)
		graph_unreserve(&work);
	else
		parameters->dptr = work.memory.pointer;
	return result;
}

API cuGraphAddMemFreeNode(NODE_PARAMETERS, CUdeviceptr pointer)
{
	struct allocation found;
	ENTER();
	const struct range *range = range_at((uintptr_t)pointer);
	if (!range || range->base != (uintptr_t)pointer ||
	    (!(range->flags & RANGE_OF_GRAPH) && !find_allocation((uintptr_t)pointer, &found)))
		return CUDA_ERROR_INVALID_VALUE;
	struct work work = {.type = CU_GRAPH_NODE_TYPE_MEM_FREE, .memory.pointer = pointer};
	return add(node, graph, after, count, &work);
}

/* ---- the general form ---- */

static CUresult add_any(NODE_PARAMETERS, CUgraphNodeParams *p)
{
	if (!p)
		return CUDA_ERROR_INVALID_VALUE;
	switch (p->type) {
	case CU_GRAPH_NODE_TYPE_KERNEL:
		return cuGraphAddKernelNode_v2(node, graph, after, count, &p->kernel);
	case CU_GRAPH_NODE_TYPE_MEMCPY:
		return cuGraphAddMemcpyNode(node, graph, after, count, &p->memcpy.copyParams,
					    p->memcpy.copyCtx);
	case CU_GRAPH_NODE_TYPE_MEMSET:
		return cuGraphAddMemsetNode(node, graph, after, count, &p->memset, NULL);
	case CU_GRAPH_NODE_TYPE_HOST:
		return cuGraphAddHostNode(node, graph, after, count, &p->host);
	case CU_GRAPH_NODE_TYPE_GRAPH:
		return cuGraphAddChildGraphNode(node, graph, after, count, p->graph);
	case CU_GRAPH_NODE_TYPE_EMPTY:
		return cuGraphAddEmptyNode(node, graph, after, count);
	case CU_GRAPH_NODE_TYPE_WAIT_EVENT:
		return cuGraphAddEventWaitNode(node, graph, after, count, p->eventWait);
	case CU_GRAPH_NODE_TYPE_EVENT_RECORD:
		return cuGraphAddEventRecordNode(node, graph, after, count, p->eventRecord);
	case CU_GRAPH_NODE_TYPE_MEM_ALLOC:
		return cuGraphAddMemAllocNode(node, graph, after, count, &p->alloc);
	case CU_GRAPH_NODE_TYPE_MEM_FREE:
		return cuGraphAddMemFreeNode(node, graph, after, count, p->free);
	default:
		return CUDA_ERROR_NOT_SUPPORTED;
	}
}

API cuGraphAddNode(NODE_PARAMETERS, CUgraphNodeParams *parameters)
{
	return add_any(node, graph, after, count, parameters);
}

API cuGraphAddNode_v2(CUgraphNode *node, CUgraph graph, const CUgraphNode *after,
		      const CUgraphEdgeData *edges, size_t count, CUgraphNodeParams *parameters)
{
	return edges ? CUDA_ERROR_NOT_SUPPORTED : add_any(node, graph, after, count, parameters);
}

/* ---- parameters of nodes ---- */

static struct work *work_at(CUgraphNode handle, unsigned type)
{
	struct node *node = object_of(handle, OBJECT_NODE);
	return node && node->work->type == type ? node->work : NULL;
}

static CUresult get_kernel(CUgraphNode handle, CUDA_KERNEL_NODE_PARAMS *parameters, size_t size)
{
	ENTER();
	const struct work *work = work_at(handle, CU_GRAPH_NODE_TYPE_KERNEL);
	if (!work || !parameters)
		return CUDA_ERROR_INVALID_VALUE;
	const struct launch *launch = &work->kernel.launch;
	CUDA_KERNEL_NODE_PARAMS full = {
		.func = (CUfunction)launch->function,
		.gridDimX = launch->grid[0],
		.gridDimY = launch->grid[1],
		.gridDimZ = launch->grid[2],
		.blockDimX = launch->block[0],
		.blockDimY = launch->block[1],
		.blockDimZ = launch->block[2],
		.sharedMemBytes = launch->shared,
		.kernelParams = launch->arguments,
		.extra = launch->extra,
	};
	memcpy(parameters, &full, size);
	return CUDA_SUCCESS;
}

API cuGraphKernelNodeGetParams(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS *parameters)
{
	return get_kernel(node, parameters, offsetof(CUDA_KERNEL_NODE_PARAMS, kern));
}

API cuGraphKernelNodeGetParams_v2(CUgraphNode node, CUDA_KERNEL_NODE_PARAMS *parameters)
{
	return get_kernel(node, parameters, sizeof(*parameters));
}

static CUresult set_kernel(CUgraphNode handle, const CUDA_KERNEL_NODE_PARAMS *parameters,
			   bool second_version)
{
	struct work made;
	ENTER();
	struct work *work = work_at(handle, CU_GRAPH_NODE_TYPE_KERNEL);
	if (!work || !parameters)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(work_of_kernel(parameters, second_version, &made));
	*work = made;
	return CUDA_SUCCESS;
}

API cuGraphKernelNodeSetParams(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS *parameters)
{
	return set_kernel(node, parameters, false);
}

API cuGraphKernelNodeSetParams_v2(CUgraphNode node, const CUDA_KERNEL_NODE_PARAMS *parameters)
{
	return set_kernel(node, parameters, true);
}

API cuGraphMemAllocNodeGetParams(CUgraphNode handle, CUDA_MEM_ALLOC_NODE_PARAMS *parameters)
{
	ENTER();
	const struct work *work = work_at(handle, CU_GRAPH_NODE_TYPE_MEM_ALLOC);
	if (!work || !parameters)
		return CUDA_ERROR_INVALID_VALUE;
	*parameters = (CUDA_MEM_ALLOC_NODE_PARAMS){
		.poolProps = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
			      .location = {CU_MEM_LOCATION_TYPE_DEVICE,
					   work->memory.device->ordinal}},
		.bytesize = work->memory.bytes,
		.dptr = work->memory.pointer,
	};
	return CUDA_SUCCESS;
}

API cuGraphMemFreeNodeGetParams(CUgraphNode handle, CUdeviceptr *pointer)
{
	ENTER();
	const struct work *work = work_at(handle, CU_GRAPH_NODE_TYPE_MEM_FREE);
	if (!work || !pointer)
		return CUDA_ERROR_INVALID_VALUE;
	*pointer = work->memory.pointer;
	return CUDA_SUCCESS;
}

API cuGraphChildGraphNodeGetGraph(CUgraphNode handle, CUgraph *graph)
{
	ENTER();
	const struct work *work = work_at(handle, CU_GRAPH_NODE_TYPE_GRAPH);
	if (!work || !graph)
		return CUDA_ERROR_INVALID_VALUE;
	*graph = graph_handle(work->child);
	return CUDA_SUCCESS;
}
