/* SPDX-License-Identifier: Apache-2.0
 *
 * The tenant that this process runs in, found at the first call that needs to
 * know, and the failure policy:
 *
 *	no tenant named			everything passes
 *	named, but its files cannot
 *	be used				fail closed, say why once, end nothing;
 *					for want of a descriptor or of memory: look
 *					again at the next call
 *
 * A container's tenant is at a fixed place that no environment can override;
 * elsewhere VGPU_TENANT names its directory.  Both files are mapped, so that a
 * change by the node is seen at the next call; the grant read-only.
 *
 * Threads that come first together each open the files; one store publishes
 * one result and the others are dropped.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "say.h"
#include "shim.h"

#define CONTAINER "/opt/vgpu"

struct tenant *vgpu_the_tenant;

/* All zero: no slices, nothing watched. */
static const struct vgpu_grant nobody;
static struct tenant not_a_tenant = {.grant = &nobody};
static struct tenant faulty = {.grant = &nobody, .is_faulty = 1, .watched = 1};

/* ---- opening a file ----------------------------------------------------------------- */

static const char *open_error(int error)
{
	switch (error) {
	case ENOENT:
	case ENOTDIR:
		return "the file is missing";
	case EACCES:
	case EPERM:
		return "this user may not open it";
	case EROFS:
		return "it is on a read-only file system";
	case EMFILE:
	case ENFILE:
		return "no file descriptor is free";
	case ENOMEM:
		return "no memory to map it";
	}
	return "it cannot be opened and mapped";
}

/* Map the start of a file: NULL and the reason, or the mapping and the bytes
 * of the file that may be looked at. */
static void *map_file(const char *path, int flags, int protection, uint64_t size,
		      uint64_t *readable, const char **reason)
{
	int fd = open(path, flags | O_CLOEXEC | O_NOCTTY | O_NONBLOCK), error;
	struct stat status;
	void *map = MAP_FAILED;

	*reason = NULL;
	if (fd < 0) {
		*reason = open_error(errno);
		return NULL;
	}
	if (fstat(fd, &status) || !S_ISREG(status.st_mode)) {
		*reason = "it is not a regular file";
	} else if (!status.st_size) {
		*reason = vgpu_fault_text(VGPU_TRUNCATED);
	} else {
		/* Beyond the end of the file a mapping is a trap: check before use. */
		*readable = (uint64_t)status.st_size;
		map = mmap(NULL, size, protection, MAP_SHARED, fd, 0);
		error = errno;
		if (map == MAP_FAILED)
			*reason = open_error(error);
	}
	close(fd);
	return map == MAP_FAILED ? NULL : map;
}

struct file {
	const char *name;
	int flags, protection;
	uint64_t size;
	int (*check)(const void *, uint64_t);
};

static const struct file grant_file = {"grant", O_RDONLY, PROT_READ, sizeof(struct vgpu_grant),
				       vgpu_grant_check};
static const struct file ledger_file = {"ledger", O_RDWR, PROT_READ | PROT_WRITE,
					sizeof(struct vgpu_ledger), vgpu_ledger_check};

/* The file, mapped and sound, or NULL; `path` and `reason` say of what. */
static void *open_file(const char *directory, const struct file *file, char *path,
		       const char **reason)
{
	uint64_t readable;
	size_t length = strlen(directory);
	void *map;
	int fault;

	if (length + sizeof("/ledger") > PATH_MAX) {
		memcpy(path, "VGPU_TENANT", sizeof("VGPU_TENANT"));
		*reason = "the path is too long";
		return NULL;
	}
	memcpy(path, directory, length);
	path[length] = '/';
	strcpy(path + length + 1, file->name);
	map = map_file(path, file->flags, file->protection, file->size, &readable, reason);
	if (!map)
		return NULL;
	fault = file->check(map, readable);
	if (!fault)
		return map;
	munmap(map, file->size);
	*reason = vgpu_fault_text(fault);
	return NULL;
}

/* ---- finding the tenant -------------------------------------------------------------- */

static const char *find_directory(void)
{
	const char *named;

	/* Only "there is none" is none: a grant that this user may not see is a fault. */
	if (!access(CONTAINER "/grant", F_OK) || (errno != ENOENT && errno != ENOTDIR))
		return CONTAINER;
	named = secure_getenv("VGPU_TENANT");
	return named && *named ? named : NULL;
}

static void complain(const char *directory, const char *path, const char *reason)
{
	const char *cure = strcmp(directory, CONTAINER)
				   ? "; start the program again under `vgpu run`"
				   : "; start the container again, with the library and the node's "
				     "vgpu-runtime "
				     "of one version";
	const char *texts[] = {path, ": ", reason, cure, NULL};

	vgpu_say(texts);
}

/* What may be over at the next call: that one looks again. */
static int is_passing(const char *reason)
{
	return reason == open_error(EMFILE) || reason == open_error(ENOMEM);
}

/* Fail closed, for good or for this call. */
static struct tenant *close_down(const char *directory, const char *path, const char *reason)
{
	static uint32_t has_complained;

	if (is_passing(reason)) {
		if (!__atomic_exchange_n(&has_complained, 1, __ATOMIC_RELAXED))
			complain(directory, path, reason);
		return &faulty;
	}
	if (__atomic_compare_exchange_n(&vgpu_the_tenant, &(struct tenant *){NULL}, &faulty, 0,
					__ATOMIC_RELEASE, __ATOMIC_RELAXED))
		complain(directory, path, reason);
	return vgpu_the_tenant;
}

static struct tenant *publish(struct tenant *tenant)
{
	struct tenant *earlier = NULL;

	if (__atomic_compare_exchange_n(&vgpu_the_tenant, &earlier, tenant, 0, __ATOMIC_RELEASE,
					__ATOMIC_ACQUIRE))
		return tenant;
	return earlier;
}

static struct tenant *sound(const struct vgpu_grant *grant, struct vgpu_ledger *ledger)
{
	struct tenant *published, *tenant = mmap(NULL, sizeof(*tenant), PROT_READ | PROT_WRITE,
						 MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (tenant == MAP_FAILED)
		return NULL;
	tenant->grant = grant;
	tenant->ledger = ledger;
	vgpu_tenant_watch(tenant);
	published = publish(tenant);
	if (published != tenant) {
		munmap((void *)grant, sizeof(*grant));
		munmap(ledger, sizeof(*ledger));
		munmap(tenant, sizeof(*tenant));
	}
	return published;
}

struct tenant *vgpu_tenant_open(void)
{
	const char *directory = find_directory(), *reason;
	struct tenant *tenant = NULL;
	struct vgpu_ledger *ledger = NULL;
	struct vgpu_grant *grant;
	char path[PATH_MAX];

	if (!directory)
		return publish(&not_a_tenant);
	grant = open_file(directory, &grant_file, path, &reason);
	if (grant)
		ledger = open_file(directory, &ledger_file, path, &reason);
	if (ledger) {
		reason = open_error(ENOMEM);
		tenant = sound(grant, ledger);
		if (tenant)
			return tenant;
	}
	if (grant)
		munmap(grant, sizeof(*grant));
	if (ledger)
		munmap(ledger, sizeof(*ledger));
	return close_down(directory, path, reason);
}

/* ---- what launches have to know ----------------------------------------------------- */

static int has_compute_limit(const struct vgpu_quota *quota)
{
	return quota->policy != VGPU_POLICY_NONE &&
	       (quota->cores < 100 || (quota->cores_limit && quota->cores_limit < 100));
}

/* Of a grant that is being written the sequence is odd, and the next launch
 * finds another and looks again. */
uint64_t vgpu_tenant_watch(struct tenant *tenant)
{
	uint64_t sequence = __atomic_load_n(&tenant->grant->sequence, __ATOMIC_ACQUIRE);
	uint64_t watched;

	if (!tenant->ledger)
		return tenant->is_faulty;
	watched = sequence << 1;
	for (uint32_t i = 0; i < tenant->grant->slice_count && i < VGPU_MAX_SLICES; i++) {
		struct vgpu_quota quota;

		vgpu_quota_read(tenant->grant, i, &quota);
		if (has_compute_limit(&quota))
			watched |= 1;
	}
	__atomic_store_n(&tenant->watched, watched, __ATOMIC_RELAXED);
	return watched;
}
