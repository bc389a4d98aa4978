/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: stream-ordered memory.  It comes from a pool, and the pool is charged
 * (pools.c).  What is captured becomes part of a graph, and takes memory when
 * that runs (graph_memory.c).
 */
#include "account.h"
#include "late.h"
#include "markers.h"
#include "pools.h"

/* One of the four ways to ask for stream-ordered memory. */
struct order {
	size_t bytes;
	int names_pool; /* 0: the stream's device has one in use */
	CUmemoryPool pool;
	struct stream stream;
};

static CUresult place(const struct driver *driver, const struct order *order, CUdeviceptr *pointer)
{
	CUstream stream = order->stream.handle;

	if (order->names_pool)
		return order->stream.per_thread
			       ? driver->real.cuMemAllocFromPoolAsync_ptsz(pointer, order->bytes,
									   order->pool, stream)
			       : driver->real.cuMemAllocFromPoolAsync(pointer, order->bytes,
								      order->pool, stream);
	return order->stream.per_thread
		       ? driver->real.cuMemAllocAsync_ptsz(pointer, order->bytes, stream)
		       : driver->real.cuMemAllocAsync(pointer, order->bytes, stream);
}

/* ---- which pool --------------------------------------------------------------------- */

/* Where memory of a pool is, in the words of a driver that says so; 0, or -1. */
static int ask_location(const struct driver *driver, CUmemoryPool handle, CUmemLocation *location,
			int *is_managed)
{
	uint64_t type = 0, place = 0, id = 0; /* the driver writes an int to each */

	if (driver->used.cuMemPoolGetAttribute(handle, CU_MEMPOOL_ATTR_ALLOCATION_TYPE, &type) ||
	    driver->used.cuMemPoolGetAttribute(handle, CU_MEMPOOL_ATTR_LOCATION_TYPE, &place) ||
	    driver->used.cuMemPoolGetAttribute(handle, CU_MEMPOOL_ATTR_LOCATION_ID, &id))
		return -1;
	*location = (CUmemLocation){(CUmemLocationType)place, (int)id};
	*is_managed = type == CU_MEM_ALLOCATION_TYPE_MANAGED;
	return 0;
}

/* Managed memory is charged in full wherever it is told to be: it may all come here. */
static int slice_of_location(const struct driver *driver, const struct tenant *tenant,
			     struct process *process, const CUmemLocation *location, int is_managed)
{
	int slice = vgpu_slice_of_location(driver, tenant, process, location);

	return slice == SLICE_NONE && is_managed ? vgpu_current_slice(driver, tenant, process)
						 : slice;
}

/* A pool that the program was not seen to make is a device's own, or of no device. */
static int slice_of_pool(const struct driver *driver, const struct tenant *tenant,
			 struct process *process, CUmemoryPool handle)
{
	CUmemLocation location;
	int count = 0, is_managed;

	if (!ask_location(driver, handle, &location, &is_managed))
		return slice_of_location(driver, tenant, process, &location, is_managed);
	if (driver->used.cuDeviceGetCount(&count))
		return SLICE_NONE;
	for (int i = 0; i < count; i++) {
		CUmemoryPool own = NULL;
		CUdevice device;

		if (driver->used.cuDeviceGet(&device, i))
			continue;
		if (!driver->used.cuDeviceGetDefaultMemPool(&own, device) && own == handle)
			return vgpu_slice_of_device(driver, tenant, process, device);
	}
	return SLICE_NONE;
}

static struct pool *pool_of_handle(const struct driver *driver, const struct tenant *tenant,
				   struct process *process, CUmemoryPool handle)
{
	struct pool *pool = vgpu_pool_known(process, (uintptr_t)handle, 0, POOL_OPEN);

	if (likely(pool))
		return pool;
	return vgpu_pool_of(process, (uintptr_t)handle, 0,
			    slice_of_pool(driver, tenant, process, handle));
}

/* The pool in use on the stream's device. */
static CUmemoryPool handle_of_stream(const struct driver *driver, struct stream stream)
{
	CUmemoryPool handle = NULL;
	CUdevice device;

	if (vgpu_stream_device(driver, stream.handle, stream.per_thread, &device) ||
	    driver->used.cuDeviceGetMemPool(&handle, device))
		return NULL;
	return handle;
}

/* ---- allocations -------------------------------------------------------------------- */

static void undo(const struct driver *driver, struct stream stream, CUdeviceptr pointer)
{
	if (stream.per_thread)
		driver->real.cuMemFreeAsync_ptsz(pointer, stream.handle);
	else
		driver->real.cuMemFreeAsync(pointer, stream.handle);
}

/* Charge that the pool may grow by what is asked for, unless it surely need not. */
static CUresult provide(struct pool_request *request, const struct order *order)
{
	CUresult rc = vgpu_pool_enter(request);

	if (rc || request->pool->slice < 0 || likely(!vgpu_pool_cover(request, request->bytes)) ||
	    !vgpu_pool_cover_by_spare(request, vgpu_stream_key(request->driver, order->stream),
				      request->bytes))
		return rc;
	return vgpu_pool_insist(request, request->bytes) ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

/* The driver has answered `rc`. */
static CUresult settle(struct pool_request *request, const struct order *order, CUresult rc,
		       CUdeviceptr pointer)
{
	struct pool *pool = request->pool;

	/* One that has never given anything is perhaps another process's. */
	if (rc && !vgpu_pool_figure(pool, &pool->version)) {
		vgpu_pool_cancel(request);
		return rc;
	}
	if (!vgpu_pool_settle(request) || rc)
		return rc;
	/* More than there was room for, and it cannot be kept. */
	undo(request->driver, order->stream, pointer);
	vgpu_pools_mark_dirty(request->process);
	vgpu_pools_shrink(request->driver, request->tenant, request->process, pool->slice);
	vgpu_count_refusal(request->tenant, (uint32_t)pool->slice);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

static void enter(struct pool_request *request, const struct order *order, struct record *record,
		  CUdeviceptr pointer)
{
	struct record *stale;
	uint64_t stream = 0;

	if (vgpu_pool_figure(request->pool, &request->pool->spare_count))
		stream = vgpu_stream_key(request->driver, order->stream);
	vgpu_pool_used(request, stream);
	*record = (struct record){.kind = RECORD_POINTER,
				  .key = pointer,
				  .bytes = request->bytes,
				  .pool = request->pool};
	stale = vgpu_record_enter(&request->process->records, record);
	if (stale)
		vgpu_give_back(request->tenant, request->process, stale);
}

static CUresult take(struct pool_request *request, const struct order *order, CUdeviceptr *pointer)
{
	struct records *records = &request->process->records;
	struct record *record = vgpu_record_new(records);
	CUresult rc = record ? provide(request, order) : CUDA_ERROR_OUT_OF_MEMORY;

	if (!rc) {
		rc = place(request->driver, order, pointer);
		rc = settle(request, order, rc, rc ? 0 : *pointer);
	}
	if (!rc)
		enter(request, order, record, *pointer);
	else if (record)
		vgpu_record_free(records, record);
	vgpu_pool_done(request);
	return rc;
}

static CUresult allocate(const struct order *order, CUdeviceptr *pointer)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct pool_request request = {.driver = driver, .tenant = tenant, .bytes = order->bytes};
	CUmemoryPool handle;

	if (!vgpu_is_charged(tenant) || !pointer || !order->bytes)
		return place(driver, order, pointer);
	request.process = vgpu_process();
	if (tenant->is_faulty || !request.process)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (vgpu_may_be_capturing(driver, order->stream))
		return place(driver, order, pointer);
	handle = order->names_pool ? order->pool : handle_of_stream(driver, order->stream);
	/* Without a pool the driver has no such memory, and says so. */
	if (!handle)
		return place(driver, order, pointer);
	if (vgpu_pool_known(request.process, (uintptr_t)handle, 0, POOL_CLOSING))
		return CUDA_ERROR_INVALID_VALUE;
	request.pool = pool_of_handle(driver, tenant, request.process, handle);
	return request.pool ? take(&request, order, pointer) : CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return allocate(&(struct order){bytes, 0, NULL, {stream, 0}}, pointer);
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return allocate(&(struct order){bytes, 0, NULL, {stream, 1}}, pointer);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
				 CUstream stream)
{
	return allocate(&(struct order){bytes, 1, pool, {stream, 0}}, pointer);
}

CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
				      CUstream stream)
{
	return allocate(&(struct order){bytes, 1, pool, {stream, 1}}, pointer);
}

/* ---- frees -------------------------------------------------------------------------- */

static CUresult free_on(CUdeviceptr pointer, struct stream stream)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct claim claim;
	struct record *record = vgpu_withdraw(&claim, RECORD_POINTER, pointer);
	uint64_t uses = 0;
	CUresult rc;

	if (record && record->pool)
		uses = vgpu_pool_figure(record->pool, &record->pool->uses);
	rc = stream.per_thread ? driver->real.cuMemFreeAsync_ptsz(pointer, stream.handle)
			       : driver->real.cuMemFreeAsync(pointer, stream.handle);
	if (rc || !record || vgpu_may_be_capturing(driver, stream))
		return vgpu_settled(&claim, record, rc);
	if (record->pool)
		vgpu_pool_add_spare(record->pool, uses, vgpu_stream_key(driver, stream),
				    record->bytes);
	else if (vgpu_late_keep(driver, claim.process, record, stream))
		return rc;
	return vgpu_settled(&claim, record, rc);
}

CUresult cuMemFreeAsync(CUdeviceptr pointer, CUstream stream)
{
	return free_on(pointer, (struct stream){stream, 0});
}

CUresult cuMemFreeAsync_ptsz(CUdeviceptr pointer, CUstream stream)
{
	return free_on(pointer, (struct stream){stream, 1});
}

/* ---- pools themselves --------------------------------------------------------------- */

CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *properties)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	CUresult rc = driver->real.cuMemPoolCreate(pool, properties);
	int slice;

	if (rc || !process)
		return rc;
	slice = slice_of_location(driver, vgpu_tenant(), process, &properties->location,
				  properties->allocType == CU_MEM_ALLOCATION_TYPE_MANAGED);
	if (vgpu_pool_made(vgpu_tenant(), process, (uintptr_t)*pool, slice))
		return rc;
	driver->real.cuMemPoolDestroy(*pool);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemPoolDestroy(CUmemoryPool handle)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	struct pool *pool =
		process ? vgpu_pool_known(process, (uintptr_t)handle, 0, POOL_OPEN) : NULL;

	if (pool && pool->is_made)
		return vgpu_pool_end(driver, vgpu_tenant(), process, pool);
	if (process && vgpu_pool_known(process, (uintptr_t)handle, 0, POOL_CLOSING))
		return CUDA_ERROR_INVALID_VALUE;
	return driver->real.cuMemPoolDestroy(handle);
}

CUresult cuMemPoolTrimTo(CUmemoryPool handle, size_t keep)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	CUresult rc = driver->real.cuMemPoolTrimTo(handle, keep);
	struct process *process = rc ? NULL : vgpu_accounted();
	struct pool *pool =
		process ? vgpu_pool_known(process, (uintptr_t)handle, 0, POOL_OPEN) : NULL;

	if (pool)
		vgpu_pool_reread(driver, vgpu_tenant(), pool);
	return rc;
}

CUresult cuMemPoolSetAttribute(CUmemoryPool handle, CUmemPool_attribute attribute, void *value)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	CUresult rc = driver->real.cuMemPoolSetAttribute(handle, attribute, value);
	struct process *process = vgpu_accounted();
	struct pool *pool;

	if (!rc && process && attribute == CU_MEMPOOL_ATTR_RELEASE_THRESHOLD) {
		pool = pool_of_handle(driver, vgpu_tenant(), process, handle);
		if (pool)
			vgpu_pool_keeps(process, pool, *(const uint64_t *)value);
	}
	return rc;
}
