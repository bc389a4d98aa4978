/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The capacity of a device: one sum, and each process's part of it.
 *
 * The part is written before the sum.  A process killed in between leaves a sum
 * that is wrong, and the next holder of the lock makes it from the parts.
 */
#include "machine_internal.h"

static int charge(struct sim_device *device, int slot, uint64_t bytes)
{
	struct sim_share *share = &device->shares[slot];
	uint64_t capacity = device->identity.memory_total - device->identity.memory_reserved;
	if (device->memory_used > capacity || bytes > capacity - device->memory_used)
		return -1;
	share->memory += bytes;
	if (share->memory > share->peak)
		share->peak = share->memory;
	device->memory_used += bytes;
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
	if (bytes > share->memory)
		bytes = share->memory; /* the slot has ended meanwhile */
	share->memory -= bytes;
	device->memory_used -= bytes;
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
