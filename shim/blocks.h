/* SPDX-License-Identifier: Apache-2.0
 *
 * Blocks of physical memory, and who holds them.  A block is charged once, when
 * it is made, and refunded when the last holder lets go: a handle, a mapping, or
 * a place in a multicast object or a sparse array.
 */
#ifndef VGPU_BLOCKS_H
#define VGPU_BLOCKS_H

#include "account.h"

void vgpu_block_hold(struct record *block);
/* NULL: none. */
void vgpu_block_let_go(struct process *process, struct record *block);
/* The block behind a handle, or mapped at an address, held once more; NULL: none that is charged.
 */
struct record *vgpu_block_of_handle(struct process *process, CUmemGenericAllocationHandle handle);
struct record *vgpu_block_at(struct process *process, uint64_t at);

/* An entry of the table that is a holder, and takes over a hold of its maker's;
 * NULL when memory is exhausted.  `block` may be NULL: of memory that is not charged. */
struct record *vgpu_holder_new(struct process *process, enum record_kind kind, uint64_t key,
			       struct record *block);
void vgpu_holder_enter(struct process *process, struct record *holder);
void vgpu_holder_drop(struct process *process, struct record *holder);

/* A multicast object or an array is gone, and what was bound to it. */
void vgpu_bindings_drop(struct process *process, uint64_t owner);

#endif
