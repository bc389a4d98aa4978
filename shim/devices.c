/* SPDX-License-Identifier: Apache-2.0
 *
 * Which slice a device is.  The UUID alone says so: CUDA's numbers depend on
 * CUDA_VISIBLE_DEVICES, and NVML's are different ones.  The map is made when
 * the driver is up, by whichever threads need it first; all find the same.
 * A program with one device never asks the driver which one is current.
 */
#include <string.h>

#include "process.h"

/* ---- UUIDs ------------------------------------------------------------------------------ */

static int hex(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	c |= 0x20;
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int vgpu_parse_uuid(const char *text, uint8_t *device)
{
	uint8_t bytes[VGPU_UUID_SIZE];

	if (strncmp(text, "GPU-", 4) && strncmp(text, "MIG-", 4))
		return -1;
	text += 4;
	for (int i = 0; i < VGPU_UUID_SIZE; i++) {
		int high, low;

		if ((i == 4 || i == 6 || i == 8 || i == 10) && *text++ != '-')
			return -1;
		high = hex(text[0]);
		low = high < 0 ? -1 : hex(text[1]);
		if (low < 0)
			return -1;
		bytes[i] = (uint8_t)(high << 4 | low);
		text += 2;
	}
	if (*text)
		return -1;
	memcpy(device, bytes, sizeof(bytes));
	return 0;
}

/* ---- CUDA's devices ------------------------------------------------------------------------ */

static int ask_slice(const struct driver *driver, const struct tenant *tenant, CUdevice device)
{
	CUuuid uuid;
	/* Of a MIG device only the second form names the instance. */
	CUresult rc = driver->used.cuDeviceGetUuid_v2(&uuid, device);

	if (rc == CUDA_ERROR_NOT_SUPPORTED)
		rc = driver->used.cuDeviceGetUuid(&uuid, device);
	if (rc)
		return SLICE_NOT_GRANTED;
	return vgpu_slice_of(tenant->grant, (const uint8_t *)uuid.bytes);
}

/* Number of visible devices; 0 while the driver is not up. */
static uint32_t map_devices(const struct driver *driver, const struct tenant *tenant,
			    struct process *process)
{
	int count = 0;

	if (driver->used.cuDeviceGetCount(&count) || count <= 0)
		return 0;
	if (count > MAX_DEVICES)
		count = MAX_DEVICES;
	for (int i = 0; i < count; i++) {
		CUdevice device = i;
		int slice;

		if (driver->used.cuDeviceGet(&device, i) || device < 0 || device >= MAX_DEVICES)
			continue;
		slice = ask_slice(driver, tenant, device);
		__atomic_store_n(&process->slice_of[device], (int8_t)(slice + 1), __ATOMIC_RELAXED);
	}
	__atomic_store_n(&process->device_count, (uint32_t)count, __ATOMIC_RELEASE);
	return (uint32_t)count;
}

static uint32_t device_count(const struct driver *driver, const struct tenant *tenant,
			     struct process *process)
{
	uint32_t count = __atomic_load_n(&process->device_count, __ATOMIC_ACQUIRE);

	return likely(count) ? count : map_devices(driver, tenant, process);
}

/* The table holds slice + 1, for a wiped one to say "not granted". */
static int mapped_slice(const struct process *process, CUdevice device)
{
	if (device < 0 || device >= MAX_DEVICES)
		return SLICE_NOT_GRANTED;
	return __atomic_load_n(&process->slice_of[device], __ATOMIC_RELAXED) - 1;
}

int vgpu_device_of_slice(const struct process *process, int slice)
{
	for (CUdevice device = 0; device < MAX_DEVICES; device++)
		if (mapped_slice(process, device) == slice)
			return device;
	return -1;
}

int vgpu_slice_of_device(const struct driver *driver, const struct tenant *tenant,
			 struct process *process, CUdevice device)
{
	uint32_t count = device_count(driver, tenant, process);

	/* A number that no device has is the driver's to refuse. */
	if (!count || device < 0 || (count < MAX_DEVICES && device >= (CUdevice)count))
		return SLICE_UNKNOWN;
	return mapped_slice(process, device);
}

/* Types that later drivers add name a device by `id`, as far as they name one. */
int vgpu_slice_of_location(const struct driver *driver, const struct tenant *tenant,
			   struct process *process, const CUmemLocation *location)
{
	int device = location->id;

	switch ((unsigned int)location->type) {
	case CU_MEM_LOCATION_TYPE_NONE:
	case CU_MEM_LOCATION_TYPE_HOST:
	case CU_MEM_LOCATION_TYPE_HOST_NUMA:
	case CU_MEM_LOCATION_TYPE_HOST_NUMA_CURRENT:
		return SLICE_NONE;
	case CU_MEM_LOCATION_TYPE_DEVICE_LOCALITY_DOMAIN:
		device &= 0xff;
		break;
	default:
		break;
	}
	return vgpu_slice_of_device(driver, tenant, process, device);
}

int vgpu_current_slice(const struct driver *driver, const struct tenant *tenant,
		       struct process *process)
{
	uint32_t count = device_count(driver, tenant, process);
	CUdevice device = 0;

	if (!count || (count > 1 && driver->used.cuCtxGetDevice(&device)))
		return SLICE_UNKNOWN;
	return mapped_slice(process, device);
}

/* ---- streams ----------------------------------------------------------------------------------
 */

CUcontext vgpu_stream_context(const struct driver *driver, CUstream stream, int per_thread)
{
	CUcontext context = NULL;

	/* Up to 2 the handle names a default stream, and that is the current context's. */
	if ((uintptr_t)stream <= CU_STREAM_PER_THREAD_VALUE)
		return driver->used.cuCtxGetCurrent(&context) ? NULL : context;
	if (per_thread)
		return driver->used.cuStreamGetCtx_ptsz(stream, &context) ? NULL : context;
	return driver->used.cuStreamGetCtx(stream, &context) ? NULL : context;
}

int vgpu_stream_device(const struct driver *driver, CUstream stream, int per_thread,
		       CUdevice *device)
{
	CUcontext context, current = NULL;
	CUresult rc;

	if ((uintptr_t)stream <= CU_STREAM_PER_THREAD_VALUE)
		return driver->used.cuCtxGetDevice(device) ? -1 : 0;
	context = vgpu_stream_context(driver, stream, per_thread);
	if (!context)
		return -1;
	if (!driver->used.cuCtxGetCurrent(&current) && current == context)
		return driver->used.cuCtxGetDevice(device) ? -1 : 0;
	if (driver->used.cuCtxPushCurrent_v2(context))
		return -1;
	rc = driver->used.cuCtxGetDevice(device);
	driver->used.cuCtxPopCurrent_v2(&context);
	return rc ? -1 : 0;
}

int vgpu_stream_slice(const struct driver *driver, const struct tenant *tenant,
		      struct process *process, CUstream stream, int per_thread)
{
	CUdevice device = 0;

	if (device_count(driver, tenant, process) <= 1 ||
	    (uintptr_t)stream <= CU_STREAM_PER_THREAD_VALUE)
		return vgpu_current_slice(driver, tenant, process);
	if (vgpu_stream_device(driver, stream, per_thread, &device))
		return SLICE_UNKNOWN;
	return mapped_slice(process, device);
}
