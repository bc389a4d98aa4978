/* SPDX-License-Identifier: Apache-2.0
 *
 * What reads the shared files, on files that are hostile or torn.  Nothing of
 * them may crash either side, stop it, or lead it out of its tables.
 *
 *	clang -g -fsanitize=fuzzer,address,undefined -Inative \
 *		tests/native/fuzz.c native/{grant,ledger,bucket,process,state,tenant}.c
 *
 * With fuzz_main.c it is a program of its own.  An input is first judged as a
 * file, byte for byte; then its words overwrite a sound grant and ledger, on
 * which everything is done that a program or a node does.
 */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "abi.h"

#define BYTES_IN_A_PATCH (4 + 8)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static char state[64];
static uint64_t mood; /* decides who is gone */

static void must(int holds, const char *what)
{
	if (holds)
		return;
	fprintf(stderr, "fuzz: %s\n", what);
	abort();
}

/* ---- the files ------------------------------------------------------------------------------ */

/* Sound throughout, also where nothing is in use: one wrong word is all that is wrong. */
static void make_grant(struct vgpu_grant *grant)
{
	*grant = (struct vgpu_grant){.magic = VGPU_GRANT_MAGIC,
				     .abi = VGPU_ABI,
				     .size = sizeof(*grant),
				     .slice_count = 2,
				     .kind = VGPU_KIND_PROCESS};
	memset(grant->tenant, 'x', sizeof(grant->tenant) - 1);
	for (int i = 0; i < VGPU_MAX_SLICES; i++)
		grant->slices[i] = (struct vgpu_quota){.device = {(uint8_t)(i + 1)},
						       .device_memory = 1 << 20,
						       .memory = 1 << 19,
						       .cores = 30,
						       .policy = VGPU_POLICY_FIXED};
	grant->before = grant->slices[0];
}

static void make_ledger(struct vgpu_ledger *ledger)
{
	memset(ledger, 0, sizeof(*ledger));
	ledger->magic = VGPU_LEDGER_MAGIC;
	ledger->abi = VGPU_ABI;
	ledger->size = sizeof(*ledger);
}

/* An offset and the word to be written there.  The low bits of the offset say
 * whether the word falls into the part at the front, where the fields are that
 * decide most, and whether it is half a word, in the place of a field. */
static void patch(void *file, size_t file_size, const uint8_t *data, size_t size)
{
	for (; size >= BYTES_IN_A_PATCH; data += BYTES_IN_A_PATCH, size -= BYTES_IN_A_PATCH) {
		uint32_t offset, how;

		memcpy(&offset, data, sizeof(offset));
		how = offset & 3;
		offset /= 4;
		if (how & 1)
			offset %= 4096;
		offset %= (uint32_t)file_size - 8;
		if (how & 2)
			memcpy((uint8_t *)file + offset / 4 * 4, data + 4, 4);
		else
			memcpy((uint8_t *)file + offset, data + 4, 8);
	}
}

/* ---- the readers ------------------------------------------------------------------------------
 */

static int is_sound(const struct vgpu_grant *grant, size_t size)
{
	if (vgpu_grant_check(grant, size))
		return 0;
	must(size >= sizeof(*grant), "a grant that is cut off is sound");
	must(grant->slice_count && grant->slice_count <= VGPU_MAX_SLICES,
	     "a grant with more slices than it holds is sound");
	must(strnlen(grant->tenant, VGPU_NAME_SIZE) < VGPU_NAME_SIZE,
	     "a grant whose name has no end is sound");
	return 1;
}

static void judge(const uint8_t *data, size_t size)
{
	/* At the end of an allocation: a byte read too many is seen. */
	void *copy = malloc(size ? size : 1);

	must(copy != NULL, "no memory");
	memcpy(copy, data, size);
	is_sound(copy, size);
	if (!vgpu_ledger_check(copy, size))
		must(size >= sizeof(struct vgpu_ledger), "a ledger that is cut off is sound");
	free(copy);
}

static void read_grant(const struct vgpu_grant *grant)
{
	uint8_t device[VGPU_UUID_SIZE] = {2};
	int sound = is_sound(grant, sizeof(*grant)), slice;
	struct vgpu_quota quota;

	for (uint32_t account = 0; account < VGPU_ACCOUNTS; account++)
		vgpu_quota_of(grant, account);
	slice = vgpu_slice_of(grant, device);
	must(slice >= -1 && slice < VGPU_MAX_SLICES, "a slice out of the table");
	for (uint32_t i = 0; i < VGPU_MAX_SLICES; i++) {
		must(vgpu_cores_in_force(grant, i, mood) <= 100, "more cores than a device has");
		vgpu_quota_read(grant, i, &quota);
		must(vgpu_device_part(&quota) == UINT64_MAX ||
			     vgpu_device_part(&quota) <= quota.memory,
		     "a part that is larger than the whole");
		must(!sound || i >= grant->slice_count ||
			     (quota.cores >= 1 && quota.cores <= 100 && quota.policy >= 1 &&
			      quota.policy <= 3),
		     "a sound grant gives a quota out of its range");
	}
}

static void write_grant(struct vgpu_grant *grant)
{
	struct vgpu_quota quota, seen;

	vgpu_quota_read(grant, 1, &quota);
	quota.memory = mood;
	vgpu_quota_write(grant, 1, &quota);
	vgpu_quota_read(grant, 1, &seen);
	must(!memcmp(&seen, &quota, sizeof(seen)), "what is written is not what is read");
	must(!(grant->sequence & 1), "a change does not end");
}

static int is_gone_by_mood(uint64_t owner, uint64_t pid_namespace)
{
	return (int)((owner ^ pid_namespace ^ mood) * 0x9e3779b97f4a7c15ull >> 63);
}

static void charge(struct vgpu_ledger *ledger, uint32_t row, uint32_t account, uint64_t bytes,
		   uint64_t quota)
{
	uint64_t before = vgpu_charged(ledger, account);

	if (vgpu_charge(ledger, row, account, bytes, quota)) {
		must(vgpu_charged(ledger, account) == before, "a refusal changes something");
		return;
	}
	must(vgpu_charged(ledger, account) == before + bytes && before + bytes <= quota &&
		     before + bytes >= before,
	     "more is charged than the quota");
	vgpu_refund(ledger, row, account, bytes);
}

static void use_ledger(struct vgpu_ledger *ledger)
{
	vgpu_is_gone is_gone = mood & 1 ? vgpu_process_is_gone : is_gone_by_mood;
	uint64_t pid_namespace, owner = vgpu_owner_self(&pid_namespace);
	uint32_t slice = (uint32_t)(mood >> 8) % VGPU_MAX_SLICES;
	uint32_t account = (uint32_t)(mood >> 8) % VGPU_ACCOUNTS;
	int row = vgpu_row_take(ledger, owner, 5, pid_namespace, is_gone);

	must(row >= -1 && row < VGPU_MAX_PROCESSES, "a row out of the table");
	if (row >= 0) {
		charge(ledger, (uint32_t)row, account, mood >> 16, 1 << 20);
		charge(ledger, (uint32_t)row, account, UINT64_MAX - (mood >> 60), UINT64_MAX);
		vgpu_refund(ledger, (uint32_t)row, account, mood);
	}
	must(vgpu_sweep(ledger, owner, 5, is_gone) <= VGPU_MAX_PROCESSES,
	     "more rows than there are");
	vgpu_draw(&ledger->slices[slice].full_ns, mood >> 3, mood >> 7, 1 + mood % 100,
		  VGPU_BURST_NS);
	vgpu_settle(&ledger->slices[slice].full_ns, (int64_t)mood, 1 + mood % 100);
}

/* ---- a node's files ---------------------------------------------------------------------------
 */

static void write_file(const char *name, const void *content, size_t size)
{
	char path[128];
	int fd;

	snprintf(path, sizeof(path), "%s/tenants/fuzz/%s", state, name);
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	must(fd >= 0 && write(fd, content, size) == (ssize_t)size && !close(fd),
	     "a file cannot be written");
}

static void make_directory(const char *name)
{
	char path[128];

	snprintf(path, sizeof(path), "%s%s", state, name);
	mkdir(path, 0700);
}

/* A tenant of such files, and a node that admits another beside it. */
static void use_directory(const struct vgpu_grant *grant, const struct vgpu_ledger *ledger)
{
	struct vgpu_shortage shortage;
	struct vgpu_grant newcomer;
	uint64_t memory = 0, cores = 0;

	make_directory("");
	make_directory("/tenants");
	make_directory("/tenants/fuzz");
	make_directory("/tenants/fuzz/members");
	write_file("grant", grant, mood & 2 ? sizeof(*grant) : mood % sizeof(*grant));
	write_file("ledger", ledger, mood & 4 ? sizeof(*ledger) : mood % sizeof(*ledger));
	if (mood & 8)
		write_file("members/0123456789abcdef", "", 0);
	make_grant(&newcomer);
	strcpy(newcomer.tenant, "other");
	must(vgpu_tenant_create(state, &newcomer, vgpu_owner_of((uint32_t)getpid()), &shortage) >=
		     0,
	     "a tenant beside it is an error");
	must(!vgpu_tenant_room(state, newcomer.slices[0].device, 1 << 20, &memory, &cores) &&
		     memory <= 1 << 20 && cores <= 100,
	     "more is left than the device has");
	vgpu_tenant_remove(state, "other");
	vgpu_tenant_remove(state, "fuzz");
}

static void remove_state(void)
{
	static const char *const names[] = {"/tenants", "/lock", ""};

	for (int i = 0; i < 3; i++) {
		char path[128];

		snprintf(path, sizeof(path), "%s%s", state, names[i]);
		remove(path);
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static struct vgpu_grant grant;
	static struct vgpu_ledger ledger;

	if (!*state) {
		snprintf(state, sizeof(state), "vgpu-fuzz-%d", getpid());
		atexit(remove_state);
	}
	judge(data, size);
	if (size < sizeof(mood))
		return 0;
	memcpy(&mood, data, sizeof(mood));
	data += sizeof(mood);
	size -= sizeof(mood);
	make_grant(&grant);
	make_ledger(&ledger);
	patch(&grant, sizeof(grant), data, size / 2);
	patch(&ledger, sizeof(ledger), data + size / 2, size / 2);
	vgpu_ledger_check(&ledger, sizeof(ledger));
	read_grant(&grant);
	if (!(mood >> 58)) /* now and then: it takes a hundred times as long */
		use_directory(&grant, &ledger);
	use_ledger(&ledger);
	write_grant(&grant);
	return 0;
}
