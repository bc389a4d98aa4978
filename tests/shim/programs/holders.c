/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that make and end whatever holds memory, at the edge of a quota.
 *
 *	holders THREADS ROUNDS CHUNK
 *
 * Each round makes one thing of some kind and ends it, or the thread's last one;
 * blocks go through handles, mappings and retained handles, and contexts end
 * with memory in them.  Prints how many were made and refused; anything but
 * success and "out of memory" ends it.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cuda.h"

CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t size, size_t alignment,
			     CUdeviceptr wanted, unsigned long long flags);

#define PIECE (2ull << 20)
#define RANGE (1ull << 30)

static CUcontext context;
static uint64_t chunk, made, refused;
static int rounds;

static void must(CUresult rc, int line)
{
	if (!rc)
		return;
	fprintf(stderr, "line %d: the driver returned %d\n", line, rc);
	exit(3);
}
#define MUST(call) must(call, __LINE__)

/* Whether it was made. */
static int was_made(CUresult rc, int line)
{
	if (rc == CUDA_ERROR_OUT_OF_MEMORY) {
		__atomic_fetch_add(&refused, 1, __ATOMIC_RELAXED);
		return 0;
	}
	must(rc, line);
	__atomic_fetch_add(&made, 1, __ATOMIC_RELAXED);
	return 1;
}
#define MADE(call) was_made(call, __LINE__)

/* One thing of each thread stays until its next one is made. */
static __thread CUdeviceptr kept;

static void linear(uint64_t bytes, unsigned int *seed)
{
	CUdeviceptr pointer;
	size_t pitch;
	CUresult rc;

	switch (rand_r(seed) % 3) {
	case 0:
		rc = cuMemAlloc_v2(&pointer, bytes);
		break;
	case 1:
		rc = cuMemAllocManaged(&pointer, bytes, CU_MEM_ATTACH_GLOBAL);
		break;
	default:
		rc = cuMemAllocPitch_v2(&pointer, &pitch, 1000, bytes / 1000, 4);
	}
	if (!MADE(rc))
		return;
	if (kept)
		MUST(cuMemFree_v2(kept));
	kept = pointer;
}

static void array(uint64_t bytes, unsigned int *seed)
{
	CUDA_ARRAY3D_DESCRIPTOR of = {1024, bytes >> 10, 0, CU_AD_FORMAT_UNSIGNED_INT8, 1, 0};
	CUmipmappedArray mipmap;
	CUarray made_array;

	if (rand_r(seed) % 2) {
		if (MADE(cuArray3DCreate_v2(&made_array, &of)))
			MUST(cuArrayDestroy(made_array));
	} else if (MADE(cuMipmappedArrayCreate(&mipmap, &of, 3))) {
		MUST(cuMipmappedArrayDestroy(mipmap));
	}
}

static void block(uint64_t bytes, unsigned int *seed, CUdeviceptr place)
{
	CUmemAllocationProp of = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
				  .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUmemGenericAllocationHandle handle, again;
	int order = rand_r(seed) % 3;

	bytes = bytes / PIECE * PIECE + PIECE;
	if (!MADE(cuMemCreate(&handle, bytes, &of, 0)))
		return;
	MUST(cuMemMap(place, bytes, 0, handle, 0));
	if (order == 0)
		MUST(cuMemRelease(handle));
	MUST(cuMemRetainAllocationHandle(&again, (void *)(uintptr_t)(place + bytes / 2)));
	if (order == 1)
		MUST(cuMemRelease(again));
	MUST(cuMemUnmap(place, bytes));
	if (order != 0)
		MUST(cuMemRelease(handle));
	if (order != 1)
		MUST(cuMemRelease(again));
}

static void host(uint64_t bytes)
{
	void *pointer;

	if (MADE(cuMemHostAlloc(&pointer, bytes / 64, 0)))
		MUST(cuMemFreeHost(pointer));
}

static void whole_context(uint64_t bytes)
{
	CUdeviceptr pointer;
	CUcontext own;

	if (!MADE(cuCtxCreate_v2(&own, 0, 0)))
		return;
	MADE(cuMemAlloc_v2(&pointer, bytes));
	MUST(cuCtxDestroy_v2(own));
	MUST(cuCtxSetCurrent(context));
}

static void module(void)
{
	CUmodule loaded;

	if (MADE(cuModuleLoadData(&loaded, "\n.version 7.0\n")))
		MUST(cuModuleUnload(loaded));
}

static void *work(void *argument)
{
	unsigned int seed = (unsigned int)(uintptr_t)argument;
	CUdeviceptr place;

	MUST(cuCtxSetCurrent(context));
	MUST(cuMemAddressReserve(&place, RANGE, 0, 0, 0));
	for (int i = 0; i < rounds; i++) {
		uint64_t bytes = chunk * (1 + (uint64_t)rand_r(&seed) % 4);

		switch (rand_r(&seed) % 16) {
		case 0:
			whole_context(bytes);
			break;
		case 1:
			module();
			break;
		case 2:
		case 3:
			host(bytes);
			break;
		case 4:
		case 5:
		case 6:
			array(bytes, &seed);
			break;
		case 7:
		case 8:
		case 9:
		case 10:
			linear(bytes, &seed);
			break;
		default:
			block(bytes, &seed, place);
		}
	}
	if (kept)
		MUST(cuMemFree_v2(kept));
	return NULL;
}

int main(int count, char **arguments)
{
	int threads = count > 1 ? atoi(arguments[1]) : 0;
	pthread_t *all = calloc((size_t)threads, sizeof(*all));
	CUresult rc;

	if (count != 4 || !all)
		return 2;
	rounds = atoi(arguments[2]);
	chunk = strtoull(arguments[3], NULL, 0);
	MUST(cuInit(0));
	/* Others may have taken all. */
	while ((rc = cuCtxCreate_v2(&context, 0, 0)) == CUDA_ERROR_OUT_OF_MEMORY)
		usleep(1000);
	MUST(rc);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&all[i], NULL, work, (void *)(uintptr_t)(i + 1)))
			return 2;
	for (int i = 0; i < threads; i++)
		pthread_join(all[i], NULL);
	printf("%llu %llu\n", (unsigned long long)made, (unsigned long long)refused);
	MUST(cuCtxDestroy_v2(context));
	return 0;
}
