/* SPDX-License-Identifier: Apache-2.0
 *
 * holds BYTES: waits for a line on stdin, starts the driver, allocates, prints
 * what the driver returned, holds the memory until another line comes, and
 * leaves without giving it back.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cuda.h"

int main(int argc, char **argv)
{
	CUcontext context;
	CUdeviceptr made;
	CUresult rc;
	char line[16];

	if (argc != 2 || !fgets(line, sizeof(line), stdin))
		return 2;
	rc = cuInit(0);
	if (!rc)
		rc = cuCtxCreate_v2(&context, 0, 0);
	if (!rc)
		rc = cuMemAlloc_v2(&made, strtoull(argv[1], NULL, 10));
	printf("%d\n", rc);
	fflush(stdout);
	_exit(!fgets(line, sizeof(line), stdin));
}
