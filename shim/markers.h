/* SPDX-License-Identifier: Apache-2.0
 *
 * Measuring launches: a pair of events round one, read when it is complete.
 */
#ifndef VGPU_MARKERS_H
#define VGPU_MARKERS_H

#include "process.h"

/* A stream as the called entry point understands it: in the `_ptsz` twins the
 * null stream is the thread's own. */
struct stream {
	CUstream handle;
	int per_thread;
};

/* Called with each measured launch. */
typedef void (*vgpu_measured)(const struct marker *marker, uint64_t ns, void *context);

/* Whether what is given to the stream now becomes part of a graph, for certain. */
int vgpu_is_capturing(const struct driver *driver, struct stream stream);
/* Whether it might, or might disturb another stream's capture: leave it alone. */
int vgpu_may_be_capturing(const struct driver *driver, struct stream stream);
/* Record the start event, just before the launch; NULL: not to be measured. */
struct marker *vgpu_marker_begin(const struct driver *driver, struct process *process,
				 struct stream stream);
/* Record the end event, just after it. */
void vgpu_marker_end(const struct driver *driver, struct marker *marker, struct stream stream);
/* The launch failed. */
void vgpu_marker_drop(struct marker *marker);
/* Read the pairs that are complete. */
void vgpu_markers_reap(const struct driver *driver, struct process *process, vgpu_measured measured,
		       void *context);
/* The longest-standing marker of a slice that is not complete; 0, or -1 when there is none. */
int vgpu_marker_oldest(const struct process *process, uint32_t slice, uint64_t *begin_ns,
		       uint64_t *issued_ns);
/* Forget the events of a context that is about to end. */
void vgpu_markers_forget(struct process *process, CUcontext context);

#endif
