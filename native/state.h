/* SPDX-License-Identifier: Apache-2.0
 *
 * What tenant.c needs of the state directory.  Functions return 0 or -errno
 * unless they say otherwise; `parent` is an open directory.
 */
#ifndef VGPU_STATE_H
#define VGPU_STATE_H

#include <dirent.h>
#include <stddef.h>
#include <sys/types.h>

#include "abi.h"

/* Names are also those of files: no slash, no leading dot or dash. */
int vgpu_state_name_is_valid(const char *name);
/* The directory of all tenants, made if need be and locked through `lock`; close both
 * when done.  A descriptor or -errno. */
int vgpu_state_open(const char *state, int *lock);
/* Entries of a directory; NULL, and errno says why. */
DIR *vgpu_state_list(int parent, const char *name);
/* -ENODATA: it is too short, or no regular file. */
int vgpu_state_read(int parent, const char *name, void *to, size_t size);
int vgpu_state_write(int parent, const char *name, const void *from, size_t size, mode_t mode);
/* Remove a file, or a directory and at most `depth` levels below it. */
void vgpu_state_remove_tree(int parent, const char *name, int depth);
/* Remove a tenant: out of sight by rename first. */
int vgpu_state_remove_tenant(int parent, const char *name);

#endif
