/* SPDX-License-Identifier: Apache-2.0
 *
 * What the driver says is in use.  NVML knows how much memory each process has,
 * but not always by the pid that the process itself knows: in a container it may
 * name the pids of the host.  Which of its processes is this one shows when it
 * makes its first context: it is then new in the list.
 */
#ifndef VGPU_OBSERVED_H
#define VGPU_OBSERVED_H

#include "process.h"

#define OBSERVED_PROCESSES 512

struct observation {
	int count; /* of processes; -1: there is no list */
	uint32_t pids[OBSERVED_PROCESSES];
	uint64_t bytes[OBSERVED_PROCESSES];
	int64_t device; /* in use by whomever; -1: not known */
};

/* Look at a slice's device now. */
void vgpu_observe(const struct tenant *tenant, int slice, struct observation *seen);
/* What this process has of it, or -1. */
int64_t vgpu_observed_own(const struct process *process, const struct observation *seen);
/* By how much this process has grown, or -1; with `is_new`, it had nothing before. */
int64_t vgpu_observed_growth(struct process *process, const struct observation *before,
			     const struct observation *after, int is_new);

#endif
