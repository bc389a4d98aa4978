/* SPDX-License-Identifier: Apache-2.0
 *
 * Delay: a launch waits until the slice's bucket has device time.
 *
 * Each launch is debited what launches of its function have taken (estimate.h)
 * before the driver is called; now and then one is measured (markers.h), which
 * moves the estimate and corrects what was debited.  A thread debits the shared
 * bucket in parcels and spends them by itself, so that short launches do not
 * fight for one cache line.  Nothing polls and no thread is ours: debts are
 * slept off, and measurements read, by the threads that launch.
 *
 * An estimate may be missing or wrong, and a program may launch far ahead of the
 * device.  So a function that nothing is known of is measured at once, and only
 * a few of its launches go ahead of that; and when the device is well behind
 * what it should have done, launches wait for the next measurement.  Such waits
 * end in time: the kernel may itself be waiting for what the program does next.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "cores.h"

#define PARCEL_NS 50000           /* device time debited at once */
#define SAMPLE_NS 500000          /* device time between measurements of one thread */
#define SAMPLE_JITTER_NS 250000   /* so that a periodic program is seen in all its phases */
#define WORTH_SLEEPING_NS 200000  /* less is left to the next launch: sleeping is coarse */
#define SLEEP_SLICE_NS 10000000   /* a changed limit is felt after that */
#define UNKNOWN_LAUNCHES 4        /* of one function, ahead of its first measurement */
#define LAG_NS 10000000           /* as far behind is no sign of anything */
#define LONGEST_WAIT_NS 100000000 /* for a measurement */
#define IMPATIENCE_NS 1000000000  /* after such a wait, no other for so long */
#define GUESS_NS 20000            /* what an unknown function is debited */
#define STALLED_GUESS_NS 10000000 /* and when its measurement was waited for in vain */

/* A thread's parcel.  Its loss, at the thread's end, is the slice's. */
static __thread struct {
	int64_t paid_ns;
	uint64_t unsampled_ns, due_ns; /* debited since the last measurement; the next is due */
	uint32_t slice, jitter;
} mine __attribute__((tls_model("initial-exec")));

/* ---- sleeping --------------------------------------------------------------------------- */

/* Not the libc's function: that one is a point of cancellation, and a launch is none. */
static void sleep_until(uint64_t ns)
{
	struct timespec until = {(time_t)(ns / 1000000000), (long)(ns % 1000000000)};

	syscall(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

/* Sleep off what the bucket told this launch to wait.  The limit is looked at
 * again after each slice of sleep, and so is the bucket: a correction may have
 * made it fuller. */
static void sleep_off(const struct launch *launch, uint64_t wait_ns, uint64_t own_ns,
		      uint32_t cores)
{
	const struct vgpu_grant *grant = launch->tenant->grant;
	uint64_t begin = vgpu_now_ns(), now = begin, end = begin + wait_ns;

	while (now < end) {
		uint64_t full;
		uint32_t limit;

		sleep_until(end - now > SLEEP_SLICE_NS ? now + SLEEP_SLICE_NS : end);
		now = vgpu_now_ns();
		limit = vgpu_cores_in_force(grant, launch->slice, now);
		if (!limit || limit >= 100)
			break;
		if (limit != cores && end > now)
			end = now + (end - now) * cores / limit;
		cores = limit;
		full = __atomic_load_n(&launch->usage->full_ns, __ATOMIC_RELAXED);
		if (full <= now + (VGPU_BURST_NS + own_ns) * 100 / cores)
			break;
	}
	__atomic_fetch_add(&launch->usage->throttled_ns, now - begin, __ATOMIC_RELAXED);
}

/* ---- measuring ------------------------------------------------------------------------------ */

static void correct(const struct tenant *tenant, uint32_t slice, int64_t delta_ns)
{
	struct vgpu_usage *usage = &tenant->ledger->slices[slice];
	uint32_t cores = vgpu_cores_in_force(tenant->grant, slice, vgpu_now_ns());

	if (!delta_ns || !cores)
		return;
	vgpu_settle(&usage->full_ns, delta_ns, cores);
	__atomic_fetch_add(&usage->device_time_ns, (uint64_t)delta_ns, __ATOMIC_RELAXED);
}

static void measured(const struct marker *marker, uint64_t ns, void *context)
{
	const struct tenant *tenant = context;

	__atomic_fetch_add(&vgpu_process()->measurements, 1, __ATOMIC_RELAXED);
	correct(tenant, marker->slice,
		vgpu_estimate_learn(marker->estimate, marker->launches, marker->cost_ns, ns));
}

static void reap(const struct launch *launch)
{
	vgpu_markers_reap(launch->driver, launch->process, measured, launch->tenant);
}

static int is_known(const struct estimate *estimate)
{
	return __atomic_load_n(&estimate->ns, __ATOMIC_RELAXED) != 0;
}

/* Launches of one function, but nothing measured yet.  Where nothing is being
 * measured, as when the driver makes no events, there is nothing to wait for. */
static int is_unknown(const struct launch *launch, uint64_t now)
{
	uint64_t begin, issued;

	return !is_known(launch->estimate) &&
	       __atomic_load_n(&launch->estimate->launches, __ATOMIC_RELAXED) >= UNKNOWN_LAUNCHES &&
	       !vgpu_marker_oldest(launch->process, launch->slice, &begin, &issued);
}

/* The oldest marker has stood for much longer than the work debited since takes,
 * even if a neighbour is given every other time slice. */
static int is_behind(const struct launch *launch, uint64_t now)
{
	uint64_t begin, issued, total;

	if (vgpu_marker_oldest(launch->process, launch->slice, &begin, &issued))
		return 0;
	total = __atomic_load_n(&launch->process->issued_ns, __ATOMIC_RELAXED);
	return now > begin + LAG_NS + 2 * (total - issued);
}

/* A wait in vain is not repeated for a while: what the device is busy with may
 * last, and the program must not become slower by more than a tenth for it. */
static int is_patient(const struct process *process, uint64_t now)
{
	return now >= __atomic_load_n(&process->patient_ns, __ATOMIC_RELAXED);
}

static void wait_while(const struct launch *launch, int (*holds)(const struct launch *, uint64_t))
{
	uint64_t begin = vgpu_now_ns(), now = begin, since = begin, pause = 50000, seen = 0;
	struct process *process = launch->process;

	while (is_patient(process, now) && holds(launch, now)) {
		uint64_t count = __atomic_load_n(&process->measurements, __ATOMIC_RELAXED);

		if (count != seen)
			since = now;
		seen = count;
		if (now - since > LONGEST_WAIT_NS) {
			__atomic_store_n(&process->patient_ns, now + IMPATIENCE_NS,
					 __ATOMIC_RELAXED);
			break;
		}
		sleep_until(now + pause);
		pause = pause < 1000000 ? pause * 2 : pause;
		reap(launch);
		now = vgpu_now_ns();
	}
	if (now != begin)
		__atomic_fetch_add(&launch->usage->throttled_ns, now - begin, __ATOMIC_RELAXED);
}

static uint64_t sample_period(void)
{
	/* Any sequence that does not repeat with the program's own period will do. */
	mine.jitter = mine.jitter * 1664525 + 1013904223;
	return SAMPLE_NS + (mine.jitter >> 8) % SAMPLE_JITTER_NS;
}

static int measure_is_due(const struct launch *launch)
{
	return mine.unsampled_ns >= mine.due_ns || !is_known(launch->estimate);
}

/* Read what is complete, and hold back a program that is too far ahead. */
static void catch_up(struct launch *launch)
{
	__atomic_fetch_add(&launch->process->issued_ns, mine.unsampled_ns, __ATOMIC_RELAXED);
	mine.unsampled_ns = 0;
	mine.due_ns = sample_period();
	reap(launch);
	wait_while(launch, is_unknown);
	wait_while(launch, is_behind);
}

static void measure(struct launch *launch)
{
	struct marker *marker = vgpu_marker_begin(launch->driver, launch->process, launch->stream);

	if (!marker)
		return;
	marker->estimate = launch->estimate;
	marker->slice = launch->slice;
	marker->cost_ns = launch->cost_ns;
	marker->launches = __atomic_load_n(&launch->estimate->launches, __ATOMIC_RELAXED) - 1;
	__atomic_store_n(&marker->begin_ns, vgpu_now_ns(), __ATOMIC_RELAXED);
	__atomic_store_n(&marker->issued_ns,
			 __atomic_load_n(&launch->process->issued_ns, __ATOMIC_RELAXED),
			 __ATOMIC_RELAXED);
	launch->marker = marker;
}

/* ---- debiting -------------------------------------------------------------------------------- */

/* Debit the bucket for this launch and, if it is short, for some more. */
static void draw(struct launch *launch)
{
	uint64_t now = vgpu_now_ns(), wait, parcel;
	uint32_t cores = vgpu_cores_in_force(launch->tenant->grant, launch->slice, now);

	parcel = launch->cost_ns - (uint64_t)mine.paid_ns;
	if (parcel < PARCEL_NS)
		parcel = PARCEL_NS;
	if (cores && cores < 100) {
		/* What is captured runs later, if ever, and not on this account. */
		launch->is_captured = vgpu_may_be_capturing(launch->driver, launch->stream);
		if (launch->is_captured)
			return;
		wait = vgpu_draw(&launch->usage->full_ns, now, parcel, cores, VGPU_BURST_NS);
		if (wait >= WORTH_SLEEPING_NS)
			sleep_off(launch, wait, parcel, cores);
	}
	mine.paid_ns += (int64_t)parcel;
	__atomic_fetch_add(&launch->usage->device_time_ns, parcel, __ATOMIC_RELAXED);
}

/* Two threads may count as one: that only makes a correction a little smaller,
 * and each launch some nanoseconds cheaper. */
static void count(struct estimate *estimate, int more)
{
	uint64_t launches = __atomic_load_n(&estimate->launches, __ATOMIC_RELAXED);

	__atomic_store_n(&estimate->launches, launches + (uint64_t)(int64_t)more, __ATOMIC_RELAXED);
}

static uint64_t guess(const struct launch *launch)
{
	return is_patient(launch->process, vgpu_now_ns()) ? GUESS_NS : STALLED_GUESS_NS;
}

static void debit(struct launch *launch)
{
	uint64_t known = __atomic_load_n(&launch->estimate->ns, __ATOMIC_RELAXED);

	launch->cost_ns = likely(known) ? known : guess(launch);
	if (unlikely(mine.slice != launch->slice)) {
		mine.slice = launch->slice; /* what is left of the other parcel is lost */
		mine.paid_ns = 0;
	}
	if (mine.paid_ns < (int64_t)launch->cost_ns)
		draw(launch);
	if (launch->is_captured)
		return;
	mine.paid_ns -= (int64_t)launch->cost_ns;
	mine.unsampled_ns += launch->cost_ns;
	__atomic_fetch_add(&launch->usage->launches, 1, __ATOMIC_RELAXED);
	count(launch->estimate, 1);
	if (unlikely(!known))
		__atomic_fetch_add(&launch->estimate->guessed_ns, launch->cost_ns,
				   __ATOMIC_RELAXED);
}

/* A launch that the driver refused costs nothing. */
static void credit(const struct launch *launch)
{
	__atomic_fetch_sub(&launch->usage->launches, 1, __ATOMIC_RELAXED);
	count(launch->estimate, -1);
	if (!is_known(launch->estimate))
		__atomic_fetch_sub(&launch->estimate->guessed_ns, launch->cost_ns,
				   __ATOMIC_RELAXED);
	if (launch->cost_ns <= PARCEL_NS)
		mine.paid_ns += (int64_t)launch->cost_ns;
	else
		correct(launch->tenant, launch->slice, -(int64_t)launch->cost_ns);
}

/* ---- a launch ----------------------------------------------------------------------------------
 */

CUresult vgpu_launch_begin(struct launch *launch, const struct driver *driver,
			   struct tenant *tenant, CUfunction function, uint64_t blocks,
			   struct stream stream)
{
	int row, slice, is_due;

	launch->usage = NULL;
	if (tenant->is_faulty)
		return FAULTY_CUDA;
	launch->process = vgpu_process();
	if (!launch->process || !function)
		return CUDA_SUCCESS;
	slice = vgpu_stream_slice(driver, tenant, launch->process, stream.handle,
				  stream.per_thread);
	if (slice < 0)
		return CUDA_SUCCESS;
	row = vgpu_process_row(tenant, launch->process);
	if (row >= 0)
		vgpu_process_active(tenant, row, slice);
	launch->driver = driver;
	launch->tenant = tenant;
	launch->usage = &tenant->ledger->slices[slice];
	launch->estimate = vgpu_estimate_of(&launch->process->estimates, function, blocks);
	launch->marker = NULL;
	launch->stream = stream;
	launch->slice = (uint32_t)slice;
	launch->is_captured = 0;
	is_due = measure_is_due(launch) && !vgpu_may_be_capturing(driver, stream);
	if (is_due)
		catch_up(launch);
	debit(launch);
	if (is_due && !launch->is_captured)
		measure(launch);
	return CUDA_SUCCESS;
}

CUresult vgpu_launch_end(const struct launch *launch, CUresult rc)
{
	if (!launch->usage || launch->is_captured)
		return rc;
	if (launch->marker && rc)
		vgpu_marker_drop(launch->marker);
	else if (launch->marker)
		vgpu_marker_end(launch->driver, launch->marker, launch->stream);
	if (unlikely(rc))
		credit(launch);
	return rc;
}
