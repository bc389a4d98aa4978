/* SPDX-License-Identifier: Apache-2.0
 *
 * A grant changes at one moment: the writer makes `sequence` odd, writes,
 * and makes it even; a reader that saw it odd or changed reads again.
 * Readers give up after a few tries, because a writer may have died midway:
 * each field is still whole then, only their mixture may be of two grants.
 */
#include <stddef.h>
#include <string.h>

#include "abi.h"

#define READ_TRIES 64

_Static_assert(sizeof(struct vgpu_quota) == 64, "a quota is one cache line");
_Static_assert(VGPU_HOST == VGPU_SPILL + VGPU_MAX_SLICES, "accounts are numbered in one go");
_Static_assert(VGPU_ACCOUNTS == VGPU_HOST + 1, "cffi wants the number spelled out");
_Static_assert(sizeof(struct vgpu_usage) == 128, "memory and time are a cache line each");
_Static_assert(sizeof(struct vgpu_row) == 384, "rows of two processes share no cache line");
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
	for (uint32_t i = 0; i < grant->slice_count; i++) {
		const struct vgpu_quota *quota = &grant->slices[i];

		if (quota->memory_spill > quota->memory || quota->cores < 1 || quota->cores > 100 ||
		    quota->policy < VGPU_POLICY_FIXED || quota->policy > VGPU_POLICY_NONE)
			return VGPU_BAD_VALUE;
	}
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

/* Word by word, each atomically: a torn quota must not arise even when a
 * reader has given up on the sequence. */
static void copy_words(uint64_t *to, const uint64_t *from, size_t bytes)
{
	for (size_t i = 0; i < bytes / sizeof(*to); i++)
		__atomic_store_n(&to[i], __atomic_load_n(&from[i], __ATOMIC_RELAXED),
				 __ATOMIC_RELAXED);
}

void vgpu_quota_write(struct vgpu_grant *grant, uint32_t slice, const struct vgpu_quota *quota)
{
	uint32_t odd = __atomic_load_n(&grant->sequence, __ATOMIC_RELAXED) | 1;

	__atomic_store_n(&grant->sequence, odd, __ATOMIC_RELAXED);
	__atomic_thread_fence(__ATOMIC_RELEASE);
	copy_words((uint64_t *)&grant->slices[slice], (const uint64_t *)quota, sizeof(*quota));
	__atomic_store_n(&grant->sequence, odd + 1, __ATOMIC_RELEASE);
}

void vgpu_quota_read(const struct vgpu_grant *grant, uint32_t slice, struct vgpu_quota *quota)
{
	for (int i = 0; i < READ_TRIES; i++) {
		uint32_t before = __atomic_load_n(&grant->sequence, __ATOMIC_ACQUIRE);

		copy_words((uint64_t *)quota, (const uint64_t *)&grant->slices[slice],
			   sizeof(*quota));
		__atomic_thread_fence(__ATOMIC_ACQUIRE);
		if (!(before & 1) && before == __atomic_load_n(&grant->sequence, __ATOMIC_RELAXED))
			return;
	}
}

uint64_t vgpu_device_part(const struct vgpu_quota *quota)
{
	uint64_t bytes = quota->memory - quota->memory_spill;

	if (quota->memory_spill > quota->memory)
		return 0; /* a mixture of two grants, or a lie: never more than either meant */
	return bytes < quota->device_memory ? bytes : UINT64_MAX;
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
