/* SPDX-License-Identifier: Apache-2.0
 *
 * Guesses: while a context is made, what it may take at most is charged, and much
 * of that is given back as soon as the driver has answered.  Whoever finds no room
 * meanwhile waits for the truth instead of being refused by a guess.
 *
 * The row of a process says for which slices it has guessed, so that a process that
 * is killed takes its guesses along.  One word of the slice says until when anybody
 * may wait: a process that is stopped in the middle stops nobody else for long, and
 * without a guess a refusal costs one load.
 */
#define _GNU_SOURCE
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "overhead.h"

#define PATIENCE_NS 10000000000
#define PAUSE_NS 1000000
#define SWEEP_PERIOD_NS 100000000

/* Guesses of one process, by slice: four bits each. */
#define MOST 15
#define SHIFT(slice) (4 * (slice))

static uint32_t count_in(uint64_t guesses, int slice)
{
	return (uint32_t)(guesses >> SHIFT(slice)) & MOST;
}

static void count(const struct tenant *tenant, uint32_t row, int slice, int change)
{
	uint64_t *word = &tenant->ledger->rows[row].guesses;
	uint64_t guesses = __atomic_load_n(word, __ATOMIC_RELAXED), next;

	do {
		if (count_in(guesses, slice) == (change > 0 ? MOST : 0))
			return; /* more than we can count: it is not waited for */
		next = guesses + ((uint64_t)(int64_t)change << SHIFT(slice));
	} while (!__atomic_compare_exchange_n(word, &guesses, next, 1, __ATOMIC_SEQ_CST,
					      __ATOMIC_RELAXED));
}

void vgpu_guess_begin(const struct tenant *tenant, uint32_t row, int slice)
{
	count(tenant, row, slice, 1);
	__atomic_store_n(&tenant->ledger->slices[slice].guess_end_ns, vgpu_now_ns() + PATIENCE_NS,
			 __ATOMIC_SEQ_CST);
}

void vgpu_guess_end(const struct tenant *tenant, uint32_t row, int slice)
{
	count(tenant, row, slice, -1);
}

static int is_open(const struct tenant *tenant, int slice)
{
	uint64_t *end = &tenant->ledger->slices[slice].guess_end_ns;
	uint64_t until = __atomic_load_n(end, __ATOMIC_SEQ_CST);

	if (likely(!until))
		return 0;
	for (int i = 0; vgpu_now_ns() < until && i < VGPU_MAX_PROCESSES; i++) {
		const struct vgpu_row *row = &tenant->ledger->rows[i];

		if (__atomic_load_n(&row->owner, __ATOMIC_RELAXED) &&
		    count_in(__atomic_load_n(&row->guesses, __ATOMIC_SEQ_CST), slice))
			return 1;
	}
	/* Unless somebody begins one at this moment. */
	__atomic_compare_exchange_n(end, &until, 0, 0, __ATOMIC_SEQ_CST, __ATOMIC_RELAXED);
	return 0;
}

int vgpu_guess_wait(const struct tenant *tenant, struct process *process, int slice, int turn)
{
	const struct timespec pause = {0, PAUSE_NS};

	if (!is_open(tenant, slice) || turn > PATIENCE_NS / PAUSE_NS)
		return 0;
	vgpu_process_sweep(tenant, process, SWEEP_PERIOD_NS);
	syscall(SYS_nanosleep, &pause, NULL); /* no place where a thread may be cancelled */
	return 1;
}
