/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel of the demonstration, which is the tests' too, read from its one
 * place in the checkout.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FROM_HERE "../../../vgpu_runtime/demo/spin.ptx"

/* Its text, NUL-terminated; ends the program when it is not there. */
static inline const char *kernels(void)
{
	static char path[4096], text[4096];
	size_t folder = sizeof(__FILE__) - sizeof("kernels.h");
	FILE *file;

	snprintf(path, sizeof(path), "%.*s%s", (int)folder, __FILE__, FROM_HERE);
	file = fopen(path, "r");
	if (!file || !fread(text, 1, sizeof(text) - 1, file)) {
		perror(path);
		exit(1);
	}
	fclose(file);
	return text;
}
