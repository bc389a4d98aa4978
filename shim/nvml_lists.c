/* SPDX-License-Identifier: Apache-2.0
 *
 * Lists of processes, whatever their entries look like: the tenant's own, what
 * the driver lists, what of it is the tenant's, and NVML's rule of capacity.
 *
 * The rule: the caller's count is its capacity.  Too small a one becomes the
 * number of entries that there are, with "insufficient size" and no entry
 * written.  That number is always of the entries that the tenant may see.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/mman.h>

#include "nvml_view.h"

#define SWEEP_PERIOD_NS 100000000
#define ATTEMPTS 8 /* the driver's list may grow between two questions */
#define SPARE 16

/* ---- the tenant's own ------------------------------------------------------------------ */

static struct nvml_process *enter(struct nvml_process *found, unsigned int *count, uint32_t pid)
{
	for (unsigned int i = 0; i < *count; i++)
		if (found[i].pid == pid)
			return &found[i];
	found[*count] = (struct nvml_process){.pid = pid};
	return &found[(*count)++];
}

unsigned int vgpu_nvml_processes(struct tenant *tenant, uint32_t slices,
				 struct nvml_process found[NVML_MAX_LISTED])
{
	struct process *process = vgpu_process();
	unsigned int count = 0;
	uint64_t here = 0, self;

	if (process)
		vgpu_process_sweep(tenant, process, SWEEP_PERIOD_NS);
	self = vgpu_owner_self(&here);
	for (uint32_t i = 0; i < VGPU_MAX_PROCESSES; i++) {
		const struct vgpu_row *row = &tenant->ledger->rows[i];
		uint64_t owner = __atomic_load_n(&row->owner, __ATOMIC_ACQUIRE);
		uint64_t where = __atomic_load_n(&row->pid_namespace, __ATOMIC_RELAXED);
		uint64_t active = __atomic_load_n(&row->active, __ATOMIC_RELAXED);
		struct nvml_process *entry;

		/* A pid of another namespace would name somebody else here. */
		if (!owner || (where && here && where != here) ||
		    vgpu_process_is_gone(owner, where))
			continue;
		entry = enter(found, &count, vgpu_owner_pid(owner));
		for (uint32_t slice = 0; slice < VGPU_MAX_SLICES; slice++)
			if (slices >> slice & 1)
				entry->memory += vgpu_row_charged(tenant->ledger, i, slice);
		entry->is_user |= entry->memory || (active & slices);
	}
	enter(found, &count, vgpu_owner_pid(self));
	return count;
}

/* ---- the driver's ------------------------------------------------------------------------ */

nvmlReturn_t vgpu_nvml_fetch(const struct nvml_list *list, void **entries, unsigned int *count,
			     size_t *mapped)
{
	nvmlReturn_t rc = NVML_ERROR_INSUFFICIENT_SIZE;

	*entries = NULL;
	for (int i = 0; i < ATTEMPTS && rc == NVML_ERROR_INSUFFICIENT_SIZE; i++) {
		vgpu_nvml_drop(*entries, *mapped);
		*entries = NULL;
		*count = 0;
		rc = list->ask(list, count, NULL);
		if ((rc && rc != NVML_ERROR_INSUFFICIENT_SIZE) || !*count)
			return rc;
		*count += SPARE;
		*mapped = (size_t)*count * list->entry_size;
		*entries = mmap(NULL, *mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
				-1, 0);
		if (*entries == MAP_FAILED) {
			*entries = NULL;
			return NVML_ERROR_MEMORY;
		}
		rc = list->ask(list, count, *entries);
	}
	return rc;
}

void vgpu_nvml_drop(void *entries, size_t mapped)
{
	if (entries)
		munmap(entries, mapped);
}

nvmlReturn_t vgpu_nvml_known_version(const struct driver *driver, const struct nvml_list *list,
				     unsigned int known)
{
	char uuid[96];
	nvmlReturn_t rc;

	if (list->version == known)
		return NVML_SUCCESS;
	/* Whether NVML is up and the handle good comes first, as with the driver. */
	rc = FORWARD(driver->used.nvmlDeviceGetUUID(list->device, uuid, sizeof(uuid)));
	return rc ? rc : NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
}

static const struct nvml_process *own_process(const struct nvml_process *own, unsigned int owns,
					      uint32_t pid)
{
	for (unsigned int i = 0; i < owns; i++)
		if (own[i].pid == pid)
			return &own[i];
	return NULL;
}

unsigned int vgpu_nvml_keep_own(const struct nvml_list *list, char *entries, unsigned int count,
				const struct nvml_process *own, unsigned int owns)
{
	unsigned int kept = 0;

	for (unsigned int i = 0; i < count; i++) {
		const char *entry = entries + (size_t)i * list->entry_size;
		uint32_t pid;

		memcpy(&pid, entry + list->pid_at, sizeof(pid));
		if (own_process(own, owns, pid))
			memmove(entries + (size_t)kept++ * list->entry_size, entry,
				list->entry_size);
	}
	return kept;
}

nvmlReturn_t vgpu_nvml_deliver(const struct nvml_list *list, const void *entries,
			       unsigned int there, unsigned int *count, void *to)
{
	unsigned int capacity = *count;

	*count = there;
	if (there > capacity)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	if (there && !to)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (there)
		memcpy(to, entries, (size_t)there * list->entry_size);
	return NVML_SUCCESS;
}
