/* SPDX-License-Identifier: Apache-2.0
 *
 * The bucket of device time, in the generic cell rate form: one word holds
 * the time at which the bucket would be full again.  Nothing refills it, no
 * unit depends on the device's size, and any number of processes may draw.
 *
 * A launch is debited first and waits for the debt it found, not for its own
 * cost: a kernel longer than the burst runs at once on an idle slice and is
 * paid for afterwards.
 */
#include "abi.h"

/* A debt of an hour of waiting is a broken estimate, not a kernel. */
#define MAX_DEBT_NS (3600ull * 1000000000ull)

/* Device time to the time that the bucket needs to refill it. */
static uint64_t refill_ns(uint64_t device_ns, uint32_t cores)
{
	uint64_t bounded = device_ns > MAX_DEBT_NS ? MAX_DEBT_NS : device_ns;

	return bounded * 100 / cores;
}

uint64_t vgpu_draw(uint64_t *full_ns, uint64_t now_ns, uint64_t cost_ns, uint32_t cores,
		   uint64_t burst_ns)
{
	uint64_t cost = refill_ns(cost_ns, cores), burst = refill_ns(burst_ns, cores);
	uint64_t full = __atomic_load_n(full_ns, __ATOMIC_RELAXED), from, wanted;
	uint64_t most = now_ns + burst + MAX_DEBT_NS;

	do {
		from = full > now_ns ? full : now_ns;
		if (from > most) /* the word is the tenant's: it may have been overwritten */
			from = most;
		wanted = from + cost > most ? most : from + cost;
	} while (!__atomic_compare_exchange_n(full_ns, &full, wanted, 1, __ATOMIC_RELAXED,
					      __ATOMIC_RELAXED));
	return from > now_ns + burst ? from - now_ns - burst : 0;
}

void vgpu_settle(uint64_t *full_ns, int64_t delta_ns, uint32_t cores)
{
	uint64_t full, less;

	if (delta_ns >= 0) {
		__atomic_fetch_add(full_ns, refill_ns((uint64_t)delta_ns, cores), __ATOMIC_RELAXED);
		return;
	}
	/* Never below 0: when `cores` fell since the draw, more is given back than
	 * was taken, and shortly after boot the word is small. */
	less = refill_ns(0 - (uint64_t)delta_ns, cores);
	full = __atomic_load_n(full_ns, __ATOMIC_RELAXED);
	while (!__atomic_compare_exchange_n(full_ns, &full, full > less ? full - less : 0, 1,
					    __ATOMIC_RELAXED, __ATOMIC_RELAXED))
		;
}
