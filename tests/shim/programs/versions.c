/* SPDX-License-Identifier: Apache-2.0
 *
 * Looks a driver function up through each version of dlsym itself: prints the
 * version, the library of that dlsym, and the library of what it finds; then
 * what dlvsym finds of the function.  Linked to no driver.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <string.h>

typedef void *(*look)(void *, const char *);

static const char *owner(void *address)
{
	Dl_info info;

	if (!address)
		return "-";
	return dladdr(address, &info) ? strrchr(info.dli_fname, '/') + 1 : "?";
}

int main(void)
{
	static const char *const versions[] = {"GLIBC_2.2.5", "GLIBC_2.17", "GLIBC_2.34"};
	void *driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_GLOBAL);

	printf("linked %s %s\n", owner((void *)dlsym), owner(dlsym(driver, "cuMemAlloc_v2")));
	for (int i = 0; i < 3; i++) {
		look found = (look)dlvsym(RTLD_DEFAULT, "dlsym", versions[i]);

		printf("%s %s %s\n", versions[i], owner((void *)found),
		       found ? owner(found(driver, "cuMemAlloc_v2")) : "-");
	}
	printf("dlvsym %s %s\n", owner(dlvsym(driver, "cuMemAlloc_v2", versions[2])),
	       owner(dlvsym(RTLD_DEFAULT, "cuMemAlloc_v2", versions[2])));
	return 0;
}
