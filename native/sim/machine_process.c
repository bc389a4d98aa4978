/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The process table: who uses the machine, who is alive, and what each holds.
 *
 * A live process holds two file locks for its slot.  One belongs to its open
 * file: it lasts until the process ends, whatever ends it, and no other
 * container's process numbers are needed to ask for it.  The other belongs to
 * the process, so that asking for it yields the process's number in the asker's
 * own pid namespace.  (One alone will not do: the first kind names nobody, the
 * second is lost when any descriptor of the file is closed.)
 *
 * A dead process's memory is taken back by whoever next asks for memory or
 * looks at the list.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "machine_internal.h"

#ifndef F_OFD_GETLK
#define F_OFD_GETLK 36
#define F_OFD_SETLK 37
#endif

static int own_slot = -1; /* our own locks do not show when we ask */

static int lock_byte(int command, long long start, int slot, struct flock *lock)
{
	*lock = (struct flock){
		.l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = start + slot, .l_len = 1};
	return fcntl(machine_file(), command, lock);
}

/* Unsure means alive: memory is never taken from the living. */
bool process_is_dead(int slot)
{
	struct flock lock;
	if (slot == own_slot)
		return false;
	return !lock_byte(F_OFD_GETLK, LOCK_ALIVE, slot, &lock) && lock.l_type == F_UNLCK;
}

static uint64_t pid_namespace(void)
{
	struct stat status;
	return stat("/proc/self/ns/pid", &status) ? 0 : (uint64_t)status.st_ino;
}

static uint64_t start_ticks(void)
{
	char text[1024] = "";
	int stat_file = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
	if (stat_file < 0)
		return 0;
	ssize_t got = read(stat_file, text, sizeof(text) - 1);
	close(stat_file);
	text[got > 0 ? got : 0] = 0;
	/* The command, field 2, may hold anything: count from its last bracket. */
	const char *field = strrchr(text, ')');
	for (int i = 2; field && i < 22; i++)
		field = strchr(field + 1, ' ');
	return field ? strtoull(field, NULL, 10) : 0;
}

/* What a share keeps is dropped, but its counters stay.  Machine lock held. */
static void end_slot(int slot)
{
	shared_end(slot);
	for (uint32_t i = 0; i < machine->device_count; i++) {
		struct sim_share *share = &machine->devices[i].shares[slot];
		if (!share->peak && !share->queued_ns)
			continue;
		struct sim_device *device = device_lock(i);
		timeline_drop(device, slot);
		share_take(device, slot, share->own);
		share->own = 0;
		share->contexts = 0;
		device_unlock(device);
	}
	machine->processes[slot].end_ns = sim_now();
	machine->processes[slot].state = SIM_PROCESS_ENDED;
	clear_bit(machine->live, slot);
}

static void reclaim_dead(void)
{
	EACH_BIT (slot, machine->live)
		if (process_is_dead(slot))
			end_slot(slot);
	shared_reclaim();
}

void process_reclaim_dead(void)
{
	uint64_t others = 0;
	for (int word = 0; word < SIM_ACTIVE_WORDS; word++)
		others |= __atomic_load_n(&machine->live[word], __ATOMIC_RELAXED);
	if (!others && !__atomic_load_n(&machine->shared_top, __ATOMIC_RELAXED))
		return;
	machine_lock();
	reclaim_dead();
	machine_unlock();
}

/* A slot never used, else the one whose user ended first. */
static int free_slot(void)
{
	int oldest = -1;
	for (int slot = 0; slot < SIM_PROCESSES; slot++) {
		const struct sim_process *process = &machine->processes[slot];
		if (process->state == SIM_PROCESS_NONE)
			return slot;
		if (process->state == SIM_PROCESS_ENDED &&
		    (oldest < 0 || process->end_ns < machine->processes[oldest].end_ns))
			oldest = slot;
	}
	return oldest;
}

static uint32_t weight_from_environment(void)
{
	const char *text = getenv("VGPU_SIM_WEIGHT");
	long weight = text ? strtol(text, NULL, 10) : 100;
	return weight >= 1 && weight <= 10000 ? (uint32_t)weight : 100;
}

static void fill_slot(int slot)
{
	struct sim_process *process = &machine->processes[slot];
	uint32_t weight = weight_from_environment();
	for (uint32_t i = 0; i < machine->device_count; i++) {
		struct sim_device *device = device_lock(i);
		memset(&device->shares[slot], 0, sizeof(device->shares[slot]));
		device->shares[slot].weight = weight;
		device_unlock(device);
	}
	process->pid = getpid();
	process->pid_namespace = pid_namespace();
	process->start_ticks = start_ticks();
	process->generation = ++machine->generation;
	process->begin_ns = sim_now();
	process->end_ns = 0;
	ssize_t length = readlink("/proc/self/exe", process->name, sizeof(process->name) - 1);
	process->name[length > 0 ? length : 0] = 0;
	process->state = SIM_PROCESS_LIVE;
	set_bit(machine->live, slot);
}

int sim_join(void)
{
	struct flock lock;
	/* An open file that a parent shares with us would share its locks too. */
	machine_reopen();
	machine_lock();
	reclaim_dead();
	int slot = free_slot();
	if (slot >= 0 && !lock_byte(F_OFD_SETLK, LOCK_ALIVE, slot, &lock)) {
		lock_byte(F_SETLK, LOCK_WHO, slot, &lock); /* without it only the number is lost */
		fill_slot(slot);
		own_slot = slot;
	} else {
		slot = -1;
	}
	machine_unlock();
	return slot;
}

void sim_leave(int slot)
{
	struct flock lock = {
		.l_type = F_UNLCK, .l_whence = SEEK_SET, .l_start = LOCK_ALIVE + slot, .l_len = 1};
	machine_lock();
	end_slot(slot);
	own_slot = -1;
	fcntl(machine_file(), F_OFD_SETLK, &lock);
	machine_unlock();
}

void sim_forget(void)
{
	own_slot = -1;
	machine_reopen();
}

/* 0: the caller's pid namespace does not know the process. */
static int32_t visible_pid(int slot)
{
	static uint64_t own_namespace;
	const struct sim_process *process = &machine->processes[slot];
	struct flock lock;
	if (!own_namespace)
		own_namespace = pid_namespace();
	if (process->pid_namespace == own_namespace)
		return process->pid;
	if (lock_byte(F_GETLK, LOCK_WHO, slot, &lock) || lock.l_type == F_UNLCK || lock.l_pid <= 0)
		return 0;
	return lock.l_pid;
}

static bool describe(uint32_t number, int slot, struct sim_usage *out)
{
	const struct sim_share *share = &machine->devices[number].shares[slot];
	int32_t pid = visible_pid(slot);
	if (!pid)
		return false;
	*out = (struct sim_usage){
		.pid = pid + machine->knobs.pid_offset,
		.slot = (uint32_t)slot,
		.memory = share->memory,
		.served_ns = share->served_ns,
		.contexts = share->contexts,
	};
	memcpy(out->name, machine->processes[slot].name, sizeof(out->name));
	return true;
}

int sim_usages(uint32_t number, struct sim_usage *out, int capacity)
{
	int count = 0;
	machine_lock();
	reclaim_dead();
	struct sim_device *device = device_lock(number);
	EACH_BIT (slot, machine->live) {
		struct sim_usage usage;
		if (!device->shares[slot].contexts || !describe(number, slot, &usage))
			continue;
		if (count < capacity)
			out[count] = usage;
		count++;
	}
	device_unlock(device);
	machine_unlock();
	return count;
}

int sim_find_process(int32_t pid, struct sim_usage *out)
{
	int found = -1;
	machine_lock();
	reclaim_dead();
	EACH_BIT (slot, machine->live)
		if (found && describe(0, slot, out) && out->pid == pid)
			found = 0;
	machine_unlock();
	return found;
}
