/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrite, NVML's half: the memory of a slice, and the tenant's own processes
 * with the pids that it knows.
 *
 * NVML's library calls itself through symbols that anyone may interpose, and
 * when the program has loaded it before us those calls arrive here.  A depth
 * counter for each thread sends them on unchanged.
 */
#include "process.h"

#define UUID_TEXT_SIZE 96
#define SWEEP_PERIOD_NS 100000000

static __thread int depth __attribute__((tls_model("initial-exec")));

void vgpu_nvml_enter(void)
{
	depth++;
}

void vgpu_nvml_leave(void)
{
	depth--;
}

/* The driver's answer, with whatever it calls on the way left alone. */
#define FORWARD(call)                                                                              \
	({                                                                                         \
		depth++;                                                                           \
		nvmlReturn_t rc_ = (call);                                                         \
		depth--;                                                                           \
		rc_;                                                                               \
	})

/* The slice of a device, or SLICE_NOT_GRANTED.  Asked each time: a handle that
 * is remembered might be another device's after a new nvmlInit. */
static int slice_of_handle(const struct driver *driver, const struct tenant *tenant,
			   nvmlDevice_t device)
{
	uint8_t uuid[VGPU_UUID_SIZE];
	char text[UUID_TEXT_SIZE];

	if (FORWARD(driver->used.nvmlDeviceGetUUID(device, text, sizeof(text))) ||
	    vgpu_parse_uuid(text, uuid))
		return SLICE_NOT_GRANTED;
	return vgpu_slice_of(tenant->grant, uuid);
}

/* ---- starting --------------------------------------------------------------------------- */

#define START(symbol, ...)                                                                         \
	const struct driver *driver = vgpu_driver(LIBRARY_NVML);                                   \
                                                                                                   \
	if (!depth && vgpu_tenant()->is_faulty)                                                    \
		return FAULTY_NVML;                                                                \
	return FORWARD(driver->real.symbol(__VA_ARGS__))

nvmlReturn_t nvmlInit(void)
{
	START(nvmlInit);
}

nvmlReturn_t nvmlInit_v2(void)
{
	START(nvmlInit_v2);
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	START(nvmlInitWithFlags, flags);
}

/* ---- memory ------------------------------------------------------------------------------- */

nvmlReturn_t nvmlDeviceGetMemoryInfo(nvmlDevice_t device, nvmlMemory_t *memory)
{
	const struct driver *driver = vgpu_driver(LIBRARY_NVML);
	struct tenant *tenant = vgpu_tenant();
	struct view view;
	nvmlReturn_t rc;

	if (unlikely(!depth && tenant->is_faulty))
		return FAULTY_NVML;
	rc = FORWARD(driver->real.nvmlDeviceGetMemoryInfo(device, memory));
	if (rc || depth || !memory || !tenant->ledger)
		return rc;
	view = vgpu_view(tenant, slice_of_handle(driver, tenant, device), memory->total,
			 memory->free);
	if (!view.is_limited)
		return rc;
	memory->total = view.total;
	memory->free = view.free;
	memory->used = view.total - view.free;
	return rc;
}

nvmlReturn_t nvmlDeviceGetMemoryInfo_v2(nvmlDevice_t device, nvmlMemory_v2_t *memory)
{
	const struct driver *driver = vgpu_driver(LIBRARY_NVML);
	struct tenant *tenant = vgpu_tenant();
	struct view view;
	nvmlReturn_t rc;

	if (unlikely(!depth && tenant->is_faulty))
		return FAULTY_NVML;
	rc = FORWARD(driver->real.nvmlDeviceGetMemoryInfo_v2(device, memory));
	if (rc || depth || !memory || !tenant->ledger)
		return rc;
	view = vgpu_view(tenant, slice_of_handle(driver, tenant, device), memory->total,
			 memory->free);
	if (!view.is_limited)
		return rc;
	memory->total = view.total;
	memory->free = view.free;
	memory->used = view.used;
	/* Nothing, as long as the device has what the slice has a right to. */
	memory->reserved = view.total - view.used - view.free;
	return rc;
}

/* ---- processes ------------------------------------------------------------------------------ */

struct listed {
	uint32_t pid;
	uint64_t memory;
};

/* The tenant's live processes that use a slice; how many there are, of which
 * `capacity` fit. */
static unsigned int list_processes(struct tenant *tenant, int slice, struct listed *out,
				   unsigned int capacity)
{
	struct process *process = vgpu_process();
	uint64_t here = 0;
	unsigned int count = 0;

	if (process)
		vgpu_process_sweep(tenant, process, SWEEP_PERIOD_NS);
	vgpu_owner_self(&here);
	for (int i = 0; i < VGPU_MAX_PROCESSES; i++) {
		const struct vgpu_row *row = &tenant->ledger->rows[i];
		uint64_t owner = __atomic_load_n(&row->owner, __ATOMIC_ACQUIRE);
		uint64_t where = __atomic_load_n(&row->pid_namespace, __ATOMIC_RELAXED);
		uint64_t memory = __atomic_load_n(&row->memory[slice], __ATOMIC_RELAXED);
		uint64_t active = __atomic_load_n(&row->active, __ATOMIC_RELAXED);

		/* A pid of another namespace would name somebody else here. */
		if (!owner || (where && here && where != here) ||
		    (!memory && !(active >> slice & 1)) || vgpu_process_is_gone(owner, where))
			continue;
		if (count < capacity)
			out[count] = (struct listed){vgpu_owner_pid(owner), memory};
		count++;
	}
	return count;
}

/* Entries of all versions begin alike; later ones have the two instance ids. */
static void write_entry(char *entry, size_t size, const struct listed *process)
{
	nvmlProcessDetail_v1_t full = {process->pid, process->memory, NVML_NO_INSTANCE,
				       NVML_NO_INSTANCE, 0};

	__builtin_memcpy(entry, &full, size);
}

/* A call that the driver would not refuse is answered from the ledger: the
 * driver is asked with room for nothing, which tells as much. */
static nvmlReturn_t rewrite_list(const struct driver *driver, struct tenant *tenant,
				 nvmlDevice_t device, unsigned int *count, void *infos, size_t size,
				 nvmlReturn_t (*real)(nvmlDevice_t, unsigned int *, void *))
{
	struct listed found[VGPU_MAX_PROCESSES];
	unsigned int capacity = count ? *count : 0, none = 0, needed;
	nvmlReturn_t rc;
	int slice;

	if (depth || !tenant->ledger || !count || (capacity && !infos) ||
	    (slice = slice_of_handle(driver, tenant, device)) < 0)
		return FORWARD(real(device, count, infos));
	rc = FORWARD(real(device, &none, NULL));
	if (rc != NVML_SUCCESS && rc != NVML_ERROR_INSUFFICIENT_SIZE)
		return rc;
	needed = list_processes(tenant, slice, found, VGPU_MAX_PROCESSES);
	*count = needed;
	if (needed > capacity)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	for (unsigned int i = 0; i < needed; i++)
		write_entry((char *)infos + i * size, size, &found[i]);
	return NVML_SUCCESS;
}

#define LIST(symbol, size)                                                                         \
	const struct driver *driver = vgpu_driver(LIBRARY_NVML);                                   \
	struct tenant *tenant = vgpu_tenant();                                                     \
                                                                                                   \
	if (unlikely(!depth && tenant->is_faulty))                                                 \
		return FAULTY_NVML;                                                                \
	return rewrite_list(                                                                       \
		driver, tenant, device, count, infos, size,                                        \
		(nvmlReturn_t (*)(nvmlDevice_t, unsigned int *, void *))driver->real.symbol)

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses(nvmlDevice_t device, unsigned int *count,
						  nvmlProcessInfo_v1_t *infos)
{
	LIST(nvmlDeviceGetComputeRunningProcesses, sizeof(*infos));
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v2(nvmlDevice_t device, unsigned int *count,
						     nvmlProcessInfo_v2_t *infos)
{
	LIST(nvmlDeviceGetComputeRunningProcesses_v2, sizeof(*infos));
}

nvmlReturn_t nvmlDeviceGetComputeRunningProcesses_v3(nvmlDevice_t device, unsigned int *count,
						     nvmlProcessInfo_v2_t *infos)
{
	LIST(nvmlDeviceGetComputeRunningProcesses_v3, (size_t)driver->nvml_process_v3_size);
}
