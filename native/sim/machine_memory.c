/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The capacity of a device: one sum, and each process's part of it.
 *
 * A part is what the process has alone (`own`) and the shared things that are
 * charged to it.  These two are the truth; a process that is killed between
 * them and the sums leaves sums that are wrong, and the next holder of the lock
 * makes them anew.
 */
#include "machine_internal.h"

void share_add(struct sim_device *device, int slot, uint64_t bytes)
{
	device->memory_used += bytes;
	if (slot < 0) {
		device->memory_unowned += bytes;
		return;
	}
	struct sim_share *share = &device->shares[slot];
	share->memory += bytes;
	if (share->memory > share->peak)
		share->peak = share->memory;
}

void share_take(struct sim_device *device, int slot, uint64_t bytes)
{
	device->memory_used -= bytes;
	if (slot < 0)
		device->memory_unowned -= bytes;
	else
		device->shares[slot].memory -= bytes;
}

void memory_repair(struct sim_device *device)
{
	uint32_t number = (uint32_t)(device - machine->devices);
	device->memory_used = 0;
	device->memory_unowned = 0;
	for (int slot = 0; slot < SIM_PROCESSES; slot++) {
		device->shares[slot].memory = 0;
		share_add(device, slot, device->shares[slot].own);
	}
	for (uint32_t i = 0; i < machine->shared_top; i++) {
		const struct sim_shared *shared = &machine->shared[i];
		if (shared->kind && shared->device == number)
			share_add(device, shared->owner, shared->size);
	}
}

static int charge(struct sim_device *device, int slot, uint64_t bytes)
{
	struct sim_share *share = &device->shares[slot];
	uint64_t capacity = device->identity.memory_total - device->identity.memory_reserved;
	if (device->memory_used > capacity || bytes > capacity - device->memory_used)
		return -1;
	share->own += bytes;
	share_add(device, slot, bytes);
	return 0;
}

int sim_charge(uint32_t number, int slot, uint64_t bytes)
{
	for (int attempt = 0;; attempt++) {
		struct sim_device *device = device_lock(number);
		int result = charge(device, slot, bytes);
		device_unlock(device);
		if (!result || attempt)
			return result;
		process_reclaim_dead();
	}
}

static void refund(struct sim_device *device, int slot, uint64_t bytes)
{
	struct sim_share *share = &device->shares[slot];
	if (bytes > share->own)
		bytes = share->own; /* the slot has ended meanwhile */
	share->own -= bytes;
	share_take(device, slot, bytes);
}

void sim_refund(uint32_t number, int slot, uint64_t bytes)
{
	struct sim_device *device = device_lock(number);
	refund(device, slot, bytes);
	device_unlock(device);
}

int sim_context_begin(uint32_t number, int slot)
{
	for (int attempt = 0;; attempt++) {
		struct sim_device *device = device_lock(number);
		struct sim_share *share = &device->shares[slot];
		int result =
			share->contexts ? 0 : charge(device, slot, machine->knobs.context_overhead);
		if (!result)
			share->contexts++;
		device_unlock(device);
		if (!result || attempt)
			return result;
		process_reclaim_dead();
	}
}

void sim_context_end(uint32_t number, int slot)
{
	struct sim_device *device = device_lock(number);
	struct sim_share *share = &device->shares[slot];
	if (share->contexts && !--share->contexts)
		refund(device, slot, machine->knobs.context_overhead);
	device_unlock(device);
}

uint64_t sim_memory_used(uint32_t number)
{
	process_reclaim_dead();
	struct sim_device *device = device_lock(number);
	uint64_t used = device->memory_used;
	device_unlock(device);
	return used;
}
