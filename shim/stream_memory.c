/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: stream-ordered memory.  It comes from a pool, and the pool is charged
 * (pools.c).  What is captured becomes part of a graph, and takes memory when
 * that runs (graph_memory.c).
 */
#include "account.h"
#include "markers.h"
#include "pools.h"

/* One of the four ways to ask for stream-ordered memory. */
struct order {
	size_t bytes;
	CUmemoryPool pool; /* NULL: the stream's device has one in use */
	struct stream stream;
};

static CUresult place(const struct driver *driver, const struct order *order, CUdeviceptr *pointer)
{
	CUstream stream = order->stream.handle;

	if (order->pool)
		return order->stream.per_thread
			       ? driver->real.cuMemAllocFromPoolAsync_ptsz(pointer, order->bytes,
									   order->pool, stream)
			       : driver->real.cuMemAllocFromPoolAsync(pointer, order->bytes,
								      order->pool, stream);
	return order->stream.per_thread
		       ? driver->real.cuMemAllocAsync_ptsz(pointer, order->bytes, stream)
		       : driver->real.cuMemAllocAsync(pointer, order->bytes, stream);
}

/* ---- which pool ------------------------------------------------------------------------------ */

/* A pool that the program was not seen to make is a device's own, or of no device. */
static int slice_of_pool(const struct driver *driver, const struct tenant *tenant,
			 struct process *process, CUmemoryPool handle)
{
	int count = 0;

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
	struct pool *pool = vgpu_pool_known(process, (uintptr_t)handle, 0);

	if (pool)
		return pool;
	return vgpu_pool_of(process, (uintptr_t)handle, 0,
			    slice_of_pool(driver, tenant, process, handle));
}

/* The pool in use on the stream's device. */
static struct pool *pool_of_stream(const struct driver *driver, const struct tenant *tenant,
				   struct process *process, struct stream stream)
{
	CUmemoryPool handle = NULL;
	CUdevice device;

	if (vgpu_stream_device(driver, stream.handle, stream.per_thread, &device) ||
	    driver->used.cuDeviceGetMemPool(&handle, device))
		return NULL;
	return pool_of_handle(driver, tenant, process, handle);
}

/* ---- allocations ------------------------------------------------------------------------------
 */

static void undo(const struct driver *driver, struct stream stream, CUdeviceptr pointer)
{
	if (stream.per_thread)
		driver->real.cuMemFreeAsync_ptsz(pointer, stream.handle);
	else
		driver->real.cuMemFreeAsync(pointer, stream.handle);
}

static CUresult take(struct pool_request *request, const struct order *order, CUdeviceptr *pointer)
{
	struct records *records = &request->process->records;
	struct record *record = vgpu_record_new(records), *stale;
	CUresult rc = record ? vgpu_pool_provide(request) : CUDA_ERROR_OUT_OF_MEMORY;

	if (rc) {
		if (record)
			vgpu_record_free(records, record);
		return rc;
	}
	rc = place(request->driver, order, pointer);
	if (vgpu_pool_settle(request) && !rc) {
		/* More than there was room for, and it cannot be kept. */
		undo(request->driver, order->stream, *pointer);
		vgpu_pools_shrink(request->driver, request->tenant, request->process,
				  vgpu_pool_slice(request->pool));
		rc = CUDA_ERROR_OUT_OF_MEMORY;
	}
	if (rc) {
		vgpu_record_free(records, record);
		return rc;
	}
	vgpu_pool_used(request->pool, order->bytes);
	*record = (struct record){.kind = RECORD_POINTER,
				  .key = *pointer,
				  .bytes = order->bytes,
				  .pool = request->pool};
	stale = vgpu_record_enter(records, record);
	if (stale)
		vgpu_give_back(request->tenant, request->process, stale);
	return CUDA_SUCCESS;
}

static CUresult allocate(const struct order *order, CUdeviceptr *pointer)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct pool_request request = {.driver = driver, .tenant = tenant, .bytes = order->bytes};

	if (!vgpu_is_charged(tenant) || !pointer || !order->bytes ||
	    vgpu_is_capturing(driver, order->stream))
		return place(driver, order, pointer);
	request.process = vgpu_process();
	if (tenant->is_faulty || !request.process)
		return CUDA_ERROR_OUT_OF_MEMORY;
	request.pool = order->pool ? pool_of_handle(driver, tenant, request.process, order->pool)
				   : pool_of_stream(driver, tenant, request.process, order->stream);
	/* Without a pool the driver has no such memory, and says so. */
	return request.pool ? take(&request, order, pointer) : place(driver, order, pointer);
}

CUresult cuMemAllocAsync(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return allocate(&(struct order){bytes, NULL, {stream, 0}}, pointer);
}

CUresult cuMemAllocAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUstream stream)
{
	return allocate(&(struct order){bytes, NULL, {stream, 1}}, pointer);
}

CUresult cuMemAllocFromPoolAsync(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
				 CUstream stream)
{
	return allocate(&(struct order){bytes, pool, {stream, 0}}, pointer);
}

CUresult cuMemAllocFromPoolAsync_ptsz(CUdeviceptr *pointer, size_t bytes, CUmemoryPool pool,
				      CUstream stream)
{
	return allocate(&(struct order){bytes, pool, {stream, 1}}, pointer);
}

/* ---- pools themselves ---------------------------------------------------------------------------
 */

CUresult cuMemPoolCreate(CUmemoryPool *pool, const CUmemPoolProps *properties)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	CUresult rc = driver->real.cuMemPoolCreate(pool, properties);
	int slice = SLICE_NONE;

	if (rc || !process)
		return rc;
	if (properties->location.type == CU_MEM_LOCATION_TYPE_DEVICE)
		slice = vgpu_slice_of_device(driver, vgpu_tenant(), process,
					     properties->location.id);
	if (vgpu_pool_of(process, (uintptr_t)*pool, 0, slice))
		return rc;
	driver->real.cuMemPoolDestroy(*pool);
	return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuMemPoolDestroy(CUmemoryPool handle)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	struct pool *pool = process ? vgpu_pool_known(process, (uintptr_t)handle, 0) : NULL;
	CUresult rc = driver->real.cuMemPoolDestroy(handle);

	if (pool && !rc)
		vgpu_pool_closed(vgpu_tenant(), process, pool);
	return rc;
}

static void reread(const struct driver *driver, CUmemoryPool handle)
{
	struct process *process = vgpu_accounted();
	struct pool *pool = process ? vgpu_pool_known(process, (uintptr_t)handle, 0) : NULL;

	if (pool)
		vgpu_pool_settle(&(struct pool_request){.driver = driver,
							.tenant = vgpu_tenant(),
							.process = process,
							.pool = pool});
}

CUresult cuMemPoolTrimTo(CUmemoryPool pool, size_t keep)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	CUresult rc = driver->real.cuMemPoolTrimTo(pool, keep);

	if (!rc)
		reread(driver, pool);
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
