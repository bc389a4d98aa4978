/* SPDX-License-Identifier: Apache-2.0 */
/* Addresses of this process for device memory: aligned, zero, and not reserved. */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "cuda_driver.h"

#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define LOW_START (64UL << 20)
#define LOW_END (1UL << 32)

void *map_memory(size_t bytes)
{
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	if (bytes > SIZE_MAX / 2)
		return NULL;
	char *all = mmap(NULL, bytes + BLOCK_SIZE, PROT_READ | PROT_WRITE, flags, -1, 0);
	if (all == MAP_FAILED)
		return NULL;
	size_t before = (BLOCK_SIZE - (uintptr_t)all % BLOCK_SIZE) % BLOCK_SIZE;
	if (before)
		munmap(all, before);
	munmap(all + before + bytes, BLOCK_SIZE - before);
	return all + before;
}

/* Below 4 GiB.  A kernel that does not know the flag takes the place as a wish. */
void *map_low_memory(size_t bytes)
{
	static uintptr_t next = LOW_START;
	const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
	uintptr_t at = next;
	if (bytes > LOW_END - LOW_START)
		return NULL;
	for (uintptr_t tried = 0; tried < LOW_END - LOW_START; tried += BLOCK_SIZE) {
		if (at > LOW_END - bytes)
			at = LOW_START;
		void *memory = mmap((void *)at, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
		if (memory == (void *)at) {
			next = at + bytes;
			return memory;
		}
		if (memory != MAP_FAILED)
			munmap(memory, bytes);
		at += BLOCK_SIZE;
	}
	return NULL;
}
