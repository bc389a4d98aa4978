/* SPDX-License-Identifier: Apache-2.0
 *
 * A tenant on disk: <state>/tenants/<name>/ holds `grant`, `ledger` and, in
 * `members/`, one empty file for each process that keeps the tenant alive,
 * named by its owner word.  A tenant none of whose members lives is swept by
 * whoever comes next, so nothing has to be done on exit, however violent.
 *
 * Every change is made under one file lock of the state directory, which the
 * kernel lets go when its holder dies; a tenant appears and disappears by
 * rename, so a half-made one is never seen.  No driver is called here.
 */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "state.h"

/* ---- who lives -------------------------------------------------------------- */

/* Whether what could not be opened or read is not there, or is not what we
 * write.  For want of a descriptor, of memory or of a right nothing is known,
 * and a tenant of which nothing is known lives. */
static int is_missing(int error)
{
	return error == -ENOENT || error == -ENOTDIR || error == -ELOOP || error == -ENODATA;
}

/* 0, -ENODATA for what is no grant, or another -errno. */
static int read_grant(int tenant, struct vgpu_grant *grant)
{
	int error = vgpu_state_read(tenant, "grant", grant, sizeof(*grant));

	if (error)
		return error;
	return vgpu_grant_check(grant, sizeof(*grant)) ? -ENODATA : 0;
}

static int a_member_lives(int tenant)
{
	DIR *members = vgpu_state_list(tenant, "members");
	struct dirent *entry;
	int lives = 0;

	if (!members)
		return !is_missing(-errno);
	while (!lives && (entry = readdir(members))) {
		char *end;
		uint64_t owner = strtoull(entry->d_name, &end, 16);

		lives = owner && !*end && !vgpu_process_is_gone(owner, 0);
	}
	closedir(members);
	return lives;
}

/* Rows keep a tenant alive whose first program has ended while a child works on.
 * A container's ledger is the container's to forge, so it has no say. */
static int a_row_lives(int tenant)
{
	struct vgpu_ledger *ledger;
	struct vgpu_grant grant;
	int lives = 0, error = read_grant(tenant, &grant);

	if (error || grant.kind != VGPU_KIND_PROCESS)
		return error && !is_missing(error);
	/* Who is in it stands before what each holds. */
	ledger = malloc(sizeof(*ledger));
	if (!ledger)
		return 1;
	error = vgpu_state_read(tenant, "ledger", ledger, offsetof(struct vgpu_ledger, lanes));
	if (error)
		lives = !is_missing(error);
	for (int i = 0; i < VGPU_MAX_PROCESSES && !error && !lives; i++)
		lives = ledger->rows[i].owner &&
			!vgpu_process_is_gone(ledger->rows[i].owner, ledger->rows[i].pid_namespace);
	free(ledger);
	return lives;
}

static int tenant_lives(int tenants, const char *name)
{
	int tenant = openat(tenants, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	int lives;

	if (tenant < 0)
		return !is_missing(-errno);
	lives = a_member_lives(tenant) || a_row_lives(tenant);
	close(tenant);
	return lives;
}

static int sweep(int tenants)
{
	DIR *directory = vgpu_state_list(tenants, ".");
	struct dirent *entry;
	int removed = 0;

	if (!directory)
		return -errno;
	while ((entry = readdir(directory))) {
		const char *name = entry->d_name;

		/* Half made or half removed: whoever was at it is dead, as we hold the lock. */
		if (!strncmp(name, ".new-", 5) || !strncmp(name, ".gone-", 6))
			vgpu_state_remove_tree(tenants, name, 2);
		else if (vgpu_state_name_is_valid(name) && !tenant_lives(tenants, name))
			removed += !vgpu_state_remove_tenant(tenants, name);
	}
	closedir(directory);
	return removed;
}

/* ---- admission --------------------------------------------------------------- */

/* Take off what the grant of one tenant gives of the device of `quota`; 0 or -errno. */
static int subtract_tenant(int tenants, const char *name, const struct vgpu_quota *quota,
			   uint64_t *memory, uint64_t *cores)
{
	int tenant = openat(tenants, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	int error = tenant < 0 ? -errno : 0, slice;
	struct vgpu_grant grant;
	struct vgpu_quota other;
	uint64_t taken;

	if (!error) {
		error = read_grant(tenant, &grant);
		close(tenant);
	}
	if (error)
		return is_missing(error) ? 0 : error;
	slice = vgpu_slice_of(&grant, quota->device);
	if (slice < 0)
		return 0;
	vgpu_quota_read(&grant, (uint32_t)slice, &other);
	taken = vgpu_device_part(&other);
	if (taken != UINT64_MAX)
		*memory -= taken < *memory ? taken : *memory;
	if (other.policy != VGPU_POLICY_NONE)
		*cores -= other.cores < *cores ? other.cores : *cores;
	return 0;
}

/* What the other tenants leave of the device of `quota`.  A tenant that cannot be
 * looked at is an error: it must not be counted as none. */
static int subtract_tenants(int tenants, const struct vgpu_quota *quota, uint64_t *memory,
			    uint64_t *cores)
{
	DIR *directory = vgpu_state_list(tenants, ".");
	struct dirent *entry;
	int error = 0;

	if (!directory)
		return -errno;
	while (!error && (entry = readdir(directory)))
		if (vgpu_state_name_is_valid(entry->d_name))
			error = subtract_tenant(tenants, entry->d_name, quota, memory, cores);
	closedir(directory);
	return error;
}

/* A slice without a limit takes what is left, so only limits are added up.
 * 0, VGPU_SHORT or -errno. */
static int admit(int tenants, const struct vgpu_grant *grant, struct vgpu_shortage *shortage)
{
	for (uint32_t i = 0; i < grant->slice_count; i++) {
		const struct vgpu_quota *quota = &grant->slices[i];
		uint64_t memory = quota->device_memory, cores = 100;
		uint64_t wanted = vgpu_device_part(quota);
		int error = subtract_tenants(tenants, quota, &memory, &cores);

		if (error)
			return error;
		shortage->slice = i;
		shortage->is_cores = 0;
		shortage->free = memory;
		if (wanted != UINT64_MAX && wanted > memory)
			return VGPU_SHORT;
		shortage->is_cores = 1;
		shortage->free = cores;
		if (quota->policy != VGPU_POLICY_NONE && quota->cores > cores)
			return VGPU_SHORT;
	}
	return 0;
}

/* ---- creation ----------------------------------------------------------------- */

static int write_member(int tenant, uint64_t member)
{
	char name[32];
	int error;

	snprintf(name, sizeof(name), "members/%016llx", (unsigned long long)member);
	error = vgpu_state_write(tenant, name, "", 0, 0600);
	return error == -EEXIST ? 0 : error;
}

static int write_ledger(int tenant)
{
	struct vgpu_ledger *ledger = calloc(1, sizeof(*ledger));
	int error;

	if (!ledger)
		return -ENOMEM;
	ledger->magic = VGPU_LEDGER_MAGIC;
	ledger->abi = VGPU_ABI;
	ledger->size = sizeof(*ledger);
	error = vgpu_state_write(tenant, "ledger", ledger, sizeof(*ledger), 0666);
	free(ledger);
	return error;
}

static int write_tenant(int tenants, const char *directory, const struct vgpu_grant *grant,
			uint64_t member)
{
	int tenant, error;

	if (mkdirat(tenants, directory, 0700))
		return -errno;
	tenant = openat(tenants, directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	if (tenant < 0)
		return -errno;
	error = vgpu_state_write(tenant, "grant", grant, sizeof(*grant), 0644);
	if (!error)
		error = write_ledger(tenant);
	if (!error && mkdirat(tenant, "members", 0700))
		error = -errno;
	if (!error)
		error = write_member(tenant, member);
	close(tenant);
	return error;
}

static int create(int tenants, const struct vgpu_grant *grant, uint64_t member,
		  struct vgpu_shortage *shortage)
{
	char fresh[VGPU_NAME_SIZE + 8];
	int error;

	if (!faccessat(tenants, grant->tenant, F_OK, AT_SYMLINK_NOFOLLOW))
		return -EEXIST;
	error = admit(tenants, grant, shortage);
	if (error)
		return error;
	snprintf(fresh, sizeof(fresh), ".new-%s", grant->tenant);
	error = write_tenant(tenants, fresh, grant, member);
	if (!error && renameat(tenants, fresh, tenants, grant->tenant))
		error = -errno;
	if (error)
		vgpu_state_remove_tree(tenants, fresh, 2);
	return error;
}

/* ---- the interface -------------------------------------------------------------- */

int vgpu_tenant_path(const char *state, const char *name, char *path, uint32_t size)
{
	int length = snprintf(path, size, "%s/tenants/%s", state, name);

	return length < 0 || (uint32_t)length >= size ? -ENAMETOOLONG : 0;
}

int vgpu_tenant_create(const char *state, const struct vgpu_grant *grant, uint64_t member,
		       struct vgpu_shortage *shortage)
{
	int lock, result, tenants;

	if (vgpu_grant_check(grant, sizeof(*grant)) || !vgpu_state_name_is_valid(grant->tenant))
		return -EINVAL;
	tenants = vgpu_state_open(state, &lock);
	if (tenants < 0)
		return tenants;
	result = sweep(tenants);
	if (result >= 0)
		result = create(tenants, grant, member, shortage);
	close(tenants);
	close(lock);
	return result;
}

int vgpu_tenant_room(const char *state, const uint8_t *device, uint64_t device_memory,
		     uint64_t *memory, uint64_t *cores)
{
	struct vgpu_quota quota = {.device_memory = device_memory};
	int lock, result, tenants = vgpu_state_open(state, &lock);

	if (tenants < 0)
		return tenants;
	memcpy(quota.device, device, sizeof(quota.device));
	*memory = device_memory;
	*cores = 100;
	sweep(tenants);
	result = subtract_tenants(tenants, &quota, memory, cores);
	close(tenants);
	close(lock);
	return result;
}

int vgpu_tenant_join(const char *state, const char *name, uint64_t member)
{
	int lock, tenant, result, tenants;

	if (!vgpu_state_name_is_valid(name))
		return -EINVAL;
	tenants = vgpu_state_open(state, &lock);
	if (tenants < 0)
		return tenants;
	sweep(tenants);
	tenant = openat(tenants, name, O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOFOLLOW);
	result = tenant < 0 ? -errno : write_member(tenant, member);
	if (tenant >= 0)
		close(tenant);
	close(tenants);
	close(lock);
	return result;
}

int vgpu_tenant_remove(const char *state, const char *name)
{
	int lock, result, tenants;

	if (!vgpu_state_name_is_valid(name))
		return -EINVAL;
	tenants = vgpu_state_open(state, &lock);
	if (tenants < 0)
		return tenants;
	result = vgpu_state_remove_tenant(tenants, name);
	close(tenants);
	close(lock);
	return result;
}

int vgpu_tenant_sweep(const char *state)
{
	int lock, result, tenants = vgpu_state_open(state, &lock);

	if (tenants < 0)
		return tenants;
	result = sweep(tenants);
	close(tenants);
	close(lock);
	return result;
}
