/* SPDX-License-Identifier: Apache-2.0 */
/* Filling memory with a value of 1, 2 or 4 bytes. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "cuda_work.h"

#define PAGE 4096UL
#define LARGE (1UL << 20)

/* Zero is what fresh memory reads, so pages are given back to the host instead:
 * a program may clear 80 GB on a machine that has not so much. */
static bool clear_pages(const struct fill *fill, size_t bytes)
{
	uintptr_t begin = ((uintptr_t)fill->to + PAGE - 1) / PAGE * PAGE;
	uintptr_t end = ((uintptr_t)fill->to + bytes) / PAGE * PAGE;
	const struct range *range = range_at((uintptr_t)fill->to);
	if (!range || range->kind > RANGE_MANAGED ||
	    madvise((void *)begin, end - begin, MADV_DONTNEED))
		return false;
	memset(fill->to, 0, begin - (uintptr_t)fill->to);
	memset((void *)end, 0, (uintptr_t)fill->to + bytes - end);
	return true;
}

void fill_run(const struct fill *fill)
{
	size_t bytes = fill->width * fill->element;
	if (!fill->value && fill->height == 1 && bytes >= LARGE && clear_pages(fill, bytes))
		return;
	for (size_t y = 0; y < fill->height; y++) {
		char *row = fill->to + y * fill->pitch;
		if (fill->element == 1)
			memset(row, (int)fill->value, fill->width);
		else if (fill->element == 2)
			for (size_t x = 0; x < fill->width; x++)
				((uint16_t *)row)[x] = (uint16_t)fill->value;
		else
			for (size_t x = 0; x < fill->width; x++)
				((uint32_t *)row)[x] = fill->value;
	}
}

CUresult copy_check_fill(const struct fill *fill)
{
	size_t row, bytes;
	if (fill->element != 1 && fill->element != 2 && fill->element != 4)
		return CUDA_ERROR_INVALID_VALUE;
	if (!fill->width || !fill->height)
		return CUDA_SUCCESS;
	if (__builtin_mul_overflow(fill->width, fill->element, &row) ||
	    __builtin_mul_overflow(fill->height - 1, fill->pitch, &bytes) ||
	    __builtin_add_overflow(bytes, row, &bytes))
		return CUDA_ERROR_INVALID_VALUE;
	if ((uintptr_t)fill->to % fill->element ||
	    (fill->height > 1 && fill->pitch % fill->element))
		return CUDA_ERROR_INVALID_VALUE;
	if (fill->height > 1 && row > fill->pitch)
		return CUDA_ERROR_INVALID_VALUE;
	return memory_valid((CUdeviceptr)(uintptr_t)fill->to, bytes) ? CUDA_SUCCESS
								     : CUDA_ERROR_INVALID_VALUE;
}

/* The forms without a stream do not wait either: nobody could tell. */
static CUresult put(CUdeviceptr to, size_t pitch, uint32_t value, unsigned element, size_t width,
		    size_t height, CUstream on, bool per_thread)
{
	struct work work = {
		.type = CU_GRAPH_NODE_TYPE_MEMSET,
		.memset = {(char *)(uintptr_t)to, pitch, value, element, width, height},
	};
	struct stream *stream;
	ENTER();
	TRY(stream_of(on, per_thread, &stream));
	TRY(copy_check_fill(&work.memset));
	return stream_do(stream, &work);
}

#define SETS(bits, bytes, type)                                                                    \
	TWINS(cuMemsetD##bits##_v2, ptds, (CUdeviceptr to, type value, size_t count),              \
	      put(to, 0, value, bytes, count, 1, NULL, per_thread))                                \
	TWINS(cuMemsetD##bits##Async, ptsz,                                                        \
	      (CUdeviceptr to, type value, size_t count, CUstream stream),                         \
	      put(to, 0, value, bytes, count, 1, stream, per_thread))                              \
	TWINS(cuMemsetD2D##bits##_v2, ptds,                                                        \
	      (CUdeviceptr to, size_t pitch, type value, size_t width, size_t height),             \
	      put(to, pitch, value, bytes, width, height, NULL, per_thread))                       \
	TWINS(cuMemsetD2D##bits##Async, ptsz,                                                      \
	      (CUdeviceptr to, size_t pitch, type value, size_t width, size_t height,              \
	       CUstream stream),                                                                   \
	      put(to, pitch, value, bytes, width, height, stream, per_thread))

SETS(8, 1, unsigned char)
SETS(16, 2, unsigned short)
SETS(32, 4, unsigned int)
