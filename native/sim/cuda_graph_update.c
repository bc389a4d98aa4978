/* SPDX-License-Identifier: Apache-2.0 */
/* Changing an executable graph: one step of it, or all of them at once. */
#include <stdlib.h>

#include "cuda_work.h"

static struct exec *exec_of(CUgraphExec handle)
{
	return object_of(handle, OBJECT_EXEC);
}

static struct step *step_of(CUgraphExec handle, CUgraphNode node)
{
	struct exec *exec = exec_of(handle);
	for (size_t i = 0; exec && i < exec->count; i++)
		if (exec->steps[i].node == (const struct node *)node)
			return &exec->steps[i];
	return NULL;
}

static CUresult set_step(struct step *step, const struct work *work)
{
	if (!step || step->work.type != work->type)
		return CUDA_ERROR_INVALID_VALUE;
	step->work = *work;
	return CUDA_SUCCESS;
}

static CUresult set_kernel(CUgraphExec exec, CUgraphNode node,
			   const CUDA_KERNEL_NODE_PARAMS *parameters, bool second)
{
	struct work work;
	ENTER();
	if (!parameters)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(work_of_kernel(parameters, second, &work));
	return set_step(step_of(exec, node), &work);
}

API cuGraphExecKernelNodeSetParams(CUgraphExec exec, CUgraphNode node,
				   const CUDA_KERNEL_NODE_PARAMS *parameters)
{
	return set_kernel(exec, node, parameters, false);
}

API cuGraphExecKernelNodeSetParams_v2(CUgraphExec exec, CUgraphNode node,
				      const CUDA_KERNEL_NODE_PARAMS *parameters)
{
	return set_kernel(exec, node, parameters, true);
}

API cuGraphExecMemcpyNodeSetParams(CUgraphExec exec, CUgraphNode node,
				   const CUDA_MEMCPY3D *parameters, CUcontext context)
{
	struct work work;
	ENTER();
	(void)context;
	if (!parameters)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(work_of_copy(parameters, &work));
	return set_step(step_of(exec, node), &work);
}

API cuGraphExecMemsetNodeSetParams(CUgraphExec exec, CUgraphNode node,
				   const CUDA_MEMSET_NODE_PARAMS *parameters, CUcontext context)
{
	struct work work;
	ENTER();
	(void)context;
	if (!parameters)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(work_of_fill(parameters, &work));
	return set_step(step_of(exec, node), &work);
}

API cuGraphNodeSetEnabled(CUgraphExec exec, CUgraphNode node, unsigned int enabled)
{
	ENTER();
	struct step *step = step_of(exec, node);
	if (!step || step->work.type > CU_GRAPH_NODE_TYPE_MEMSET)
		return CUDA_ERROR_INVALID_VALUE;
	step->disabled = !enabled;
	return CUDA_SUCCESS;
}

API cuGraphNodeGetEnabled(CUgraphExec exec, CUgraphNode node, unsigned int *enabled)
{
	ENTER();
	const struct step *step = step_of(exec, node);
	if (!step || !enabled || step->work.type > CU_GRAPH_NODE_TYPE_MEMSET)
		return CUDA_ERROR_INVALID_VALUE;
	*enabled = !step->disabled;
	return CUDA_SUCCESS;
}

/* Take all parameters from a graph of the same shape: 0, or 2 for another shape. */
static CUresult update(CUgraphExec handle, CUgraph from, unsigned *result)
{
	struct exec fresh = {0};
	ENTER();
	struct exec *exec = exec_of(handle);
	struct graph *graph = object_of(from, OBJECT_GRAPH);
	if (!exec || !graph || !result)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(exec_flatten(&fresh, graph));
	bool same = fresh.count == exec->count && fresh.topology == exec->topology;
	*result = same ? 0 : 2;
	if (!same) {
		free(fresh.steps);
		return 910; /* graph update failed */
	}
	free(exec->steps);
	exec->steps = fresh.steps;
	exec->room = fresh.room;
	return CUDA_SUCCESS;
}

API cuGraphExecUpdate(CUgraphExec exec, CUgraph graph, CUgraphNode *error, unsigned *result)
{
	if (error)
		*error = NULL;
	return update(exec, graph, result);
}

API cuGraphExecUpdate_v2(CUgraphExec exec, CUgraph graph, CUgraphExecUpdateResultInfo *info)
{
	if (!info)
		return CUDA_ERROR_INVALID_VALUE;
	*info = (CUgraphExecUpdateResultInfo){0};
	return update(exec, graph, &info->result);
}
