/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that nobody asks for by size: what contexts and modules take for
 * themselves.  It is charged by a guess before they are made, and what they
 * really took is charged afterwards.
 */
#ifndef VGPU_OVERHEAD_H
#define VGPU_OVERHEAD_H

#include "account.h"
#include "observed.h"

struct overhead {
	struct claim claim; /* no record: not charged */
	int slice;
	int is_first; /* context of this process on the slice */
	int is_known; /* what is charged is what others have measured: it stands */
	struct observation before;
	uint64_t row_before;   /* what this process was charged */
	uint64_t slice_before; /* what all processes were */
	uint64_t changes;      /* contexts made by this process so far */
};

/* What is left of a slice's quota. */
uint64_t vgpu_room(const struct tenant *tenant, int slice);
/* On a device that is not granted, or not limited, it is not worth the asking. */
int vgpu_is_limited(const struct tenant *tenant, int slice);
/* What this process is charged where the claim is. */
uint64_t vgpu_charged_to_row(const struct claim *claim);
/* All that is in use on the current context's device, by whomever; -1: not known. */
int64_t vgpu_device_used(const struct driver *driver);
/* vgpu_conclude for what takes `bytes` instead of what was staked. */
CUresult vgpu_conclude_sized(struct claim *claim, CUresult rc, uint64_t bytes, uint64_t key);

/* Before a context is made: not CUDA_SUCCESS when it is refused. */
CUresult vgpu_context_begin(struct overhead *overhead, const struct driver *driver,
			    CUdevice device);
/* The driver has answered `rc`.  An error although it was none: end the context. */
CUresult vgpu_context_begun(struct overhead *overhead, CUresult rc, const CUcontext *context);
/* A context that was charged on a slice has ended. */
void vgpu_context_ended(struct process *process, uint32_t slice);

/* ---- guesses.c: what is charged only until the driver has answered ---- */

void vgpu_guess_begin(const struct tenant *tenant, uint32_t row, int slice);
void vgpu_guess_end(const struct tenant *tenant, uint32_t row, int slice);
/* Wait a moment for guesses of a slice, for the `turn`th time.  Whether there was any:
 * ask again. */
int vgpu_guess_wait(const struct tenant *tenant, struct process *process, int slice, int turn);

/* ---- granule.c: what the driver rounds allocations up to ---- */

/* Find out, if that is not known yet. */
void vgpu_granule_learn(const struct driver *driver, const struct tenant *tenant, uint32_t row,
			int slice, CUcontext context);

#endif
