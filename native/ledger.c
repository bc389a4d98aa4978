/* SPDX-License-Identifier: Apache-2.0
 *
 * Memory accounting that any process may leave at any instruction.
 *
 * An account's total is the one number that decides; rows say whose it is.
 * Invariant:
 *
 *	total == sum of the rows + changes under way + leaks
 *
 * Charging raises the total before the row, refunding lowers the row before
 * the total, so a SIGKILL in between can only leak, never free what is in
 * use.  `begun` and `ended` of a row differ exactly while a change is under
 * way: a process that is gone with the two unequal may have leaked, and then
 * the total is reconciled with the rows' sum, at a moment that is shown to be
 * quiet by reading everything twice.  Nobody ever waits for anybody.
 */
#include "abi.h"

#define RECONCILE_TRIES 16

static uint64_t load(const uint64_t *word)
{
	return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static uint64_t *total_of(struct vgpu_ledger *ledger, uint32_t account)
{
	if (account == VGPU_HOST)
		return &ledger->host_used;
	return account < VGPU_SPILL ? &ledger->slices[account].memory_used
				    : &ledger->slices[account - VGPU_SPILL].memory_spilled;
}

uint64_t vgpu_charged(const struct vgpu_ledger *ledger, uint32_t account)
{
	return load(total_of((struct vgpu_ledger *)ledger, account));
}

uint64_t vgpu_row_charged(const struct vgpu_ledger *ledger, uint32_t row, uint32_t account)
{
	uint64_t sum = 0;

	for (int i = 0; i < VGPU_LANES; i++)
		sum += load(&ledger->lanes[row][i].memory[account]);
	return sum;
}

/* Lane 0 has many writers, a seat's lane has one. */
static void add(uint64_t *word, uint64_t amount, uint32_t seat)
{
	if (seat)
		__atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + amount,
				 __ATOMIC_RELEASE);
	else
		__atomic_fetch_add(word, amount, __ATOMIC_SEQ_CST);
}

/* Compare and swap, not add and undo: a refused request, however large, must
 * not make another thread's small one fail in passing. */
static int reserve(uint64_t *used_word, uint64_t bytes, uint64_t quota)
{
	uint64_t used = __atomic_load_n(used_word, __ATOMIC_RELAXED);

	do {
		if (used > quota || bytes > quota - used)
			return -1;
	} while (!__atomic_compare_exchange_n(used_word, &used, used + bytes, 1, __ATOMIC_SEQ_CST,
					      __ATOMIC_RELAXED));
	return 0;
}

int vgpu_charge_seated(struct vgpu_ledger *ledger, uint32_t row, uint32_t seat, uint32_t account,
		       uint64_t bytes, uint64_t quota)
{
	struct vgpu_lane *lane = &ledger->lanes[row][seat];
	int refused;

	add(&lane->begun, 1, seat);
	refused = reserve(total_of(ledger, account), bytes, quota);
	if (!refused)
		add(&lane->memory[account], bytes, seat);
	add(&lane->ended, 1, seat);
	return refused;
}

void vgpu_refund_seated(struct vgpu_ledger *ledger, uint32_t row, uint32_t seat, uint32_t account,
			uint64_t bytes)
{
	struct vgpu_lane *lane = &ledger->lanes[row][seat];

	add(&lane->begun, 1, seat);
	add(&lane->memory[account], -bytes, seat);
	__atomic_fetch_sub(total_of(ledger, account), bytes, __ATOMIC_SEQ_CST);
	add(&lane->ended, 1, seat);
}

int vgpu_charge(struct vgpu_ledger *ledger, uint32_t row, uint32_t account, uint64_t bytes,
		uint64_t quota)
{
	return vgpu_charge_seated(ledger, row, 0, account, bytes, quota);
}

void vgpu_refund(struct vgpu_ledger *ledger, uint32_t row, uint32_t account, uint64_t bytes)
{
	vgpu_refund_seated(ledger, row, 0, account, bytes);
}

uint32_t vgpu_seat_take(struct vgpu_ledger *ledger, uint32_t row, uint32_t tid,
			int (*is_ended)(uint32_t tid))
{
	uint32_t *seats = ledger->rows[row].seats;

	for (uint32_t seat = 1; seat < VGPU_LANES; seat++) {
		uint32_t holder = __atomic_load_n(&seats[seat], __ATOMIC_ACQUIRE);

		/* Our tid: a thread that had it before us has ended, or another copy of
		 * the shim in this process has sat us here. */
		if (holder == tid)
			return seat;
		if ((!holder || is_ended(holder)) &&
		    __atomic_compare_exchange_n(&seats[seat], &holder, tid, 0, __ATOMIC_ACQ_REL,
						__ATOMIC_RELAXED))
			return seat;
	}
	return 0;
}

/* ---- taking back what the dead hold ------------------------------------ */

static int is_taken(uint64_t owner)
{
	return owner && owner != VGPU_OWNER_VOID;
}

/* Two looks at all lanes, with the totals read in between, agree and show no
 * change under way: then every lane was quiet while the totals were read.
 * `ended` is read before `begun`, so equal values mean quiet at that moment.
 * Lanes of free rows are empty: nobody but us frees a row, and whoever takes
 * one between the looks and changes something is seen at the second. */
static int look_at(const struct vgpu_lane *lane, uint64_t *begun_sum, uint64_t *sums)
{
	uint64_t ended = load(&lane->ended), begun;

	for (uint32_t a = 0; a < VGPU_ACCOUNTS; a++)
		sums[a] += load(&lane->memory[a]);
	begun = load(&lane->begun);
	/* Each lane's counter only grows, so an equal sum means equal lanes. */
	*begun_sum += begun;
	return begun == ended ? 0 : -1;
}

static int look(const struct vgpu_ledger *ledger, uint64_t *begun_sum, uint64_t *sums)
{
	*begun_sum = 0;
	for (uint32_t a = 0; a < VGPU_ACCOUNTS; a++)
		sums[a] = 0;
	for (uint32_t i = 0; i < VGPU_MAX_PROCESSES; i++)
		for (int l = 0; is_taken(load(&ledger->rows[i].owner)) && l < VGPU_LANES; l++)
			if (look_at(&ledger->lanes[i][l], begun_sum, sums))
				return -1;
	return 0;
}

static int reconcile_once(struct vgpu_ledger *ledger)
{
	uint64_t first, second, sums[VGPU_ACCOUNTS], totals[VGPU_ACCOUNTS];

	if (look(ledger, &first, sums))
		return -1;
	for (uint32_t a = 0; a < VGPU_ACCOUNTS; a++)
		totals[a] = vgpu_charged(ledger, a);
	if (look(ledger, &second, sums) || first != second)
		return -1;
	/* A leak stays the same whatever is charged meanwhile, so it may be taken
	 * off whenever the total is seen to be what it was. */
	for (uint32_t a = 0; a < VGPU_ACCOUNTS; a++)
		if (totals[a] != sums[a] &&
		    !__atomic_compare_exchange_n(total_of(ledger, a), &totals[a], sums[a], 0,
						 __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
			return -1;
	return 0;
}

static void reconcile(struct vgpu_ledger *ledger)
{
	for (int i = 0; i < RECONCILE_TRIES; i++)
		if (!reconcile_once(ledger)) {
			__atomic_store_n(&ledger->suspect, 0, __ATOMIC_SEQ_CST);
			return;
		}
	/* Others are busy: the leak stays charged until the next sweep. */
}

/* Lanes mean something together only, so a row gives up all of them in one step:
 * void, it counts for nothing.  Being killed after that leaks, as the dead may
 * have, and never gives back what is in use. */
static void free_row(struct vgpu_ledger *ledger, uint32_t index)
{
	struct vgpu_row *row = &ledger->rows[index];
	uint64_t held[VGPU_ACCOUNTS];

	for (uint32_t a = 0; a < VGPU_ACCOUNTS; a++)
		held[a] = vgpu_row_charged(ledger, index, a);
	__atomic_store_n(&ledger->suspect, 1, __ATOMIC_SEQ_CST);
	if (__atomic_exchange_n(&row->owner, VGPU_OWNER_VOID, __ATOMIC_SEQ_CST) != VGPU_OWNER_VOID)
		for (uint32_t a = 0; a < VGPU_ACCOUNTS; a++)
			if (held[a])
				__atomic_fetch_sub(total_of(ledger, a), held[a], __ATOMIC_SEQ_CST);
	for (int i = 0; i < VGPU_LANES; i++) {
		struct vgpu_lane *lane = &ledger->lanes[index][i];

		for (uint32_t a = 0; a < VGPU_ACCOUNTS; a++)
			__atomic_store_n(&lane->memory[a], 0, __ATOMIC_RELAXED);
		__atomic_store_n(&lane->ended, load(&lane->begun), __ATOMIC_SEQ_CST);
	}
	__atomic_store_n(&row->active, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&row->guesses, 0, __ATOMIC_RELAXED);
	__atomic_store_n(&row->image, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&row->owner, 0, __ATOMIC_SEQ_CST);
}

/* The process for which a thread of this image sweeps.  Of a child of fork that
 * is another one, and exec forgets it. */
static uint64_t sweeping;

static int seize(struct vgpu_ledger *ledger, uint64_t owner, uint64_t image, vgpu_is_gone is_gone)
{
	uint64_t janitor = load(&ledger->janitor), held_by = load(&ledger->janitor_image);

	/* Ours but not of this image, or not yet or no longer of any: exec was
	 * called, for no other thread of this image is here. */
	if (janitor == owner ? held_by == image : janitor && !is_gone(janitor, 0))
		return 0;
	if (!__atomic_compare_exchange_n(&ledger->janitor, &janitor, owner, 0, __ATOMIC_SEQ_CST,
					 __ATOMIC_RELAXED))
		return 0;
	__atomic_store_n(&ledger->janitor_image, image, __ATOMIC_SEQ_CST);
	return 1;
}

/* The right to sweep passes on by itself when its holder is gone, be it by an
 * exec that kept the pid. */
static int become_janitor(struct vgpu_ledger *ledger, uint64_t owner, uint64_t image,
			  vgpu_is_gone is_gone)
{
	uint64_t before = load(&sweeping);

	if (before == owner || !__atomic_compare_exchange_n(&sweeping, &before, owner, 0,
							    __ATOMIC_SEQ_CST, __ATOMIC_RELAXED))
		return 0;
	if (seize(ledger, owner, image, is_gone))
		return 1;
	__atomic_store_n(&sweeping, 0, __ATOMIC_SEQ_CST);
	return 0;
}

/* Of this very process, but of an image that exec has replaced. */
static int left_by_exec(const struct vgpu_row *row, uint64_t image)
{
	uint64_t then = load(&row->image);

	return then && then != image;
}

uint32_t vgpu_sweep(struct vgpu_ledger *ledger, uint64_t owner, uint64_t image,
		    vgpu_is_gone is_gone)
{
	uint32_t freed = 0;

	if (!become_janitor(ledger, owner, image, is_gone))
		return 0;
	for (uint32_t i = 0; i < VGPU_MAX_PROCESSES; i++) {
		const struct vgpu_row *row = &ledger->rows[i];
		uint64_t who = load(&row->owner);

		if (!who)
			continue;
		if (who == VGPU_OWNER_VOID ||
		    (who == owner ? left_by_exec(row, image)
				  : is_gone(who, load(&row->pid_namespace)))) {
			free_row(ledger, i);
			freed++;
		}
	}
	if (load(&ledger->suspect))
		reconcile(ledger);
	__atomic_store_n(&ledger->janitor_image, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&ledger->janitor, 0, __ATOMIC_SEQ_CST);
	__atomic_store_n(&sweeping, 0, __ATOMIC_SEQ_CST);
	return freed;
}

/* ---- rows ---------------------------------------------------------------- */

static int find_row(const struct vgpu_ledger *ledger, uint64_t owner, uint64_t image)
{
	for (int i = 0; i < VGPU_MAX_PROCESSES; i++)
		if (load(&ledger->rows[i].owner) == owner && load(&ledger->rows[i].image) == image)
			return i;
	return -1;
}

static int take_free_row(struct vgpu_ledger *ledger, uint64_t owner, uint64_t image,
			 uint64_t pid_namespace)
{
	for (int i = 0; i < VGPU_MAX_PROCESSES; i++) {
		struct vgpu_row *row = &ledger->rows[i];
		uint64_t nobody = 0;

		if (load(&row->owner) ||
		    !__atomic_compare_exchange_n(&row->owner, &nobody, owner, 0, __ATOMIC_SEQ_CST,
						 __ATOMIC_RELAXED))
			continue;
		__atomic_store_n(&row->image, image, __ATOMIC_SEQ_CST);
		__atomic_store_n(&row->pid_namespace, pid_namespace, __ATOMIC_SEQ_CST);
		return i;
	}
	return -1;
}

int vgpu_row_take(struct vgpu_ledger *ledger, uint64_t owner, uint64_t image,
		  uint64_t pid_namespace, vgpu_is_gone is_gone)
{
	int row;

	/* A second copy of the shim in this process, as dlmopen makes, shares it. */
	row = find_row(ledger, owner, image);
	if (row >= 0)
		return row;
	vgpu_sweep(ledger, owner, image, is_gone);
	row = take_free_row(ledger, owner, image, pid_namespace);
	return row;
}
