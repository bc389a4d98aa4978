/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VGPU_SYMBOLS_H
#define VGPU_SYMBOLS_H

#include <stdint.h>

/* The libc's `dlsym`, by walking the symbol tables of the loaded files: for
 * libcs without dlvsym.  NULL: not found. */
void *vgpu_walk_to_dlsym(void);

/* A loaded file. */
struct loaded_file {
	const char *path; /* the loader's own text, as long as the file is loaded */
	uintptr_t start, end;
};

/* The file that an address lies in; 0 when there is none.  Unlike dladdr it
 * looks at no symbols, of which some callers have a hundred thousand. */
int vgpu_file_at(const void *address, struct loaded_file *file);

static inline int vgpu_is_in(const struct loaded_file *file, const void *address)
{
	return (uintptr_t)address - file->start < file->end - file->start;
}

#endif
