/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Sharing with other processes: holding, mapping, and turning private memory
 * into shared memory.
 *
 * Device memory is private until somebody asks for a handle of it: its pages
 * then move to the file of shared memory, which is mapped at the same address.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include "cuda_share.h"

#define PAGEMAP_CHUNK 512
#define PAGE_THERE (3ULL << 62) /* in memory, or in the swap space */

static uint32_t held[SIM_SHARED];

CUresult share_make(const struct sim_shared *wanted, uint32_t *shared)
{
	if (wanted->kind == SIM_SHARED_MEMORY && sim_shared_file() < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	int number = sim_shared_make(driver.slot, wanted);
	if (number < 0)
		return CUDA_ERROR_OUT_OF_MEMORY;
	held[number] = 1;
	*shared = (uint32_t)number + 1;
	return CUDA_SUCCESS;
}

CUresult share_hold(int number, uint64_t generation, uint32_t *shared)
{
	if (sim_shared_hold(driver.slot, number, generation))
		return CUDA_ERROR_INVALID_HANDLE;
	held[number]++;
	*shared = (uint32_t)number + 1;
	return CUDA_SUCCESS;
}

void share_hold_again(uint32_t shared)
{
	held[shared - 1]++;
}

void share_drop(uint32_t shared)
{
	if (!--held[shared - 1])
		sim_shared_drop(driver.slot, (int)shared - 1);
}

const struct sim_shared *share_entry(uint32_t shared)
{
	return sim_shared_entry((int)shared - 1);
}

CUresult share_export(uint32_t shared, int *descriptor)
{
	int opened = sim_shared_open((int)shared - 1);
	if (opened < 0)
		return CUDA_ERROR_OPERATING_SYSTEM;
	*descriptor = opened;
	return CUDA_SUCCESS;
}

/* While the descriptor is open the thing cannot go. */
CUresult share_import(int descriptor, enum sim_shared_kind kind, uint32_t *shared)
{
	int number = sim_shared_of(descriptor);
	if (number < 0 || sim_shared_entry(number)->kind != (uint32_t)kind)
		return CUDA_ERROR_INVALID_VALUE;
	return share_hold(number, sim_shared_entry(number)->generation, shared);
}

CUresult share_map(uint32_t shared, void *at, size_t size)
{
	const struct sim_shared *entry = share_entry(shared);
	int file = sim_shared_file();
	if (file < 0 ||
	    mmap(at, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED | MAP_NORESERVE, file,
		 (off_t)entry->offset) == MAP_FAILED)
		return CUDA_ERROR_MAP_FAILED;
	return CUDA_SUCCESS;
}

struct device *device_numbered(uint32_t number)
{
	for (int i = 0; i < driver.device_count; i++)
		if (driver.devices[i].number == number)
			return &driver.devices[i];
	return NULL;
}

/* ---- from private to shared ---- */

/* Copies the pages that were ever written; the others read zero there as here. */
static int copy_pages(const struct range *range, uint64_t offset)
{
	uint64_t entries[PAGEMAP_CHUNK];
	size_t page = (size_t)sysconf(_SC_PAGESIZE), pages = range->size / page;
	int result = 0, to = sim_shared_file();
	int map = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	for (size_t first = 0; first < pages && !result; first += PAGEMAP_CHUNK) {
		size_t count = pages - first < PAGEMAP_CHUNK ? pages - first : PAGEMAP_CHUNK;
		off_t place = (off_t)((range->base / page + first) * sizeof(*entries));
		bool known = map >= 0 && pread(map, entries, count * sizeof(*entries), place) ==
						 (ssize_t)(count * sizeof(*entries));
		for (size_t i = 0; i < count && !result; i++) {
			size_t at = (first + i) * page;
			if (known && !(entries[i] & PAGE_THERE))
				continue;
			if (pwrite(to, (const void *)(range->base + at), page,
				   (off_t)(offset + at)) != (ssize_t)page)
				result = -1;
		}
	}
	if (map >= 0)
		close(map);
	return result;
}

CUresult range_share(struct range *range)
{
	struct sim_shared wanted = {
		.kind = SIM_SHARED_MEMORY,
		.device = range->heap->host ? SIM_DEVICES : range->device->number,
		.size = range->size,
	};
	uint32_t shared;
	if (range->shared)
		return CUDA_SUCCESS;
	TRY(share_make(&wanted, &shared));
	if (!copy_pages(range, share_entry(shared)->offset) &&
	    !share_map(shared, (void *)range->base, range->size)) {
		range->shared = shared;
		return CUDA_SUCCESS;
	}
	/* It stays private: what was charged to the shared thing is charged again. */
	share_drop(shared);
	if (!range->heap->host && sim_charge(range->device->number, driver.slot, range->size)) {
		range->heap->charged -= range->charged;
		range->charged = 0;
	}
	return CUDA_ERROR_OUT_OF_MEMORY;
}
