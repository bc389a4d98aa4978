/* SPDX-License-Identifier: Apache-2.0
 *
 * The meter of launches, as the intercepts use it.
 */
#ifndef VGPU_CORES_H
#define VGPU_CORES_H

#include "markers.h"

struct launch {
	const struct driver *driver;
	struct tenant *tenant;
	struct process *process;
	struct vgpu_usage *usage; /* NULL: not metered */
	struct estimate *estimate;
	struct marker *marker;
	struct stream stream;
	uint64_t cost_ns;
	uint32_t slice;
	int is_captured;
};

/* Before the driver is called: debit, and wait if need be.  Not CUDA_SUCCESS:
 * the launch is refused with that. */
CUresult vgpu_launch_begin(struct launch *launch, const struct driver *driver,
			   struct tenant *tenant, CUfunction function, uint64_t blocks,
			   struct stream stream);
/* After it has answered `rc`; returns that. */
CUresult vgpu_launch_end(const struct launch *launch, CUresult rc);

#endif
