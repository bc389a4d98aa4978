/* SPDX-License-Identifier: Apache-2.0
 *
 * rounds THREADS ROUNDS: what processes do on a ledger and a grant at the same
 * time, by threads, so that a sanitizer sees all of it.  Each thread plays one
 * process after another: takes a row, charges and refunds at the edge of the
 * quota, sweeps, and dies with some of it charged; one thread writes the grant.
 * Exits 1 when more is charged than the quota, a grant is seen half written, or
 * something is left charged at the end.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

#include "abi.h"

#define QUOTA 10000
#define LIVES 64 /* of each thread */
#define MOST_THREADS 16

static struct vgpu_ledger ledger;
static struct vgpu_grant grant;
static uint32_t is_dead[MOST_THREADS * LIVES];
static uint32_t is_over;
static unsigned long rounds;

static int is_gone(uint64_t owner, uint64_t pid_namespace)
{
	return (int)__atomic_load_n(&is_dead[owner - 1], __ATOMIC_SEQ_CST);
}

static void must(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "rounds: %s\n", what);
	exit(1);
}

static void read_grant(void)
{
	struct vgpu_quota quota;

	vgpu_quota_read(&grant, 0, &quota);
	must(quota.device_memory == 3 * quota.memory && quota.limit_end_ns == 7 * quota.memory,
	     "a grant is seen half written");
}

static void live(uint64_t owner, unsigned int *seed)
{
	int row = vgpu_row_take(&ledger, owner, 1, 1, is_gone);

	must(row >= 0, "no row is free");
	for (unsigned long i = 0; i < rounds; i++) {
		uint64_t bytes = 1 + (uint64_t)rand_r(seed) % (QUOTA / 4);

		read_grant();
		if (vgpu_charge(&ledger, (uint32_t)row, 0, bytes, QUOTA)) {
			vgpu_sweep(&ledger, owner, 1, is_gone);
			continue;
		}
		must(__atomic_load_n(&ledger.slices[0].memory_used, __ATOMIC_SEQ_CST) <= QUOTA,
		     "more is charged than the quota");
		if (i + 1 < rounds) /* the last one it takes with it */
			vgpu_refund(&ledger, (uint32_t)row, 0, bytes);
	}
	__atomic_store_n(&is_dead[owner - 1], 1, __ATOMIC_SEQ_CST);
}

static void *play(void *first_owner)
{
	uint64_t first = (uintptr_t)first_owner;
	unsigned int seed = (unsigned int)first;

	for (uint64_t i = 0; i < LIVES; i++)
		live(first + i, &seed);
	return NULL;
}

static void *write_grant(void *nothing)
{
	struct vgpu_quota quota = {.cores = 100, .policy = VGPU_POLICY_NONE};

	for (uint64_t i = 1; !__atomic_load_n(&is_over, __ATOMIC_RELAXED); i++) {
		quota.memory = i;
		quota.device_memory = 3 * i;
		quota.limit_end_ns = 7 * i;
		vgpu_quota_write(&grant, 0, &quota);
		for (volatile int pause = 0; pause < 3000; pause++)
			;
	}
	return NULL;
}

int main(int argc, char **argv)
{
	unsigned long threads = argc == 3 ? strtoul(argv[1], NULL, 10) : 0;
	pthread_t thread[MOST_THREADS], writer;

	rounds = argc == 3 ? strtoul(argv[2], NULL, 10) : 0;
	if (!threads || threads > MOST_THREADS || !rounds)
		return 2;
	if (pthread_create(&writer, NULL, write_grant, NULL))
		return 2;
	for (uintptr_t i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, play, (void *)(1 + i * LIVES)))
			return 2;
	for (unsigned long i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	__atomic_store_n(&is_over, 1, __ATOMIC_RELAXED);
	pthread_join(writer, NULL);
	vgpu_sweep(&ledger, MOST_THREADS * LIVES, 1, is_gone);
	must(!ledger.slices[0].memory_used, "something is left charged");
	for (int i = 0; i < VGPU_MAX_PROCESSES; i++)
		must(!ledger.rows[i].owner, "a row is left taken");
	return 0;
}
