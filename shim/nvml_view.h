/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of NVML's half of the view share.
 *
 * NVML's library calls itself through symbols that anyone may interpose, and
 * when the program has loaded it before us those calls arrive here.  A depth
 * counter for each thread sends them on unchanged: what the program asked is
 * rewritten once, at its own call.
 */
#ifndef VGPU_NVML_VIEW_H
#define VGPU_NVML_VIEW_H

#include "process.h"

extern __thread int vgpu_nvml_depth __attribute__((tls_model("initial-exec")));

/* The driver's answer, with whatever it calls on the way left alone. */
#define FORWARD(call)                                                                              \
	({                                                                                         \
		vgpu_nvml_depth++;                                                                 \
		nvmlReturn_t rc_ = (call);                                                         \
		vgpu_nvml_depth--;                                                                 \
		rc_;                                                                               \
	})

/* How every intercept of NVML begins: a faulty tenant is refused, and a call
 * that is the driver's own, or nobody's tenant's, is passed on. */
#define BEGIN(symbol, ...)                                                                         \
	const struct driver *driver = vgpu_driver(LIBRARY_NVML);                                   \
	struct tenant *tenant = vgpu_tenant();                                                     \
                                                                                                   \
	if (unlikely(!vgpu_nvml_depth && tenant->is_faulty))                                       \
		return FAULTY_NVML;                                                                \
	if (vgpu_nvml_depth || !tenant->ledger)                                                    \
	return FORWARD(driver->real.symbol(__VA_ARGS__))

/* ---- nvml_fleet.c: the tenant's devices, as NVML knows them -------------------- */

/* NVML_SUCCESS, or what the driver said: it is not initialised. */
nvmlReturn_t vgpu_nvml_fleet(const struct driver *driver, const struct tenant *tenant,
			     struct nvml_fleet *fleet);
/* What a handle is; of one that is not the tenant's, no slices.  Or what the
 * driver said: nothing may then be shown, because nobody knows whose it is. */
nvmlReturn_t vgpu_nvml_device(const struct driver *driver, const struct tenant *tenant,
			      nvmlDevice_t handle, struct nvml_device *device);
/* NVML is about to begin: handles may change. */
void vgpu_nvml_begins(void);

/* ---- nvml_lists.c: lists of processes, whatever their entries look like ---------- */

/* A list that the driver can be asked for. */
struct nvml_list {
	/* Ask the driver: *count is the capacity and becomes how many there are. */
	nvmlReturn_t (*ask)(const struct nvml_list *list, unsigned int *count, void *entries);
	void *real; /* the driver's function */
	nvmlDevice_t device;
	uint32_t entry_size;
	uint32_t pid_at;               /* where in an entry the pid is */
	unsigned int version, mode;    /* of lists that have them */
	unsigned long long newer_than; /* likewise */
};

/* One process of the tenant. */
struct nvml_process {
	uint32_t pid;
	uint32_t is_user; /* it has used one of the slices in question */
	uint64_t memory;  /* bytes charged on these */
};

#define NVML_MAX_LISTED (VGPU_MAX_PROCESSES + 1) /* rows, and the caller */

/* The tenant's live processes with pids of the caller's namespace, and what
 * they do with `slices`; how many. */
unsigned int vgpu_nvml_processes(struct tenant *tenant, uint32_t slices,
				 struct nvml_process found[NVML_MAX_LISTED]);
/* The driver's whole list, in memory that vgpu_nvml_drop frees. */
nvmlReturn_t vgpu_nvml_fetch(const struct nvml_list *list, void **entries, unsigned int *count,
			     size_t *mapped);
void vgpu_nvml_drop(void *entries, size_t mapped);
/* NVML_SUCCESS for a structure of the version that we know; any other might
 * hold what we cannot filter, and is one that the driver does not have. */
nvmlReturn_t vgpu_nvml_known_version(const struct driver *driver, const struct nvml_list *list,
				     unsigned int known);
/* Keep the entries of the tenant's processes, in place; how many. */
unsigned int vgpu_nvml_keep_own(const struct nvml_list *list, char *entries, unsigned int count,
				const struct nvml_process *own, unsigned int owns);
/* NVML's rule of capacity: all entries, or the count alone and "insufficient". */
nvmlReturn_t vgpu_nvml_deliver(const struct nvml_list *list, const void *entries,
			       unsigned int there, unsigned int *count, void *to);

#endif
