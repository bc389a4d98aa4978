/* SPDX-License-Identifier: Apache-2.0
 *
 * A grant changes at one moment, whatever becomes of its writer: the writer
 * keeps the slice as it was in `before`, makes `sequence` odd, writes the
 * slice, and makes `sequence` even.  Invariant: while it is odd, `before` and
 * `changing` stand still, so a reader takes the slice from there and waits for
 * nobody; while it is even, all slices stand still.  A reader reads again only
 * if `sequence` moved meanwhile, which takes a live writer each time.  The next
 * writer after one that died midway first puts the slice back.
 */
#include <stddef.h>
#include <string.h>

#include "abi.h"

/* A bound on principle: nobody changes a grant 32 times in a few nanoseconds. */
#define READ_TRIES 64

_Static_assert(sizeof(struct vgpu_quota) == 64, "a quota is one cache line");
_Static_assert(VGPU_HOST == VGPU_SPILL + VGPU_MAX_SLICES, "accounts are numbered in one go");
_Static_assert(VGPU_ACCOUNTS == VGPU_HOST + 1, "cffi wants the number spelled out");
_Static_assert(sizeof(struct vgpu_usage) == 128, "memory and time are a cache line each");
_Static_assert(sizeof(struct vgpu_row) == 128, "rows of two processes share no cache line");
_Static_assert(sizeof(struct vgpu_lane) == 320, "nor do lanes of two threads");
_Static_assert(!(offsetof(struct vgpu_ledger, lanes) % 64), "lanes start a cache line");
_Static_assert(offsetof(struct vgpu_grant, slices) == 128, "slices start a cache line");
_Static_assert(offsetof(struct vgpu_ledger, slices) == 64, "usage starts a cache line");

static int header_check(const void *bytes, uint64_t size, uint64_t magic, uint64_t own_size)
{
	/* Grant and ledger begin alike, and every later version will. */
	struct {
		uint64_t magic;
		uint32_t abi, size;
	} header;

	if (size < sizeof(header))
		return VGPU_TRUNCATED;
	memcpy(&header, bytes, sizeof(header));
	if (header.magic != magic)
		return VGPU_NOT_OURS;
	if (header.abi != VGPU_ABI)
		return VGPU_OTHER_ABI;
	if (size < header.size || header.size < own_size)
		return VGPU_TRUNCATED;
	return VGPU_SOUND;
}

static int is_in_range(const struct vgpu_quota *quota)
{
	return quota->memory_spill <= quota->memory && quota->cores >= 1 && quota->cores <= 100 &&
	       quota->policy >= VGPU_POLICY_FIXED && quota->policy <= VGPU_POLICY_NONE;
}

int vgpu_grant_check(const void *bytes, uint64_t size)
{
	const struct vgpu_grant *grant = bytes;
	int fault = header_check(bytes, size, VGPU_GRANT_MAGIC, sizeof(*grant));

	if (fault)
		return fault;
	if (!grant->slice_count || grant->slice_count > VGPU_MAX_SLICES)
		return VGPU_BAD_VALUE;
	if (!memchr(grant->tenant, 0, sizeof(grant->tenant)))
		return VGPU_BAD_VALUE;
	for (uint32_t i = 0; i < grant->slice_count; i++)
		if (!is_in_range(&grant->slices[i]))
			return VGPU_BAD_VALUE;
	if (grant->sequence & 1 && grant->changing < grant->slice_count &&
	    !is_in_range(&grant->before))
		return VGPU_BAD_VALUE;
	return VGPU_SOUND;
}

int vgpu_ledger_check(const void *bytes, uint64_t size)
{
	return header_check(bytes, size, VGPU_LEDGER_MAGIC, sizeof(struct vgpu_ledger));
}

const char *vgpu_fault_text(int fault)
{
	switch (fault) {
	case VGPU_SOUND:
		return "sound";
	case VGPU_TRUNCATED:
		return "the file is cut off";
	case VGPU_NOT_OURS:
		return "the file is not of vgpu-runtime";
	case VGPU_OTHER_ABI:
		return "the file is of another ABI version";
	case VGPU_BAD_VALUE:
		return "a field is out of range";
	}
	return "unknown fault";
}

/* Word by word, each atomically: a torn field must not arise anywhere. */
static void copy_quota(struct vgpu_quota *to, const struct vgpu_quota *from)
{
	uint64_t *target = (uint64_t *)to;
	const uint64_t *source = (const uint64_t *)from;

	for (size_t i = 0; i < sizeof(*to) / sizeof(*target); i++)
		__atomic_store_n(&target[i], __atomic_load_n(&source[i], __ATOMIC_RELAXED),
				 __ATOMIC_RELAXED);
}

static void begin_change(struct vgpu_grant *grant, uint32_t slice, uint32_t sequence)
{
	/* A reader that sees any of this sees that `sequence` has become even, too. */
	__atomic_thread_fence(__ATOMIC_RELEASE);
	__atomic_store_n(&grant->changing, slice, __ATOMIC_RELAXED);
	copy_quota(&grant->before, &grant->slices[slice]);
	__atomic_store_n(&grant->sequence, sequence + 1, __ATOMIC_RELEASE);
	__atomic_thread_fence(__ATOMIC_RELEASE);
}

/* `sequence` is odd and its writer is dead.  Readers do not look at the slice
 * until it is even. */
static void undo_change(struct vgpu_grant *grant, uint32_t sequence)
{
	if (grant->changing < VGPU_MAX_SLICES)
		copy_quota(&grant->slices[grant->changing], &grant->before);
	__atomic_store_n(&grant->sequence, sequence + 1, __ATOMIC_RELEASE);
}

void vgpu_quota_write(struct vgpu_grant *grant, uint32_t slice, const struct vgpu_quota *quota)
{
	uint32_t sequence = __atomic_load_n(&grant->sequence, __ATOMIC_RELAXED);

	if (sequence & 1)
		undo_change(grant, sequence++);
	begin_change(grant, slice, sequence);
	copy_quota(&grant->slices[slice], quota);
	__atomic_store_n(&grant->sequence, sequence + 2, __ATOMIC_RELEASE);
}

void vgpu_quota_read(const struct vgpu_grant *grant, uint32_t slice, struct vgpu_quota *quota)
{
	for (int i = 0; i < READ_TRIES; i++) {
		uint32_t sequence = __atomic_load_n(&grant->sequence, __ATOMIC_ACQUIRE);
		int is_changing = sequence & 1 &&
				  slice == __atomic_load_n(&grant->changing, __ATOMIC_RELAXED);

		copy_quota(quota, is_changing ? &grant->before : &grant->slices[slice]);
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (sequence == __atomic_load_n(&grant->sequence, __ATOMIC_RELAXED))
			return;
	}
}

uint64_t vgpu_device_part(const struct vgpu_quota *quota)
{
	uint64_t bytes = quota->memory - quota->memory_spill;

	if (quota->memory_spill > quota->memory)
		return 0; /* a mixture of two grants, or a lie: never more than either meant */
	if (bytes < quota->device_memory)
		return bytes;
	/* All of the device is no limit, unless what is beyond it has a place. */
	return quota->memory_spill ? quota->device_memory : UINT64_MAX;
}

uint64_t vgpu_quota_of(const struct vgpu_grant *grant, uint32_t account)
{
	struct vgpu_quota quota;
	uint64_t bytes;

	if (account == VGPU_HOST) {
		bytes = __atomic_load_n(&grant->host_memory, __ATOMIC_RELAXED);
		return bytes ? bytes : UINT64_MAX;
	}
	vgpu_quota_read(grant, account % VGPU_SPILL, &quota);
	return account < VGPU_SPILL ? vgpu_device_part(&quota) : quota.memory_spill;
}

uint32_t vgpu_cores_in_force(const struct vgpu_grant *grant, uint32_t slice, uint64_t now_ns)
{
	struct vgpu_quota quota;
	uint32_t cores;

	vgpu_quota_read(grant, slice, &quota);
	if (quota.policy == VGPU_POLICY_NONE)
		return 0;
	cores = quota.cores;
	if (quota.cores_limit && (!quota.limit_end_ns || now_ns < quota.limit_end_ns))
		cores = quota.cores_limit;
	return cores > 100 ? 100 : cores ? cores : 1;
}

int vgpu_slice_of(const struct vgpu_grant *grant, const uint8_t *device)
{
	for (uint32_t i = 0; i < grant->slice_count && i < VGPU_MAX_SLICES; i++)
		if (!memcmp(grant->slices[i].device, device, VGPU_UUID_SIZE))
			return (int)i;
	return -1;
}
