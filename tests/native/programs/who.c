/* SPDX-License-Identifier: Apache-2.0
 *
 * who [N]: print this process's owner word, image and pid namespace, then exec
 * itself N more times.
 */
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "abi.h"

int main(int argc, char **argv)
{
	int more = argc > 1 ? atoi(argv[1]) : 0;
	uint64_t pid_namespace, owner = vgpu_owner_self(&pid_namespace);
	char rest[12];

	printf("%llu %llu %llu\n", (unsigned long long)owner, (unsigned long long)vgpu_image_self(),
	       (unsigned long long)pid_namespace);
	fflush(stdout);
	if (!more)
		return 0;
	snprintf(rest, sizeof(rest), "%d", more - 1);
	execl("/proc/self/exe", argv[0], rest, (char *)NULL);
	return 1;
}
