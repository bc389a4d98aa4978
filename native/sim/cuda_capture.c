/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Stream capture: work that becomes a graph instead of being done.
 *
 * Each capturing stream has tips: the nodes on which its next one depends.
 * Waiting for an event that was recorded in a capture draws a stream into it.
 * Calls that could disturb a capture end it: they get error 900 and the capture
 * is invalid from then on, as far as the modes of thread and capture say so.
 */
#include <stdlib.h>
#include <string.h>

#include "cuda_work.h"

static struct capture *captures;
static __thread CUstreamCaptureMode thread_mode = CU_STREAM_CAPTURE_MODE_GLOBAL;

uint64_t capture_number(const struct capture *capture)
{
	return capture->id;
}

bool capture_any(void)
{
	return captures;
}

bool capture_is_mine(const struct capture *capture)
{
	return pthread_equal(capture->thread, pthread_self());
}

static bool forbids(const struct capture *capture)
{
	bool mine = capture_is_mine(capture);
	if (thread_mode == CU_STREAM_CAPTURE_MODE_RELAXED ||
	    capture->mode == CU_STREAM_CAPTURE_MODE_RELAXED)
		return false;
	if (thread_mode == CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)
		return mine;
	return mine || capture->mode == CU_STREAM_CAPTURE_MODE_GLOBAL;
}

CUresult capture_forbids(void)
{
	CUresult result = CUDA_SUCCESS;
	for (struct capture *capture = captures; capture; capture = capture->next) {
		if (!forbids(capture))
			continue;
		capture->invalid = true;
		result = CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	return result;
}

/* The null stream would wait for a capturing stream that waits for it. */
struct capture *capture_implied(const struct stream *stream)
{
	for (struct capture *capture = captures; stream->legacy && capture; capture = capture->next)
		if (capture->origin->object.context == stream->object.context &&
		    !(capture->origin->flags & CU_STREAM_NON_BLOCKING))
			return capture;
	return NULL;
}

CUresult capture_forbids_sync(struct stream *stream)
{
	struct capture *capture = stream->capture;
	if (capture) {
		capture->invalid = true;
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	}
	capture = captures ? capture_implied(stream) : NULL;
	if (!capture)
		return CUDA_SUCCESS;
	capture->invalid = true;
	return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
}

CUresult capture_set_tips(struct stream *stream, struct node *const *tips, size_t count)
{
	if ((size_t)stream->tip_room < count) {
		struct node **grown = realloc(stream->tips, count * sizeof(*grown));
		if (!grown)
			return CUDA_ERROR_OUT_OF_MEMORY;
		stream->tips = grown;
		stream->tip_room = (int)count;
	}
	if (count)
		memmove(stream->tips, tips, count * sizeof(*tips));
	stream->tip_count = (int)count;
	return CUDA_SUCCESS;
}

CUresult capture_add_tips(struct stream *stream, struct node *const *tips, int count)
{
	int room = stream->tip_count + count;
	struct node **all = malloc((size_t)room * sizeof(*all) + 1);
	if (!all)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (stream->tip_count)
		memcpy(all, stream->tips, (size_t)stream->tip_count * sizeof(*all));
	int total = stream->tip_count;
	for (int i = 0; i < count; i++) {
		bool known = false;
		for (int k = 0; k < total; k++)
			known |= all[k] == tips[i];
		if (!known)
			all[total++] = tips[i];
	}
	CUresult result = capture_set_tips(stream, all, (size_t)total);
	free(all);
	return result;
}

CUresult capture_work(struct stream *stream, const struct work *work, bool *captured)
{
	*captured = false;
	if (!captures)
		return CUDA_SUCCESS;
	if (!stream->capture)
		return capture_forbids_sync(stream);
	if (stream->capture->invalid)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	struct node *node =
		graph_add(stream->capture->graph, work, stream->tips, (size_t)stream->tip_count);
	if (!node)
		return CUDA_ERROR_OUT_OF_MEMORY;
	*captured = true;
	return capture_set_tips(stream, &node, 1);
}

CUresult stream_do(struct stream *stream, const struct work *work)
{
	bool captured;
	TRY(capture_work(stream, work, &captured));
	if (captured)
		return CUDA_SUCCESS;
	return stream_held(stream) ? later_work(stream, work) : work_do(work, stream);
}

CUresult capture_join(struct stream *stream, struct event *event)
{
	struct capture *capture = captures;
	while (capture && capture->id != event->capture)
		capture = capture->next;
	if (!capture) { /* an ordinary event would tie the graph to the outside */
		if (!stream->capture)
			return CUDA_ERROR_CAPTURED_EVENT;
		stream->capture->invalid = true;
		return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	}
	if (capture->invalid)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	if (stream->capture && stream->capture != capture) {
		stream->capture->invalid = capture->invalid = true;
		return CUDA_ERROR_STREAM_CAPTURE_ISOLATION;
	}
	if (stream->legacy)
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	if (stream->object.context != capture->origin->object.context)
		return CUDA_ERROR_NOT_SUPPORTED;
	if (!stream->capture) {
		stream->capture = capture;
		stream->tip_count = 0;
	}
	return capture_add_tips(stream, event->tips, event->tip_count);
}

static void leave(struct stream *stream)
{
	free(stream->tips);
	stream->tips = NULL;
	stream->tip_count = stream->tip_room = 0;
	stream->capture = NULL;
}

/* Every stream of the context that the capture has drawn in. */
static struct stream *next_member(const struct capture *capture, struct object *from)
{
	for (struct object *object = from; object; object = object->next)
		if (object->kind == OBJECT_STREAM && ((struct stream *)object)->capture == capture)
			return (struct stream *)object;
	return NULL;
}

void capture_end(struct capture *capture)
{
	struct capture **place = &captures;
	struct stream *member;
	while (*place != capture)
		place = &(*place)->next;
	*place = capture->next;
	while ((member = next_member(capture, capture->origin->object.context->objects)))
		leave(member);
	free(capture);
}

CUresult capture_begin(struct stream *stream, const struct capture *wanted,
		       struct node *const *tips, size_t count)
{
	static uint64_t ids;
	struct capture *capture = malloc(sizeof(*capture));
	if (!capture || capture_set_tips(stream, tips, count)) {
		free(capture);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	*capture = *wanted;
	capture->next = captures;
	capture->origin = stream;
	capture->thread = pthread_self();
	capture->id = ++ids;
	captures = capture;
	stream->capture = capture;
	return CUDA_SUCCESS;
}

bool capture_joined(const struct capture *capture)
{
	const struct stream *origin = capture->origin;
	struct stream *member = next_member(capture, origin->object.context->objects);
	for (; member; member = next_member(capture, member->object.next))
		if (!graph_joined(member->tips, member->tip_count, origin->tips, origin->tip_count))
			return false;
	return true;
}

void capture_drop(struct stream *stream)
{
	struct capture *capture = stream->capture;
	if (!capture)
		return;
	capture->invalid = true;
	if (capture->origin == stream) {
		if (!capture->into)
			graph_free(capture->graph);
		capture_end(capture);
	} else {
		leave(stream);
	}
}

/* Whatever else happens, a thread can say how careful it is. */
API cuThreadExchangeStreamCaptureMode(CUstreamCaptureMode *mode)
{
	CHECK_READY();
	if (!mode || (unsigned)*mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	CUstreamCaptureMode old = thread_mode;
	thread_mode = *mode;
	*mode = old;
	return CUDA_SUCCESS;
}
