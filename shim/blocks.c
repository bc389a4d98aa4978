/* SPDX-License-Identifier: Apache-2.0
 *
 * Counting who holds a block: see blocks.h.  Here are also the holders that are
 * neither handle nor mapping: places in multicast objects, and in sparse arrays,
 * which have no memory of their own and keep alive what is bound to them.
 */
#include "blocks.h"

void vgpu_block_hold(struct record *block)
{
	__atomic_fetch_add(&block->count, 1, __ATOMIC_RELAXED);
}

void vgpu_block_let_go(struct process *process, struct record *block)
{
	if (block && !__atomic_sub_fetch(&block->count, 1, __ATOMIC_ACQ_REL))
		vgpu_give_back(vgpu_tenant(), process, block);
}

struct record *vgpu_holder_new(struct process *process, enum record_kind kind, uint64_t key,
			       struct record *block)
{
	struct record *record = vgpu_record_new(&process->records);

	if (record)
		*record = (struct record){
			.kind = (uint8_t)kind, .key = key, .block = block, .count = 1};
	return record;
}

void vgpu_holder_drop(struct process *process, struct record *record)
{
	struct record *block = record->block;

	vgpu_record_free(&process->records, record);
	vgpu_block_let_go(process, block);
}

void vgpu_holder_enter(struct process *process, struct record *record)
{
	struct record *stale = vgpu_record_enter(&process->records, record);

	if (stale)
		vgpu_holder_drop(process, stale);
}

static int hold_block(struct record *holder, void *block)
{
	*(struct record **)block = holder->block;
	vgpu_block_hold(holder->block);
	return 0;
}

struct record *vgpu_block_of_handle(struct process *process, CUmemGenericAllocationHandle handle)
{
	struct record *block;

	if (!process ||
	    vgpu_record_visit(&process->records, RECORD_HANDLE, handle, hold_block, &block))
		return NULL;
	return block;
}

/* ---- bindings -------------------------------------------------------------------------------- */

/* A place in its owner, as a key (FNV-1a). */
static uint64_t place(uint64_t owner, const void *where, size_t size)
{
	const unsigned char *bytes = where;
	uint64_t hash = owner ^ 0xcbf29ce484222325ull;

	for (size_t i = 0; i < size; i++)
		hash = (hash ^ bytes[i]) * 0x100000001b3ull;
	return hash;
}

/* Takes over a hold.  Without memory for the entry the hold stays for ever:
 * that charges too much rather than too little. */
static void bind(struct process *process, struct record *block, uint64_t owner, uint64_t key)
{
	struct record *binding = vgpu_holder_new(process, RECORD_BINDING, key, block);

	if (!binding)
		return;
	binding->owner = owner;
	__atomic_store_n(&process->has_bindings, 1, __ATOMIC_RELAXED);
	vgpu_holder_enter(process, binding);
}

static struct record *take_binding(struct process *process, uint64_t key)
{
	return __atomic_load_n(&process->has_bindings, __ATOMIC_RELAXED)
		       ? vgpu_record_take(&process->records, RECORD_BINDING, key)
		       : NULL;
}

static int is_owned(const struct record *record, const void *owner)
{
	return record->kind == RECORD_BINDING && record->owner == *(const uint64_t *)owner;
}

void vgpu_bindings_drop(struct process *process, uint64_t owner)
{
	struct record *binding;

	if (!__atomic_load_n(&process->has_bindings, __ATOMIC_RELAXED))
		return;
	binding = vgpu_record_take_all(&process->records, is_owned, &owner);
	while (binding) {
		struct record *next = binding->next;

		vgpu_holder_drop(process, binding);
		binding = next;
	}
}

/* ---- multicast objects -------------------------------------------------------------------------
 */

struct spot {
	uint64_t device, offset;
};

/* The hold on `block` is the binding's from now on, or nobody's. */
static CUresult bound(struct process *process, struct record *block,
		      CUmemGenericAllocationHandle multicast, uint64_t offset, CUresult rc)
{
	struct spot spot;

	if (!block)
		return rc;
	if (rc) {
		vgpu_block_let_go(process, block);
		return rc;
	}
	spot = (struct spot){(uint64_t)vgpu_device_of_slice(process, block->account), offset};
	bind(process, block, multicast, place(multicast, &spot, sizeof(spot)));
	return rc;
}

#define BIND(symbol, block, parameters, arguments)                                                 \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		struct process *process = vgpu_accounted();                                        \
		struct record *held = process ? block : NULL;                                      \
                                                                                                   \
		return bound(process, held, multicast, multicast_offset,                           \
			     driver->real.symbol arguments);                                       \
	}

BIND(cuMulticastBindMem, vgpu_block_of_handle(process, handle),
     (CUmemGenericAllocationHandle multicast, size_t multicast_offset,
      CUmemGenericAllocationHandle handle, size_t offset, size_t bytes, unsigned long long flags),
     (multicast, multicast_offset, handle, offset, bytes, flags))
BIND(cuMulticastBindMem_v2, vgpu_block_of_handle(process, handle),
     (CUmemGenericAllocationHandle multicast, CUdevice device, size_t multicast_offset,
      CUmemGenericAllocationHandle handle, size_t offset, size_t bytes, unsigned long long flags),
     (multicast, device, multicast_offset, handle, offset, bytes, flags))
BIND(cuMulticastBindAddr, vgpu_block_at(process, pointer),
     (CUmemGenericAllocationHandle multicast, size_t multicast_offset, CUdeviceptr pointer,
      size_t bytes, unsigned long long flags),
     (multicast, multicast_offset, pointer, bytes, flags))
BIND(cuMulticastBindAddr_v2, vgpu_block_at(process, pointer),
     (CUmemGenericAllocationHandle multicast, CUdevice device, size_t multicast_offset,
      CUdeviceptr pointer, size_t bytes, unsigned long long flags),
     (multicast, device, multicast_offset, pointer, bytes, flags))

CUresult cuMulticastUnbind(CUmemGenericAllocationHandle multicast, CUdevice device,
			   size_t multicast_offset, size_t bytes)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	struct process *process = vgpu_accounted();
	const struct spot spot = {(uint64_t)device, multicast_offset};
	struct record *binding =
		process ? take_binding(process, place(multicast, &spot, sizeof(spot))) : NULL;
	CUresult rc = driver->real.cuMulticastUnbind(multicast, device, multicast_offset, bytes);

	if (binding && rc)
		vgpu_holder_enter(process, binding);
	else if (binding)
		vgpu_holder_drop(process, binding);
	return rc;
}

/* ---- sparse arrays
 * -------------------------------------------------------------------------------- */

#define OPERATION_MAP 1
#define SUBRESOURCE_LEVEL 0

static uint64_t place_in_array(const CUarrayMapInfo *info)
{
	uint64_t owner = (uintptr_t)info->resource.array;
	/* Field by field: what lies between and behind them is anything. */
	const uint64_t tail[] = {1, info->subresource.miptail.layer,
				 info->subresource.miptail.offset, info->subresource.miptail.size};

	if (info->subresourceType == SUBRESOURCE_LEVEL)
		return place(owner, &info->subresource.sparseLevel,
			     sizeof(info->subresource.sparseLevel));
	return place(owner, tail, sizeof(tail));
}

/* What was noted of one place is replaced by what is mapped there now.  A place is
 * what one call has mapped: of a part of it that is mapped anew or let go, the block
 * counts as held until all of the place or the array goes. */
static void mapped(struct process *process, const CUarrayMapInfo *info, struct record *block)
{
	uint64_t key = place_in_array(info);
	struct record *earlier = take_binding(process, key);

	if (block)
		bind(process, block, (uintptr_t)info->resource.array, key);
	if (earlier)
		vgpu_holder_drop(process, earlier);
}

/* Blocks are held before the driver is asked, lest they are released meanwhile. */
#define BATCH 64

typedef CUresult (*map_array)(CUarrayMapInfo *, unsigned int, CUstream);

static CUresult map_some(map_array real, struct process *process, CUarrayMapInfo *list,
			 unsigned int count, CUstream stream)
{
	struct record *blocks[BATCH];
	CUresult rc;

	for (unsigned int i = 0; i < count; i++)
		blocks[i] = list[i].memOperationType == OPERATION_MAP
				    ? vgpu_block_of_handle(process, list[i].memHandle.memHandle)
				    : NULL;
	rc = real(list, count, stream);
	for (unsigned int i = 0; i < count; i++)
		if (!rc)
			mapped(process, &list[i], blocks[i]);
		else if (blocks[i])
			vgpu_block_let_go(process, blocks[i]);
	return rc;
}

static CUresult map_arrays(map_array real, CUarrayMapInfo *list, unsigned int count,
			   CUstream stream)
{
	struct process *process = list ? vgpu_accounted() : NULL;

	if (!process || !count)
		return real(list, count, stream);
	for (unsigned int done = 0; done < count;) {
		unsigned int some = count - done < BATCH ? count - done : BATCH;
		CUresult rc = map_some(real, process, list + done, some, stream);

		if (rc)
			return rc;
		done += some;
	}
	return CUDA_SUCCESS;
}

CUresult cuMemMapArrayAsync(CUarrayMapInfo *list, unsigned int count, CUstream stream)
{
	return map_arrays(vgpu_driver(LIBRARY_CUDA)->real.cuMemMapArrayAsync, list, count, stream);
}

CUresult cuMemMapArrayAsync_ptsz(CUarrayMapInfo *list, unsigned int count, CUstream stream)
{
	return map_arrays(vgpu_driver(LIBRARY_CUDA)->real.cuMemMapArrayAsync_ptsz, list, count,
			  stream);
}
