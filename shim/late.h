/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory that is of no pool, and freed when a stream comes to it.
 */
#ifndef VGPU_LATE_H
#define VGPU_LATE_H

#include "account.h"
#include "markers.h"

/* It was freed on the stream.  1: it stays charged until the stream is there, and the
 * record is taken over; 0: it is free already, or nobody can say when. */
int vgpu_late_keep(const struct driver *driver, struct process *process, struct record *record,
		   struct stream stream);

/* Give back what streams have come to.  Whether anything was; `is_left`: something is not. */
int vgpu_late_settle(const struct driver *driver, const struct tenant *tenant,
		     struct process *process, int *is_left);

#endif
