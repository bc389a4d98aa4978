/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: linear memory, that is what an address and a size describe.  The
 * entries without suffix are those from before CUDA 3.2, with 32-bit sizes.
 *
 * Where the grant lets a slice spill, memory for which the device's part has no
 * room is asked for as managed memory, whose pages can be told where to be: the
 * part that is charged on the device is advised to stay there, the rest to stay
 * in host memory, where the device reaches it over the bus.
 */
#include "account.h"

/* Width is rounded up to this before the driver says what the pitch is. */
#define PITCH_GUESS 512

/* Managed memory too is charged in full, wherever its pages are: they may all come
 * to the device. */
static CUresult stake_here(struct claim *claim, const struct driver *driver,
			   const struct tenant *tenant, uint64_t bytes)
{
	CUresult rc = vgpu_claim(claim, driver, tenant);

	return rc ? rc
		  : vgpu_stake_or_spill(claim, RECORD_POINTER,
					vgpu_current_slice(driver, tenant, claim->process), bytes);
}

/* As vgpu_conclude, ending what the program is not to have. */
static CUresult conclude(struct claim *claim, CUresult rc, const CUdeviceptr *pointer)
{
	CUresult answer = vgpu_conclude(claim, rc, rc ? 0 : *pointer);

	if (answer && !rc)
		claim->driver->real.cuMemFree_v2(*pointer);
	return answer;
}

/* ---- spilling ------------------------------------------------------------------------------ */

/* Advice is not an order, and a device that cannot take it works all the same. */
static void advise(const struct driver *driver, CUdeviceptr from, uint64_t bytes, int place,
		   CUdevice device)
{
	if (!bytes)
		return;
	driver->used.cuMemAdvise(from, bytes, CU_MEM_ADVISE_SET_PREFERRED_LOCATION, place);
	driver->used.cuMemAdvise(from, bytes, CU_MEM_ADVISE_SET_ACCESSED_BY, device);
}

static CUresult place_spilled(const struct claim *claim, CUdeviceptr pointer, uint64_t bytes)
{
	uint64_t here = claim->record->bytes < bytes ? claim->record->bytes : bytes;
	CUdevice device;

	if (!claim->driver->used.cuCtxGetDevice(&device)) {
		advise(claim->driver, pointer, here, device, device);
		advise(claim->driver, pointer + here, bytes - here, CU_DEVICE_CPU, device);
	}
	return CUDA_SUCCESS;
}

static CUresult allocate_spilled(const struct claim *claim, CUdeviceptr *pointer, uint64_t bytes)
{
	CUresult rc = claim->driver->real.cuMemAllocManaged(pointer, bytes, CU_MEM_ATTACH_GLOBAL);

	return rc ? rc : place_spilled(claim, *pointer, bytes);
}

static int is_spilled(const struct claim *claim)
{
	return unlikely(claim->record && claim->record->spilled);
}

/* ---- allocations ---------------------------------------------------------------------------- */

CUresult cuMemAlloc_v2(CUdeviceptr *pointer, size_t bytes)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct claim claim;
	CUresult rc;

	if (!vgpu_is_charged(tenant) || !pointer || !bytes)
		return driver->real.cuMemAlloc_v2(pointer, bytes);
	rc = stake_here(&claim, driver, tenant, bytes);
	if (rc)
		return rc;
	rc = is_spilled(&claim) ? CUDA_ERROR_OUT_OF_MEMORY
				: driver->real.cuMemAlloc_v2(pointer, bytes);
	if (unlikely(rc == CUDA_ERROR_OUT_OF_MEMORY) &&
	    (is_spilled(&claim) || !vgpu_spill_staked(&claim)))
		rc = allocate_spilled(&claim, pointer, bytes);
	return conclude(&claim, rc, pointer);
}

CUresult cuMemAllocManaged(CUdeviceptr *pointer, size_t bytes, unsigned int flags)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct claim claim;
	CUresult rc;

	if (!vgpu_is_charged(tenant) || !pointer || !bytes)
		return driver->real.cuMemAllocManaged(pointer, bytes, flags);
	rc = stake_here(&claim, driver, tenant, bytes);
	if (rc)
		return rc;
	rc = driver->real.cuMemAllocManaged(pointer, bytes, flags);
	if (!rc && is_spilled(&claim))
		rc = place_spilled(&claim, *pointer, bytes);
	return conclude(&claim, rc, pointer);
}

static int pitched_bytes(uint64_t width, uint64_t height, uint64_t *bytes)
{
	return width > UINT64_MAX - PITCH_GUESS ||
	       __builtin_mul_overflow((width + PITCH_GUESS - 1) / PITCH_GUESS * PITCH_GUESS, height,
				      bytes);
}

/* Never spilled: the pitch only the driver's own call can choose, and managed
 * memory has no 32-bit addresses. */
static CUresult stake_unspilled(struct claim *claim, const struct driver *driver,
				const struct tenant *tenant, uint64_t bytes)
{
	CUresult rc = vgpu_claim(claim, driver, tenant);
	int slice;

	if (rc)
		return rc;
	slice = vgpu_current_slice(driver, tenant, claim->process);
	return vgpu_stake(claim, RECORD_POINTER, slice, vgpu_granule_round(tenant, slice, bytes));
}

/* What it really takes. */
static int true_up(const struct claim *claim, uint64_t bytes)
{
	const struct record *record = claim->record;

	return record ? vgpu_true_up(claim,
				     vgpu_granule_round(claim->tenant, record->account, bytes))
		      : 0;
}

/* From before CUDA 3.2: as cuMemFree. */
static CUresult conclude_v1(struct claim *claim, CUresult rc, const CUdeviceptr_v1 *pointer)
{
	CUresult answer = vgpu_conclude(claim, rc, rc ? 0 : *pointer);

	if (answer && !rc)
		claim->driver->real.cuMemFree(*pointer);
	return answer;
}

CUresult cuMemAlloc(CUdeviceptr_v1 *pointer, unsigned int bytes)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	const struct tenant *tenant = vgpu_tenant();
	struct claim claim;
	CUresult rc;

	if (!vgpu_is_charged(tenant) || !pointer || !bytes)
		return driver->real.cuMemAlloc(pointer, bytes);
	rc = stake_unspilled(&claim, driver, tenant, bytes);
	return rc ? rc : conclude_v1(&claim, driver->real.cuMemAlloc(pointer, bytes), pointer);
}

/* A size beyond 64 bits is the driver's to refuse.  The pitch is the driver's to
 * choose: what that costs more than was guessed has to fit as well. */
#define PITCHED(symbol, free, conclude, pointer_type, size_type)                                   \
	CUresult symbol(pointer_type *pointer, size_type *pitch, size_type width,                  \
			size_type height, unsigned int element_bytes)                              \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		const struct tenant *tenant = vgpu_tenant();                                       \
		struct claim claim;                                                                \
		uint64_t bytes;                                                                    \
		CUresult rc;                                                                       \
                                                                                                   \
		if (!vgpu_is_charged(tenant) || !pointer || !pitch || !width || !height ||         \
		    pitched_bytes(width, height, &bytes))                                          \
			return driver->real.symbol(pointer, pitch, width, height, element_bytes);  \
		rc = stake_unspilled(&claim, driver, tenant, bytes);                               \
		if (rc)                                                                            \
			return rc;                                                                 \
		rc = driver->real.symbol(pointer, pitch, width, height, element_bytes);            \
		if (!rc && true_up(&claim, (uint64_t)*pitch * height)) {                           \
			driver->real.free(*pointer);                                               \
			rc = CUDA_ERROR_OUT_OF_MEMORY;                                             \
		}                                                                                  \
		return conclude(&claim, rc, pointer);                                              \
	}

PITCHED(cuMemAllocPitch, cuMemFree, conclude_v1, CUdeviceptr_v1, unsigned int)
PITCHED(cuMemAllocPitch_v2, cuMemFree_v2, conclude, CUdeviceptr, size_t)

/* ---- frees ------------------------------------------------------------------------------------
 */

/* Each call frees memory of every kind; cuMemFreeAsync (stream_memory.c) as well. */

CUresult cuMemFree(CUdeviceptr_v1 pointer)
{
	struct claim claim;
	struct record *record = vgpu_withdraw(&claim, RECORD_POINTER, pointer);

	return vgpu_settled(&claim, record, vgpu_driver(LIBRARY_CUDA)->real.cuMemFree(pointer));
}

CUresult cuMemFree_v2(CUdeviceptr pointer)
{
	struct claim claim;
	struct record *record = vgpu_withdraw(&claim, RECORD_POINTER, pointer);

	return vgpu_settled(&claim, record, vgpu_driver(LIBRARY_CUDA)->real.cuMemFree_v2(pointer));
}
