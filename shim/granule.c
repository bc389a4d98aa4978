/* SPDX-License-Identifier: Apache-2.0
 *
 * What the driver rounds an allocation up to.  It gives devices memory in blocks,
 * of 2 MiB as a rule, and nothing of a block that is one allocation's goes to
 * another: charging the bytes asked for would let a tenant hold more than its
 * quota.  No interface tells, so it is tried once for a tenant, when it has its
 * first context, with an allocation of one byte too many.  A driver that takes
 * just what is asked for is found out as well; where others use the device at
 * that moment, the next context tries again, and until then nothing is rounded.
 *
 * Small allocations share blocks, and are charged as they are.
 */
#include "overhead.h"

#define LARGEST (2ull << 20)
#define PROBE (LARGEST + 1)

static uint64_t *granule_word(const struct tenant *tenant, int slice)
{
	return &tenant->ledger->slices[slice].granule;
}

uint64_t vgpu_granule_round(const struct tenant *tenant, int slice, uint64_t bytes)
{
	uint64_t granule;

	if (slice < 0)
		return bytes;
	granule = __atomic_load_n(granule_word(tenant, slice), __ATOMIC_RELAXED);
	/* What the tenant may have written there must not become a huge charge. */
	if (bytes <= granule / 2 || granule > LARGEST || (granule & (granule - 1)) || !granule ||
	    bytes > UINT64_MAX - granule)
		return bytes;
	return (bytes + granule - 1) & ~(granule - 1);
}

/* The power of two of which `grown` is the next multiple; 0: somebody else had a part in it. */
static uint64_t granule_of(int64_t grown)
{
	for (uint64_t granule = 1; granule <= LARGEST; granule *= 2)
		if ((uint64_t)grown == (PROBE + granule - 1) / granule * granule)
			return granule;
	return 0;
}

/* With a context current. */
static uint64_t probe(const struct driver *driver)
{
	int64_t before = vgpu_device_used(driver), during;
	CUdeviceptr pointer;

	if (before < 0 || driver->real.cuMemAlloc_v2(&pointer, PROBE))
		return 0;
	during = vgpu_device_used(driver);
	driver->real.cuMemFree_v2(pointer);
	return during >= 0 && vgpu_device_used(driver) == before ? granule_of(during - before) : 0;
}

void vgpu_granule_learn(const struct driver *driver, const struct tenant *tenant, uint32_t row,
			int slice, CUcontext context)
{
	CUstreamCaptureMode mode = CU_STREAM_CAPTURE_MODE_RELAXED;
	CUcontext popped;
	uint64_t granule;

	if (__atomic_load_n(granule_word(tenant, slice), __ATOMIC_RELAXED) ||
	    vgpu_charge_if_room(tenant, row, (uint32_t)slice, 2 * LARGEST))
		return;
	if (!driver->used.cuCtxPushCurrent_v2(context)) {
		/* Other threads may be capturing: an allocation would end that. */
		driver->used.cuThreadExchangeStreamCaptureMode(&mode);
		granule = probe(driver);
		driver->used.cuThreadExchangeStreamCaptureMode(&mode);
		driver->used.cuCtxPopCurrent_v2(&popped);
		if (granule)
			__atomic_store_n(granule_word(tenant, slice), granule, __ATOMIC_RELAXED);
	}
	vgpu_refund(tenant->ledger, row, (uint32_t)slice, 2 * LARGEST);
}
