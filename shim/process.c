/* SPDX-License-Identifier: Apache-2.0
 *
 * The state of one process: see process.h.  Kernels before 4.14 cannot wipe
 * memory at fork; there every use compares pids, at the price of a system call.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "process.h"

#ifndef MADV_WIPEONFORK
#define MADV_WIPEONFORK 18
#endif

static struct process *the_process;
static int kernel_cannot_wipe;

/* ---- clocks and locks ----------------------------------------------------------------- */

static uint64_t clock_ns(clockid_t clock)
{
	struct timespec now;

	clock_gettime(clock, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t vgpu_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC);
}

uint64_t vgpu_coarse_now_ns(void)
{
	return clock_ns(CLOCK_MONOTONIC_COARSE);
}

void vgpu_lock(struct lock *lock)
{
	for (int spins = 0; __atomic_exchange_n(&lock->is_held, 1, __ATOMIC_ACQUIRE); spins++)
		while (__atomic_load_n(&lock->is_held, __ATOMIC_RELAXED))
			if (++spins > 64)
				sched_yield(); /* its holder may have lost the processor */
}

void vgpu_unlock(struct lock *lock)
{
	__atomic_store_n(&lock->is_held, 0, __ATOMIC_RELEASE);
}

void vgpu_lock_and_sleep(struct lock *lock)
{
	struct timespec pause = {0, 50000};

	while (__atomic_exchange_n(&lock->is_held, 1, __ATOMIC_ACQUIRE))
		syscall(SYS_nanosleep, &pause, NULL);
}

/* ---- the memory ---------------------------------------------------------------------------- */

static struct process *create(void)
{
	struct process *earlier = NULL, *process;

	process = mmap(NULL, sizeof(*process), PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (process == MAP_FAILED)
		return NULL;
	if (madvise(process, sizeof(*process), MADV_WIPEONFORK))
		__atomic_store_n(&kernel_cannot_wipe, 1, __ATOMIC_RELAXED);
	if (__atomic_compare_exchange_n(&the_process, &earlier, process, 0, __ATOMIC_ACQ_REL,
					__ATOMIC_ACQUIRE))
		return process;
	munmap(process, sizeof(*process));
	return earlier;
}

static void wipe_if_forked(struct process *process)
{
	uint64_t pid = (uint64_t)syscall(SYS_getpid), whose;

	whose = __atomic_load_n(&process->pid, __ATOMIC_ACQUIRE);
	if (whose == pid)
		return;
	if (whose)
		memset(process, 0, sizeof(*process));
	__atomic_store_n(&process->pid, pid, __ATOMIC_RELEASE);
}

struct process *vgpu_process(void)
{
	struct process *process = vgpu_process_if_any();

	return likely(process) ? process : create();
}

struct process *vgpu_process_if_any(void)
{
	struct process *process = __atomic_load_n(&the_process, __ATOMIC_ACQUIRE);

	if (unlikely(__atomic_load_n(&kernel_cannot_wipe, __ATOMIC_RELAXED)) && process)
		wipe_if_forked(process);
	return process;
}

/* ---- identity and row ---------------------------------------------------------------------- */

/* Every thread finds the same, so it does not matter who stores it. */
static void identify(struct process *process)
{
	uint64_t pid_namespace, owner;

	if (__atomic_load_n(&process->owner, __ATOMIC_ACQUIRE))
		return;
	owner = vgpu_owner_self(&pid_namespace);
	__atomic_store_n(&process->image, vgpu_image_self(), __ATOMIC_RELAXED);
	__atomic_store_n(&process->pid_namespace, pid_namespace, __ATOMIC_RELAXED);
	__atomic_store_n(&process->owner, owner, __ATOMIC_RELEASE);
}

static int take_row(const struct tenant *tenant, struct process *process)
{
	int cancel, row;

	/* A thread cancelled in there would keep the lock. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	vgpu_lock_and_sleep(&process->row_lock);
	row = (int)__atomic_load_n(&process->row, __ATOMIC_ACQUIRE) - 1;
	if (row < 0) {
		identify(process);
		row = vgpu_row_take(tenant->ledger, process->owner, process->image,
				    process->pid_namespace, vgpu_process_is_gone);
		__atomic_store_n(&process->row, (uint32_t)(row + 1), __ATOMIC_RELEASE);
	}
	vgpu_unlock(&process->row_lock);
	pthread_setcancelstate(cancel, NULL);
	return row;
}

int vgpu_process_row(const struct tenant *tenant, struct process *process)
{
	uint32_t row = __atomic_load_n(&process->row, __ATOMIC_ACQUIRE);

	return likely(row) ? (int)row - 1 : take_row(tenant, process);
}

/* ---- seats --------------------------------------------------------------------------------- */

__thread struct seat vgpu_my_seat __attribute__((tls_model("initial-exec")));

static int is_ended(uint32_t tid)
{
	return syscall(SYS_tgkill, getpid(), tid, 0) && errno == ESRCH;
}

uint32_t vgpu_process_take_seat(const struct tenant *tenant, const struct process *process,
				uint32_t row)
{
	int error = errno;

	vgpu_my_seat.number =
		vgpu_seat_take(tenant->ledger, row, (uint32_t)syscall(SYS_gettid), is_ended);
	vgpu_my_seat.owner = __atomic_load_n(&process->owner, __ATOMIC_ACQUIRE);
	errno = error;
	return vgpu_my_seat.number;
}

void vgpu_process_active(const struct tenant *tenant, int row, int slice)
{
	uint64_t *active = &tenant->ledger->rows[row].active, bit = 1ull << slice;

	if (unlikely(!(__atomic_load_n(active, __ATOMIC_RELAXED) & bit)))
		__atomic_fetch_or(active, bit, __ATOMIC_RELAXED);
}

int vgpu_process_sweep(const struct tenant *tenant, struct process *process, uint64_t period_ns)
{
	uint64_t now = vgpu_coarse_now_ns();
	uint64_t last = __atomic_load_n(&process->swept_ns, __ATOMIC_RELAXED);
	int cancel;

	if ((last && now - last < period_ns) ||
	    !__atomic_compare_exchange_n(&process->swept_ns, &last, now, 0, __ATOMIC_RELAXED,
					 __ATOMIC_RELAXED))
		return 0;
	/* A thread cancelled in there would keep the right to sweep. */
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &cancel);
	identify(process);
	vgpu_sweep(tenant->ledger, process->owner, process->image, vgpu_process_is_gone);
	pthread_setcancelstate(cancel, NULL);
	return 1;
}
