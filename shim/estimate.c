/* SPDX-License-Identifier: Apache-2.0
 *
 * Learning what a launch costs from the times between two events.
 *
 * A sample is never too short, but it is too long whenever another tenant had
 * the device in between, by up to several time slices.  So the estimate follows
 * the samples near the shortest one of late (the floor), and longer ones only
 * let the floor creep up.  A function that has really become slower shows by
 * long samples alone: a run of them is believed, and what was launched since
 * the run began is debited after the fact.
 *
 * This is the simple form.  It cannot tell a function that is short on some
 * calls and long on others from one that is disturbed; a node that publishes
 * who had work in flight can.
 */
#include "estimate.h"

#define NEAR(floor) ((floor) + (floor) / 4) /* as far as samples count as undisturbed */
#define FOLLOW 4 /* the estimate goes a fourth of the way to such a sample */
#define CREEP 64 /* the floor goes a sixty-fourth of the way up */

/* A run this long is not other tenants' doing.  Short functions are rarely
 * disturbed, long ones nearly always while there is a busy neighbour. */
#define SHORT_FUNCTION_NS 500000
#define RUN_OF_SHORT 4
#define RUN_OF_LONG 16
/* Nor is, twice, a time that no few neighbours with slices of 2 ms explain. */
#define RUN_OF_ABSURD 2
#define ABSURD(floor) (4 * (floor) + 8000000)

#define PROBES 8

static uint64_t get(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_RELAXED);
}

static void put(uint64_t *word, uint64_t value)
{
	__atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* ---- the table ------------------------------------------------------------------------ */

/* Nothing is ever taken out: a function that comes to the address of another
 * one is a function that has changed its cost. */
struct estimate *vgpu_estimate_of(struct estimates *estimates, const void *function,
				  uint64_t blocks)
{
	uint64_t size = blocks ? 64 - (uint64_t)__builtin_clzll(blocks) : 0;
	uint64_t key = (uint64_t)(uintptr_t)function << 7 | size;
	uint64_t hash = key * 0x9e3779b97f4a7c15ull >> 52;

	for (uint64_t i = 0; i < PROBES; i++) {
		struct estimate *estimate = &estimates->table[(hash + i) % ESTIMATES];
		uint64_t there = get(&estimate->key);

		if (there == key)
			return estimate;
		if (!there && (__atomic_compare_exchange_n(&estimate->key, &there, key, 0,
							   __ATOMIC_RELAXED, __ATOMIC_RELAXED) ||
			       there == key))
			return estimate;
	}
	return &estimates->others;
}

/* ---- learning --------------------------------------------------------------------------- */

static int64_t first_sample(struct estimate *estimate, uint64_t sample_ns)
{
	put(&estimate->floor_ns, sample_ns);
	put(&estimate->ns, sample_ns);
	return (int64_t)(sample_ns * get(&estimate->launches) - get(&estimate->guessed_ns));
}

static int is_believed(uint32_t run_length, uint64_t floor_ns, uint64_t shortest_ns)
{
	if (shortest_ns > ABSURD(floor_ns))
		return run_length >= RUN_OF_ABSURD;
	return run_length >= (floor_ns < SHORT_FUNCTION_NS ? RUN_OF_SHORT : RUN_OF_LONG);
}

/* A sample far above the floor: disturbed, or the function has changed. */
static int64_t long_sample(struct estimate *estimate, uint64_t launches, uint64_t floor_ns,
			   uint64_t sample_ns)
{
	uint32_t run = __atomic_load_n(&estimate->run_length, __ATOMIC_RELAXED) + 1;
	uint64_t shortest = get(&estimate->run_shortest_ns), before = get(&estimate->ns);
	uint64_t excess = sample_ns - floor_ns;

	if (run == 1 || sample_ns < shortest)
		put(&estimate->run_shortest_ns, shortest = sample_ns);
	if (run == 1)
		put(&estimate->run_launches, launches);
	if (!is_believed(run, floor_ns, shortest)) {
		__atomic_store_n(&estimate->run_length, run, __ATOMIC_RELAXED);
		put(&estimate->floor_ns,
		    floor_ns + (excess < floor_ns ? excess : floor_ns) / CREEP);
		return 0;
	}
	__atomic_store_n(&estimate->run_length, 0, __ATOMIC_RELAXED);
	put(&estimate->floor_ns, shortest);
	put(&estimate->ns, shortest);
	/* Long functions have had each launch sampled, and may be disturbed after all. */
	if (floor_ns >= SHORT_FUNCTION_NS && shortest <= ABSURD(floor_ns))
		return 0;
	return (int64_t)(shortest - before) *
	       (int64_t)(get(&estimate->launches) - get(&estimate->run_launches));
}

int64_t vgpu_estimate_learn(struct estimate *estimate, uint64_t launches, uint64_t cost_ns,
			    uint64_t sample_ns)
{
	uint64_t ns = get(&estimate->ns), floor = get(&estimate->floor_ns);

	if (!sample_ns)
		sample_ns = 1;
	if (!ns)
		return first_sample(estimate, sample_ns);
	if (sample_ns > NEAR(floor))
		return long_sample(estimate, launches, floor, sample_ns);
	__atomic_store_n(&estimate->run_length, 0, __ATOMIC_RELAXED);
	if (sample_ns < floor)
		put(&estimate->floor_ns, sample_ns);
	else
		put(&estimate->floor_ns, floor + (sample_ns - floor) / CREEP);
	ns += ((int64_t)sample_ns - (int64_t)ns) / FOLLOW;
	put(&estimate->ns, ns);
	return (int64_t)ns - (int64_t)cost_ns;
}
