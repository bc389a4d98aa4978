/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the shim share.  Two things are global: the driver's own
 * functions (driver.c) and the tenant that this process runs in (tenant.c).
 * What belongs to one process, and must not be seen by a child after fork, is
 * `struct process` (process.h).
 *
 * Rules for every function of the shim: it never ends the process, never
 * writes to stdout, and holds no lock while it calls the driver or sleeps.
 */
#ifndef VGPU_SHIM_H
#define VGPU_SHIM_H

#include <stddef.h>
#include <stdint.h>

#pragma GCC visibility push(default)
#include "cuda.h"
#include "nvml.h"
#include "vgpu.h"
#pragma GCC visibility pop
#include "abi.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

static inline uint64_t lesser(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* What a tenant whose files cannot be used gets to hear: codes that the
 * vendor documents for "the system is not set up for this". */
#define FAULTY_CUDA ((CUresult)802) /* CUDA_ERROR_SYSTEM_NOT_READY */
#define FAULTY_NVML NVML_ERROR_NO_PERMISSION

/* ---- driver.c: the driver's own functions ---------------------------------- */

enum library { LIBRARY_CUDA, LIBRARY_NVML, LIBRARIES };

struct driver {
	struct {
#define INTERCEPT(library, symbol, base, since, flags, verb) __typeof__(&symbol) symbol;
#include "intercepts.def"
#undef INTERCEPT
	} real;
	struct {
#define USE(library, symbol) __typeof__(&symbol) symbol;
#include "used.def"
#undef USE
	} used;
	int nvml_process_v3_size;  /* bytes of an entry of the `_v3` process lists */
	uint16_t by_address[1024]; /* lines of intercepts.def by a hash of the real function */
};

/* How many lines intercepts.def has. */
enum {
	VGPU_LINES = 0
#define INTERCEPT(library, symbol, base, since, flags, verb) +1
#include "intercepts.def"
#undef INTERCEPT
};

/* One line of intercepts.def. */
struct intercept {
	const char *name;
	uint8_t library;
	uint16_t offset; /* of the real function in struct driver */
	void *body;      /* our function */
};

extern const struct intercept vgpu_intercepts[VGPU_LINES];
extern const struct driver *vgpu_drivers[LIBRARIES];

struct loaded_file;

/* The driver's library, loaded if need be.  Never NULL: without a driver, a
 * table whose functions say so. */
const struct driver *vgpu_driver_open(enum library library);
/* Only if this process has loaded it already; NULL otherwise. */
const struct driver *vgpu_driver_loaded(enum library library);
/* Take `handle`, through which the program reaches `file`. */
const struct driver *vgpu_driver_adopt(enum library library, void *handle,
				       const struct loaded_file *file);
/* The driver's function behind an intercept; NULL when the driver has none. */
void *vgpu_driver_has(const struct driver *driver, const struct intercept *intercept);
/* It has none that is exported, but this one. */
void vgpu_driver_learn(const struct driver *driver, const struct intercept *intercept,
		       void *function);

static inline const struct driver *vgpu_driver(enum library library)
{
	const struct driver *driver = __atomic_load_n(&vgpu_drivers[library], __ATOMIC_ACQUIRE);

	return likely(driver) ? driver : vgpu_driver_open(library);
}

/* ---- index.c: lines of the table by name and by address ------------------------- */

const struct intercept *vgpu_intercept_named(const char *name);
/* To be asked once the table of a driver's real functions is complete. */
void vgpu_index_addresses(struct driver *driver);
const struct intercept *vgpu_intercept_at(const struct driver *driver, const void *address);

/* ---- routes.c: cuGetProcAddress -------------------------------------------------- */

/* Whether the driver exports a function; some may be had by cuGetProcAddress alone. */
int vgpu_is_exported(const struct driver *driver, const struct intercept *line);

/* ---- doors.c ------------------------------------------------------------------ */

/* The `dlsym` after ours. */
void *vgpu_next_dlsym(void *handle, const char *name);
/* The function in a handle's namespace, when that is not the program's: of a
 * copy of us there, or the driver's.  NULL: no such namespace or function. */
void *vgpu_in_other_namespace(void *handle, const char *name);
/* Lookups between these two calls are our own and see the driver as it is. */
void vgpu_lookups_begin(void);
void vgpu_lookups_end(void);

/* ---- tenant.c: the tenant that this process runs in ------------------------------ */

struct tenant {
	const struct vgpu_grant *grant; /* never NULL; of nobody when there is no tenant */
	struct vgpu_ledger *ledger;     /* NULL: not a tenant, or faulty */
	int is_faulty;                  /* its files cannot be used: fail closed */
	uint64_t watched; /* sequence of the grant << 1 | a slice has a compute limit */
};

extern struct tenant *vgpu_the_tenant;
struct tenant *vgpu_tenant_open(void);
uint64_t vgpu_tenant_watch(struct tenant *tenant);

static inline struct tenant *vgpu_tenant(void)
{
	struct tenant *tenant = __atomic_load_n(&vgpu_the_tenant, __ATOMIC_ACQUIRE);

	return likely(tenant) ? tenant : vgpu_tenant_open();
}

/* Whether launches have to be looked at: some slice has a compute limit, or
 * the tenant is faulty. */
static inline int vgpu_is_metered(struct tenant *tenant)
{
	uint64_t watched = __atomic_load_n(&tenant->watched, __ATOMIC_RELAXED);
	uint32_t sequence = __atomic_load_n(&tenant->grant->sequence, __ATOMIC_RELAXED);

	if (unlikely(watched >> 1 != sequence))
		watched = vgpu_tenant_watch(tenant);
	return watched & 1;
}

/* ---- devices.c: which slice a device is -------------------------------------------- */

#define SLICE_NOT_GRANTED (-1) /* a visible device that the grant does not name */
#define SLICE_UNKNOWN (-2)     /* no such device, or the driver is not set up yet */
#define SLICE_NONE (-3)        /* no device's memory: not charged */

struct process;

int vgpu_slice_of_device(const struct driver *driver, const struct tenant *tenant,
			 struct process *process, CUdevice device);
/* Slice of the device that a location names; SLICE_NONE: it is the host's. */
int vgpu_slice_of_location(const struct driver *driver, const struct tenant *tenant,
			   struct process *process, const CUmemLocation *location);
/* CUDA's number of a slice's device, or -1. */
int vgpu_device_of_slice(const struct process *process, int slice);
/* Slice of the calling thread's current context. */
int vgpu_current_slice(const struct driver *driver, const struct tenant *tenant,
		       struct process *process);
/* Device on which work of a stream runs; 0, or -1 when the driver cannot say. */
int vgpu_stream_device(const struct driver *driver, CUstream stream, int per_thread,
		       CUdevice *device);
/* Slice on which work of a stream runs. */
int vgpu_stream_slice(const struct driver *driver, const struct tenant *tenant,
		      struct process *process, CUstream stream, int per_thread);
CUcontext vgpu_stream_context(const struct driver *driver, CUstream stream, int per_thread);
/* 16 bytes from "GPU-" or "MIG-" and 8-4-4-4-12 hexadecimal digits; 0 or -1. */
int vgpu_parse_uuid(const char *text, uint8_t *device);

/* ---- view.c: what the tenant is told ------------------------------------------------ */

struct view {
	uint64_t total, free, used;
	int is_limited; /* 0: the device is shown as it is */
};

/* The view of a slice of a device that has `total` bytes, `free` of them free. */
struct view vgpu_view(struct tenant *tenant, int slice, uint64_t total, uint64_t free);

/* ---- nvml.c ------------------------------------------------------------------------------- */

/* Between these two calls of ours NVML's calls of itself are let through. */
void vgpu_nvml_enter(void);
void vgpu_nvml_leave(void);

/* ---- clocks --------------------------------------------------------------------------- */

uint64_t vgpu_now_ns(void);
uint64_t vgpu_coarse_now_ns(void); /* cheap; steps of 1 to 10 ms */

#endif
