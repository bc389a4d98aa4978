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

#define POOL_BYTES (256 << 10)

/* ---- the pool ----------------------------------------------------------------------- */

static struct record *from_pool(struct records *records)
{
	struct record *record;

	vgpu_lock(&records->pool_lock);
	record = records->free;
	if (record)
		records->free = record->next;
	else if (records->fresh != records->fresh_end)
		record = records->fresh++;
	vgpu_unlock(&records->pool_lock);
	return record;
}

static int grow(struct records *records)
{
	struct record *fresh =
		mmap(NULL, POOL_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (fresh == MAP_FAILED)
		return -1;
	/* A child of fork begins without records; it need not copy them either. */
	madvise(fresh, POOL_BYTES, MADV_DONTFORK);
	vgpu_lock(&records->pool_lock);
	if (records->fresh != records->fresh_end) {
		/* Another thread was faster. */
		vgpu_unlock(&records->pool_lock);
		munmap(fresh, POOL_BYTES);
		return 0;
	}
	records->fresh = fresh;
	records->fresh_end = fresh + POOL_BYTES / sizeof(*fresh);
	vgpu_unlock(&records->pool_lock);
	return 0;
}

struct record *vgpu_record_new(struct records *records)
{
	struct record *record;

	while (!(record = from_pool(records)))
		if (grow(records))
			return NULL;
	return record;
}

void vgpu_record_free(struct records *records, struct record *record)
{
	vgpu_lock(&records->pool_lock);
	record->next = records->free;
	records->free = record;
	vgpu_unlock(&records->pool_lock);
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

static struct record *unlink_at(struct record **link)
{
	struct record *record = *link;

	if (record)
		*link = record->next;
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
	records->buckets[bucket] = record;
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
			*link = record->next;
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
