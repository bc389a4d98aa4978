/* SPDX-License-Identifier: Apache-2.0 */
/*
 * This process's part in what it shares with others.
 *
 * The machine knows a holder only once, so the handles and mappings of one
 * process are counted here.  A shared thing is named by its number in the
 * machine and 1, so that 0 means none.
 */
#ifndef VGPU_SIM_CUDA_SHARE_H
#define VGPU_SIM_CUDA_SHARE_H

#include "cuda_driver.h"

/* Make one of memory that is charged to this process already; held once. */
CUresult share_make(const struct sim_shared *wanted, uint32_t *shared);
CUresult share_hold(int number, uint64_t generation, uint32_t *shared);
void share_hold_again(uint32_t shared);
void share_drop(uint32_t shared);
const struct sim_shared *share_entry(uint32_t shared);

/* A descriptor that stands for it, or what a client's descriptor stands for. */
CUresult share_export(uint32_t shared, int *descriptor);
CUresult share_import(int descriptor, enum sim_shared_kind kind, uint32_t *shared);

CUresult share_map(uint32_t shared, void *at, size_t size);

/* Device memory of this process becomes shared memory, its bytes included. */
CUresult range_share(struct range *range);

/* cuda_external.c: one less mapping of outside memory. */
struct external;
void external_release(struct external *external);

/* The device of this process that is the machine's `number`, or NULL. */
struct device *device_numbered(uint32_t number);

#endif
