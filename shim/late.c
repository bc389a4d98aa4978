/* SPDX-License-Identifier: Apache-2.0
 *
 * cuMemFreeAsync takes memory of every kind.  Of a pool, the pool stays charged;
 * memory of no pool exists until the stream comes to the free, and so long it is
 * charged: an event behind the free says when.  Mostly the stream is there already,
 * and there is no event.
 *
 * The event ends with its context, as the memory does: the record is the context's.
 */
#include "late.h"
#include "pools.h"

static CUstreamCaptureMode exchange_mode(const struct driver *driver, CUstreamCaptureMode mode)
{
	driver->used.cuThreadExchangeStreamCaptureMode(&mode);
	return mode;
}

static int is_there(const struct driver *driver, struct stream stream)
{
	CUresult rc = stream.per_thread ? driver->real.cuStreamQuery_ptsz(stream.handle)
					: driver->real.cuStreamQuery(stream.handle);

	return rc != CUDA_ERROR_NOT_READY;
}

/* With the stream's context current. */
static CUevent mark(const struct driver *driver, struct stream stream)
{
	CUevent event = NULL;
	CUresult rc;

	if (driver->used.cuEventCreate(&event, CU_EVENT_DISABLE_TIMING))
		return NULL;
	rc = stream.per_thread ? driver->used.cuEventRecord_ptsz(event, stream.handle)
			       : driver->used.cuEventRecord(event, stream.handle);
	if (!rc)
		return event;
	driver->used.cuEventDestroy_v2(event);
	return NULL;
}

static CUevent mark_in(const struct driver *driver, CUcontext context, struct stream stream)
{
	CUcontext popped;
	CUevent event;

	if (!context || driver->used.cuCtxPushCurrent_v2(context))
		return NULL;
	event = mark(driver, stream);
	driver->used.cuCtxPopCurrent_v2(&popped);
	return event;
}

int vgpu_late_keep(const struct driver *driver, struct process *process, struct record *record,
		   struct stream stream)
{
	CUstreamCaptureMode mode = exchange_mode(driver, CU_STREAM_CAPTURE_MODE_RELAXED);
	CUcontext context = NULL;
	CUevent event = NULL;

	if (!is_there(driver, stream)) {
		context = vgpu_stream_context(driver, stream.handle, stream.per_thread);
		event = mark_in(driver, context, stream);
	}
	exchange_mode(driver, mode);
	if (!event)
		return 0;
	record->kind = RECORD_LATE;
	record->key = (uintptr_t)event;
	record->context = context;
	__atomic_fetch_add(&process->late_frees, 1, __ATOMIC_ACQ_REL);
	vgpu_record_enter(&process->records, record);
	vgpu_pools_mark_dirty(process);
	return 1;
}

static int is_late(const struct record *record, const void *unused)
{
	return record->kind == RECORD_LATE;
}

int vgpu_late_settle(const struct driver *driver, const struct tenant *tenant,
		     struct process *process, int *is_left)
{
	struct record *record;
	CUstreamCaptureMode mode;
	int has_given = 0;

	*is_left = 0;
	/* What ended with its context is still counted: it is counted anew. */
	if (likely(!__atomic_load_n(&process->late_frees, __ATOMIC_ACQUIRE)) ||
	    !__atomic_exchange_n(&process->late_frees, 0, __ATOMIC_ACQ_REL))
		return 0;
	mode = exchange_mode(driver, CU_STREAM_CAPTURE_MODE_RELAXED);
	record = vgpu_record_take_all(&process->records, is_late, NULL);
	while (record) {
		struct record *next = record->next;
		CUevent event = (CUevent)(uintptr_t)record->key;

		if (driver->used.cuEventQuery(event) == CUDA_ERROR_NOT_READY) {
			__atomic_fetch_add(&process->late_frees, 1, __ATOMIC_ACQ_REL);
			vgpu_record_enter(&process->records, record);
			*is_left = 1;
		} else {
			driver->used.cuEventDestroy_v2(event);
			vgpu_give_back(tenant, process, record);
			has_given = 1;
		}
		record = next;
	}
	exchange_mode(driver, mode);
	return has_given;
}
