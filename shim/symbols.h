/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VGPU_SYMBOLS_H
#define VGPU_SYMBOLS_H

/* The libc's `dlsym`, by walking the symbol tables of the loaded files: for
 * libcs without dlvsym.  NULL: not found. */
void *vgpu_walk_to_dlsym(void);

#endif
