/* SPDX-License-Identifier: Apache-2.0
 *
 * A library that is linked to the driver, and a program that opens it so that
 * it binds to its own dependencies first (RTLD_DEEPBIND), or not.
 *
 *	deep LIBRARY 0|1	whose cuMemAlloc_v2 it has by linking, by dlsym on
 *				a handle, and by cuGetProcAddress
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cuda.h"

#ifdef LIBRARY
__attribute__((visibility("default"))) void find(void *found[3])
{
	void *driver = dlopen("libcuda.so.1", RTLD_NOW);
	CUdriverProcAddressQueryResult status;

	found[0] = (void *)cuMemAlloc_v2;
	found[1] = dlsym(driver, "cuMemAlloc_v2");
	cuGetProcAddress_v2("cuMemAlloc", &found[2], 3020, 0, &status);
}
#else
int main(int argc, char **argv)
{
	void *library, *found[3] = {NULL};
	void (*find)(void *found[3]);

	if (argc != 3)
		return 2;
	library = dlopen(argv[1], RTLD_NOW | RTLD_LOCAL | (atoi(argv[2]) ? RTLD_DEEPBIND : 0));
	if (!library)
		return 3;
	find = (__typeof__(find))dlsym(library, "find");
	find(found);
	for (int i = 0; i < 3; i++) {
		Dl_info info;

		printf("%s%s", i ? " " : "",
		       dladdr(found[i], &info) ? strrchr(info.dli_fname, '/') + 1 : "?");
	}
	putchar('\n');
	return 0;
}
#endif
