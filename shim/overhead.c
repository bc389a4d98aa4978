/* SPDX-License-Identifier: Apache-2.0
 *
 * What contexts take.  Only the driver knows, and afterwards.  What it says is
 * believed in this order:
 *
 *	by how much NVML's figure for this process has grown
 *	by how much the device is fuller, as NVML says, less what the tenant was
 *	charged meanwhile, unless no context takes that much
 *	all that is in use on the device, as CUDA says, but for what is charged
 *
 * The last two contain what other tenants do: out of reason, they are not believed,
 * and what was guessed stays charged.  What the first
 * context of a process takes is the same for all processes of a tenant: the first
 * to learn it writes it down in the ledger, from the first source alone.
 *
 * A guess never refuses what may fit after all: it is cut to what is left, unless
 * that is only the guess of another process, which is waited for (guesses.c).
 */
#include "overhead.h"

/* A context of a large device, with the vendor's libraries in it. */
#define CONTEXT_GUESS (512ull << 20)
/* More than any context takes: what is beyond was another tenant's. */
#define CONTEXT_MOST (2ull << 30)

/* ---- what contexts, modules and limits have in common ------------------------------------------
 */

uint64_t vgpu_room(const struct tenant *tenant, int slice)
{
	uint64_t quota = vgpu_quota_of(tenant->grant, (uint32_t)slice);
	uint64_t used = vgpu_charged(tenant->ledger, (uint32_t)slice);

	return used < quota ? quota - used : 0;
}

int vgpu_is_limited(const struct tenant *tenant, int slice)
{
	return slice >= 0 && vgpu_quota_of(tenant->grant, (uint32_t)slice) != UINT64_MAX;
}

uint64_t vgpu_charged_to_row(const struct claim *claim)
{
	const struct record *record = claim->record;

	return vgpu_row_charged(claim->tenant->ledger, record->row, record->account);
}

int64_t vgpu_device_used(const struct driver *driver)
{
	size_t available, total;

	return driver->real.cuMemGetInfo_v2(&available, &total) ? -1 : (int64_t)(total - available);
}

CUresult vgpu_conclude_sized(struct claim *claim, CUresult rc, uint64_t bytes, uint64_t key)
{
	if (!rc && vgpu_true_up(claim, bytes)) {
		vgpu_give_back(claim->tenant, claim->process, claim->record);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	return vgpu_conclude(claim, rc, key);
}

/* ---- contexts: before ------------------------------------------------------------------------ */

static uint64_t charged_to_slice(const struct overhead *overhead)
{
	return vgpu_charged(overhead->claim.tenant->ledger, (uint32_t)overhead->slice);
}

static uint64_t *size_word(const struct overhead *overhead)
{
	return &overhead->claim.tenant->ledger->slices[overhead->slice].context_memory;
}

/* What a process's first context takes, if that is known and this is one. */
static int64_t known_size(const struct overhead *overhead)
{
	return overhead->is_first
		       ? (int64_t)__atomic_load_n(size_word(overhead), __ATOMIC_ACQUIRE) - 1
		       : -1;
}

/* Charge what it may take at most, or as much of that as there is room for. */
static CUresult stake_guess(struct overhead *overhead)
{
	struct claim *claim = &overhead->claim;
	struct record *record = claim->record;
	uint64_t guess = CONTEXT_GUESS;
	int turn = 0;

	while (guess && vgpu_charge_if_room(claim->tenant, record->row, record->account, guess)) {
		/* What is in the way may only be a guess, and the size known when it ends. */
		int is_waiting =
			vgpu_guess_wait(claim->tenant, claim->process, overhead->slice, turn++);
		int64_t known = known_size(overhead);

		if (known >= 0) {
			overhead->is_known = 1;
			return vgpu_true_up(claim, (uint64_t)known) ? CUDA_ERROR_OUT_OF_MEMORY
								    : CUDA_SUCCESS;
		}
		guess = is_waiting
				? CONTEXT_GUESS
				: lesser(CONTEXT_GUESS, vgpu_room(claim->tenant, overhead->slice));
	}
	record->bytes = guess;
	return CUDA_SUCCESS;
}

/* The device as it is now. */
static void look(struct overhead *overhead)
{
	struct process *process = overhead->claim.process;

	overhead->changes = __atomic_add_fetch(&process->contexts_made, 1, __ATOMIC_RELAXED);
	overhead->row_before = vgpu_charged_to_row(&overhead->claim);
	overhead->slice_before = charged_to_slice(overhead);
	vgpu_observe(overhead->claim.tenant, overhead->slice, &overhead->before);
}

CUresult vgpu_context_begin(struct overhead *overhead, const struct driver *driver, CUdevice device)
{
	const struct tenant *tenant = vgpu_tenant();
	struct claim *claim = &overhead->claim;
	CUresult rc = vgpu_claim(claim, driver, tenant);
	int64_t known;

	if (rc)
		return rc;
	overhead->slice = vgpu_slice_of_device(driver, tenant, claim->process, device);
	if (!vgpu_is_limited(tenant, overhead->slice))
		return CUDA_SUCCESS;
	overhead->is_first =
		!__atomic_load_n(&claim->process->contexts[overhead->slice], __ATOMIC_RELAXED);
	known = known_size(overhead);
	overhead->is_known = known >= 0;
	rc = vgpu_stake(claim, RECORD_CONTEXT, overhead->slice, known < 0 ? 0 : (uint64_t)known);
	if (rc)
		return rc;
	if (!overhead->is_known)
		rc = stake_guess(overhead);
	if (rc) {
		vgpu_give_back(tenant, claim->process, claim->record);
		return rc;
	}
	/* Also what is known: it may turn out that another thread makes the same one. */
	vgpu_guess_begin(tenant, claim->record->row, overhead->slice);
	if (!overhead->is_known)
		look(overhead);
	return rc;
}

/* ---- contexts: after ---------------------------------------------------------------------------
 */

/* Nothing else of this process has changed. */
static int is_alone(const struct overhead *overhead)
{
	const struct claim *claim = &overhead->claim;

	return vgpu_charged_to_row(claim) == overhead->row_before &&
	       __atomic_load_n(&claim->process->contexts_made, __ATOMIC_RELAXED) ==
		       overhead->changes;
}

/* Without NVML: all that is in use on the device, but for what is charged. */
static int64_t rest_of_device(const struct overhead *overhead, CUcontext context)
{
	const struct driver *driver = overhead->claim.driver;
	int64_t charged = (int64_t)(overhead->slice_before - overhead->claim.record->bytes);
	CUcontext popped;
	int64_t used;

	if (driver->used.cuCtxPushCurrent_v2(context))
		return -1;
	used = vgpu_device_used(driver);
	driver->used.cuCtxPopCurrent_v2(&popped);
	return used < charged ? -1 : used - charged;
}

/* What the new context takes; what was charged when nobody can say. */
static uint64_t measure(struct overhead *overhead, CUcontext context)
{
	const struct claim *claim = &overhead->claim;
	uint64_t guess = claim->record->bytes;
	struct observation after;
	int64_t size = -1;

	vgpu_observe(claim->tenant, overhead->slice, &after);
	if (is_alone(overhead))
		size = vgpu_observed_growth(claim->process, &overhead->before, &after,
					    overhead->is_first);
	if (size >= 0 && (uint64_t)size <= CONTEXT_MOST) {
		if (overhead->is_first)
			__atomic_store_n(size_word(overhead), (uint64_t)size + 1, __ATOMIC_RELEASE);
		return (uint64_t)size;
	}
	size = known_size(overhead);
	if (size >= 0)
		return (uint64_t)size;
	if (overhead->before.device >= 0 && after.device >= 0) {
		size = after.device - overhead->before.device -
		       (int64_t)(charged_to_slice(overhead) - overhead->slice_before);
		return size < 0 || (uint64_t)size > CONTEXT_MOST ? guess : (uint64_t)size;
	}
	size = rest_of_device(overhead, context);
	return size < 0 || (uint64_t)size > CONTEXT_GUESS ? guess : (uint64_t)size;
}

/* Enter the context.  What the first one of a process took stays until its last one
 * ends, whichever that is: much of it is of the process. */
static void enter(const struct overhead *overhead, CUcontext context)
{
	const struct claim *claim = &overhead->claim;
	struct process *process = claim->process;
	struct record *record = claim->record, *stale;
	uint64_t base = overhead->is_first ? record->bytes : 0;

	record->bytes -= base;
	record->key = (uintptr_t)context;
	record->context = context;
	stale = vgpu_record_enter(&process->records, record);
	if (stale) {
		/* Two threads that retain a primary context at once make one. */
		vgpu_refund(claim->tenant->ledger, stale->row, stale->account, base);
		vgpu_give_back(claim->tenant, process, stale);
		return;
	}
	__atomic_fetch_add(&process->contexts[overhead->slice], 1, __ATOMIC_ACQ_REL);
	__atomic_fetch_add(&process->context_base[overhead->slice], base, __ATOMIC_ACQ_REL);
}

CUresult vgpu_context_begun(struct overhead *overhead, CUresult rc, const CUcontext *context)
{
	struct claim *claim = &overhead->claim;
	uint64_t bytes;
	uint32_t row;
	int is_short;

	if (!claim->record)
		return rc;
	row = claim->record->row;
	bytes = claim->record->bytes;
	if (!rc && !overhead->is_known)
		bytes = measure(overhead, *context);
	/* Nobody need wait any more for what is charged: before more is asked for, lest two
	 * wait for each other, and not before something is given back. */
	is_short = bytes > claim->record->bytes;
	if (is_short)
		vgpu_guess_end(claim->tenant, row, overhead->slice);
	if (!rc && vgpu_true_up(claim, bytes))
		rc = CUDA_ERROR_OUT_OF_MEMORY;
	if (rc) {
		vgpu_give_back(claim->tenant, claim->process, claim->record);
	} else {
		enter(overhead, *context);
		vgpu_granule_learn(claim->driver, claim->tenant, row, overhead->slice, *context);
	}
	if (!is_short)
		vgpu_guess_end(claim->tenant, row, overhead->slice);
	return rc;
}

void vgpu_context_ended(struct process *process, uint32_t slice)
{
	const struct tenant *tenant = vgpu_tenant();
	int row = vgpu_process_row(tenant, process);
	uint64_t base;

	if (__atomic_sub_fetch(&process->contexts[slice], 1, __ATOMIC_ACQ_REL))
		return;
	base = __atomic_exchange_n(&process->context_base[slice], 0, __ATOMIC_ACQ_REL);
	if (row >= 0 && base)
		vgpu_refund(tenant->ledger, (uint32_t)row, slice, base);
}
