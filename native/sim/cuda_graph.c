/* SPDX-License-Identifier: Apache-2.0 */
/* Graphs: nodes and what each waits for.  Nothing is done here. */
#include <stdlib.h>
#include <string.h>

#include "cuda_work.h"

struct graph *graph_new(void)
{
	struct graph *graph = object_new(OBJECT_GRAPH, NULL);
	if (graph)
		graph->last = &graph->first;
	return graph;
}

CUgraph graph_handle(struct graph *graph)
{
	return (CUgraph)graph;
}

static void node_free(struct node *node)
{
	if (node->work->type == CU_GRAPH_NODE_TYPE_GRAPH)
		graph_free(node->work->child);
	if (node->work->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC)
		graph_unreserve(node->work);
	free(node->work);
	free(node->after);
	object_free(node);
}

void graph_free(struct graph *graph)
{
	struct node *next;
	for (struct node *node = graph->first; node; node = next) {
		next = node->next;
		node_free(node);
	}
	user_references_drop(&graph->users);
	object_free(graph);
}

static bool add_dependencies(struct node *node, struct node *const *after, size_t count)
{
	struct node **grown =
		realloc(node->after, (node->after_count + count) * sizeof(*grown) + 1);
	if (!grown)
		return false;
	node->after = grown;
	if (count)
		memcpy(grown + node->after_count, after, count * sizeof(*after));
	node->after_count += count;
	return true;
}

struct node *graph_add(struct graph *graph, const struct work *work, struct node *const *after,
		       size_t count)
{
	struct node *node = object_new(OBJECT_NODE, NULL);
	struct work *copy = malloc(sizeof(*copy));
	if (!node || !copy || !add_dependencies(node, after, count)) {
		free(copy);
		if (node)
			object_free(node);
		return NULL;
	}
	*copy = *work;
	node->work = copy;
	node->graph = graph;
	node->id = graph->ids++;
	*graph->last = node;
	graph->last = &node->next;
	graph->count++;
	return node;
}

struct graph *graph_clone(struct graph *graph)
{
	struct graph *clone = graph_new();
	for (struct node *node = graph->first; clone && node; node = node->next) {
		struct work work = *node->work;
		if (work.type == CU_GRAPH_NODE_TYPE_GRAPH)
			work.child = graph_clone(work.child);
		node->copy = graph_add(clone, &work, NULL, 0);
	}
	for (struct node *node = graph->first; clone && node; node = node->next)
		for (size_t i = 0; i < node->after_count; i++)
			add_dependencies(node->copy, &node->after[i]->copy, 1);
	if (clone)
		user_references_copy(&clone->users, graph->users);
	return clone;
}

bool node_waits_for(const struct node *node, const struct node *other)
{
	for (size_t i = 0; i < node->after_count; i++)
		if (node->after[i] == other)
			return true;
	return false;
}

/* Repeated passes: graphs are nearly always in order already, so one is enough. */
struct node **graph_order(struct graph *graph)
{
	struct node **order = malloc(graph->count * sizeof(*order) + 1);
	int mark = ++graph->mark;
	size_t done = 0, before;
	if (!order)
		return NULL;
	do {
		before = done;
		for (struct node *node = graph->first; node; node = node->next) {
			bool ready = node->mark != mark;
			for (size_t i = 0; ready && i < node->after_count; i++)
				ready = node->after[i]->mark == mark;
			if (ready) {
				node->mark = mark;
				order[done++] = node;
			}
		}
	} while (done > before && done < graph->count);
	if (done == graph->count)
		return order;
	free(order);
	return NULL;
}

/* Nodes are marked backwards: a node's dependencies were made before it. */
bool graph_joined(struct node *const *tips, int count, struct node *const *ends, int end_count)
{
	if (!count)
		return true;
	if (!end_count)
		return false;
	struct graph *graph = ends[0]->graph;
	size_t room = graph->count, top = 0;
	struct node **ahead = malloc(room * sizeof(*ahead) + 1);
	int mark = ++graph->mark;
	for (int i = 0; ahead && i < end_count; i++)
		if (ends[i]->mark != mark) {
			ends[i]->mark = mark;
			ahead[top++] = ends[i];
		}
	while (ahead && top) {
		struct node *node = ahead[--top];
		for (size_t i = 0; i < node->after_count; i++)
			if (node->after[i]->mark != mark) {
				node->after[i]->mark = mark;
				ahead[top++] = node->after[i];
			}
	}
	bool joined = ahead != NULL;
	for (int i = 0; i < count; i++)
		joined &= tips[i]->mark == mark;
	free(ahead);
	return joined;
}

/* ---- public: the structure ---- */

static struct graph *graph_of(CUgraph handle)
{
	return object_of(handle, OBJECT_GRAPH);
}

static struct node *node_of(CUgraphNode handle)
{
	return object_of(handle, OBJECT_NODE);
}

API cuGraphCreate(CUgraph *handle, unsigned int flags)
{
	ENTER();
	if (!handle || flags)
		return CUDA_ERROR_INVALID_VALUE;
	struct graph *graph = graph_new();
	*handle = graph_handle(graph);
	return graph ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API cuGraphDestroy(CUgraph handle)
{
	ENTER();
	struct graph *graph = graph_of(handle);
	if (!graph || graph->child)
		return CUDA_ERROR_INVALID_VALUE;
	graph_free(graph);
	return CUDA_SUCCESS;
}

API cuGraphClone(CUgraph *handle, CUgraph original)
{
	ENTER();
	struct graph *graph = graph_of(original);
	if (!handle || !graph)
		return CUDA_ERROR_INVALID_VALUE;
	for (struct node *node = graph->first; node; node = node->next)
		if (node->work->type == CU_GRAPH_NODE_TYPE_MEM_ALLOC ||
		    node->work->type == CU_GRAPH_NODE_TYPE_MEM_FREE)
			return CUDA_ERROR_NOT_SUPPORTED;
	*handle = graph_handle(graph_clone(graph));
	return *handle ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}

API cuGraphDestroyNode(CUgraphNode handle)
{
	ENTER();
	struct node *node = node_of(handle);
	if (!node)
		return CUDA_ERROR_INVALID_VALUE;
	struct graph *graph = node->graph;
	for (struct node *other = graph->first; other; other = other->next)
		for (size_t i = 0; i < other->after_count; i++)
			if (other->after[i] == node)
				other->after[i--] = other->after[--other->after_count];
	struct node **place = &graph->first;
	while (*place != node)
		place = &(*place)->next;
	*place = node->next;
	if (!node->next)
		graph->last = place;
	graph->count--;
	node_free(node);
	return CUDA_SUCCESS;
}

API cuGraphNodeGetType(CUgraphNode handle, unsigned int *type)
{
	ENTER();
	const struct node *node = node_of(handle);
	if (!node || !type)
		return CUDA_ERROR_INVALID_VALUE;
	*type = node->work->type;
	return CUDA_SUCCESS;
}

/* The two-call protocol: without a place for them, only how many there are. */
struct list {
	CUgraphNode *nodes;
	size_t *count;
	size_t found;
};

static void list_add(struct list *list, struct node *node)
{
	if (list->nodes && list->found < *list->count)
		list->nodes[list->found] = (CUgraphNode)node;
	list->found++;
}

static CUresult list_end(struct list *list)
{
	for (size_t i = list->found; list->nodes && i < *list->count; i++)
		list->nodes[i] = NULL;
	*list->count = list->found;
	return CUDA_SUCCESS;
}

static CUresult list_nodes(CUgraph handle, CUgraphNode *nodes, size_t *count, bool roots)
{
	struct list list = {nodes, count, 0};
	ENTER();
	struct graph *graph = graph_of(handle);
	if (!graph || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (struct node *node = graph->first; node; node = node->next)
		if (!roots || !node->after_count)
			list_add(&list, node);
	return list_end(&list);
}

API cuGraphGetNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
	return list_nodes(graph, nodes, count, false);
}

API cuGraphGetRootNodes(CUgraph graph, CUgraphNode *nodes, size_t *count)
{
	return list_nodes(graph, nodes, count, true);
}

static CUresult list_neighbours(CUgraphNode handle, CUgraphNode *nodes, size_t *count, bool before)
{
	struct list list = {nodes, count, 0};
	ENTER();
	struct node *node = node_of(handle);
	if (!node || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (struct node *other = node->graph->first; other; other = other->next)
		if (before ? node_waits_for(node, other) : node_waits_for(other, node))
			list_add(&list, other);
	return list_end(&list);
}

API cuGraphNodeGetDependencies(CUgraphNode node, CUgraphNode *nodes, size_t *count)
{
	return list_neighbours(node, nodes, count, true);
}

API cuGraphNodeGetDependentNodes(CUgraphNode node, CUgraphNode *nodes, size_t *count)
{
	return list_neighbours(node, nodes, count, false);
}

API cuGraphGetEdges(CUgraph handle, CUgraphNode *from, CUgraphNode *to, size_t *count)
{
	ENTER();
	struct graph *graph = graph_of(handle);
	if (!graph || !count || !from != !to)
		return CUDA_ERROR_INVALID_VALUE;
	size_t room = *count;
	struct list sources = {from, &room, 0}, targets = {to, &room, 0};
	for (struct node *node = graph->first; node; node = node->next)
		for (size_t i = 0; i < node->after_count; i++) {
			list_add(&sources, node->after[i]);
			list_add(&targets, node);
		}
	list_end(&sources);
	*count = targets.found;
	return CUDA_SUCCESS;
}

API cuGraphAddDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
			   size_t count)
{
	ENTER();
	if (!graph_of(graph) || (count && (!from || !to)))
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++) {
		struct node *source = node_of(from[i]), *target = node_of(to[i]);
		if (!source || !target || source == target || source->graph != graph_of(graph) ||
		    target->graph != source->graph || node_waits_for(target, source))
			return CUDA_ERROR_INVALID_VALUE;
		if (!add_dependencies(target, &source, 1))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return CUDA_SUCCESS;
}

API cuGraphRemoveDependencies(CUgraph graph, const CUgraphNode *from, const CUgraphNode *to,
			      size_t count)
{
	ENTER();
	if (!graph_of(graph) || (count && (!from || !to)))
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++) {
		struct node *source = node_of(from[i]), *target = node_of(to[i]);
		if (!source || !target || !node_waits_for(target, source))
			return CUDA_ERROR_INVALID_VALUE;
		for (size_t k = 0; k < target->after_count; k++)
			if (target->after[k] == source)
				target->after[k--] = target->after[--target->after_count];
	}
	return CUDA_SUCCESS;
}
