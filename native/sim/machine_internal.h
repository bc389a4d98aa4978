/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What the parts of the machine share among themselves.
 *
 * Locks: the machine's lock guards the process table, a device's lock its
 * memory, timeline and shares.  Order: machine, then device; never two devices.
 * Both recover by themselves when their holder is killed.
 */
#ifndef VGPU_SIM_MACHINE_INTERNAL_H
#define VGPU_SIM_MACHINE_INTERNAL_H

#include <stdbool.h>

#include "machine.h"

/* Bytes of the machine file that are only ever locked, far beyond its end. */
#define LOCK_START (1LL << 40)         /* held while the mutable part is prepared */
#define LOCK_ALIVE (LOCK_START + 4096) /* + slot: held by the open file of a live process */
#define LOCK_WHO (LOCK_ALIVE + 4096)   /* + slot: held by the process, for its number */

/* Byte of the file of shared memory that is locked while an open file stands for
 * an entry. */
#define LOCK_OPEN (1LL << 60) /* + number */

#define EACH_BIT(slot, words)                                                                      \
	for (int slot = first_bit(words, 0); slot >= 0; slot = first_bit(words, slot + 1))

static inline int first_bit(const uint64_t *words, int from)
{
	for (int word = from / 64; word < SIM_ACTIVE_WORDS; word++) {
		uint64_t rest = words[word];
		if (word == from / 64)
			rest &= ~0ULL << (from % 64);
		if (rest)
			return word * 64 + __builtin_ctzll(rest);
	}
	return -1;
}

static inline void set_bit(uint64_t *words, int slot)
{
	words[slot / 64] |= 1ULL << (slot % 64);
}

static inline void clear_bit(uint64_t *words, int slot)
{
	words[slot / 64] &= ~(1ULL << (slot % 64));
}

/* machine.c */
extern struct sim_machine *machine; /* NULL until attached */
void machine_lock(void);
void machine_unlock(void);
struct sim_device *device_lock(uint32_t device); /* its time brought up to now */
void device_unlock(struct sim_device *device);
int machine_file(void);    /* this process's own open file, -1 when there is none */
void machine_reopen(void); /* forget it: the next use opens another */

int machine_memory_file(void); /* the file of shared memory, -1 when there is none */
const char *machine_memory_path(void);
void machine_memory_empty(void); /* after a reboot */

/* machine_memory.c */
void share_add(struct sim_device *device, int slot, uint64_t bytes); /* slot -1: of nobody */
void share_take(struct sim_device *device, int slot, uint64_t bytes);
void memory_repair(struct sim_device *device); /* after a holder was killed */

/* machine_shared.c: machine's lock held */
void shared_end(int slot); /* it holds nothing any more */
void shared_reclaim(void); /* what nobody holds */

/* machine_process.c */
bool process_is_dead(int slot);
void process_reclaim_dead(void); /* neither lock held */

/* machine_time.c */
void timeline_advance(struct sim_device *device, uint64_t now);
void timeline_drop(struct sim_device *device, int slot); /* forget work not done */
void timeline_repair(struct sim_device *device);         /* after a holder was killed */

#endif
