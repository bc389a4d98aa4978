/* SPDX-License-Identifier: Apache-2.0 */
/* Functions and kernels: attributes, settings, occupancy. */
#include "cuda_work.h"

#define WARP 32
#define REGISTERS 32 /* that a kernel is said to use, for want of knowing */

enum {
	MAX_THREADS = 0,
	SHARED_SIZE = 1,
	CONST_SIZE = 2,
	LOCAL_SIZE = 3,
	NUM_REGS = 4,
	PTX_VERSION = 5,
	BINARY_VERSION = 6,
	CACHE_MODE = 7,
	MAX_DYNAMIC_SHARED = 8,
	CARVEOUT = 9,
	NON_PORTABLE_CLUSTER = 14,
	CLUSTER_POLICY = 15,
	LAST = 17
};

static struct function *function_of(const void *handle)
{
	return object_of(handle, OBJECT_FUNCTION);
}

static CUresult get_attribute(int *value, int attribute, const void *handle,
			      const struct device *device)
{
	const struct function *function = function_of(handle);
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!value || attribute < 0 || attribute > LAST)
		return CUDA_ERROR_INVALID_VALUE;
	int capability =
		(int)(device->identity->capability_major * 10 + device->identity->capability_minor);
	switch (attribute) {
	case MAX_THREADS:
		*value = 1024;
		break;
	case NUM_REGS:
		*value = REGISTERS;
		break;
	case PTX_VERSION:
	case BINARY_VERSION:
		*value = capability;
		break;
	case MAX_DYNAMIC_SHARED:
		*value = function->shared_max ? function->shared_max
					      : (int)device->identity->shared_per_block;
		break;
	case CARVEOUT:
		*value = function->carveout;
		break;
	case NON_PORTABLE_CLUSTER:
		*value = function->cluster_flag;
		break;
	case CLUSTER_POLICY:
		*value = function->policy;
		break;
	default:
		*value = 0;
	}
	return CUDA_SUCCESS;
}

static CUresult set_attribute(int attribute, int value, const void *handle,
			      const struct device *device)
{
	struct function *function = function_of(handle);
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	switch (attribute) {
	case MAX_DYNAMIC_SHARED:
		if (value < 0 || (uint64_t)value > device->identity->shared_per_block_optin)
			return CUDA_ERROR_INVALID_VALUE;
		function->shared_max = value;
		break;
	case CARVEOUT:
		if (value < -1 || value > 100)
			return CUDA_ERROR_INVALID_VALUE;
		function->carveout = value;
		break;
	case NON_PORTABLE_CLUSTER:
		function->cluster_flag = value != 0;
		break;
	case CLUSTER_POLICY:
		function->policy = value;
		break;
	default:
		return CUDA_ERROR_INVALID_VALUE;
	}
	return CUDA_SUCCESS;
}

API cuFuncGetAttribute(int *value, int attribute, CUfunction function)
{
	ENTER();
	CURRENT(context);
	return get_attribute(value, attribute, function, context->device);
}

API cuFuncSetAttribute(CUfunction function, int attribute, int value)
{
	ENTER();
	CURRENT(context);
	return set_attribute(attribute, value, function, context->device);
}

API cuKernelGetAttribute(int *value, int attribute, CUkernel kernel, CUdevice ordinal)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	return get_attribute(value, attribute, kernel, device);
}

API cuKernelSetAttribute(int attribute, int value, CUkernel kernel, CUdevice ordinal)
{
	struct device *device;
	ENTER();
	TRY(device_of(ordinal, &device));
	return set_attribute(attribute, value, kernel, device);
}

static CUresult check_config(const void *handle, int config, int highest)
{
	ENTER();
	if (!function_of(handle))
		return CUDA_ERROR_INVALID_HANDLE;
	return config < 0 || config > highest ? CUDA_ERROR_INVALID_VALUE : CUDA_SUCCESS;
}

/* Preferences, which a device may ignore; this one does. */
API cuFuncSetCacheConfig(CUfunction function, int config)
{
	return check_config(function, config, 3);
}

API cuFuncSetSharedMemConfig(CUfunction function, int config)
{
	return check_config(function, config, 2);
}

API cuKernelSetCacheConfig(CUkernel kernel, int config, CUdevice device)
{
	(void)device;
	return check_config(kernel, config, 3);
}

API cuKernelGetFunction(CUfunction *function, CUkernel kernel)
{
	ENTER();
	CURRENT(context);
	(void)context;
	if (!function_of(kernel))
		return CUDA_ERROR_INVALID_HANDLE;
	if (!function)
		return CUDA_ERROR_INVALID_VALUE;
	*function = (CUfunction)kernel;
	return CUDA_SUCCESS;
}

API cuKernelGetLibrary(CUlibrary *library, CUkernel kernel)
{
	ENTER();
	const struct function *function = function_of(kernel);
	if (!function || !function->module->library)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!library)
		return CUDA_ERROR_INVALID_VALUE;
	*library = (CUlibrary)function->module;
	return CUDA_SUCCESS;
}

API cuFuncGetModule(CUmodule *module, CUfunction handle)
{
	ENTER();
	const struct function *function = function_of(handle);
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!module)
		return CUDA_ERROR_INVALID_VALUE;
	*module = (CUmodule)function->module;
	return CUDA_SUCCESS;
}

static CUresult get_name(const char **name, const void *handle)
{
	ENTER();
	const struct function *function = function_of(handle);
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!name)
		return CUDA_ERROR_INVALID_VALUE;
	*name = function->name;
	return CUDA_SUCCESS;
}

API cuFuncGetName(const char **name, CUfunction function)
{
	return get_name(name, function);
}

API cuKernelGetName(const char **name, CUkernel kernel)
{
	return get_name(name, kernel);
}

API cuFuncIsLoaded(int *state, CUfunction function)
{
	ENTER();
	if (!function_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	if (!state)
		return CUDA_ERROR_INVALID_VALUE;
	*state = 1;
	return CUDA_SUCCESS;
}

API cuFuncLoad(CUfunction function)
{
	ENTER();
	return function_of(function) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_HANDLE;
}

/* ---- occupancy: of a kernel that is limited by threads, blocks and shared memory ---- */

static int blocks_per_sm(const struct device *device, int threads, size_t shared)
{
	const struct sim_identity *identity = device->identity;
	int rounded = (threads + WARP - 1) / WARP * WARP;
	int most = 0, blocks;
	device_attribute(device, 106, &most);
	blocks = (int)identity->threads_per_sm / rounded;
	if (blocks > most)
		blocks = most;
	if ((int)identity->registers_per_sm / (REGISTERS * rounded) < blocks)
		blocks = (int)identity->registers_per_sm / (REGISTERS * rounded);
	if (shared && identity->shared_per_sm / shared < (uint64_t)blocks)
		blocks = (int)(identity->shared_per_sm / shared);
	return blocks;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessor(int *blocks, CUfunction function, int threads,
						size_t shared)
{
	ENTER();
	CURRENT(context);
	if (!function_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	if (!blocks || threads < 1 || threads > 1024)
		return CUDA_ERROR_INVALID_VALUE;
	*blocks = blocks_per_sm(context->device, threads, shared);
	return CUDA_SUCCESS;
}

API cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, CUfunction function,
							 int threads, size_t shared,
							 unsigned int flags)
{
	if (flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	return cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared);
}

API cuOccupancyMaxPotentialBlockSize(int *grid, int *block, CUfunction function,
				     CUoccupancyB2DSize shared_of, size_t shared, int limit)
{
	int best = 0, best_threads = 0;
	ENTER();
	CURRENT(context);
	if (!function_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	if (!grid || !block)
		return CUDA_ERROR_INVALID_VALUE;
	if (limit <= 0 || limit > 1024)
		limit = 1024;
	for (int threads = limit; threads > 0; threads -= threads % WARP ? threads % WARP : WARP) {
		size_t bytes = shared_of ? shared_of(threads) : shared;
		int resident = blocks_per_sm(context->device, threads, bytes) * threads;
		if (resident > best) {
			best = resident;
			best_threads = threads;
		}
	}
	*block = best_threads;
	*grid = best_threads ? (int)context->device->identity->sm_count * (best / best_threads) : 0;
	return CUDA_SUCCESS;
}

API cuOccupancyMaxPotentialBlockSizeWithFlags(int *grid, int *block, CUfunction function,
					      CUoccupancyB2DSize shared_of, size_t shared,
					      int limit, unsigned int flags)
{
	if (flags > 1)
		return CUDA_ERROR_INVALID_VALUE;
	return cuOccupancyMaxPotentialBlockSize(grid, block, function, shared_of, shared, limit);
}

API cuOccupancyAvailableDynamicSMemPerBlock(size_t *bytes, CUfunction function, int blocks,
					    int threads)
{
	ENTER();
	CURRENT(context);
	if (!function_of(function))
		return CUDA_ERROR_INVALID_HANDLE;
	if (!bytes || blocks < 1 || threads < 1)
		return CUDA_ERROR_INVALID_VALUE;
	size_t part = context->device->identity->shared_per_sm / (size_t)blocks;
	size_t most = context->device->identity->shared_per_block_optin;
	*bytes = part < most ? part : most;
	return CUDA_SUCCESS;
}
