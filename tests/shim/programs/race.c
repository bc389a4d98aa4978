/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that allocate and free at the edge of a quota.
 *
 *	race THREADS SECONDS CHUNK QUOTA FILE [PROCESSES]
 *
 * FILE is shared by all processes of the race: counters of bytes held and
 * violations seen, allocations made and refused, and processes that are ready.
 * They begin when so many are, so that all have the memory for their contexts.
 * What a thread holds is counted after it has been given and until before it is
 * given back, so the sum is never more than what is held.  Prints nothing;
 * anything but success and "out of memory" ends it.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "cuda.h"

#define KEPT 8

static struct {
	uint64_t held, violations, made, refused, ready;
} *shared;
static uint64_t chunk, quota;
static CUcontext context;
static time_t end;

static void *work(void *argument)
{
	unsigned int seed = (unsigned int)(uintptr_t)argument;
	CUdeviceptr pointers[KEPT] = {0};
	uint64_t sizes[KEPT] = {0};

	cuCtxSetCurrent(context);
	while (time(NULL) < end) {
		int i = rand_r(&seed) % KEPT;
		CUresult rc;

		if (pointers[i]) {
			__atomic_fetch_sub(&shared->held, sizes[i], __ATOMIC_SEQ_CST);
			if (cuMemFree_v2(pointers[i]))
				exit(3);
			pointers[i] = 0;
			continue;
		}
		sizes[i] = chunk * (1 + (uint64_t)rand_r(&seed) % 4);
		rc = cuMemAlloc_v2(&pointers[i], sizes[i]);
		if (rc == CUDA_ERROR_OUT_OF_MEMORY) {
			pointers[i] = 0;
			__atomic_fetch_add(&shared->refused, 1, __ATOMIC_RELAXED);
			continue;
		}
		if (rc)
			exit(4);
		__atomic_fetch_add(&shared->made, 1, __ATOMIC_RELAXED);
		if (__atomic_add_fetch(&shared->held, sizes[i], __ATOMIC_SEQ_CST) > quota)
			__atomic_fetch_add(&shared->violations, 1, __ATOMIC_SEQ_CST);
	}
	for (int i = 0; i < KEPT; i++)
		if (pointers[i]) {
			__atomic_fetch_sub(&shared->held, sizes[i], __ATOMIC_SEQ_CST);
			cuMemFree_v2(pointers[i]);
		}
	return NULL;
}

static void await_others(uint64_t processes)
{
	__atomic_fetch_add(&shared->ready, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&shared->ready, __ATOMIC_SEQ_CST) < processes)
		usleep(1000);
}

int main(int argc, char **argv)
{
	int threads, fd;
	pthread_t thread[64];

	if (argc != 6 && argc != 7)
		return 2;
	threads = atoi(argv[1]);
	chunk = strtoull(argv[3], NULL, 10);
	quota = strtoull(argv[4], NULL, 10);
	fd = open(argv[5], O_RDWR);
	shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (threads > 64 || shared == MAP_FAILED || cuInit(0) || cuCtxCreate_v2(&context, 0, 0))
		return 2;
	await_others(argc == 7 ? strtoull(argv[6], NULL, 10) : 1);
	end = time(NULL) + atoi(argv[2]); /* to set a driver up may take seconds */
	for (int i = 0; i < threads; i++)
		pthread_create(&thread[i], NULL, work, (void *)(uintptr_t)(i * 7919 + fd + 1));
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	return 0;
}
