/* SPDX-License-Identifier: Apache-2.0
 *
 * A driver that the program has loaded into a namespace of its own (dlmopen).
 * It is a second driver with contexts of its own, and our functions call one
 * driver only: so a second copy of us is loaded beside it and answers for it.
 * The copies share nothing but the tenant's files, in which they are one
 * process with one row and one quota.
 */
#define _GNU_SOURCE
#include <dlfcn.h>

#include "shim.h"

/* musl has one namespace, and neither of these as we need them. */
#pragma weak dlmopen
#pragma weak dlinfo

typedef void *(*look)(void *, const char *);

static void *copy_in(Lmid_t namespace)
{
	Dl_info self;

	if (!dladdr((void *)vgpu_in_other_namespace, &self))
		return NULL;
	return dlmopen(namespace, self.dli_fname, RTLD_NOW | RTLD_LOCAL | RTLD_NODELETE);
}

void *vgpu_in_other_namespace(void *handle, const char *name)
{
	Lmid_t namespace;
	void *copy;
	look theirs;

	if (!dlmopen || !dlinfo || handle == RTLD_DEFAULT || handle == RTLD_NEXT ||
	    dlinfo(handle, RTLD_DI_LMID, &namespace) || namespace == LM_ID_BASE)
		return NULL;
	copy = copy_in(namespace);
	theirs = copy ? (look)vgpu_next_dlsym(copy, "dlsym") : NULL;
	return theirs ? theirs(handle, name) : NULL;
}
