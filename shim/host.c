/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: page-locked memory of the host.  It is counted for the whole tenant,
 * and limited only if the grant says so: a device without room never makes it fail.
 */
#include "account.h"

static CUresult stake(struct claim *claim, const struct driver *driver, const struct tenant *tenant,
		      uint64_t bytes)
{
	CUresult rc = vgpu_claim(claim, driver, tenant);

	return rc ? rc : vgpu_stake(claim, RECORD_HOST, VGPU_HOST, bytes);
}

#define ALLOCATE(symbol, parameters, arguments)                                                    \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		const struct tenant *tenant = vgpu_tenant();                                       \
		struct claim claim;                                                                \
		CUresult rc;                                                                       \
                                                                                                   \
		if (!tenant->ledger || !pointer || !bytes)                                         \
			return driver->real.symbol arguments;                                      \
		rc = stake(&claim, driver, tenant, bytes);                                         \
		if (rc)                                                                            \
			return rc;                                                                 \
		rc = driver->real.symbol arguments;                                                \
		return vgpu_conclude(&claim, rc, rc ? 0 : (uintptr_t)*pointer);                    \
	}

ALLOCATE(cuMemAllocHost, (void **pointer, unsigned int bytes), (pointer, bytes))
ALLOCATE(cuMemAllocHost_v2, (void **pointer, size_t bytes), (pointer, bytes))
ALLOCATE(cuMemHostAlloc, (void **pointer, size_t bytes, unsigned int flags),
	 (pointer, bytes, flags))

/* Memory that the program has already, page-locked from now on. */
#define REGISTER(symbol)                                                                           \
	CUresult symbol(void *pointer, size_t bytes, unsigned int flags)                           \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		const struct tenant *tenant = vgpu_tenant();                                       \
		struct claim claim;                                                                \
		CUresult rc;                                                                       \
                                                                                                   \
		if (!tenant->ledger || !pointer || !bytes)                                         \
			return driver->real.symbol(pointer, bytes, flags);                         \
		rc = stake(&claim, driver, tenant, bytes);                                         \
		if (rc)                                                                            \
			return rc;                                                                 \
		rc = driver->real.symbol(pointer, bytes, flags);                                   \
		return vgpu_conclude(&claim, rc, (uintptr_t)pointer);                              \
	}

REGISTER(cuMemHostRegister)
REGISTER(cuMemHostRegister_v2)

#define RELEASE(symbol)                                                                            \
	CUresult symbol(void *pointer)                                                             \
	{                                                                                          \
		struct claim claim;                                                                \
		struct record *record = vgpu_withdraw(&claim, RECORD_HOST, (uintptr_t)pointer);    \
                                                                                                   \
		return vgpu_settled(&claim, record,                                                \
				    vgpu_driver(LIBRARY_CUDA)->real.symbol(pointer));              \
	}

RELEASE(cuMemFreeHost)
RELEASE(cuMemHostUnregister)
