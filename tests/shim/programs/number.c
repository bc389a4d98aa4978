/* SPDX-License-Identifier: Apache-2.0
 *
 * Prints its argument as a number; exits with errno as a lookup left it.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

int main(int argc, char **argv)
{
	int (*convert)(const char *) = (int (*)(const char *))dlsym(RTLD_DEFAULT, "atoi");

	if (argc < 2 || !convert)
		return 2;
	printf("%d\n", convert(argv[1]));
	errno = 0;
	dlsym(RTLD_DEFAULT, "cuMemAlloc_v2");
	return errno;
}
