/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: physical memory that is made apart from its addresses.  It exists as
 * long as anything holds it: a handle, a mapping, a multicast object or a sparse
 * array.  So a block is charged once, when it is made, counts who holds it, and
 * is refunded when the last one lets go.
 *
 * The program may do all this on a thread without a context: where a block is
 * says its location.  Memory of the host is not charged, and then nothing is
 * noted.  An imported handle is of a block that its exporter is charged for.
 */
#include "blocks.h"

/* Where the start of a mapping is looked for below an address: no driver maps at
 * finer places than the second, and nearly all map at the first. */
static const struct {
	uint64_t bytes;
	int count;
} steps[] = {{2ull << 20, 1 << 15}, {64ull << 10, 1 << 14}};

/* ---- making and releasing
 * -------------------------------------------------------------------------- */

static CUresult create(struct claim *claim, CUmemGenericAllocationHandle *handle, size_t bytes,
		       const CUmemAllocationProp *properties, unsigned long long flags)
{
	struct record *block = claim->record;
	struct record *holder = vgpu_holder_new(claim->process, RECORD_HANDLE, 0, block);
	CUresult rc = holder ? claim->driver->real.cuMemCreate(handle, bytes, properties, flags)
			     : CUDA_ERROR_OUT_OF_MEMORY;

	if (rc) {
		if (holder)
			vgpu_record_free(&claim->process->records, holder);
		vgpu_give_back(claim->tenant, claim->process, block);
		return rc;
	}
	block->count = 1;
	holder->key = *handle;
	vgpu_holder_enter(claim->process, holder);
	return rc;
}

CUresult cuMemCreate(CUmemGenericAllocationHandle *handle, size_t bytes,
		     const CUmemAllocationProp *properties, unsigned long long flags)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct claim claim;
	CUresult rc;
	int slice;

	if (!vgpu_is_charged(tenant) || !handle || !properties || !bytes)
		return driver->real.cuMemCreate(handle, bytes, properties, flags);
	rc = vgpu_claim(&claim, driver, tenant);
	if (rc)
		return rc;
	slice = vgpu_slice_of_location(driver, tenant, claim.process, &properties->location);
	if (slice == SLICE_NONE || slice == SLICE_UNKNOWN)
		return driver->real.cuMemCreate(handle, bytes, properties, flags);
	rc = vgpu_stake(&claim, RECORD_BLOCK, slice, bytes);
	return rc ? rc : create(&claim, handle, bytes, properties, flags);
}

/* One use of the handle less; with the last, it leaves the table. */
static int release_use(struct record *holder, void *taken)
{
	if (--holder->count)
		return 0;
	*(struct record **)taken = holder;
	return 1;
}

static int restore_use(struct record *holder, void *unused)
{
	holder->count++;
	return 0;
}

CUresult cuMemRelease(CUmemGenericAllocationHandle handle)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	struct record *holder = NULL;
	int known = -1;
	CUresult rc;

	/* Before: its number may be another block's as soon as the driver is done. */
	if (process)
		known = vgpu_record_visit(&process->records, RECORD_HANDLE, handle, release_use,
					  &holder);
	rc = driver->real.cuMemRelease(handle);
	if (rc && holder) {
		holder->count = 1;
		vgpu_record_enter(&process->records, holder);
	} else if (rc && !known) {
		vgpu_record_visit(&process->records, RECORD_HANDLE, handle, restore_use, NULL);
	} else if (holder) {
		vgpu_holder_drop(process, holder);
	} else if (process && !rc && known < 0) {
		vgpu_bindings_drop(process, handle); /* it may have been a multicast object */
	}
	return rc;
}

/* ---- mappings
 * --------------------------------------------------------------------------------------- */

CUresult cuMemMap(CUdeviceptr pointer, size_t bytes, size_t offset,
		  CUmemGenericAllocationHandle handle, unsigned long long flags)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	struct record *block, *mapping;
	CUresult rc;

	if (!process || !bytes)
		return driver->real.cuMemMap(pointer, bytes, offset, handle, flags);
	block = vgpu_block_of_handle(process, handle);
	mapping = vgpu_holder_new(process, RECORD_MAPPING, pointer, block);
	if (!mapping) {
		vgpu_block_let_go(process, block);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	mapping->bytes = bytes;
	rc = driver->real.cuMemMap(pointer, bytes, offset, handle, flags);
	if (rc)
		vgpu_holder_drop(process, mapping);
	else
		vgpu_holder_enter(process, mapping);
	return rc;
}

/* One call may cover several mappings side by side, each of them whole.  All are
 * noted, also those of memory that is not charged, so the first that is not there
 * is the last: the program may name any range, and the driver refuses holes. */
static struct record *take_mappings(struct process *process, uint64_t from, uint64_t bytes)
{
	struct record *taken = NULL, *mapping;

	for (uint64_t at = from, end = from + bytes; at < end; at += mapping->bytes) {
		mapping = vgpu_record_take(&process->records, RECORD_MAPPING, at);
		if (!mapping)
			break;
		mapping->next = taken;
		taken = mapping;
	}
	return taken;
}

CUresult cuMemUnmap(CUdeviceptr pointer, size_t bytes)
{
	struct process *process = vgpu_accounted();
	struct record *taken = process ? take_mappings(process, pointer, bytes) : NULL;
	CUresult rc = vgpu_driver(LIBRARY_CUDA)->real.cuMemUnmap(pointer, bytes);

	while (taken) {
		struct record *mapping = taken;

		taken = mapping->next;
		if (rc)
			vgpu_record_enter(&process->records, mapping);
		else
			vgpu_holder_drop(process, mapping);
	}
	return rc;
}

struct address {
	uint64_t at;
	struct record *block;
};

#define FOUND 2 /* 1 would take the record out */

static int hold_if_covers(struct record *mapping, void *argument)
{
	struct address *address = argument;

	if (address->at - mapping->key >= mapping->bytes)
		return 0;
	address->block = mapping->block;
	if (mapping->block)
		vgpu_block_hold(mapping->block);
	return FOUND;
}

/* The nearest mapping that starts at the address or below, at a multiple of `step`. */
static int look_below(struct process *process, struct address *address, uint64_t step, int count)
{
	uint64_t key = address->at / step * step;
	int found = -1;

	for (int i = 0; i < count && key && found < 0; i++, key -= step)
		found = vgpu_record_visit(&process->records, RECORD_MAPPING, key, hold_if_covers,
					  address);
	return found > 0;
}

struct record *vgpu_block_at(struct process *process, uint64_t at)
{
	struct address address = {at, NULL};

	for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++)
		if (look_below(process, &address, steps[i].bytes, steps[i].count))
			break;
	return address.block;
}

static int add_use(struct record *holder, void *unused)
{
	holder->count++;
	return 0;
}

/* The handle of what is mapped there, as new or once more. */
CUresult cuMemRetainAllocationHandle(CUmemGenericAllocationHandle *handle, void *address)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	CUresult rc = driver->real.cuMemRetainAllocationHandle(handle, address);
	struct record *block, *holder;

	if (rc || !process ||
	    !vgpu_record_visit(&process->records, RECORD_HANDLE, *handle, add_use, NULL))
		return rc;
	/* Another number for a block that we know by its mapping, if at all. */
	block = vgpu_block_at(process, (uintptr_t)address);
	if (!block)
		return rc;
	holder = vgpu_holder_new(process, RECORD_HANDLE, *handle, block);
	if (!holder) {
		driver->real.cuMemRelease(*handle);
		vgpu_block_let_go(process, block);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	vgpu_holder_enter(process, holder);
	return rc;
}
