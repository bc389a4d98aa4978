/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Managed memory: where its pages are.
 *
 * It is made on the device, all of it, or all on the host where the device has no
 * room.  Pages of 2 MiB move when they are prefetched, or advised to prefer a place;
 * a real driver moves them when they are next touched.  Pages for which the device
 * has no room stay on the host.
 */
#include <stdlib.h>

#include "cuda_work.h"

#define ON_HOST (-1)

/* A bit for each page that is on the device; NULL while they are as they were made. */
static uint64_t *pages_of(struct range *range)
{
	size_t pages = range->size / BLOCK_SIZE;
	uint64_t *bits = range->detail;
	if (bits)
		return bits;
	bits = calloc((pages + 63) / 64, sizeof(*bits));
	for (size_t i = 0; bits && range->charged && i < pages; i++)
		bits[i / 64] |= 1ULL << (i % 64);
	range->detail = bits;
	return bits;
}

static void move_page(struct range *range, uint64_t *bits, size_t page, bool to_device)
{
	uint64_t bit = 1ULL << (page % 64);
	if (!(bits[page / 64] & bit) == !to_device)
		return;
	if (to_device && heap_charge(range->heap, BLOCK_SIZE))
		return;
	if (!to_device)
		heap_refund(range->heap, BLOCK_SIZE);
	range->charged += to_device ? BLOCK_SIZE : -BLOCK_SIZE;
	bits[page / 64] ^= bit;
}

/* A page goes where its first byte goes. */
static CUresult move(CUdeviceptr pointer, size_t bytes, int place)
{
	struct range *range = range_at((uintptr_t)pointer);
	uint64_t *bits = pages_of(range);
	size_t from = (uintptr_t)pointer - range->base, to = from + bytes;
	if (!bits)
		return CUDA_ERROR_OUT_OF_MEMORY;
	for (size_t page = (from + BLOCK_SIZE - 1) / BLOCK_SIZE; page * BLOCK_SIZE < to; page++)
		move_page(range, bits, page, place != ON_HOST);
	return CUDA_SUCCESS;
}

static CUresult check(CUdeviceptr pointer, size_t bytes, int place)
{
	const struct range *range = range_at((uintptr_t)pointer);
	struct device *device;
	if (!bytes || !range || range->kind != RANGE_MANAGED || !memory_valid(pointer, bytes))
		return CUDA_ERROR_INVALID_VALUE;
	return place == ON_HOST ? CUDA_SUCCESS : device_of(place, &device);
}

/* Which device, or the host. */
static int place_of(CUmemLocation location)
{
	return location.type == CU_MEM_LOCATION_TYPE_DEVICE ? location.id : ON_HOST;
}

static bool has_place(CUmem_advise advice)
{
	return advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION ||
	       advice == CU_MEM_ADVISE_SET_ACCESSED_BY || advice == CU_MEM_ADVISE_UNSET_ACCESSED_BY;
}

API cuMemAdvise(CUdeviceptr pointer, size_t bytes, CUmem_advise advice, CUdevice device)
{
	ENTER();
	if (!advice || advice > CU_MEM_ADVISE_UNSET_ACCESSED_BY)
		return CUDA_ERROR_INVALID_VALUE;
	TRY(check(pointer, bytes, has_place(advice) ? device : ON_HOST));
	return advice == CU_MEM_ADVISE_SET_PREFERRED_LOCATION ? move(pointer, bytes, device)
							      : CUDA_SUCCESS;
}

API cuMemAdvise_v2(CUdeviceptr pointer, size_t bytes, int advice, CUmemLocation location)
{
	return cuMemAdvise(pointer, bytes, (CUmem_advise)advice, place_of(location));
}

static CUresult prefetch(CUdeviceptr pointer, size_t bytes, int place, CUstream handle,
			 bool per_thread)
{
	struct stream *stream;
	ENTER();
	TRY(stream_of(handle, per_thread, &stream));
	TRY(check(pointer, bytes, place));
	TRY(move(pointer, bytes, place));
	return stream_work(stream, copy_ns(bytes), 0);
}

TWINS(cuMemPrefetchAsync, ptsz,
      (CUdeviceptr pointer, size_t bytes, CUdevice device, CUstream stream),
      prefetch(pointer, bytes, device, stream, per_thread))
TWINS(cuMemPrefetchAsync_v2, ptsz,
      (CUdeviceptr pointer, size_t bytes, CUmemLocation location, unsigned int flags,
       CUstream stream),
      ((void)flags, prefetch(pointer, bytes, place_of(location), stream, per_thread)))
