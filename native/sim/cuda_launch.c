/* SPDX-License-Identifier: Apache-2.0 */
/* Kernel launches, in all their forms. */
#include <string.h>

#include "cuda_work.h"

#define SHAPE(x, y, z) {x, y, z}

static bool shape_valid(const struct launch *launch)
{
	const unsigned *grid = launch->grid, *block = launch->block;
	if (!grid[0] || !grid[1] || !grid[2] || !block[0] || !block[1] || !block[2])
		return false;
	if (grid[0] > 2147483647u || grid[1] > 65535 || grid[2] > 65535)
		return false;
	return block[0] <= 1024 && block[1] <= 1024 && block[2] <= 64 &&
	       (uint64_t)block[0] * block[1] * block[2] <= 1024;
}

/* All blocks of a cooperative launch must be resident at once. */
static bool fits_at_once(const struct launch *launch, const struct sim_identity *identity)
{
	uint64_t threads = (uint64_t)launch->block[0] * launch->block[1] * launch->block[2];
	uint64_t blocks = (uint64_t)launch->grid[0] * launch->grid[1] * launch->grid[2];
	return blocks <=
	       identity->sm_count * (identity->threads_per_sm / ((threads + 31) / 32 * 32));
}

CUresult launch_check(const struct launch *launch, struct context *context)
{
	const struct sim_identity *identity = context->device->identity;
	size_t shared_max = launch->function->shared_max ? (size_t)launch->function->shared_max
							 : (size_t)identity->shared_per_block;
	if (!shape_valid(launch) || launch->shared > shared_max ||
	    (launch->arguments && launch->extra))
		return CUDA_ERROR_INVALID_VALUE;
	if (launch->cooperative && !fits_at_once(launch, identity))
		return 720; /* cooperative launch too large */
	return module_charge(launch->function->module, context->device);
}

static void spend(void)
{
	uint64_t ns = driver.machine->knobs.launch_cpu_ns;
	if (!ns)
		return;
	uint64_t end = sim_now() + ns;
	while (sim_now() < end)
		;
}

/* The way of nearly every launch, so it makes no graph node on its way. */
static CUresult launch_now(const struct launch *launch, struct stream *stream)
{
	unsigned char arguments[KNOWN_ARGUMENTS];
	const struct function *function = launch->function;
	TRY(kernel_arguments(launch, arguments));
	spend();
	kernel_run(function, arguments);
	return stream_work(stream, kernel_ns(function, arguments), 1);
}

static CUresult launch_kept(const struct launch *launch, struct stream *stream)
{
	struct work work = {.type = CU_GRAPH_NODE_TYPE_KERNEL, .kernel = {.launch = *launch}};
	bool captured;
	TRY(kernel_arguments(launch, work.kernel.arguments));
	TRY(capture_work(stream, &work, &captured));
	if (captured)
		return CUDA_SUCCESS;
	return stream_held(stream) ? later_work(stream, &work) : launch_now(launch, stream);
}

static CUresult submit(CUfunction handle, struct launch *launch, CUstream on, bool per_thread)
{
	struct stream *stream;
	ENTER();
	CURRENT(context);
	launch->function = object_of(handle, OBJECT_FUNCTION);
	if (!launch->function)
		return CUDA_ERROR_INVALID_HANDLE;
	TRY(stream_of(on, per_thread, &stream));
	TRY(launch_check(launch, context));
	return capture_any() || stream_held(stream) ? launch_kept(launch, stream)
						    : launch_now(launch, stream);
}

TWINS(cuLaunchKernel, ptsz,
      (CUfunction f, unsigned int gridX, unsigned int gridY, unsigned int gridZ,
       unsigned int blockX, unsigned int blockY, unsigned int blockZ, unsigned int shared,
       CUstream stream, void **arguments, void **extra),
      submit(f,
	     &(struct launch){.grid = SHAPE(gridX, gridY, gridZ),
			      .block = SHAPE(blockX, blockY, blockZ),
			      .shared = shared,
			      .arguments = arguments,
			      .extra = extra},
	     stream, per_thread))

TWINS(cuLaunchCooperativeKernel, ptsz,
      (CUfunction f, unsigned int gridX, unsigned int gridY, unsigned int gridZ,
       unsigned int blockX, unsigned int blockY, unsigned int blockZ, unsigned int shared,
       CUstream stream, void **arguments),
      submit(f,
	     &(struct launch){.grid = SHAPE(gridX, gridY, gridZ),
			      .block = SHAPE(blockX, blockY, blockZ),
			      .shared = shared,
			      .cooperative = true,
			      .arguments = arguments},
	     stream, per_thread))

static CUresult launch_ex(const CUlaunchConfig *config, CUfunction f, void **arguments,
			  void **extra, bool per_thread)
{
	CHECK_READY();
	if (!config || (config->numAttrs && !config->attrs))
		return CUDA_ERROR_INVALID_VALUE;
	struct launch launch = {
		.grid = SHAPE(config->gridDimX, config->gridDimY, config->gridDimZ),
		.block = SHAPE(config->blockDimX, config->blockDimY, config->blockDimZ),
		.shared = config->sharedMemBytes,
		.arguments = arguments,
		.extra = extra,
	};
	for (unsigned i = 0; i < config->numAttrs; i++)
		if (config->attrs[i].id == CU_LAUNCH_ATTRIBUTE_COOPERATIVE)
			launch.cooperative = (int)config->attrs[i].value[0];
	return submit(f, &launch, config->hStream, per_thread);
}

TWINS(cuLaunchKernelEx, ptsz,
      (const CUlaunchConfig *config, CUfunction f, void **arguments, void **extra),
      launch_ex(config, f, arguments, extra, per_thread))

/* ---- the oldest interface: shape and arguments set beforehand ---- */

static struct function *function_of(CUfunction handle)
{
	return object_of(handle, OBJECT_FUNCTION);
}

API cuFuncSetBlockShape(CUfunction handle, int x, int y, int z)
{
	ENTER();
	struct function *function = function_of(handle);
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	if (x < 1 || y < 1 || z < 1)
		return CUDA_ERROR_INVALID_VALUE;
	function->block[0] = x;
	function->block[1] = y;
	function->block[2] = z;
	return CUDA_SUCCESS;
}

API cuFuncSetSharedSize(CUfunction handle, unsigned int bytes)
{
	ENTER();
	struct function *function = function_of(handle);
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	function->shared = (int)bytes;
	return CUDA_SUCCESS;
}

static CUresult set_argument(CUfunction handle, int offset, const void *value, size_t bytes)
{
	ENTER();
	struct function *function = function_of(handle);
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	if (offset < 0 || (bytes && !value))
		return CUDA_ERROR_INVALID_VALUE;
	if ((size_t)offset + bytes <= sizeof(function->packed)) /* more than a known kernel reads */
		memcpy(function->packed + offset, value, bytes);
	return CUDA_SUCCESS;
}

API cuParamSetSize(CUfunction function, unsigned int bytes)
{
	(void)bytes;
	return set_argument(function, 0, NULL, 0);
}

API cuParamSeti(CUfunction function, int offset, unsigned int value)
{
	return set_argument(function, offset, &value, sizeof(value));
}

API cuParamSetf(CUfunction function, int offset, float value)
{
	return set_argument(function, offset, &value, sizeof(value));
}

API cuParamSetv(CUfunction function, int offset, void *value, unsigned int bytes)
{
	return set_argument(function, offset, value, bytes);
}

static CUresult launch_old(CUfunction handle, int width, int height, CUstream stream)
{
	struct launch launch = {.grid = SHAPE((unsigned)width, (unsigned)height, 1),
				.block = SHAPE(1, 1, 1)};
	size_t size = sizeof(((struct function *)0)->packed);
	void *extra[5] = {CU_LAUNCH_PARAM_BUFFER_POINTER, NULL, CU_LAUNCH_PARAM_BUFFER_SIZE, &size,
			  CU_LAUNCH_PARAM_END};
	CHECK_READY();
	struct function *function = function_of(handle);
	if (!function)
		return CUDA_ERROR_INVALID_HANDLE;
	for (int i = 0; i < 3; i++)
		launch.block[i] = (unsigned)function->block[i];
	launch.shared = (unsigned)function->shared;
	extra[1] = function->packed;
	launch.extra = extra;
	return submit(handle, &launch, stream, false);
}

API cuLaunch(CUfunction function)
{
	return launch_old(function, 1, 1, NULL);
}

API cuLaunchGrid(CUfunction function, int width, int height)
{
	return launch_old(function, width, height, NULL);
}

API cuLaunchGridAsync(CUfunction function, int width, int height, CUstream stream)
{
	return launch_old(function, width, height, stream);
}
