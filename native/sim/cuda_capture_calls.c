/* SPDX-License-Identifier: Apache-2.0 */
/* The calls that begin, end and describe a capture. */
#include "cuda_work.h"

static CUresult begin(CUstream handle, bool per_thread, int mode, struct graph *into,
		      struct node *const *tips, size_t count)
{
	struct stream *stream;
	TRY(stream_of(handle, per_thread, &stream));
	if (mode < CU_STREAM_CAPTURE_MODE_GLOBAL || mode > CU_STREAM_CAPTURE_MODE_RELAXED)
		return CUDA_ERROR_INVALID_VALUE;
	if (stream->legacy)
		return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
	if (stream->capture)
		return CUDA_ERROR_ILLEGAL_STATE;
	struct capture capture = {
		.graph = into ? into : graph_new(),
		.into = into != NULL,
		.mode = (CUstreamCaptureMode)mode,
	};
	if (!capture.graph)
		return CUDA_ERROR_OUT_OF_MEMORY;
	CUresult result = capture_begin(stream, &capture, tips, count);
	if (result && !into)
		graph_free(capture.graph);
	return result;
}

static CUresult begin_new(CUstream handle, int mode, bool per_thread)
{
	ENTER();
	return begin(handle, per_thread, mode, NULL, NULL, 0);
}

static CUresult begin_into(CUstream handle, CUgraph into, const CUgraphNode *after, size_t count,
			   int mode, bool per_thread)
{
	ENTER();
	struct graph *graph = object_of(into, OBJECT_GRAPH);
	if (!graph || (count && !after))
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++)
		if (!object_of(after[i], OBJECT_NODE))
			return CUDA_ERROR_INVALID_VALUE;
	return begin(handle, per_thread, mode, graph, (struct node *const *)after, count);
}

static CUresult end_capture(CUstream handle, CUgraph *graph, bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	struct capture *capture = stream->capture;
	if (!graph)
		return CUDA_ERROR_INVALID_VALUE;
	if (!capture)
		return CUDA_ERROR_ILLEGAL_STATE;
	if (capture->mode != CU_STREAM_CAPTURE_MODE_RELAXED && !capture_is_mine(capture))
		return CUDA_ERROR_STREAM_CAPTURE_WRONG_THREAD;
	if (capture->origin != stream)
		return CUDA_ERROR_STREAM_CAPTURE_UNMATCHED;
	CUresult result = CUDA_SUCCESS;
	if (capture->invalid)
		result = CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	else if (!capture_joined(capture))
		result = CUDA_ERROR_STREAM_CAPTURE_UNJOINED;
	*graph = result ? NULL : graph_handle(capture->graph);
	if (result && !capture->into)
		graph_free(capture->graph);
	capture_end(capture);
	return result;
}

static CUresult is_capturing(CUstream handle, CUstreamCaptureStatus *status, bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!status)
		return CUDA_ERROR_INVALID_VALUE;
	if (capture_implied(stream))
		return CUDA_ERROR_STREAM_CAPTURE_IMPLICIT;
	if (!stream->capture)
		*status = CU_STREAM_CAPTURE_STATUS_NONE;
	else if (stream->capture->invalid)
		*status = CU_STREAM_CAPTURE_STATUS_INVALIDATED;
	else
		*status = CU_STREAM_CAPTURE_STATUS_ACTIVE;
	return CUDA_SUCCESS;
}

struct info {
	CUstreamCaptureStatus *status;
	uint64_t *id;
	CUgraph *graph;
	const CUgraphNode **tips;
	const CUgraphEdgeData **edges;
	size_t *count;
};

static CUresult get_info(CUstream handle, const struct info *info, bool per_thread)
{
	struct stream *stream;
	TRY(is_capturing(handle, info->status, per_thread));
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (*info->status != CU_STREAM_CAPTURE_STATUS_ACTIVE)
		return CUDA_SUCCESS;
	if (info->id)
		*info->id = stream->capture->id;
	if (info->graph)
		*info->graph = graph_handle(stream->capture->graph);
	if (info->tips)
		*info->tips = (const CUgraphNode *)stream->tips;
	if (info->edges)
		*info->edges = NULL; /* all edges are of the ordinary kind */
	if (info->count)
		*info->count = (size_t)stream->tip_count;
	return CUDA_SUCCESS;
}

static CUresult update(CUstream handle, CUgraphNode *after, size_t count, unsigned flags,
		       bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!stream->capture)
		return CUDA_ERROR_ILLEGAL_STATE;
	if (stream->capture->invalid)
		return CUDA_ERROR_STREAM_CAPTURE_INVALIDATED;
	if (flags > 1 || (count && !after))
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < count; i++)
		if (!object_of(after[i], OBJECT_NODE))
			return CUDA_ERROR_INVALID_VALUE;
	return flags ? capture_set_tips(stream, (struct node *const *)after, count)
		     : capture_add_tips(stream, (struct node *const *)after, (int)count);
}

TWINS(cuStreamBeginCapture, ptsz, (CUstream stream),
      begin_new(stream, CU_STREAM_CAPTURE_MODE_GLOBAL, per_thread))
TWINS(cuStreamBeginCapture_v2, ptsz, (CUstream stream, int mode),
      begin_new(stream, mode, per_thread))
TWINS(cuStreamBeginCaptureToGraph, ptsz,
      (CUstream stream, CUgraph graph, const CUgraphNode *after, const CUgraphEdgeData *edges,
       size_t count, int mode),
      edges ? CUDA_ERROR_NOT_SUPPORTED : begin_into(stream, graph, after, count, mode, per_thread))
TWINS(cuStreamEndCapture, ptsz, (CUstream stream, CUgraph *graph),
      end_capture(stream, graph, per_thread))
TWINS(cuStreamIsCapturing, ptsz, (CUstream stream, CUstreamCaptureStatus *status),
      is_capturing(stream, status, per_thread))
TWINS(cuStreamGetCaptureInfo, ptsz, (CUstream stream, CUstreamCaptureStatus *status, uint64_t *id),
      get_info(stream, &(struct info){.status = status, .id = id}, per_thread))
TWINS(cuStreamGetCaptureInfo_v2, ptsz,
      (CUstream stream, CUstreamCaptureStatus *status, uint64_t *id, CUgraph *graph,
       const CUgraphNode **tips, size_t *count),
      get_info(stream, &(struct info){status, id, graph, tips, NULL, count}, per_thread))
TWINS(cuStreamGetCaptureInfo_v3, ptsz,
      (CUstream stream, CUstreamCaptureStatus *status, uint64_t *id, CUgraph *graph,
       const CUgraphNode **tips, const CUgraphEdgeData **edges, size_t *count),
      get_info(stream, &(struct info){status, id, graph, tips, edges, count}, per_thread))
TWINS(cuStreamUpdateCaptureDependencies, ptsz,
      (CUstream stream, CUgraphNode *after, size_t count, unsigned int flags),
      update(stream, after, count, flags, per_thread))
TWINS(cuStreamUpdateCaptureDependencies_v2, ptsz,
      (CUstream stream, CUgraphNode *after, const CUgraphEdgeData *edges, size_t count,
       unsigned int flags),
      edges ? CUDA_ERROR_NOT_SUPPORTED : update(stream, after, count, flags, per_thread))
