/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Modules, libraries, functions and their attributes.
 *
 * Images are not parsed: any name is a function, and any name is a global
 * variable of GLOBAL_SIZE zero bytes.  A CUkernel and a CUfunction are the same
 * object here; a library belongs to no context, its module is itself.
 */
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cuda_work.h"

#define GLOBAL_SIZE 4096

static struct module *module_of(const void *handle)
{
	return object_of(handle, OBJECT_MODULE);
}

static struct module *libraries;

CUresult module_charge(struct module *module, struct device *device)
{
	uint64_t bytes = driver.machine->knobs.module_overhead;
	if (!bytes || module->charged >> device->ordinal & 1)
		return CUDA_SUCCESS;
	if (sim_charge(device->number, driver.slot, bytes)) {
		pools_shrink(device);
		if (sim_charge(device->number, driver.slot, bytes))
			return CUDA_ERROR_OUT_OF_MEMORY;
	}
	module->charged |= 1u << device->ordinal;
	return CUDA_SUCCESS;
}

static void discharge(struct module *module, const struct device *device)
{
	if (module->charged >> device->ordinal & 1)
		sim_refund(device->number, driver.slot, driver.machine->knobs.module_overhead);
	module->charged &= ~(1u << device->ordinal);
}

void libraries_leave(struct device *device)
{
	for (struct module *library = libraries; library; library = library->next_library)
		discharge(library, device);
}

/* A module is loaded into the context, a library into whatever device uses it. */
static CUresult load(void **handle, const void *image, struct context *context, bool library)
{
	if (!handle || !image)
		return CUDA_ERROR_INVALID_VALUE;
	UNSAFE();
	struct module *module = object_new(OBJECT_MODULE, library ? NULL : context);
	if (!module)
		return CUDA_ERROR_OUT_OF_MEMORY;
	CUresult result = context ? module_charge(module, context->device) : CUDA_SUCCESS;
	if (result) {
		object_free(module);
		return result;
	}
	if (library) {
		module->library = true;
		module->next_library = libraries;
		libraries = module;
	}
	*handle = module;
	return CUDA_SUCCESS;
}

static CUresult load_module(CUmodule *module, const void *image)
{
	ENTER();
	CURRENT(context);
	return load((void **)module, image, context, false);
}

API cuModuleLoadData(CUmodule *module, const void *image)
{
	return load_module(module, image);
}

API cuModuleLoadDataEx(CUmodule *module, const void *image, unsigned int count,
		       CUjit_option *options, void **values)
{
	(void)count;
	(void)options;
	(void)values;
	return load_module(module, image);
}

API cuModuleLoadFatBinary(CUmodule *module, const void *image)
{
	return load_module(module, image);
}

API cuModuleLoad(CUmodule *module, const char *path)
{
	CHECK_READY();
	if (path && access(path, R_OK))
		return 301; /* file not found */
	return load_module(module, path);
}

void module_free(struct module *module)
{
	struct allocation found;
	for (int i = 0; i < driver.device_count; i++)
		discharge(module, &driver.devices[i]);
	for (struct module **place = &libraries; *place; place = &(*place)->next_library)
		if (*place == module) {
			*place = module->next_library;
			break;
		}
	for (int i = 0; i < module->count; i++) {
		free(module->functions[i]->name);
		object_free(module->functions[i]);
	}
	for (int i = 0; i < module->global_count; i++) {
		free(module->globals[i].name);
		if (find_allocation((uintptr_t)module->globals[i].pointer, &found))
			heap_free(&found);
	}
	free(module->functions);
	free(module->globals);
	object_free(module);
}

static CUresult unload(const void *handle, bool library)
{
	ENTER();
	struct module *module = module_of(handle);
	if (!module || module->library != library)
		return CUDA_ERROR_INVALID_HANDLE;
	module_free(module);
	return CUDA_SUCCESS;
}

API cuModuleUnload(CUmodule module)
{
	return unload(module, false);
}

API cuLibraryUnload(CUlibrary library)
{
	return unload(library, true);
}

API cuModuleGetLoadingMode(int *mode)
{
	CHECK_READY();
	if (!mode)
		return CUDA_ERROR_INVALID_VALUE;
	*mode = 2; /* lazy */
	return CUDA_SUCCESS;
}

static CUresult add_function(struct module *module, const char *name, struct function **made)
{
	if (module->count == module->room) {
		int room = module->room ? module->room * 2 : 8;
		void *grown = realloc(module->functions, (size_t)room * sizeof(*module->functions));
		if (!grown)
			return CUDA_ERROR_OUT_OF_MEMORY;
		module->functions = grown;
		module->room = room;
	}
	struct function *function = object_new(OBJECT_FUNCTION, NULL);
	char *copy = strdup(name);
	if (!function || !copy) {
		free(copy);
		if (function)
			object_free(function);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	function->name = copy;
	function->module = module;
	function->carveout = -1;
	kernel_resolve(function);
	module->functions[module->count++] = function;
	*made = function;
	return CUDA_SUCCESS;
}

static CUresult get_function(void **handle, const void *from, const char *name)
{
	struct function *function = NULL;
	ENTER();
	struct module *module = module_of(from);
	if (!module)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!handle || !name)
		return CUDA_ERROR_INVALID_VALUE;
	if (!*name)
		return CUDA_ERROR_NOT_FOUND;
	for (int i = 0; i < module->count && !function; i++)
		if (!strcmp(module->functions[i]->name, name))
			function = module->functions[i];
	if (!function)
		TRY(add_function(module, name, &function));
	*handle = function;
	return CUDA_SUCCESS;
}

API cuModuleGetFunction(CUfunction *function, CUmodule module, const char *name)
{
	return get_function((void **)function, module, name);
}

API cuLibraryGetKernel(CUkernel *kernel, CUlibrary library, const char *name)
{
	return get_function((void **)kernel, library, name);
}

static CUresult get_global(CUdeviceptr *pointer, size_t *bytes, const void *from, const char *name)
{
	struct allocation found;
	int i = 0;
	ENTER();
	CURRENT(context);
	struct module *module = module_of(from);
	if (!module)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!name || (!pointer && !bytes))
		return CUDA_ERROR_INVALID_VALUE;
	TRY(module_charge(module, context->device));
	while (i < module->global_count && strcmp(module->globals[i].name, name))
		i++;
	if (i == module->global_count) {
		void *grown = realloc(module->globals, (size_t)(i + 1) * sizeof(*module->globals));
		if (!grown)
			return CUDA_ERROR_OUT_OF_MEMORY;
		module->globals = grown;
		TRY(heap_alloc(context->heap, RANGE_DEVICE, GLOBAL_SIZE,
			       &module->globals[i].pointer));
		module->globals[i].name = strdup(name);
		module->global_count++;
	}
	if (pointer)
		*pointer = module->globals[i].pointer;
	if (bytes)
		*bytes = find_allocation((uintptr_t)module->globals[i].pointer, &found)
				 ? found.size
				 : GLOBAL_SIZE;
	return CUDA_SUCCESS;
}

API cuModuleGetGlobal_v2(CUdeviceptr *pointer, size_t *bytes, CUmodule module, const char *name)
{
	return get_global(pointer, bytes, module, name);
}

API cuLibraryGetGlobal(CUdeviceptr *pointer, size_t *bytes, CUlibrary library, const char *name)
{
	return get_global(pointer, bytes, library, name);
}

/* ---- libraries ---- */

API cuLibraryLoadData(CUlibrary *library, const void *code, CUjit_option *jit_options,
		      void **jit_values, unsigned jit_count, CUlibraryOption *options,
		      void **values, unsigned count)
{
	(void)jit_options;
	(void)jit_values;
	(void)jit_count;
	(void)options;
	(void)values;
	(void)count;
	struct context *context;
	ENTER();
	bool anywhere = context_current(&context) != CUDA_SUCCESS;
	return load((void **)library, code, anywhere ? NULL : context, true);
}

API cuLibraryLoadFromFile(CUlibrary *library, const char *path, CUjit_option *jit_options,
			  void **jit_values, unsigned jit_count, CUlibraryOption *options,
			  void **values, unsigned count)
{
	CHECK_READY();
	if (path && access(path, R_OK))
		return 301; /* file not found */
	return cuLibraryLoadData(library, path, jit_options, jit_values, jit_count, options, values,
				 count);
}

API cuLibraryGetModule(CUmodule *module, CUlibrary library)
{
	ENTER();
	if (!module_of(library))
		return CUDA_ERROR_INVALID_HANDLE;
	if (!module)
		return CUDA_ERROR_INVALID_VALUE;
	*module = (CUmodule)library;
	return CUDA_SUCCESS;
}

API cuLibraryGetKernelCount(unsigned int *count, CUlibrary library)
{
	ENTER();
	const struct module *module = module_of(library);
	if (!module)
		return CUDA_ERROR_INVALID_HANDLE;
	if (!count)
		return CUDA_ERROR_INVALID_VALUE;
	*count = (unsigned)module->count; /* those asked for so far */
	return CUDA_SUCCESS;
}

API cuModuleGetFunctionCount(unsigned int *count, CUmodule module)
{
	return cuLibraryGetKernelCount(count, (CUlibrary)module);
}
