/* SPDX-License-Identifier: Apache-2.0
 *
 * What contexts, modules and limits of a context take.  Only the driver knows,
 * and afterwards.  In order of trust:
 *
 *	a context   what NVML says that this process has, after less before; if NVML
 *	            does not know this process by its pid, no more than all that is in
 *	            use on the device
 *	others      by how much the device's free memory has fallen, unless that can
 *	            not have been this call alone
 *
 * What the first context of a process takes is the same for all processes of a
 * tenant: the first to learn it writes it down in the ledger.  A guess never
 * refuses what may fit after all: it is cut to what is left, and the truth is
 * what counts.
 */
#include "overhead.h"

#include <string.h>
#include <unistd.h>

/* A context of a large device, with the vendor's libraries in it. */
#define CONTEXT_GUESS (512ull << 20)
/* What the driver adds at a time for code. */
#define MODULE_GUESS (2ull << 20)
/* More than any module takes: what is beyond was another tenant's. */
#define MODULE_MOST (256ull << 20)

/* ---- what the driver says ---------------------------------------------------------------- */

static void write_uuid(char *text, const char *prefix, const uint8_t *uuid)
{
	static const char digits[] = "0123456789abcdef";

	while (*prefix)
		*text++ = *prefix++;
	for (int i = 0; i < VGPU_UUID_SIZE; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*text++ = '-';
		*text++ = digits[uuid[i] >> 4];
		*text++ = digits[uuid[i] & 15];
	}
	*text = 0;
}

static int64_t find_self(const struct driver *driver, nvmlDevice_t device)
{
	nvmlProcessDetail_v1_t room[VGPU_MAX_PROCESSES];
	size_t size = (size_t)driver->nvml_process_v3_size;
	unsigned int count = (unsigned int)(sizeof(room) / size), self = (unsigned int)getpid();

	if (driver->real.nvmlDeviceGetComputeRunningProcesses_v3(device, &count,
								 (nvmlProcessInfo_v2_t *)room))
		return -1;
	for (unsigned int i = 0; i < count; i++) {
		/* Entries of all versions begin alike. */
		nvmlProcessInfo_v2_t entry;

		memcpy(&entry, (char *)room + i * size, sizeof(entry));
		if (entry.pid == self && entry.usedGpuMemory <= INT64_MAX)
			return (int64_t)entry.usedGpuMemory;
	}
	return -1;
}

int64_t vgpu_observed_memory(const struct tenant *tenant, int slice)
{
	const struct driver *driver = vgpu_driver(LIBRARY_NVML);
	const uint8_t *uuid = tenant->grant->slices[slice].device;
	char text[48];
	nvmlDevice_t device;
	int64_t found = -1;

	vgpu_nvml_enter();
	if (!driver->real.nvmlInit_v2()) {
		write_uuid(text, "GPU-", uuid);
		if (driver->real.nvmlDeviceGetHandleByUUID(text, &device))
			write_uuid(text, "MIG-", uuid);
		if (!driver->real.nvmlDeviceGetHandleByUUID(text, &device))
			found = find_self(driver, device);
		driver->used.nvmlShutdown();
	}
	vgpu_nvml_leave();
	return found;
}

/* All that is in use on the current context's device, by whomever; -1: not known. */
static int64_t device_used(const struct driver *driver)
{
	size_t available, total;

	return driver->real.cuMemGetInfo_v2(&available, &total) ? -1 : (int64_t)(total - available);
}

/* ---- against the quota -------------------------------------------------------------------- */

static uint64_t lesser(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t room(const struct tenant *tenant, int slice)
{
	uint64_t quota = vgpu_quota_of(tenant->grant, (uint32_t)slice);
	uint64_t used = vgpu_charged(tenant->ledger, (uint32_t)slice);

	return used < quota ? quota - used : 0;
}

/* On a device that is not granted, or not limited, it is not worth the asking. */
static int is_limited(const struct tenant *tenant, int slice)
{
	return slice >= 0 && vgpu_quota_of(tenant->grant, (uint32_t)slice) != UINT64_MAX;
}

static uint64_t charged_to_row(const struct claim *claim)
{
	const struct record *record = claim->record;

	return vgpu_row_charged(claim->tenant->ledger, record->row, record->account);
}

/* Correct the guess, and end the claim. */
static CUresult conclude(struct claim *claim, CUresult rc, uint64_t bytes, uint64_t key)
{
	if (!rc && vgpu_true_up(claim, bytes)) {
		vgpu_give_back(claim->tenant, claim->process, claim->record);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return vgpu_conclude(claim, rc, key);
}

/* ---- contexts -------------------------------------------------------------------------------- */

CUresult vgpu_context_begin(struct overhead *overhead, const struct driver *driver, CUdevice device)
{
	const struct tenant *tenant = vgpu_tenant();
	struct claim *claim = &overhead->claim;
	uint64_t known, guess;
	CUresult rc = vgpu_claim(claim, driver, tenant);

	if (rc)
		return rc;
	overhead->slice = vgpu_slice_of_device(driver, tenant, claim->process, device);
	if (!is_limited(tenant, overhead->slice))
		return CUDA_SUCCESS;
	known = __atomic_load_n(&tenant->ledger->slices[overhead->slice].context_memory,
				__ATOMIC_RELAXED);
	guess = known ? known - 1 : CONTEXT_GUESS;
	overhead->is_known = known && !claim->process->contexts[overhead->slice];
	if (!overhead->is_known)
		guess = lesser(guess, room(tenant, overhead->slice));
	rc = vgpu_stake(claim, RECORD_CONTEXT, overhead->slice, guess);
	if (rc || overhead->is_known)
		return rc;
	overhead->changes = __atomic_add_fetch(&claim->process->contexts_made, 1, __ATOMIC_RELAXED);
	overhead->row_before = charged_to_row(claim);
	overhead->before = vgpu_observed_memory(tenant, overhead->slice);
	return rc;
}

static void write_down(const struct overhead *overhead, uint64_t bytes)
{
	const struct claim *claim = &overhead->claim;

	if (!claim->process->contexts[overhead->slice])
		__atomic_store_n(&claim->tenant->ledger->slices[overhead->slice].context_memory,
				 bytes + 1, __ATOMIC_RELAXED);
}

/* What the new context takes. */
static uint64_t measure(const struct overhead *overhead, CUcontext context)
{
	const struct claim *claim = &overhead->claim;
	int64_t after = vgpu_observed_memory(claim->tenant, overhead->slice), used;
	int64_t before = overhead->before > 0 ? overhead->before : 0;
	CUcontext popped;

	/* Nothing else of this process must have changed in between. */
	if (after >= before && charged_to_row(claim) == overhead->row_before &&
	    __atomic_load_n(&claim->process->contexts_made, __ATOMIC_RELAXED) ==
		    overhead->changes) {
		write_down(overhead, (uint64_t)(after - before));
		return (uint64_t)(after - before);
	}
	if (claim->driver->used.cuCtxPushCurrent_v2(context))
		return CONTEXT_GUESS;
	used = device_used(claim->driver);
	claim->driver->used.cuCtxPopCurrent_v2(&popped);
	if (used < 0 || (uint64_t)used >= CONTEXT_GUESS)
		return CONTEXT_GUESS;
	write_down(overhead, (uint64_t)used);
	return (uint64_t)used;
}

CUresult vgpu_context_begun(struct overhead *overhead, CUresult rc, const CUcontext *context)
{
	struct claim *claim = &overhead->claim;
	int slice = overhead->slice;
	uint64_t bytes;

	if (!claim->record)
		return rc;
	bytes = claim->record->bytes;
	if (!rc && !overhead->is_known)
		bytes = measure(overhead, *context);
	rc = conclude(claim, rc, bytes, rc ? 0 : (uintptr_t)*context);
	if (!rc)
		__atomic_fetch_add(&claim->process->contexts[slice], 1, __ATOMIC_RELAXED);
	return rc;
}

void vgpu_context_ended(struct process *process, uint32_t slice)
{
	__atomic_fetch_sub(&process->contexts[slice], 1, __ATOMIC_RELAXED);
}

/* ---- modules and libraries
 * ------------------------------------------------------------------------ */

static CUresult begin_load(struct overhead *overhead, const struct driver *driver)
{
	const struct tenant *tenant = vgpu_tenant();
	struct claim *claim = &overhead->claim;
	CUresult rc = vgpu_claim(claim, driver, tenant);

	if (rc)
		return rc;
	overhead->slice = vgpu_current_slice(driver, tenant, claim->process);
	if (!is_limited(tenant, overhead->slice))
		return CUDA_SUCCESS;
	rc = vgpu_stake(claim, RECORD_MODULE, overhead->slice,
			lesser(MODULE_GUESS, room(tenant, overhead->slice)));
	if (rc)
		return rc;
	overhead->row_before = charged_to_row(claim);
	overhead->before = device_used(driver);
	return rc;
}

/* By how much more of the device is in use than before; the guess when that may
 * not have been this call's doing. */
static uint64_t grown(const struct overhead *overhead, uint64_t guess)
{
	int64_t after = device_used(overhead->claim.driver);

	if (overhead->before < 0 || after < 0 ||
	    charged_to_row(&overhead->claim) != overhead->row_before ||
	    after - overhead->before > (int64_t)MODULE_MOST)
		return guess;
	return after > overhead->before ? (uint64_t)(after - overhead->before) : 0;
}

static CUresult end_load(struct overhead *overhead, CUresult rc, uint64_t key)
{
	struct claim *claim = &overhead->claim;

	if (!claim->record)
		return rc;
	return conclude(claim, rc, rc ? 0 : grown(overhead, MODULE_GUESS), key);
}

#define LOAD(symbol, object, unload, parameters, arguments)                                        \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		struct overhead overhead;                                                          \
		CUresult rc, answer;                                                               \
                                                                                                   \
		if (!object || !vgpu_tenant()->ledger)                                             \
			return driver->real.symbol arguments;                                      \
		rc = begin_load(&overhead, driver);                                                \
		if (rc)                                                                            \
			return rc;                                                                 \
		rc = driver->real.symbol arguments;                                                \
		answer = end_load(&overhead, rc, rc ? 0 : (uintptr_t)*object);                     \
		if (answer && !rc)                                                                 \
			driver->real.unload(*object);                                              \
		return answer;                                                                     \
	}

LOAD(cuModuleLoad, module, cuModuleUnload, (CUmodule * module, const char *path), (module, path))
LOAD(cuModuleLoadData, module, cuModuleUnload, (CUmodule * module, const void *image),
     (module, image))
LOAD(cuModuleLoadDataEx, module, cuModuleUnload,
     (CUmodule * module, const void *image, unsigned int count, CUjit_option *options,
      void **values),
     (module, image, count, options, values))
LOAD(cuModuleLoadFatBinary, module, cuModuleUnload, (CUmodule * module, const void *image),
     (module, image))
LOAD(cuLibraryLoadData, library, cuLibraryUnload,
     (CUlibrary * library, const void *code, CUjit_option *jit_options, void **jit_values,
      unsigned int jit_count, CUlibraryOption *options, void **values, unsigned int count),
     (library, code, jit_options, jit_values, jit_count, options, values, count))
LOAD(cuLibraryLoadFromFile, library, cuLibraryUnload,
     (CUlibrary * library, const char *path, CUjit_option *jit_options, void **jit_values,
      unsigned int jit_count, CUlibraryOption *options, void **values, unsigned int count),
     (library, path, jit_options, jit_values, jit_count, options, values, count))

CUresult cuModuleUnload(CUmodule module)
{
	struct claim claim;
	struct record *record = vgpu_withdraw(&claim, RECORD_MODULE, (uintptr_t)module);

	return vgpu_settled(&claim, record, vgpu_driver(LIBRARY_CUDA)->real.cuModuleUnload(module));
}

CUresult cuLibraryUnload(CUlibrary library)
{
	struct claim claim;
	struct record *record = vgpu_withdraw(&claim, RECORD_MODULE, (uintptr_t)library);

	return vgpu_settled(&claim, record,
			    vgpu_driver(LIBRARY_CUDA)->real.cuLibraryUnload(library));
}

/* ---- limits of a context
 * ----------------------------------------------------------------------------- */

static int add_bytes(struct record *record, void *bytes)
{
	int64_t sum = (int64_t)record->bytes + *(int64_t *)bytes;

	/* What it gives back was perhaps never measured. */
	*(int64_t *)bytes = sum < 0 ? -(int64_t)record->bytes : *(int64_t *)bytes;
	record->bytes = sum < 0 ? 0 : (uint64_t)sum;
	return 0;
}

/* Charged to the context; 0, or -1 when it does not fit. */
static int charge_change(struct claim *claim, CUcontext context, int slice, int64_t bytes)
{
	int row = vgpu_process_row(claim->tenant, claim->process);

	if (row < 0 || !bytes)
		return 0;
	if (bytes > 0 && vgpu_try_charge(claim, (uint32_t)row, (uint32_t)slice, (uint64_t)bytes))
		return -1;
	if (vgpu_record_visit(&claim->process->records, RECORD_CONTEXT, (uintptr_t)context,
			      add_bytes, &bytes) < 0) {
		if (bytes > 0)
			vgpu_refund(claim->tenant->ledger, (uint32_t)row, (uint32_t)slice,
				    (uint64_t)bytes);
	} else if (bytes < 0) {
		vgpu_refund(claim->tenant->ledger, (uint32_t)row, (uint32_t)slice,
			    (uint64_t)-bytes);
	}
	return 0;
}

/* Room for stacks, for what kernels print and allocate: memory of the context. */
CUresult cuCtxSetLimit(CUlimit limit, size_t value)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	int64_t before, after;
	CUcontext context;
	struct claim claim;
	size_t earlier;
	CUresult rc;
	int slice;

	if (!tenant->ledger || vgpu_claim(&claim, driver, tenant) ||
	    driver->used.cuCtxGetCurrent(&context) || !context ||
	    driver->used.cuCtxGetLimit(&earlier, limit))
		return driver->real.cuCtxSetLimit(limit, value);
	slice = vgpu_current_slice(driver, tenant, claim.process);
	before = device_used(driver);
	rc = driver->real.cuCtxSetLimit(limit, value);
	after = device_used(driver);
	if (rc || !is_limited(tenant, slice) || before < 0 || after < 0 ||
	    after - before > (int64_t)MODULE_MOST || before - after > (int64_t)MODULE_MOST ||
	    !charge_change(&claim, context, slice, after - before))
		return rc;
	driver->real.cuCtxSetLimit(limit, earlier);
	return CUDA_ERROR_OUT_OF_MEMORY;
}
