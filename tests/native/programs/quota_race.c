/* SPDX-License-Identifier: Apache-2.0
 *
 * quota_race VERSIONS: one process changes a slice over and over, another reads
 * it until it has seen that many versions, or for 20 seconds.  The fields of
 * each version are multiples of its number, so that a mixture of two can be
 * told.  Prints how many versions were seen, and how many mixtures; one that is
 * seen again and again counts once.
 */
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"

static void change_forever(struct vgpu_grant *grant)
{
	struct vgpu_quota quota = grant->slices[0];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (uint64_t number = 1;; number++) {
		quota.memory = number;
		quota.device_memory = 3 * number;
		quota.limit_end_ns = 7 * number;
		vgpu_quota_write(grant, 0, &quota);
		/* A node changes a grant now and then, not without a pause. */
		for (volatile int pause = 0; pause < 3000; pause++)
			;
	}
}

int main(int argc, char **argv)
{
	struct vgpu_grant *grant = mmap(NULL, sizeof(*grant), PROT_READ | PROT_WRITE,
					MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned long wanted = argc == 2 ? strtoul(argv[1], NULL, 10) : 0, seen = 0, mixed = 0;
	time_t end = time(NULL) + 20;
	uint64_t last[2] = {0, 0};
	pid_t child;

	if (grant == MAP_FAILED || !wanted)
		return 2;
	child = fork();
	if (!child)
		change_forever(grant);
	while (seen < wanted && time(NULL) < end) {
		struct vgpu_quota quota;

		vgpu_quota_read(grant, 0, &quota);
		if (quota.memory == last[0] && quota.limit_end_ns == last[1])
			continue;
		if (quota.device_memory == 3 * quota.memory &&
		    quota.limit_end_ns == 7 * quota.memory)
			seen++;
		else
			mixed++;
		last[0] = quota.memory;
		last[1] = quota.limit_end_ns;
	}
	kill(child, SIGKILL);
	printf("%lu %lu\n", seen, mixed);
	return 0;
}
