/* SPDX-License-Identifier: Apache-2.0
 *
 * Lines of intercepts.def by name, for dlsym, and by the address of the real
 * function, for cuGetProcAddress: a program asks for some hundred to two
 * thousand functions when it starts, most of them none of ours.
 *
 * Both are hash tables with open addressing whose slots hold the number of a
 * line plus one.  The one by name is needed before anything is set up, in any
 * thread and any context, and has to be filled without a lock.  Threads that
 * come first together each fill it: a line goes into the first slot that holds
 * no earlier line, so that all of them write the same number into the same
 * slot, whatever they see of each other.  The one by address is a driver's own,
 * filled before the driver is published.
 */
#include "shim.h"

#define NOT_INSTRUMENTED __attribute__((no_sanitize("address", "thread", "undefined")))

#define NAME_SLOTS 1024
#define ADDRESS_SLOTS (sizeof(((struct driver *)0)->by_address) / sizeof(uint16_t))

/* Sparse enough for one or two looks; a name that is none of ours mostly needs one. */
_Static_assert(VGPU_LINES * 2 <= NAME_SLOTS && VGPU_LINES * 2 <= ADDRESS_SLOTS,
	       "make the tables larger");

static uint16_t by_name[NAME_SLOTS];
static int has_names;

/* ---- by name --------------------------------------------------------------------------- */

/* FNV-1a. */
NOT_INSTRUMENTED static uint32_t hash_of(const char *name)
{
	uint32_t hash = 2166136261u;

	for (; *name; name++)
		hash = (hash ^ (uint8_t)*name) * 16777619u;
	return hash ^ hash >> 15;
}

NOT_INSTRUMENTED static void index_names(void)
{
	for (int i = 0; i < VGPU_LINES; i++) {
		uint32_t slot = hash_of(vgpu_intercepts[i].name) % NAME_SLOTS;
		int held = __atomic_load_n(&by_name[slot], __ATOMIC_RELAXED);

		while (held && held <= i) {
			slot = (slot + 1) % NAME_SLOTS;
			held = __atomic_load_n(&by_name[slot], __ATOMIC_RELAXED);
		}
		__atomic_store_n(&by_name[slot], (uint16_t)(i + 1), __ATOMIC_RELAXED);
	}
	__atomic_store_n(&has_names, 1, __ATOMIC_RELEASE);
}

NOT_INSTRUMENTED static int is_same(const char *one, const char *other)
{
	while (*one && *one == *other) {
		one++;
		other++;
	}
	return *one == *other;
}

NOT_INSTRUMENTED const struct intercept *vgpu_intercept_named(const char *name)
{
	uint32_t slot = hash_of(name) % NAME_SLOTS;
	int held;

	if (unlikely(!__atomic_load_n(&has_names, __ATOMIC_ACQUIRE)))
		index_names();
	for (;; slot = (slot + 1) % NAME_SLOTS) {
		held = __atomic_load_n(&by_name[slot], __ATOMIC_RELAXED);
		if (!held)
			return NULL;
		if (is_same(vgpu_intercepts[held - 1].name, name))
			return &vgpu_intercepts[held - 1];
	}
}

/* ---- by address -------------------------------------------------------------------------- */

static size_t slot_of(const void *address)
{
	uint64_t spread = (uint64_t)(uintptr_t)address * 0x9e3779b97f4a7c15u;

	return (size_t)(spread >> 32) % ADDRESS_SLOTS;
}

void vgpu_index_addresses(struct driver *driver)
{
	for (int i = 0; i < VGPU_LINES; i++) {
		void *real = vgpu_driver_has(driver, &vgpu_intercepts[i]);
		size_t slot = slot_of(real);

		if (!real || vgpu_intercepts[i].library != LIBRARY_CUDA)
			continue;
		while (driver->by_address[slot])
			slot = (slot + 1) % ADDRESS_SLOTS;
		driver->by_address[slot] = (uint16_t)(i + 1);
	}
}

const struct intercept *vgpu_intercept_at(const struct driver *driver, const void *address)
{
	size_t slot = slot_of(address);

	for (; driver->by_address[slot]; slot = (slot + 1) % ADDRESS_SLOTS) {
		const struct intercept *line = &vgpu_intercepts[driver->by_address[slot] - 1];

		if (vgpu_driver_has(driver, line) == address)
			return line;
	}
	return NULL;
}
