/* SPDX-License-Identifier: Apache-2.0
 *
 * Charging what the driver is asked for.  Each allocation, of whatever kind, is
 *
 *	stake     charge it against the quota, for all processes of the tenant at once
 *	...       ask the driver
 *	conclude  enter what was charged under the new address or handle, or give it back
 *
 * and each free the same backwards: withdraw, ask the driver, settle.
 */
#ifndef VGPU_ACCOUNT_H
#define VGPU_ACCOUNT_H

#include "process.h"

struct claim {
	const struct driver *driver;
	const struct tenant *tenant;
	struct process *process;
	struct record *record; /* NULL: nothing is charged, the driver decides */
};

/* Neither a process outside of any tenant nor one without a question is charged. */
static inline int vgpu_is_charged(const struct tenant *tenant)
{
	return tenant->ledger || tenant->is_faulty;
}

/* This process, if it is of a tenant; NULL otherwise. */
static inline struct process *vgpu_accounted(void)
{
	return vgpu_tenant()->ledger ? vgpu_process() : NULL;
}

/* Begin a claim.  CUDA_ERROR_OUT_OF_MEMORY for a tenant that cannot be charged. */
CUresult vgpu_claim(struct claim *claim, const struct driver *driver, const struct tenant *tenant);
/* Charge `bytes` on `account`, which may also be a SLICE_... code for none.
 * CUDA_SUCCESS also when there is nothing to charge yet. */
CUresult vgpu_stake(struct claim *claim, enum record_kind kind, int account, uint64_t bytes);
/* The same for memory of `bytes` of which the device takes vgpu_granule_round.  What
 * the device's part of the slice has no room for is charged on its spill account,
 * if the grant has one, and not rounded: then `record->spilled` is not 0. */
CUresult vgpu_stake_or_spill(struct claim *claim, enum record_kind kind, int slice, uint64_t bytes);
/* The device has less room than the quota said: charge all of what was staked on the
 * spill account instead.  0, or -1 when the grant has none or it is full. */
int vgpu_spill_staked(struct claim *claim);
/* What linear memory of `bytes` takes of the device; `slice` may be a code for none. */
uint64_t vgpu_granule_round(const struct tenant *tenant, int slice, uint64_t bytes);
/* The driver has answered `rc`, and made `key`.  Returns the answer for the
 * program: if that is an error and `rc` was none, the caller ends the object. */
CUresult vgpu_conclude(struct claim *claim, CUresult rc, uint64_t key);
/* What was staked takes `bytes` really.  0, or -1 when they do not fit. */
int vgpu_true_up(const struct claim *claim, uint64_t bytes);

/* The record of a key, taken out of the table: once the driver has freed, another
 * thread may be given the same address.  NULL: not charged. */
struct record *vgpu_withdraw(struct claim *claim, enum record_kind kind, uint64_t key);
/* The driver has answered `rc` to the free; returns that. */
CUresult vgpu_settled(const struct claim *claim, struct record *record, CUresult rc);
/* Refund what a record holds, and free it. */
void vgpu_give_back(const struct tenant *tenant, struct process *process, struct record *record);

/* Charge against the quota as it is now; after a first refusal what this process'
 * pools keep for later is let go, and what dead processes hold taken back. */
int vgpu_try_charge(const struct claim *claim, uint32_t row, uint32_t account, uint64_t bytes);
/* The same without a second try and without counting a refusal. */
int vgpu_charge_if_room(const struct tenant *tenant, uint32_t row, uint32_t account,
			uint64_t bytes);
/* An allocation on the account fails for want of room. */
void vgpu_count_refusal(const struct tenant *tenant, uint32_t account);

#endif
