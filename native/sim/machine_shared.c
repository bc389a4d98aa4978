/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What several processes hold: exported memory, pools, multicast objects, events.
 *
 * Its bytes lie in a file of their own beside the machine's, each thing at a
 * place that nothing else has, so that whoever can use the machine can map it,
 * in whatever container.  A thing is there while a process holds it or an open
 * file stands for it.  Such a file is a descriptor of the same file, of an
 * opening of its own: the place where it reads says which thing, and a lock on
 * one byte lasts until the kernel has seen its last copy closed, in any process
 * and in any message under way.
 *
 * A holder that is killed between two steps here leaves a thing whose owner does
 * not hold it; whoever next looks for the dead puts that right.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine_internal.h"

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif
#ifndef FALLOC_FL_KEEP_SIZE
#define FALLOC_FL_KEEP_SIZE 1
#define FALLOC_FL_PUNCH_HOLE 2
#endif

#define ALIGNMENT (2ULL << 20)
#define ROOM (1ULL << 43) /* bytes of the file, most of them never written */

static bool holds(const struct sim_shared *shared, int slot)
{
	return slot >= 0 && shared->holders[slot / 64] >> (slot % 64) & 1;
}

/* Unsure means open. */
static bool is_open(int number)
{
	struct flock lock = {
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = LOCK_OPEN + number, .l_len = 1};
	return fcntl(machine_memory_file(), F_OFD_GETLK, &lock) || lock.l_type != F_UNLCK;
}

/* ---- places in the file ---- */

static uint64_t end_of(const struct sim_shared *shared)
{
	return shared->offset + (shared->size + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
}

/* The lowest place that is free. */
static int find_place(uint64_t size, uint64_t *offset)
{
	uint64_t at = 0;
	for (uint32_t i = 0; i < machine->shared_top; i++) {
		const struct sim_shared *other = &machine->shared[i];
		if (other->kind != SIM_SHARED_MEMORY || other->offset >= at + size ||
		    end_of(other) <= at)
			continue;
		at = end_of(other);
		i = UINT32_MAX; /* from the beginning: those passed may be in the way now */
	}
	*offset = at;
	return size <= ROOM && at <= ROOM - size ? 0 : -1;
}

static int make_place(struct sim_shared *shared)
{
	struct stat status;
	int file = machine_memory_file();
	if (file < 0 || find_place(shared->size, &shared->offset) || fstat(file, &status))
		return -1;
	if ((uint64_t)status.st_size >= end_of(shared))
		return 0;
	return ftruncate(file, (off_t)end_of(shared));
}

/* The next to have the place finds it zero. */
static void clear_place(const struct sim_shared *shared)
{
	static const char zeros[65536];
	int file = machine_memory_file();
	if (!fallocate(file, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)shared->offset,
		       (off_t)shared->size))
		return;
	for (uint64_t at = 0; at < shared->size; at += sizeof(zeros))
		if (pwrite(file, zeros, sizeof(zeros), (off_t)(shared->offset + at)) < 0)
			return;
}

/* ---- who holds what ---- */

static void charge_to(struct sim_shared *shared, int owner)
{
	if (shared->device < machine->device_count) {
		struct sim_device *device = device_lock(shared->device);
		share_take(device, shared->owner, shared->size);
		shared->owner = owner;
		share_add(device, owner, shared->size);
		device_unlock(device);
	}
	shared->owner = owner;
}

static void end_shared(struct sim_shared *shared)
{
	if (shared->kind == SIM_SHARED_MEMORY)
		clear_place(shared);
	if (shared->device >= machine->device_count) {
		shared->kind = SIM_SHARED_NONE;
		return;
	}
	struct sim_device *device = device_lock(shared->device);
	share_take(device, shared->owner, shared->size);
	shared->kind = SIM_SHARED_NONE;
	device_unlock(device);
}

/* Its owner holds it no longer, perhaps. */
static void settle(int number)
{
	struct sim_shared *shared = &machine->shared[number];
	if (holds(shared, shared->owner))
		return;
	int heir = first_bit(shared->holders, 0);
	if (heir < 0 && !is_open(number))
		end_shared(shared);
	else if (heir != shared->owner)
		charge_to(shared, heir);
}

void shared_end(int slot)
{
	for (uint32_t i = 0; i < machine->shared_top; i++) {
		if (!machine->shared[i].kind || !holds(&machine->shared[i], slot))
			continue;
		clear_bit(machine->shared[i].holders, slot);
		settle((int)i);
	}
}

void shared_reclaim(void)
{
	for (uint32_t i = 0; i < machine->shared_top; i++)
		if (machine->shared[i].kind)
			settle((int)i);
}

/* ---- for the drivers ---- */

static int free_entry(void)
{
	for (uint32_t i = 0; i < machine->shared_top; i++)
		if (!machine->shared[i].kind)
			return (int)i;
	return machine->shared_top < SIM_SHARED ? (int)machine->shared_top : -1;
}

/* The charge goes from what the process has alone to the thing. */
static void take_charge(struct sim_shared *shared, uint32_t kind, int slot)
{
	if (shared->device >= machine->device_count) {
		shared->kind = kind;
		return;
	}
	struct sim_device *device = device_lock(shared->device);
	device->shares[slot].own -= shared->size;
	shared->kind = kind;
	device_unlock(device);
}

int sim_shared_make(int slot, const struct sim_shared *wanted)
{
	machine_lock();
	int number = free_entry();
	if (number >= 0) {
		struct sim_shared *shared = &machine->shared[number];
		uint64_t generation = shared->generation + 1;
		*shared = *wanted;
		shared->kind = SIM_SHARED_NONE;
		shared->generation = generation;
		shared->owner = slot;
		memset(shared->holders, 0, sizeof(shared->holders));
		set_bit(shared->holders, slot);
		if (wanted->kind == SIM_SHARED_MEMORY && make_place(shared)) {
			number = -1;
		} else {
			if ((uint32_t)number == machine->shared_top)
				machine->shared_top++;
			take_charge(shared, wanted->kind, slot);
		}
	}
	machine_unlock();
	return number;
}

int sim_shared_hold(int slot, int number, uint64_t generation)
{
	int result = -1;
	if (number < 0 || number >= SIM_SHARED)
		return -1;
	machine_lock();
	struct sim_shared *shared = &machine->shared[number];
	if (shared->kind && shared->generation == generation) {
		set_bit(shared->holders, slot);
		settle(number); /* it may have had no owner */
		result = 0;
	}
	machine_unlock();
	return result;
}

void sim_shared_drop(int slot, int number)
{
	machine_lock();
	clear_bit(machine->shared[number].holders, slot);
	settle(number);
	machine_unlock();
}

int sim_shared_open(int number)
{
	struct flock lock = {
		.l_type = F_RDLCK, .l_whence = SEEK_SET, .l_start = LOCK_OPEN + number, .l_len = 1};
	int descriptor = open(machine_memory_path(), O_RDONLY | O_CLOEXEC);
	if (descriptor < 0)
		return -1;
	if (fcntl(descriptor, F_OFD_SETLK, &lock) ||
	    lseek(descriptor, number, SEEK_SET) != number) {
		close(descriptor);
		return -1;
	}
	return descriptor;
}

int sim_shared_of(int descriptor)
{
	struct stat ours, theirs;
	int file = machine_memory_file();
	if (file < 0 || fstat(file, &ours) || fstat(descriptor, &theirs) ||
	    ours.st_dev != theirs.st_dev || ours.st_ino != theirs.st_ino)
		return -1;
	off_t number = lseek(descriptor, 0, SEEK_CUR);
	return number >= 0 && number < SIM_SHARED ? (int)number : -1;
}

int sim_shared_find(const uint64_t key[2])
{
	int found = -1;
	machine_lock();
	for (uint32_t i = 0; i < machine->shared_top && found < 0; i++)
		if (machine->shared[i].kind == SIM_SHARED_OUTSIDE &&
		    !memcmp(machine->shared[i].key, key, sizeof(machine->shared[i].key)))
			found = (int)i;
	machine_unlock();
	return found;
}

const struct sim_shared *sim_shared_entry(int number)
{
	return &machine->shared[number];
}

void sim_shared_note(int number, const void *note, uint64_t bytes)
{
	machine_lock();
	memcpy(machine->shared[number].note, note, bytes < SIM_NOTE ? bytes : SIM_NOTE);
	machine_unlock();
}

int sim_shared_file(void)
{
	return machine_memory_file();
}
