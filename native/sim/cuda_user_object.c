/* SPDX-License-Identifier: Apache-2.0 */
/*
 * User objects: a client's data that graphs keep alive.
 *
 * References are counted; a graph holds some, an executable graph holds those
 * of the graph it was made from.  The last one calls the client's destructor,
 * which runs on the driver's own thread, because it may be called from anywhere.
 */
#include <stdlib.h>

#include "cuda_work.h"

struct user_object {
	struct object object;
	CUhostFn destroy;
	void *data;
	unsigned references;
};

struct user_reference {
	struct user_reference *next;
	struct user_object *user;
	unsigned count;
};

static void drop(struct user_object *user, unsigned count)
{
	user->references = count < user->references ? user->references - count : 0;
	if (user->references)
		return;
	callback_run(&(struct callback){.function = user->destroy, .data = user->data});
	object_free(user);
}

static CUresult keep(struct user_reference **list, struct user_object *user, unsigned count)
{
	struct user_reference *reference = malloc(sizeof(*reference));
	if (!reference)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*reference = (struct user_reference){*list, user, count};
	*list = reference;
	return CUDA_SUCCESS;
}

void user_references_drop(struct user_reference **list)
{
	while (*list) {
		struct user_reference *first = *list;
		*list = first->next;
		drop(first->user, first->count);
		free(first);
	}
}

CUresult user_references_copy(struct user_reference **to, struct user_reference *from)
{
	for (; from; from = from->next) {
		TRY(keep(to, from->user, from->count));
		from->user->references += from->count;
	}
	return CUDA_SUCCESS;
}

/* ---- public ---- */

typedef struct CUuserObject_st *CUuserObject;

#define NO_DESTRUCTOR_SYNC 1u /* the one flag there is, and it must be given */
#define MOVE 1u               /* the graph takes the caller's references */

API cuUserObjectCreate(CUuserObject *handle, void *data, CUhostFn destroy, unsigned int references,
		       unsigned int flags)
{
	ENTER();
	if (!handle || !destroy || !references || flags != NO_DESTRUCTOR_SYNC)
		return CUDA_ERROR_INVALID_VALUE;
	struct user_object *user = object_new(OBJECT_USER, NULL);
	if (!user)
		return CUDA_ERROR_OUT_OF_MEMORY;
	user->destroy = destroy;
	user->data = data;
	user->references = references;
	*handle = (CUuserObject)user;
	return CUDA_SUCCESS;
}

API cuUserObjectRetain(CUuserObject handle, unsigned int count)
{
	ENTER();
	struct user_object *user = object_of(handle, OBJECT_USER);
	if (!user || !count)
		return CUDA_ERROR_INVALID_VALUE;
	user->references += count;
	return CUDA_SUCCESS;
}

API cuUserObjectRelease(CUuserObject handle, unsigned int count)
{
	ENTER();
	struct user_object *user = object_of(handle, OBJECT_USER);
	if (!user || !count || count > user->references)
		return CUDA_ERROR_INVALID_VALUE;
	drop(user, count);
	return CUDA_SUCCESS;
}

API cuGraphRetainUserObject(CUgraph to, CUuserObject handle, unsigned int count, unsigned int flags)
{
	ENTER();
	struct graph *graph = object_of(to, OBJECT_GRAPH);
	struct user_object *user = object_of(handle, OBJECT_USER);
	if (!graph || !user || !count || flags & ~MOVE)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(keep(&graph->users, user, count));
	if (!(flags & MOVE))
		user->references += count;
	return CUDA_SUCCESS;
}

API cuGraphReleaseUserObject(CUgraph from, CUuserObject handle, unsigned int count)
{
	ENTER();
	struct graph *graph = object_of(from, OBJECT_GRAPH);
	struct user_object *user = object_of(handle, OBJECT_USER);
	if (!graph || !user || !count)
		return CUDA_ERROR_INVALID_VALUE;
	for (struct user_reference *held = graph->users; held; held = held->next) {
		if (held->user != user || held->count < count)
			continue;
		held->count -= count;
		drop(user, count);
		return CUDA_SUCCESS;
	}
	return CUDA_ERROR_INVALID_VALUE;
}
