/* SPDX-License-Identifier: Apache-2.0
 *
 * A marker is a pair of events that is recorded round one launch, on its
 * stream, and read at some later launch, when the driver says it is complete.
 * Events are made once and used again; they belong to a context and end with it.
 *
 * Our calls must not be seen by a stream capture of the program, on whatever
 * thread it runs: they are made in the relaxed mode, which is the thread's
 * own, and nothing is recorded on a stream that captures.
 *
 * A marker that is BUSY belongs to one thread; so no lock is held here over
 * the driver's calls, and threads that find a marker busy pass it by.
 */
#include <sched.h>

#include "markers.h"
#include "say.h"

static int become(struct marker *marker, uint32_t from, uint32_t to)
{
	return __atomic_load_n(&marker->state, __ATOMIC_RELAXED) == from &&
	       __atomic_compare_exchange_n(&marker->state, &from, to, 0, __ATOMIC_ACQUIRE,
					   __ATOMIC_RELAXED);
}

static void release(struct marker *marker, uint32_t state)
{
	__atomic_store_n(&marker->state, state, __ATOMIC_RELEASE);
}

static CUstreamCaptureMode exchange_mode(const struct driver *driver, CUstreamCaptureMode mode)
{
	driver->used.cuThreadExchangeStreamCaptureMode(&mode);
	return mode;
}

/* ---- streams --------------------------------------------------------------------------- */

static CUresult capture_status(const struct driver *driver, struct stream stream,
			       CUstreamCaptureStatus *status)
{
	*status = CU_STREAM_CAPTURE_STATUS_NONE;
	return stream.per_thread ? driver->used.cuStreamIsCapturing_ptsz(stream.handle, status)
				 : driver->used.cuStreamIsCapturing(stream.handle, status);
}

int vgpu_is_capturing(const struct driver *driver, struct stream stream)
{
	CUstreamCaptureStatus status;

	return !capture_status(driver, stream, &status) && status != CU_STREAM_CAPTURE_STATUS_NONE;
}

int vgpu_may_be_capturing(const struct driver *driver, struct stream stream)
{
	CUstreamCaptureStatus status;
	CUresult rc = capture_status(driver, stream, &status);

	/* An error is itself a sign: the capture of a blocking stream makes the
	 * legacy stream unusable.  A driver without the call has no captures. */
	return rc ? rc != CUDA_ERROR_NOT_SUPPORTED : status != CU_STREAM_CAPTURE_STATUS_NONE;
}

static CUresult record(const struct driver *driver, CUevent event, struct stream stream)
{
	return stream.per_thread ? driver->used.cuEventRecord_ptsz(event, stream.handle)
				 : driver->used.cuEventRecord(event, stream.handle);
}

/* ---- the pool --------------------------------------------------------------------------- */

static void complain(void)
{
	static const char *const texts[] = {
		"the driver makes no events: until it does, compute is limited by a guess "
		"of what a launch takes, not by measurement",
		NULL};
	static int has_said;

	if (!__atomic_exchange_n(&has_said, 1, __ATOMIC_RELAXED))
		vgpu_say(texts);
}

static int create_events(const struct driver *driver, struct marker *marker, CUcontext context)
{
	CUcontext popped;
	CUresult rc;

	if (driver->used.cuCtxPushCurrent_v2(context))
		return -1;
	rc = driver->used.cuEventCreate(&marker->start, CU_EVENT_DEFAULT);
	if (!rc) {
		rc = driver->used.cuEventCreate(&marker->end, CU_EVENT_DEFAULT);
		if (rc)
			driver->used.cuEventDestroy_v2(marker->start);
	}
	driver->used.cuCtxPopCurrent_v2(&popped);
	if (rc)
		complain();
	marker->context = context;
	return rc ? -1 : 0;
}

static void destroy_events(const struct driver *driver, struct marker *marker)
{
	driver->used.cuEventDestroy_v2(marker->start);
	driver->used.cuEventDestroy_v2(marker->end);
}

/* A marker of that context, held by the caller; NULL when all are in use. */
static struct marker *take(const struct driver *driver, struct process *process, CUcontext context)
{
	struct marker *markers = process->markers;

	for (int i = 0; i < MARKERS; i++)
		if (__atomic_load_n(&markers[i].context, __ATOMIC_RELAXED) == context &&
		    become(&markers[i], MARKER_READY, MARKER_BUSY)) {
			if (markers[i].context == context)
				return &markers[i];
			release(&markers[i], MARKER_READY);
		}
	for (int i = 0; i < MARKERS; i++) {
		if (!become(&markers[i], MARKER_EMPTY, MARKER_BUSY)) {
			if (!become(&markers[i], MARKER_READY, MARKER_BUSY))
				continue;
			destroy_events(driver, &markers[i]);
		}
		if (!create_events(driver, &markers[i], context))
			return &markers[i];
		release(&markers[i], MARKER_EMPTY);
		return NULL;
	}
	return NULL;
}

/* ---- measuring ---------------------------------------------------------------------------- */

struct marker *vgpu_marker_begin(const struct driver *driver, struct process *process,
				 struct stream stream)
{
	CUcontext context = vgpu_stream_context(driver, stream.handle, stream.per_thread);
	CUstreamCaptureMode mode;
	struct marker *marker;

	if (!context)
		return NULL;
	mode = exchange_mode(driver, CU_STREAM_CAPTURE_MODE_RELAXED);
	marker = take(driver, process, context);
	if (marker && record(driver, marker->start, stream)) {
		release(marker, MARKER_READY);
		marker = NULL;
	}
	exchange_mode(driver, mode);
	return marker;
}

void vgpu_marker_end(const struct driver *driver, struct marker *marker, struct stream stream)
{
	CUstreamCaptureMode mode = exchange_mode(driver, CU_STREAM_CAPTURE_MODE_RELAXED);
	CUresult rc = record(driver, marker->end, stream);

	exchange_mode(driver, mode);
	release(marker, rc ? MARKER_READY : MARKER_PENDING);
}

void vgpu_marker_drop(struct marker *marker)
{
	release(marker, MARKER_READY);
}

static void read_marker(const struct driver *driver, struct marker *marker, vgpu_measured measured,
			void *context)
{
	CUresult rc = driver->used.cuEventQuery(marker->end);
	float milliseconds = 0;

	if (rc == CUDA_ERROR_NOT_READY) {
		release(marker, MARKER_PENDING);
		return;
	}
	if (!rc)
		rc = driver->used.cuEventElapsedTime(&milliseconds, marker->start, marker->end);
	if (!rc && milliseconds >= 0)
		measured(marker, (uint64_t)((double)milliseconds * 1e6), context);
	/* Of a lost device or a context that ended unseen even the events are gone. */
	release(marker, rc ? MARKER_EMPTY : MARKER_READY);
}

void vgpu_markers_reap(const struct driver *driver, struct process *process, vgpu_measured measured,
		       void *context)
{
	CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
	int is_relaxed = 0;

	for (int i = 0; i < MARKERS; i++) {
		if (!become(&process->markers[i], MARKER_PENDING, MARKER_BUSY))
			continue;
		if (!is_relaxed)
			mode = exchange_mode(driver, CU_STREAM_CAPTURE_MODE_RELAXED);
		is_relaxed = 1;
		read_marker(driver, &process->markers[i], measured, context);
	}
	if (is_relaxed)
		exchange_mode(driver, mode);
}

int vgpu_marker_oldest(const struct process *process, uint32_t slice, uint64_t *begin_ns,
		       uint64_t *issued_ns)
{
	int found = -1;

	for (int i = 0; i < MARKERS; i++) {
		const struct marker *marker = &process->markers[i];
		uint64_t begin = __atomic_load_n(&marker->begin_ns, __ATOMIC_RELAXED);

		if (__atomic_load_n(&marker->state, __ATOMIC_ACQUIRE) != MARKER_PENDING ||
		    marker->slice != slice || (!found && begin >= *begin_ns))
			continue;
		*begin_ns = begin;
		*issued_ns = __atomic_load_n(&marker->issued_ns, __ATOMIC_RELAXED);
		found = 0;
	}
	return found;
}

void vgpu_markers_forget(struct process *process, CUcontext context)
{
	for (int i = 0; i < MARKERS; i++) {
		struct marker *marker = &process->markers[i];

		while (__atomic_load_n(&marker->context, __ATOMIC_RELAXED) == context) {
			if (become(marker, MARKER_READY, MARKER_BUSY) ||
			    become(marker, MARKER_PENDING, MARKER_BUSY)) {
				uint32_t state = MARKER_READY;

				if (marker->context == context) {
					__atomic_store_n(&marker->context, NULL, __ATOMIC_RELAXED);
					state = MARKER_EMPTY;
				}
				release(marker, state);
				break;
			}
			if (__atomic_load_n(&marker->state, __ATOMIC_RELAXED) == MARKER_EMPTY)
				break;
			sched_yield(); /* another thread reads it; a few calls */
		}
	}
}
