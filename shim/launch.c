/* SPDX-License-Identifier: Apache-2.0
 *
 * The launches.  Each is two functions: the export, which costs a program
 * without a compute limit a few loads and a jump, and what the others go
 * through.  The twins of a default stream per thread call their own originals.
 */
#include "cores.h"

/* Both the driver and the tenant are known, and no slice has a limit. */
static inline int is_free(const struct driver *driver)
{
	const struct tenant *tenant = __atomic_load_n(&vgpu_the_tenant, __ATOMIC_ACQUIRE);

	return driver && tenant &&
	       __atomic_load_n(&tenant->watched, __ATOMIC_RELAXED) ==
		       (uint64_t)__atomic_load_n(&tenant->grant->sequence, __ATOMIC_RELAXED) << 1;
}

/* Up to 2^31 times 2^16 times 2^16.  What is more is no grid, and only names an estimate. */
static uint64_t product(unsigned int x, unsigned int y, unsigned int z)
{
	return (uint64_t)x * y * z;
}

/* Without a configuration there is no launch; the driver says what it thinks of that. */
static uint64_t blocks_of(const CUlaunchConfig *config)
{
	return config ? product(config->gridDimX, config->gridDimY, config->gridDimZ) : 0;
}

static CUstream stream_of(const CUlaunchConfig *config)
{
	return config ? config->hStream : NULL;
}

#define LAUNCH(symbol, parameters, arguments, function, blocks, handle, per_thread)                \
	static __attribute__((noinline)) CUresult metered_##symbol parameters                      \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
		struct tenant *tenant = vgpu_tenant();                                             \
		struct launch launch;                                                              \
		CUresult rc;                                                                       \
                                                                                                   \
		if (!vgpu_is_metered(tenant))                                                      \
			return driver->real.symbol arguments;                                      \
		rc = vgpu_launch_begin(&launch, driver, tenant, function, blocks,                  \
				       (struct stream){handle, per_thread});                       \
		if (rc)                                                                            \
			return rc;                                                                 \
		return vgpu_launch_end(&launch, driver->real.symbol arguments);                    \
	}                                                                                          \
                                                                                                   \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		const struct driver *driver =                                                      \
			__atomic_load_n(&vgpu_drivers[LIBRARY_CUDA], __ATOMIC_ACQUIRE);            \
                                                                                                   \
		if (likely(is_free(driver)))                                                       \
			return driver->real.symbol arguments;                                      \
		return metered_##symbol arguments;                                                 \
	}

#define PARAMETERS                                                                                 \
	CUfunction f, unsigned int gx, unsigned int gy, unsigned int gz, unsigned int bx,          \
		unsigned int by, unsigned int bz, unsigned int shared, CUstream stream,            \
		void **arguments
#define ARGUMENTS f, gx, gy, gz, bx, by, bz, shared, stream, arguments

LAUNCH(cuLaunchKernel, (PARAMETERS, void **extra), (ARGUMENTS, extra), f, product(gx, gy, gz),
       stream, 0)
LAUNCH(cuLaunchKernel_ptsz, (PARAMETERS, void **extra), (ARGUMENTS, extra), f, product(gx, gy, gz),
       stream, 1)
LAUNCH(cuLaunchCooperativeKernel, (PARAMETERS), (ARGUMENTS), f, product(gx, gy, gz), stream, 0)
LAUNCH(cuLaunchCooperativeKernel_ptsz, (PARAMETERS), (ARGUMENTS), f, product(gx, gy, gz), stream, 1)

#define PARAMETERS_EX const CUlaunchConfig *config, CUfunction f, void **arguments, void **extra
#define ARGUMENTS_EX config, f, arguments, extra

LAUNCH(cuLaunchKernelEx, (PARAMETERS_EX), (ARGUMENTS_EX), config ? f : NULL, blocks_of(config),
       stream_of(config), 0)
LAUNCH(cuLaunchKernelEx_ptsz, (PARAMETERS_EX), (ARGUMENTS_EX), config ? f : NULL, blocks_of(config),
       stream_of(config), 1)
