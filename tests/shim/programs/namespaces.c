/* SPDX-License-Identifier: Apache-2.0
 *
 * Two drivers in one process, the second in a namespace of its own.
 *
 *	namespaces BYTES...
 *
 * Each amount is allocated by the drivers in turn, the first one first; prints
 * whose function cuMemAlloc_v2 is in each, then what it returned, on a line.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

struct face {
	__typeof__(&cuInit) init;
	__typeof__(&cuCtxCreate_v2) create;
	__typeof__(&cuMemAlloc_v2) alloc;
};

static const char *owner(void *address)
{
	Dl_info info;

	return dladdr(address, &info) ? strrchr(info.dli_fname, '/') + 1 : "?";
}

static int open_face(struct face *face, void *handle)
{
	CUcontext context;

	if (!handle)
		return -1;
	face->init = (__typeof__(face->init))dlsym(handle, "cuInit");
	face->create = (__typeof__(face->create))dlsym(handle, "cuCtxCreate_v2");
	face->alloc = (__typeof__(face->alloc))dlsym(handle, "cuMemAlloc_v2");
	return face->init(0) || face->create(&context, 0, 0);
}

int main(int argc, char **argv)
{
	struct face faces[2];
	CUdeviceptr pointer;

	if (open_face(&faces[0], dlopen("libcuda.so.1", RTLD_NOW)) ||
	    open_face(&faces[1], dlmopen(LM_ID_NEWLM, "libcuda.so.1", RTLD_NOW)))
		return 2;
	printf("%s %s", owner((void *)faces[0].alloc), owner((void *)faces[1].alloc));
	for (int i = 1; i < argc; i++)
		printf(" %d", (int)faces[(i + 1) % 2].alloc(&pointer, strtoull(argv[i], NULL, 10)));
	putchar('\n');
	return 0;
}
