/* SPDX-License-Identifier: Apache-2.0
 *
 * Refuse: memory is charged before the driver is asked for it, so that at no
 * moment more is held than charged, whoever races.  What we know nothing of
 * goes to the driver, whose answers it is.
 */
#include "overhead.h"
#include "pools.h"

/* The sweep reads a file for each row: at most once in a tick of the coarse clock. */
#define ONCE_A_TICK 1

/* Managed memory can be parted between device and host in pages of this size. */
#define SPILL_PAGE (2ull << 20)

/* ---- against the quota ------------------------------------------------------------------ */

int vgpu_charge_if_room(const struct tenant *tenant, uint32_t row, uint32_t account, uint64_t bytes)
{
	return vgpu_charge_seated(tenant->ledger, row,
				  vgpu_process_seat(tenant, vgpu_process(), row), account, bytes,
				  vgpu_quota_of(tenant->grant, account));
}

static int has_room(const struct tenant *tenant, uint32_t account, uint64_t bytes)
{
	uint64_t quota = vgpu_quota_of(tenant->grant, account);
	uint64_t used = vgpu_charged(tenant->ledger, account);

	return used <= quota && bytes <= quota - used;
}

void vgpu_count_refusal(const struct tenant *tenant, uint32_t account)
{
	uint64_t *refusals = account == VGPU_HOST
				     ? &tenant->ledger->host_refusals
				     : &tenant->ledger->slices[account % VGPU_SPILL].refusals;

	__atomic_fetch_add(refusals, 1, __ATOMIC_RELAXED);
}

/* Once more, now that there may be room: what this process' pools keep for later
 * is let go, what is in the way may belong to processes that are gone, or to a
 * context that takes less than is charged while it is made. */
static int charge_again(const struct claim *claim, uint32_t row, uint32_t account, uint64_t bytes)
{
	if (account < VGPU_SPILL &&
	    vgpu_pools_shrink(claim->driver, claim->tenant, claim->process, (int)account) &&
	    !vgpu_charge_if_room(claim->tenant, row, account, bytes))
		return 0;
	if (vgpu_process_sweep(claim->tenant, claim->process, ONCE_A_TICK) &&
	    !vgpu_charge_if_room(claim->tenant, row, account, bytes))
		return 0;
	for (int is_waiting = 1, turn = 0; is_waiting; turn++) {
		is_waiting = account < VGPU_SPILL &&
			     vgpu_guess_wait(claim->tenant, claim->process, (int)account, turn);
		/* Also when the last guess has ended since the first try. */
		if (has_room(claim->tenant, account, bytes) &&
		    !vgpu_charge_if_room(claim->tenant, row, account, bytes))
			return 0;
	}
	return -1;
}

int vgpu_try_charge(const struct claim *claim, uint32_t row, uint32_t account, uint64_t bytes)
{
	if (likely(!vgpu_charge_if_room(claim->tenant, row, account, bytes)) ||
	    !charge_again(claim, row, account, bytes))
		return 0;
	vgpu_count_refusal(claim->tenant, account);
	return -1;
}

/* ---- staking ------------------------------------------------------------------------------ */

CUresult vgpu_claim(struct claim *claim, const struct driver *driver, const struct tenant *tenant)
{
	*claim = (struct claim){driver, tenant, vgpu_process(), NULL};
	return tenant->is_faulty || !claim->process ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}

/* A record with nothing charged yet. */
static CUresult begin_stake(struct claim *claim, enum record_kind kind, int account)
{
	struct record *record;
	int row;

	claim->record = NULL;
	if (account == SLICE_UNKNOWN)
		return CUDA_SUCCESS;
	if (account == SLICE_NOT_GRANTED)
		return CUDA_ERROR_OUT_OF_MEMORY;
	row = vgpu_process_row(claim->tenant, claim->process);
	record = row < 0 ? NULL : vgpu_record_new(&claim->process->records);
	if (!record)
		return CUDA_ERROR_OUT_OF_MEMORY;
	if (account < VGPU_SPILL)
		vgpu_process_active(claim->tenant, row, account);
	*record = (struct record){
		.kind = (uint8_t)kind, .account = (uint8_t)account, .row = (uint32_t)row};
	claim->record = record;
	return CUDA_SUCCESS;
}

static CUresult end_stake(struct claim *claim, int is_refused)
{
	if (!is_refused)
		return CUDA_SUCCESS;
	vgpu_record_free(&claim->process->records, claim->record);
	claim->record = NULL;
	return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult vgpu_stake(struct claim *claim, enum record_kind kind, int account, uint64_t bytes)
{
	CUresult rc = begin_stake(claim, kind, account);
	struct record *record = claim->record;

	if (rc || !record)
		return rc;
	record->bytes = bytes;
	return end_stake(claim, vgpu_try_charge(claim, record->row, record->account, bytes));
}

/* As much as fits goes to the device, the rest to the host. */
static int charge_both(const struct claim *claim, struct record *record, uint64_t bytes)
{
	uint64_t quota = vgpu_quota_of(claim->tenant->grant, record->account);
	uint64_t used = vgpu_charged(claim->tenant->ledger, record->account);
	uint64_t here = used < quota ? (quota - used) / SPILL_PAGE * SPILL_PAGE : 0;

	if (here > bytes)
		here = bytes; /* somebody has just given back */
	if (here && vgpu_charge_if_room(claim->tenant, record->row, record->account, here))
		here = 0; /* somebody was faster */
	if (vgpu_charge_if_room(claim->tenant, record->row, VGPU_SPILL + record->account,
				bytes - here)) {
		vgpu_refund(claim->tenant->ledger, record->row, record->account, here);
		return -1;
	}
	record->bytes = here;
	record->spilled = bytes - here;
	return 0;
}

CUresult vgpu_stake_or_spill(struct claim *claim, enum record_kind kind, int slice, uint64_t bytes)
{
	CUresult rc = begin_stake(claim, kind, slice);
	struct record *record = claim->record;

	if (rc || !record)
		return rc;
	/* To be written in a moment: fetched once, not first to be read. */
	__builtin_prefetch(&claim->tenant->ledger->slices[slice], 1);
	record->bytes = vgpu_granule_round(claim->tenant, slice, bytes);
	if (likely(!vgpu_charge_if_room(claim->tenant, record->row, record->account,
					record->bytes)) ||
	    !charge_again(claim, record->row, record->account, record->bytes))
		return CUDA_SUCCESS;
	if (vgpu_quota_of(claim->tenant->grant, VGPU_SPILL + record->account) &&
	    !charge_both(claim, record, bytes))
		return CUDA_SUCCESS;
	vgpu_count_refusal(claim->tenant, record->account);
	return end_stake(claim, 1);
}

int vgpu_spill_staked(struct claim *claim)
{
	struct record *record = claim->record;
	uint64_t bytes;

	if (!record || !record->bytes ||
	    !vgpu_quota_of(claim->tenant->grant, VGPU_SPILL + record->account))
		return -1;
	bytes = record->bytes;
	if (vgpu_charge_if_room(claim->tenant, record->row, VGPU_SPILL + record->account, bytes)) {
		vgpu_count_refusal(claim->tenant, record->account);
		return -1;
	}
	vgpu_refund(claim->tenant->ledger, record->row, record->account, bytes);
	record->spilled += bytes;
	record->bytes = 0;
	return 0;
}

/* ---- concluding --------------------------------------------------------------------------- */

static int has_context(enum record_kind kind)
{
	return kind == RECORD_POINTER || kind == RECORD_HOST || kind == RECORD_OBJECT ||
	       kind == RECORD_MODULE;
}

CUresult vgpu_conclude(struct claim *claim, CUresult rc, uint64_t key)
{
	struct record *record = claim->record, *stale;

	/* The driver was not set up when we asked and is now: once more, please. */
	if (!record)
		return rc ? rc : CUDA_ERROR_OUT_OF_MEMORY;
	if (rc) {
		vgpu_give_back(claim->tenant, claim->process, record);
		return rc;
	}
	record->key = key;
	if (record->kind == RECORD_CONTEXT)
		record->context = (CUcontext)(uintptr_t)key;
	else if (has_context(record->kind) && claim->driver->used.cuCtxGetCurrent(&record->context))
		record->context = NULL;
	stale = vgpu_record_enter(&claim->process->records, record);
	if (stale)
		vgpu_give_back(claim->tenant, claim->process, stale);
	return rc;
}

int vgpu_true_up(const struct claim *claim, uint64_t bytes)
{
	struct record *record = claim->record;

	if (!record)
		return 0;
	if (bytes > record->bytes) {
		if (vgpu_try_charge(claim, record->row, record->account, bytes - record->bytes))
			return -1;
	} else if (bytes < record->bytes) {
		vgpu_refund(claim->tenant->ledger, record->row, record->account,
			    record->bytes - bytes);
	}
	record->bytes = bytes;
	return 0;
}

/* ---- freeing ------------------------------------------------------------------------------- */

struct record *vgpu_withdraw(struct claim *claim, enum record_kind kind, uint64_t key)
{
	const struct tenant *tenant = vgpu_tenant();

	*claim = (struct claim){NULL, tenant, NULL, NULL};
	if (!tenant->ledger || !key)
		return NULL;
	claim->process = vgpu_process();
	return claim->process ? vgpu_record_take(&claim->process->records, kind, key) : NULL;
}

CUresult vgpu_settled(const struct claim *claim, struct record *record, CUresult rc)
{
	struct record *gone = record;

	/* It stays, in the place of what was entered under its key meanwhile, if anything. */
	if (record && rc)
		gone = vgpu_record_enter(&claim->process->records, record);
	if (gone)
		vgpu_give_back(claim->tenant, claim->process, gone);
	return rc;
}

void vgpu_give_back(const struct tenant *tenant, struct process *process, struct record *record)
{
	if (record->kind == RECORD_POINTER && record->pool)
		vgpu_pool_freed(process, record->pool, record->bytes);
	else if (record->bytes)
		vgpu_refund_seated(tenant->ledger, record->row,
				   vgpu_process_seat(tenant, process, record->row), record->account,
				   record->bytes);
	if (record->spilled)
		vgpu_refund(tenant->ledger, record->row, VGPU_SPILL + record->account,
			    record->spilled);
	vgpu_record_free(&process->records, record);
}
