/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the host does when a stream gets there: host functions, and values
 * written into memory.
 *
 * One thread, begun when first needed, does them in the order in which their
 * streams got there.  A value is visible when the work before it is done, not
 * sooner: who polls it sees the truth.
 */
#include <stdlib.h>

#include "cuda_work.h"

struct entry {
	struct entry *next;
	struct callback callback;
	struct stream *stream;
	uint32_t generation;
	uint32_t device;
	uint64_t target;
};

static struct entry *first, **last = &first;
static pthread_cond_t added = PTHREAD_COND_INITIALIZER;
static pthread_cond_t returned = PTHREAD_COND_INITIALIZER;
static pthread_t thread;
static bool running;

static void perform(const struct callback *callback)
{
	if (callback->function)
		callback->function(callback->data);
	else if (callback->callback)
		callback->callback(callback->handle, CUDA_SUCCESS, callback->data);
	else if (callback->write_bytes == 8)
		__atomic_store_n((uint64_t *)callback->data, callback->value, __ATOMIC_RELEASE);
	else
		__atomic_store_n((uint32_t *)callback->data, (uint32_t)callback->value,
				 __ATOMIC_RELEASE);
}

static void *serve(void *nothing)
{
	(void)nothing;
	pthread_mutex_lock(&driver.lock);
	for (;;) {
		while (!first)
			pthread_cond_wait(&added, &driver.lock);
		struct entry *entry = first;
		first = entry->next;
		if (!first)
			last = &first;
		pthread_mutex_unlock(&driver.lock);
		if (entry->stream && !driver.machine->knobs.null_mode)
			sim_wait(entry->device, driver.slot, entry->target);
		perform(&entry->callback);
		pthread_mutex_lock(&driver.lock);
		if (entry->stream && entry->stream->object.generation == entry->generation) {
			entry->stream->busy_host = false;
			later_continue(entry->stream);
		}
		pthread_cond_broadcast(&returned);
		free(entry);
	}
	return NULL;
}

static CUresult put(const struct entry *entry)
{
	struct entry *copy = malloc(sizeof(*copy));
	if (!copy)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (!running && pthread_create(&thread, NULL, serve, NULL)) {
		free(copy);
		return CUDA_ERROR_OPERATING_SYSTEM;
	}
	if (!running)
		pthread_detach(thread);
	running = true;
	*copy = *entry;
	*last = copy;
	last = &copy->next;
	pthread_cond_signal(&added);
	return CUDA_SUCCESS;
}

CUresult callback_run(const struct callback *callback)
{
	return put(&(struct entry){.callback = *callback});
}

CUresult callback_start(struct stream *stream, const struct callback *callback)
{
	TRY(put(&(struct entry){
		.callback = *callback,
		.stream = stream,
		.generation = stream->object.generation,
		.device = stream_device(stream)->number,
		.target = stream_target(stream),
	}));
	stream->busy_host = true;
	return CUDA_SUCCESS;
}

/* A host function may not call the driver; if it does, it must not hang. */
bool callback_wait(void)
{
	if (running && pthread_equal(pthread_self(), thread))
		return false;
	pthread_cond_wait(&returned, &driver.lock);
	return true;
}

/* ---- public ---- */

static CUresult host_function(CUstream handle, CUhostFn function, void *data, bool per_thread)
{
	struct work work = {.type = CU_GRAPH_NODE_TYPE_HOST, .host = {function, data}};
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!function)
		return CUDA_ERROR_INVALID_VALUE;
	return stream_do(stream, &work);
}

/* These two kinds cannot be captured. */
static CUresult start(struct stream *stream, const struct callback *callback)
{
	TRY(capture_forbids_sync(stream));
	return stream_held(stream) ? later_callback(stream, callback)
				   : callback_start(stream, callback);
}

static CUresult add_callback(CUstream handle, CUstreamCallback function, void *data,
			     bool per_thread)
{
	struct callback callback = {.callback = function, .handle = handle, .data = data};
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (!function)
		return CUDA_ERROR_INVALID_VALUE;
	return start(stream, &callback);
}

static CUresult write_value(CUstream handle, CUdeviceptr address, uint64_t value, unsigned bytes,
			    bool per_thread)
{
	struct callback callback = {
		.data = (void *)(uintptr_t)address, .write_bytes = bytes, .value = value};
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	if (address % bytes || !memory_valid(address, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	return start(stream, &callback);
}

TWINS(cuLaunchHostFunc, ptsz, (CUstream stream, CUhostFn function, void *data),
      host_function(stream, function, data, per_thread))
TWINS(cuStreamAddCallback, ptsz,
      (CUstream stream, CUstreamCallback function, void *data, unsigned int flags),
      flags ? CUDA_ERROR_INVALID_VALUE : add_callback(stream, function, data, per_thread))
TWINS(cuStreamWriteValue32, ptsz,
      (CUstream stream, CUdeviceptr to, uint32_t value, unsigned int flags),
      flags > 1 ? CUDA_ERROR_INVALID_VALUE : write_value(stream, to, value, 4, per_thread))
TWINS(cuStreamWriteValue32_v2, ptsz,
      (CUstream stream, CUdeviceptr to, uint32_t value, unsigned int flags),
      flags > 1 ? CUDA_ERROR_INVALID_VALUE : write_value(stream, to, value, 4, per_thread))
TWINS(cuStreamWriteValue64, ptsz,
      (CUstream stream, CUdeviceptr to, uint64_t value, unsigned int flags),
      flags > 1 ? CUDA_ERROR_INVALID_VALUE : write_value(stream, to, value, 8, per_thread))
TWINS(cuStreamWriteValue64_v2, ptsz,
      (CUstream stream, CUdeviceptr to, uint64_t value, unsigned int flags),
      flags > 1 ? CUDA_ERROR_INVALID_VALUE : write_value(stream, to, value, 8, per_thread))
