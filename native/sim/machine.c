/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Finding the simulated machine, mapping it, and its locks.
 *
 * The machine is the file named by VGPU_SIM_FILE, or else `machine` in the
 * folder from which this library was loaded: a folder with the two libraries
 * and that file *is* a driver, and works in an empty environment too.
 *
 * The file comes from Python with its mutable part zero.  The first to attach
 * prepares it, under a file lock that the kernel takes back if it dies there.
 * A file that outlives a reboot is prepared again: its clock has restarted.
 *
 * Beside it lies a second file, with `.shared` after its name: memory that
 * several processes use (machine_shared.c).
 *
 * Robust mutexes, not file locks, guard the rest: they cost nanoseconds, work
 * across containers (the kernel, not a process number, notices a dead holder),
 * and the next holder repairs what was half done.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "machine_internal.h"

#ifndef F_OFD_SETLKW
#define F_OFD_SETLKW 38
#endif

_Static_assert(sizeof(pthread_mutex_t) <= sizeof(uint64_t[8]), "a mutex fits its place");

struct sim_machine *machine;

static pthread_mutex_t attaching = PTHREAD_MUTEX_INITIALIZER;
static char path[4096];
static int file = -1;
static int memory_file = -1;

uint64_t sim_now(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void find_path(void)
{
	const char *named = getenv("VGPU_SIM_FILE");
	Dl_info self;
	if (named && *named) {
		snprintf(path, sizeof(path), "%s", named);
		return;
	}
	const char *loaded = dladdr((void *)find_path, &self) ? self.dli_fname : "";
	const char *slash = strrchr(loaded, '/');
	int folder = slash ? (int)(slash - loaded) : 1;
	snprintf(path, sizeof(path), "%.*s/machine", folder, slash ? loaded : ".");
}

static void complain(const char *reason)
{
	static int said;
	if (__atomic_exchange_n(&said, 1, __ATOMIC_RELAXED))
		return;
	dprintf(2,
		"simulated GPU: no machine at %s (%s); start the program with `vgpu run --sim h200 "
		"-- ...`, or let VGPU_SIM_FILE name a machine file\n",
		path, reason);
}

/* Another reboot, another number; never 0. */
static uint64_t boot_hash(void)
{
	char id[64] = "";
	int boot = open("/proc/sys/kernel/random/boot_id", O_RDONLY | O_CLOEXEC);
	if (boot >= 0) {
		ssize_t got = read(boot, id, sizeof(id) - 1);
		id[got > 0 ? got : 0] = 0;
		close(boot);
	}
	uint64_t hash = 14695981039346656037u;
	for (const char *c = id; *c; c++)
		hash = (hash ^ (uint8_t)*c) * 1099511628211u;
	return hash | 1;
}

static void make_mutex(uint64_t *place)
{
	pthread_mutexattr_t attributes;
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST);
	memset(place, 0, sizeof(uint64_t[8]));
	pthread_mutex_init((pthread_mutex_t *)place, &attributes);
	pthread_mutexattr_destroy(&attributes);
}

/* Prepare the mutable part if nobody has since the last boot. */
static void prepare(struct sim_machine *m)
{
	uint64_t boot = boot_hash();
	struct flock whole = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_START, .l_len = 1};
	if (__atomic_load_n(&m->boot, __ATOMIC_ACQUIRE) == boot)
		return;
	while (fcntl(file, F_OFD_SETLKW, &whole) < 0 && errno == EINTR)
		;
	if (__atomic_load_n(&m->boot, __ATOMIC_ACQUIRE) != boot) {
		struct timespec wall;
		if (m->boot)
			memset(m->processes, 0, sizeof(m->processes));
		memset(m->shared, 0, sizeof(m->shared));
		m->shared_top = 0;
		machine_memory_empty();
		memset(m->live, 0, sizeof(m->live));
		make_mutex(m->lock);
		for (uint32_t i = 0; i < m->device_count; i++) {
			struct sim_device *device = &m->devices[i];
			size_t constant = sizeof(device->identity);
			if (m->boot)
				memset((char *)device + constant, 0, sizeof(*device) - constant);
			make_mutex(device->lock);
			device->timeline.last_ns = sim_now();
		}
		clock_gettime(CLOCK_REALTIME, &wall);
		m->wall_offset_ns =
			(int64_t)wall.tv_sec * 1000000000 + wall.tv_nsec - (int64_t)sim_now();
		__atomic_store_n(&m->boot, boot, __ATOMIC_RELEASE);
	}
	whole.l_type = F_UNLCK;
	fcntl(file, F_OFD_SETLKW, &whole);
}

static struct sim_machine *map_file(void)
{
	struct stat status;
	find_path();
	file = open(path, O_RDWR | O_CLOEXEC);
	if (file < 0) {
		complain(strerror(errno));
		return NULL;
	}
	if (fstat(file, &status) || (uint64_t)status.st_size < sizeof(struct sim_machine)) {
		complain("the file is too short");
	} else {
		struct sim_machine *m =
			mmap(NULL, sizeof(*m), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
		if (m == MAP_FAILED)
			complain(strerror(errno));
		else if (m->magic == SIM_MAGIC && m->abi == SIM_ABI && m->size == sizeof(*m) &&
			 m->device_count <= SIM_DEVICES)
			return m;
		else
			complain("not a machine file, or one of another version");
		if (m != MAP_FAILED)
			munmap(m, sizeof(*m));
	}
	close(file);
	file = -1;
	return NULL;
}

struct sim_machine *sim_attach(void)
{
	struct sim_machine *m = __atomic_load_n(&machine, __ATOMIC_ACQUIRE);
	if (m)
		return m;
	pthread_mutex_lock(&attaching);
	if (!machine) {
		m = map_file();
		if (m)
			prepare(m);
		__atomic_store_n(&machine, m, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&attaching);
	return machine;
}

/* The file stays open for good: closing any of a process's descriptors of it
 * would drop the process's locks on it. */
int machine_file(void)
{
	if (file < 0)
		file = open(path, O_RDWR | O_CLOEXEC);
	return file;
}

void machine_reopen(void)
{
	if (file >= 0)
		close(file);
	file = -1;
}

const char *machine_memory_path(void)
{
	static char memory_path[sizeof(path) + 8];
	if (!*memory_path)
		snprintf(memory_path, sizeof(memory_path), "%s.shared", path);
	return memory_path;
}

/* Another file than the machine's: clients close descriptors of this one, which
 * must not cost a process its locks on that one.  It is never made here: where a
 * container has only the machine's file, one of its own would be shared with
 * nobody. */
int machine_memory_file(void)
{
	int found = __atomic_load_n(&memory_file, __ATOMIC_ACQUIRE);
	if (found >= 0)
		return found;
	pthread_mutex_lock(&attaching);
	if (memory_file < 0) {
		found = open(machine_memory_path(), O_RDWR | O_CLOEXEC);
		__atomic_store_n(&memory_file, found, __ATOMIC_RELEASE);
	}
	pthread_mutex_unlock(&attaching);
	return memory_file;
}

void machine_memory_empty(void)
{
	int old = open(machine_memory_path(), O_RDWR | O_CLOEXEC);
	if (old < 0)
		return;
	if (ftruncate(old, 0))
		complain(strerror(errno));
	close(old);
}

/* True when the holder died with it. */
static bool take(uint64_t *lock)
{
	if (pthread_mutex_lock((pthread_mutex_t *)lock) != EOWNERDEAD)
		return false;
	pthread_mutex_consistent((pthread_mutex_t *)lock);
	return true;
}

void machine_lock(void)
{
	if (!take(machine->lock))
		return;
	memset(machine->live, 0, sizeof(machine->live));
	for (int slot = 0; slot < SIM_PROCESSES; slot++)
		if (machine->processes[slot].state == SIM_PROCESS_LIVE)
			set_bit(machine->live, slot);
}

void machine_unlock(void)
{
	pthread_mutex_unlock((pthread_mutex_t *)machine->lock);
}

struct sim_device *device_lock(uint32_t number)
{
	struct sim_device *device = &machine->devices[number];
	if (take(device->lock)) {
		memory_repair(device);
		timeline_repair(device);
	}
	timeline_advance(device, sim_now());
	return device;
}

void device_unlock(struct sim_device *device)
{
	pthread_mutex_unlock((pthread_mutex_t *)device->lock);
}
