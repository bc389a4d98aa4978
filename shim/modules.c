/* SPDX-License-Identifier: Apache-2.0
 *
 * What modules and libraries take of the current context's device: by how much
 * CUDA's figure for its free memory falls.  That contains what other tenants do in
 * the same moment, so a large step is held against NVML's figure for this process.
 * What a driver loads later, when a function is first used, it does not say.
 */
#include "overhead.h"

/* What the driver adds at a time for code. */
#define MODULE_GUESS (2ull << 20)
/* More than any module takes. */
#define MODULE_MOST (256ull << 20)

static CUresult begin_load(struct overhead *overhead, const struct driver *driver)
{
	const struct tenant *tenant = vgpu_tenant();
	struct claim *claim = &overhead->claim;
	CUresult rc = vgpu_claim(claim, driver, tenant);

	if (rc)
		return rc;
	overhead->slice = vgpu_current_slice(driver, tenant, claim->process);
	if (!vgpu_is_limited(tenant, overhead->slice))
		return CUDA_SUCCESS;
	rc = vgpu_stake(claim, RECORD_MODULE, overhead->slice,
			lesser(MODULE_GUESS, vgpu_room(tenant, overhead->slice)));
	if (rc)
		return rc;
	overhead->row_before = vgpu_charged_to_row(claim);
	overhead->before.device = vgpu_device_used(driver);
	return rc;
}

/* No more than what the driver says this process has beyond what it is charged. */
static uint64_t at_most_uncharged(const struct claim *claim, uint64_t bytes, int slice,
				  uint64_t charged)
{
	struct observation seen;
	int64_t own;

	vgpu_observe(claim->tenant, slice, &seen);
	own = vgpu_observed_own(claim->process, &seen);
	return own > (int64_t)charged ? lesser(bytes, (uint64_t)own - charged) : bytes;
}

/* By how much more of the device is in use than before; the guess when that may
 * not have been this call's doing. */
static uint64_t grown(const struct overhead *overhead)
{
	const struct claim *claim = &overhead->claim;
	int64_t before = overhead->before.device, after = vgpu_device_used(claim->driver);

	if (before < 0 || after < 0)
		return 0; /* without a context nothing of it is on a device */
	if (vgpu_charged_to_row(claim) != overhead->row_before ||
	    after - before > (int64_t)MODULE_MOST)
		return claim->record->bytes;
	if (after - before <= (int64_t)MODULE_GUESS)
		return after > before ? (uint64_t)(after - before) : 0;
	return at_most_uncharged(claim, (uint64_t)(after - before), overhead->slice,
				 overhead->row_before - claim->record->bytes);
}

static CUresult end_load(struct overhead *overhead, CUresult rc, uint64_t key)
{
	struct claim *claim = &overhead->claim;

	if (!claim->record)
		return rc;
	return vgpu_conclude_sized(claim, rc, rc ? 0 : grown(overhead), key);
}

/* One that seems not to fit is loaded again: what was measured may have been another
 * tenant's allocation in the same moment. */
#define LOADS 3

#define LOAD(symbol, object, unload, parameters, arguments)                                        \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		struct overhead overhead;                                                          \
		CUresult rc, answer;                                                               \
                                                                                                   \
		if (!object || !vgpu_tenant()->ledger)                                             \
			return driver->real.symbol arguments;                                      \
		for (int i = 1;; i++) {                                                            \
			rc = begin_load(&overhead, driver);                                        \
			if (rc)                                                                    \
				return rc;                                                         \
			rc = driver->real.symbol arguments;                                        \
			answer = end_load(&overhead, rc, rc ? 0 : (uintptr_t)*object);             \
			if (answer && !rc)                                                         \
				driver->real.unload(*object);                                      \
			if (rc || !answer || i == LOADS)                                           \
				return answer;                                                     \
		}                                                                                  \
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
