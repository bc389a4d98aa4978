/* SPDX-License-Identifier: Apache-2.0
 *
 * The driver's own functions, found once for each library and published with
 * one store.  Threads that come at the same time each find them and all but
 * one throw their result away: a lock held over dl* calls could deadlock with
 * a thread that looks symbols up inside a constructor.
 *
 * The library that counts is the one that the program has loaded itself,
 * wherever from; only a program that reaches us by linking, without any, makes
 * us load one.  RTLD_DEEPBIND then keeps a library that calls itself through
 * symbols from reaching our exports; sanitizers forbid it, and for them, and
 * for a library that somebody else loaded, nvml.c counts how deep it is.
 *
 * A table has no holes: a function that the driver lacks is one that says so,
 * so that nothing checks for NULL on a program's path.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>
#include <sys/mman.h>

#include "shim.h"
#include "symbols.h"

static const char *const sonames[LIBRARIES] = {"libcuda.so.1", "libnvidia-ml.so.1"};

/* Every function that we call, by name and place. */
static const struct place {
	const char *name;
	uint8_t library;
	uint16_t offset;
} places[] = {
#define INTERCEPT(library, symbol, base, since, flags, verb)                                       \
	{#symbol, LIBRARY_##library, offsetof(struct driver, real.symbol)},
#include "intercepts.def"
#undef INTERCEPT
#define USE(library, symbol) {#symbol, LIBRARY_##library, offsetof(struct driver, used.symbol)},
#include "used.def"
#undef USE
};
#define PLACES ((int)(sizeof(places) / sizeof(places[0])))

const struct intercept vgpu_intercepts[VGPU_LINES] = {
#define INTERCEPT(library, symbol, base, since, flags, verb)                                       \
	{#symbol, LIBRARY_##library, offsetof(struct driver, real.symbol), (void *)&symbol},
#include "intercepts.def"
#undef INTERCEPT
};

const struct driver *vgpu_drivers[LIBRARIES];

/* ---- what stands where the driver has nothing ------------------------------------- */

/* Called in place of functions of any parameters: they all return an int, and
 * the caller clears the stack. */
static int no_function_cuda(void)
{
	return CUDA_ERROR_NOT_SUPPORTED;
}

static int no_function_nvml(void)
{
	return NVML_ERROR_FUNCTION_NOT_FOUND;
}

static int no_library_cuda(void)
{
	return CUDA_ERROR_NO_DEVICE;
}

static int no_library_nvml(void)
{
	return NVML_ERROR_LIBRARY_NOT_FOUND;
}

typedef int (*answer)(void);
static const answer no_function[LIBRARIES] = {no_function_cuda, no_function_nvml};
static const answer no_library[LIBRARIES] = {no_library_cuda, no_library_nvml};

static void **slot(struct driver *driver, uint16_t offset)
{
	return (void **)((char *)driver + offset);
}

/* ---- finding ------------------------------------------------------------------------ */

static void *find(void *handle, const struct loaded_file *file, const char *name)
{
	void *found = vgpu_next_dlsym(handle, name);

	/* A handle of the program's may search more files than the driver's. */
	return found && (!file || vgpu_is_in(file, found)) ? found : NULL;
}

static void fill(struct driver *driver, enum library library, void *handle,
		 const struct loaded_file *file)
{
	for (int i = 0; i < PLACES; i++) {
		void *found;

		if (places[i].library != library)
			continue;
		found = find(handle, file, places[i].name);
		*slot(driver, places[i].offset) = found ? found : (void *)no_function[library];
	}
	/* Some early 535 drivers have longer entries in `_v3` lists; clients tell
	 * them by these two names, so we do. */
	driver->nvml_process_v3_size = sizeof(nvmlProcessInfo_v2_t);
	if (library == LIBRARY_NVML && find(handle, file, "nvmlDeviceGetConfComputeMemSizeInfo") &&
	    !find(handle, file, "nvmlDeviceGetRunningProcessDetailList"))
		driver->nvml_process_v3_size = sizeof(nvmlProcessDetail_v1_t);
	vgpu_index_addresses(driver);
	dlerror(); /* a name not found is nothing that the program asked for */
}

static const struct driver *adopt(enum library library, void *handle,
				  const struct loaded_file *file)
{
	const struct driver *earlier = NULL;
	struct driver *driver = mmap(NULL, sizeof(*driver), PROT_READ | PROT_WRITE,
				     MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (driver == MAP_FAILED)
		return NULL;
	fill(driver, library, handle, file);
	if (__atomic_compare_exchange_n(&vgpu_drivers[library], &earlier, driver, 0,
					__ATOMIC_RELEASE, __ATOMIC_ACQUIRE))
		return driver;
	munmap(driver, sizeof(*driver));
	return earlier;
}

const struct driver *vgpu_driver_adopt(enum library library, void *handle,
				       const struct loaded_file *file)
{
	const struct driver *driver = __atomic_load_n(&vgpu_drivers[library], __ATOMIC_ACQUIRE);

	return driver ? driver : adopt(library, handle, file);
}

static int in_sanitizer(void)
{
	int found = vgpu_next_dlsym(RTLD_DEFAULT, "__asan_init") ||
		    vgpu_next_dlsym(RTLD_DEFAULT, "__tsan_init");

	dlerror();
	return found;
}

static const struct driver *open_library(enum library library, int only_loaded)
{
	const struct driver *driver = __atomic_load_n(&vgpu_drivers[library], __ATOMIC_ACQUIRE);
	void *handle;

	if (driver)
		return driver;
	vgpu_lookups_begin();
	handle = dlopen(sonames[library], RTLD_NOW | RTLD_NOLOAD);
	if (!handle && !only_loaded)
		handle = dlopen(sonames[library],
				RTLD_NOW | RTLD_LOCAL | (in_sanitizer() ? 0 : RTLD_DEEPBIND));
	if (handle)
		driver = adopt(library, handle, NULL); /* never closed: its functions stay in use */
	else
		dlerror();
	vgpu_lookups_end();
	return driver;
}

const struct driver *vgpu_driver_loaded(enum library library)
{
	return open_library(library, 1);
}

/* Not published: the program may still load a driver. */
static const struct driver *driverless(void)
{
	static struct driver none;

	for (int i = 0; i < PLACES; i++)
		__atomic_store_n(slot(&none, places[i].offset),
				 (void *)no_library[places[i].library], __ATOMIC_RELAXED);
	return &none;
}

const struct driver *vgpu_driver_open(enum library library)
{
	const struct driver *driver = open_library(library, 0);

	return driver ? driver : driverless();
}

void *vgpu_driver_has(const struct driver *driver, const struct intercept *intercept)
{
	void *real = *slot((struct driver *)driver, intercept->offset);

	return real == (void *)no_function[intercept->library] ? NULL : real;
}

void vgpu_driver_learn(const struct driver *driver, const struct intercept *intercept,
		       void *function)
{
	__atomic_store_n(slot((struct driver *)driver, intercept->offset), function,
			 __ATOMIC_RELEASE);
}
