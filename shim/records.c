/* SPDX-License-Identifier: Apache-2.0
 *
 * Which allocation was charged how: address or handle to record, in constant
 * time with any number of live allocations.
 *
 * A record is made before the driver is asked, so that nothing can fail once
 * the driver has given memory: entering a record only links it into a chain.
 * It is taken out before the driver frees, so that a thread that is given the
 * same address next enters its own.  Locks cover a few instructions each.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "process.h"

#define GROWTH_BYTES (64 << 10)

/* ---- unused records ------------------------------------------------------------------ */

/* The calling thread's stock, which is the one of its seat; those without a seat
 * share one, and lock it.  A record may be given back to another than it came from. */
static uint32_t enter_stock(struct records *records)
{
	const struct process *process =
		(const struct process *)((char *)records - offsetof(struct process, records));
	uint64_t owner = __atomic_load_n(&process->owner, __ATOMIC_RELAXED);

	if (likely(owner && vgpu_my_seat.owner == owner && vgpu_my_seat.number))
		return vgpu_my_seat.number;
	vgpu_lock(&records->stocks[0].lock);
	return 0;
}

static void leave_stock(struct records *records, uint32_t stock)
{
	if (!stock)
		vgpu_unlock(&records->stocks[0].lock);
}

static int grow(struct records *records)
{
	struct record *fresh = mmap(NULL, GROWTH_BYTES, PROT_READ | PROT_WRITE,
				    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	uint32_t stock;

	if (fresh == MAP_FAILED)
		return -1;
	/* A child of fork begins without records; it need not copy them either. */
	madvise(fresh, GROWTH_BYTES, MADV_DONTFORK);
	stock = enter_stock(records);
	if (records->stocks[stock].fresh == records->stocks[stock].fresh_end) {
		records->stocks[stock].fresh = fresh;
		records->stocks[stock].fresh_end = fresh + GROWTH_BYTES / sizeof(*fresh);
		fresh = NULL;
	}
	leave_stock(records, stock);
	if (fresh) /* another thread was faster */
		munmap(fresh, GROWTH_BYTES);
	return 0;
}

struct record *vgpu_record_new(struct records *records)
{
	do {
		uint32_t stock = enter_stock(records);
		struct record *record = records->stocks[stock].free;

		if (record)
			records->stocks[stock].free = record->next;
		else if (records->stocks[stock].fresh != records->stocks[stock].fresh_end)
			record = records->stocks[stock].fresh++;
		leave_stock(records, stock);
		if (record)
			return record;
	} while (!grow(records));
	return NULL;
}

void vgpu_record_free(struct records *records, struct record *record)
{
	uint32_t stock = enter_stock(records);

	record->next = records->stocks[stock].free;
	records->stocks[stock].free = record;
	leave_stock(records, stock);
}

/* ---- the table ------------------------------------------------------------------------ */

static uint32_t bucket_of(enum record_kind kind, uint64_t key)
{
	/* The high bits of the product depend on all of the key's. */
	return (uint32_t)((key + kind) * 0x9e3779b97f4a7c15ull >> 40) % RECORD_BUCKETS;
}

static struct record **link_to(struct records *records, uint32_t bucket, enum record_kind kind,
			       uint64_t key)
{
	struct record **link = &records->buckets[bucket];

	while (*link && ((*link)->key != key || (*link)->kind != kind))
		link = &(*link)->next;
	return link;
}

/* Heads of chains are looked at without the lock, too. */
static void set(struct record **link, struct record *record)
{
	__atomic_store_n(link, record, __ATOMIC_RELAXED);
}

static struct record *unlink_at(struct record **link)
{
	struct record *record = *link;

	if (record)
		set(link, record->next);
	return record;
}

struct record *vgpu_record_enter(struct records *records, struct record *record)
{
	uint32_t bucket = bucket_of(record->kind, record->key);
	struct lock *lock = &records->stripes[bucket % RECORD_STRIPES].lock;
	struct record *stale;

	vgpu_lock(lock);
	stale = unlink_at(link_to(records, bucket, record->kind, record->key));
	record->next = records->buckets[bucket];
	set(&records->buckets[bucket], record);
	vgpu_unlock(lock);
	return stale;
}

struct record *vgpu_record_take(struct records *records, enum record_kind kind, uint64_t key)
{
	uint32_t bucket = bucket_of(kind, key);
	struct lock *lock = &records->stripes[bucket % RECORD_STRIPES].lock;
	struct record *record;

	vgpu_lock(lock);
	record = unlink_at(link_to(records, bucket, kind, key));
	vgpu_unlock(lock);
	return record;
}

int vgpu_record_visit(struct records *records, enum record_kind kind, uint64_t key,
		      int (*visit)(struct record *record, void *argument), void *argument)
{
	uint32_t bucket = bucket_of(kind, key);
	struct lock *lock = &records->stripes[bucket % RECORD_STRIPES].lock;
	struct record **link;
	int result = -1;

	vgpu_lock(lock);
	link = link_to(records, bucket, kind, key);
	if (*link) {
		result = visit(*link, argument);
		if (result == 1)
			unlink_at(link);
	}
	vgpu_unlock(lock);
	return result;
}

static struct record *take_matching(struct record **link,
				    int (*matches)(const struct record *, const void *),
				    const void *what, struct record *taken)
{
	while (*link) {
		struct record *record = *link;

		if (matches(record, what)) {
			set(link, record->next);
			record->next = taken;
			taken = record;
		} else {
			link = &record->next;
		}
	}
	return taken;
}

struct record *vgpu_record_take_all(struct records *records,
				    int (*matches)(const struct record *record, const void *what),
				    const void *what)
{
	struct record *taken = NULL;

	for (uint32_t bucket = 0; bucket < RECORD_BUCKETS; bucket++) {
		struct lock *lock = &records->stripes[bucket % RECORD_STRIPES].lock;

		/* Most are empty, and looking at them must not touch fresh memory. */
		if (!__atomic_load_n(&records->buckets[bucket], __ATOMIC_RELAXED))
			continue;
		vgpu_lock(lock);
		taken = take_matching(&records->buckets[bucket], matches, what, taken);
		vgpu_unlock(lock);
	}
	return taken;
}
