/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that nobody asks for by size: what contexts and modules take for
 * themselves.  It is charged by a guess before they are made, and what they
 * really took is charged afterwards.
 */
#ifndef VGPU_OVERHEAD_H
#define VGPU_OVERHEAD_H

#include "account.h"

struct overhead {
	struct claim claim; /* no record: not charged */
	int slice;
	int is_known;        /* the guess is what others have measured: it stands */
	int64_t before;      /* the driver's figure, or -1 */
	uint64_t row_before; /* what this process was charged */
	uint64_t changes;    /* contexts made by this process so far */
};

/* Before a context is made: not CUDA_SUCCESS when it is refused. */
CUresult vgpu_context_begin(struct overhead *overhead, const struct driver *driver,
			    CUdevice device);
/* The driver has answered `rc`.  An error although it was none: end the context. */
CUresult vgpu_context_begun(struct overhead *overhead, CUresult rc, const CUcontext *context);
/* A context that was charged on a slice has ended. */
void vgpu_context_ended(struct process *process, uint32_t slice);

#endif
