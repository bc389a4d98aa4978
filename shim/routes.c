/* SPDX-License-Identifier: Apache-2.0
 *
 * The third door: cuGetProcAddress.  The driver answers first, its pointer is
 * exchanged by address, and the code and the status stay its own.  That rests
 * on one thing: what the driver hands out for a name, a version and flags is
 * its export of that ABI.  It is so on every driver seen; the first lookup that
 * is for none of our functions asks for each line of the table and finds out.
 *
 * A line for which the driver hands out something else is a stray.  It is found
 * by name, version and flags from then on, which by the driver's own contract
 * determine the ABI, and one line on stderr says so.  Where an address is known
 * to be another function's, that function is the answer: newer versions of a
 * name may be none of ours.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <string.h>

#include "say.h"
#include "shim.h"

#define PER_THREAD CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM

/* How programs ask for each line; in place, for the loader to have nothing to do. */
static const struct question {
	char base[64];
	int since;
	uint32_t flags;
} questions[] = {
#define INTERCEPT(library, symbol, base, since, flags, verb) {base, since, flags},
#include "intercepts.def"
#undef INTERCEPT
};

/* By line: what the driver handed out, if that is no export of the table. */
static void *strays[VGPU_LINES];
/* By line: a stray that is not exported at all. */
static uint8_t only_by_pointer[VGPU_LINES];

static enum { NOT_PROBED, NO_STRAYS, STRAYS } probed;

/* ---- the probe ------------------------------------------------------------------------- */

static void *ask(const struct driver *driver, const struct question *question)
{
	CUdriverProcAddressQueryResult status;
	void *function = NULL;
	CUresult rc;

	rc = driver->real.cuGetProcAddress_v2(question->base, &function, question->since,
					      question->flags, &status);
	if (rc == CUDA_ERROR_NOT_SUPPORTED) /* a driver from before CUDA 12 */
		rc = driver->real.cuGetProcAddress(question->base, &function, question->since,
						   question->flags);
	return rc ? NULL : function;
}

/* Once, and to nobody who has no limits. */
static void report(int first, int count)
{
	const char *more = count > 1 ? " and others" : "";
	const char *texts[] = {"this driver's cuGetProcAddress does not hand out its export of ",
			       vgpu_intercepts[first].name, more,
			       "; limits hold, but tell the maintainers the driver's version",
			       NULL};
	static int is_said;

	if (vgpu_tenant()->ledger && !__atomic_exchange_n(&is_said, 1, __ATOMIC_RELAXED))
		vgpu_say(texts);
}

/* Threads that come first together all find the same. */
static int probe(const struct driver *driver)
{
	int count = 0, first = 0;

	for (int i = VGPU_LINES - 1; i >= 0; i--) {
		const struct intercept *line = &vgpu_intercepts[i];
		void *found = questions[i].base[0] ? ask(driver, &questions[i]) : NULL;

		/* Another line's export is an ABI that we have, too. */
		if (!found || vgpu_intercept_at(driver, found))
			continue;
		count++;
		first = i;
		if (!vgpu_driver_has(driver, line)) {
			__atomic_store_n(&only_by_pointer[i], 1, __ATOMIC_RELEASE);
			vgpu_driver_learn(driver, line, found);
		}
		__atomic_store_n(&strays[i], found, __ATOMIC_RELAXED);
	}
	__atomic_store_n(&probed, count ? STRAYS : NO_STRAYS, __ATOMIC_RELEASE);
	if (count)
		report(first, count);
	return count;
}

static int has_strays(const struct driver *driver)
{
	int state = (int)__atomic_load_n(&probed, __ATOMIC_ACQUIRE);

	return unlikely(state == NOT_PROBED) ? probe(driver) : state == STRAYS;
}

int vgpu_is_exported(const struct driver *driver, const struct intercept *line)
{
	return vgpu_driver_has(driver, line) &&
	       !__atomic_load_n(&only_by_pointer[line - vgpu_intercepts], __ATOMIC_ACQUIRE);
}

/* ---- the exchange ---------------------------------------------------------------------- */

/* The line of the ABI that the contract names; -1: none of ours. */
static int line_for(const char *symbol, int version, uint64_t flags)
{
	uint32_t twin = 0;
	int best = -1;

	for (int i = 0; i < VGPU_LINES && flags & PER_THREAD; i++)
		if (!strcmp(questions[i].base, symbol))
			twin |= questions[i].flags & PER_THREAD;
	for (int i = 0; i < VGPU_LINES; i++)
		if (questions[i].flags == twin && questions[i].since <= version &&
		    !strcmp(questions[i].base, symbol) &&
		    (best < 0 || questions[i].since > questions[best].since))
			best = i;
	return best;
}

static int is_another_function(const void *address, const char *name)
{
	Dl_info info;

	return dladdr(address, &info) && info.dli_sname && info.dli_saddr == address &&
	       strcmp(info.dli_sname, name) != 0;
}

static const struct intercept *stray(const char *symbol, const void *address, int version,
				     uint64_t flags)
{
	int i = line_for(symbol, version, flags);
	const void *known = i < 0 ? NULL : __atomic_load_n(&strays[i], __ATOMIC_RELAXED);

	if (!known)
		return NULL;
	return known == address || !is_another_function(address, vgpu_intercepts[i].name)
		       ? &vgpu_intercepts[i]
		       : NULL;
}

static void *exchange(const struct driver *driver, void *address, const char *symbol, int version,
		      uint64_t flags)
{
	const struct intercept *line = vgpu_intercept_at(driver, address);

	if (!line && unlikely(has_strays(driver)))
		line = stray(symbol, address, version, flags);
	return line ? line->body : address;
}

CUresult cuGetProcAddress(const char *symbol, void **function, int version, uint64_t flags)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	CUresult rc = driver->real.cuGetProcAddress(symbol, function, version, flags);

	if (rc == CUDA_SUCCESS && function && *function)
		*function = exchange(driver, *function, symbol, version, flags);
	return rc;
}

CUresult cuGetProcAddress_v2(const char *symbol, void **function, int version, uint64_t flags,
			     CUdriverProcAddressQueryResult *status)
{
	const struct driver *driver = vgpu_driver(LIBRARY_CUDA);
	CUresult rc = driver->real.cuGetProcAddress_v2(symbol, function, version, flags, status);

	if (rc == CUDA_SUCCESS && function && *function)
		*function = exchange(driver, *function, symbol, version, flags);
	return rc;
}
