/* SPDX-License-Identifier: Apache-2.0
 *
 * hammer LEDGER QUOTA THREADS: charge and refund on a shared ledger until
 * somebody kills it.  Exits 1 as soon as more is charged than the quota.
 */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "abi.h"

static struct vgpu_ledger *ledger;
static uint64_t quota, owner, image;
static int row;

static void *work(void *seed)
{
	unsigned int random = (unsigned int)(uintptr_t)seed;

	for (;;) {
		uint64_t bytes = 1 + (uint64_t)rand_r(&random) % (quota / 4);

		if (vgpu_charge(ledger, (uint32_t)row, 0, bytes, quota)) {
			vgpu_sweep(ledger, owner, image, vgpu_process_is_gone);
			continue;
		}
		if (__atomic_load_n(&ledger->slices[0].memory_used, __ATOMIC_SEQ_CST) > quota)
			_exit(1);
		vgpu_refund(ledger, (uint32_t)row, 0, bytes);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	int fd = argc == 4 ? open(argv[1], O_RDWR) : -1, threads = argc == 4 ? atoi(argv[3]) : 0;
	uint64_t pid_namespace;
	pthread_t thread;

	if (fd < 0)
		return 2;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	ledger = mmap(NULL, sizeof(*ledger), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (ledger == MAP_FAILED)
		return 2;
	quota = strtoull(argv[2], NULL, 10);
	owner = vgpu_owner_self(&pid_namespace);
	image = vgpu_image_self();
	row = vgpu_row_take(ledger, owner, image, pid_namespace, vgpu_process_is_gone);
	if (row < 0)
		return 3;
	while (--threads > 0)
		if (pthread_create(&thread, NULL, work, (void *)(uintptr_t)(getpid() + threads)))
			return 2;
	work((void *)(uintptr_t)getpid());
	return 0;
}
