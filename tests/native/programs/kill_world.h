/* SPDX-License-Identifier: Apache-2.0
 *
 * For kill_ledger.c: a tenant's shared files, who is in it, what may be done
 * on them, and what must hold of them at every moment and in the end.
 *
 * A tenant has a survivor (this process) and a bystander, both alive, and two
 * dead members, of whom one leaked as it died.  Invariants: what is charged is
 * never less than what the living hold; after a sweep it is exactly that, and
 * all the rest can be had.
 */
#ifndef KILL_WORLD_H
#define KILL_WORLD_H

#include <stdint.h>
#include <string.h>
#include <sys/syscall.h>

#include "abi.h"
#include "tools/stepping.h"

#define QUOTA 1000
#define SURVIVOR 50
#define BYSTANDER 70
#define LIVING (SURVIVOR + BYSTANDER)
#define VICTIM 200
#define DEAD 300
#define LEAKED 40
#define CHANGE 80

struct world {
	uint64_t truth;   /* what the victim holds of the device, whatever is charged */
	uint64_t is_done; /* the operation has returned */
	struct vgpu_grant grant;
	struct vgpu_ledger ledger;
};

struct operation {
	const char *name;
	void (*run)(void);
	uint64_t held;  /* by the victim before */
	uint64_t truth; /* what it holds while the operation goes on */
	uint64_t after; /* and when it has ended */
	int has_row;
};

static struct world *world;
static int world_fd;
static uint64_t self, self_image, victim, victim_image, here;
static uint64_t bystander, dead[2];
static uint64_t spare_rows; /* a row that exec interrupted while it was taken stays, empty */
static int survivor_row, victim_row;
static const struct operation *operation;

static void fail(const char *what, uint64_t moment)
{
	fprintf(stderr, "%s, interruption %llu: %s (charged %llu, janitor %llx, suspect %llu)\n",
		operation->name, (unsigned long long)moment, what,
		(unsigned long long)world->ledger.slices[0].memory_used,
		(unsigned long long)world->ledger.janitor,
		(unsigned long long)world->ledger.suspect);
	exit(1);
}

static uint64_t charged(void)
{
	return __atomic_load_n(&world->ledger.slices[0].memory_used, __ATOMIC_SEQ_CST);
}

/* ---- what is done ------------------------------------------------------------------------ */

static void do_charge(void)
{
	if (vgpu_charge(&world->ledger, (uint32_t)victim_row, 0, CHANGE, QUOTA))
		_exit(3);
}

static void do_refused(void)
{
	if (!vgpu_charge(&world->ledger, (uint32_t)victim_row, 0, QUOTA, QUOTA))
		_exit(3);
}

static void do_refund(void)
{
	vgpu_refund(&world->ledger, (uint32_t)victim_row, 0, CHANGE);
}

/* The same in a lane of the thread's own. */
static void do_seated_charge(void)
{
	if (vgpu_charge_seated(&world->ledger, (uint32_t)victim_row, 3, 0, CHANGE, QUOTA))
		_exit(3);
}

static void do_seated_refund(void)
{
	vgpu_refund_seated(&world->ledger, (uint32_t)victim_row, 3, 0, CHANGE);
}

/* For the one that is stepped: less to step through.  Here a pid is not used again. */
static int is_reaped(uint64_t owner, uint64_t pid_namespace)
{
	return (pid_namespace && pid_namespace != here) ||
	       syscall(SYS_kill, vgpu_owner_pid(owner), 0);
}

static void do_take(void)
{
	if (vgpu_row_take(&world->ledger, victim, victim_image, here, is_reaped) < 0)
		_exit(3);
}

static void do_sweep(void)
{
	vgpu_sweep(&world->ledger, victim, victim_image, is_reaped);
}

/* Nobody else writes this grant. */
static void do_write(void)
{
	struct vgpu_quota quota = {.device_memory = 22,
				   .memory = 22,
				   .cores = 22,
				   .policy = 2,
				   .cores_limit = 22,
				   .limit_end_ns = 22};

	vgpu_quota_write(&world->grant, 1, &quota);
}

/* What this program has to find: accounts kept in the wrong order. */
static void do_careless_charge(void)
{
	__atomic_fetch_add(&world->ledger.slices[0].memory_used, CHANGE, __ATOMIC_SEQ_CST);
	__atomic_fetch_add(&world->ledger.lanes[victim_row][0].memory[0], CHANGE, __ATOMIC_SEQ_CST);
}

static void do_careless_refund(void)
{
	__atomic_fetch_sub(&world->ledger.slices[0].memory_used, CHANGE, __ATOMIC_SEQ_CST);
	__atomic_fetch_sub(&world->ledger.lanes[victim_row][0].memory[0], CHANGE, __ATOMIC_SEQ_CST);
}

static const struct operation operations[] = {
	{"charge", do_charge, VICTIM, VICTIM, VICTIM + CHANGE, 1},
	{"refused", do_refused, VICTIM, VICTIM, VICTIM, 1},
	{"refund", do_refund, VICTIM, VICTIM - CHANGE, VICTIM - CHANGE, 1},
	{"seated-charge", do_seated_charge, VICTIM, VICTIM, VICTIM + CHANGE, 1},
	{"seated-refund", do_seated_refund, VICTIM, VICTIM - CHANGE, VICTIM - CHANGE, 1},
	{"take", do_take, 0, 0, 0, 0},
	{"sweep", do_sweep, VICTIM, VICTIM, VICTIM, 1},
	{"write", do_write, 0, 0, 0, 0},
	{"careless-charge", do_careless_charge, VICTIM, VICTIM, VICTIM + CHANGE, 1},
	{"careless-refund", do_careless_refund, VICTIM, VICTIM - CHANGE, VICTIM - CHANGE, 1},
};

/* ---- the world before --------------------------------------------------------------------- */

static int nobody_is_gone(uint64_t owner, uint64_t pid_namespace)
{
	return 0 * (owner + pid_namespace);
}

static int member(uint64_t owner, uint64_t image, uint64_t bytes)
{
	int row = vgpu_row_take(&world->ledger, owner, image, here, nobody_is_gone);

	if (row < 0 || vgpu_charge(&world->ledger, (uint32_t)row, 0, bytes, QUOTA))
		stepping_give_up("the world cannot be made");
	return row;
}

static void make_world(void)
{
	int row;

	memset(world, 0, sizeof(*world));
	world->ledger.magic = VGPU_LEDGER_MAGIC;
	world->ledger.abi = VGPU_ABI;
	world->ledger.size = sizeof(world->ledger);
	for (uint64_t i = 0; i < 2; i++)
		world->grant.slices[i] = (struct vgpu_quota){.device_memory = 11,
							     .memory = 11,
							     .cores = 11,
							     .policy = 1,
							     .cores_limit = 11,
							     .limit_end_ns = 11};
	survivor_row = member(self, self_image, SURVIVOR);
	member(bystander, 1, BYSTANDER);
	/* Killed when the total was raised and the row was not. */
	row = member(dead[0], 1, DEAD);
	world->ledger.lanes[row][0].begun++;
	world->ledger.slices[0].memory_used += LEAKED;
	member(dead[1], 1, 0);
}

/* A process that is about to do the operation, stopped. */
static pid_t start_victim(const struct operation *what)
{
	pid_t child = fork();

	if (child < 0)
		stepping_give_up("no process can be made");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		victim = vgpu_owner_self(&here);
		victim_image = vgpu_image_self();
		if (what->has_row)
			victim_row = member(victim, victim_image, what->held);
		world->truth = what->truth;
		stepping_begin();
		what->run();
		world->is_done = 1;
		_exit(0);
	}
	stepping_await(child);
	return child;
}

/* ---- the world during and after ------------------------------------------------------------- */

static void check_quota(uint64_t moment)
{
	for (uint32_t slice = 0; slice < 2; slice++) {
		struct vgpu_quota quota;

		vgpu_quota_read(&world->grant, slice, &quota);
		if (quota.memory != quota.device_memory || quota.memory != quota.cores ||
		    quota.memory != quota.cores_limit || quota.memory != quota.limit_end_ns ||
		    quota.memory != 11ull * quota.policy)
			fail("a reader of the grant sees a mixture", moment);
	}
}

static void check_at(uint64_t moment)
{
	if (charged() < LIVING + world->truth)
		fail("less is charged than the living hold", moment);
	if (charged() > QUOTA)
		fail("more is charged than the quota", moment);
	check_quota(moment);
}

/* All that is not held can be had, at once and to the last byte. */
static void check_rest(uint64_t rest, uint64_t moment)
{
	if (vgpu_charge(&world->ledger, (uint32_t)survivor_row, 0, rest, QUOTA))
		fail("what fits is refused", moment);
	if (!vgpu_charge(&world->ledger, (uint32_t)survivor_row, 0, 1, QUOTA))
		fail("what does not fit is not refused", moment);
	vgpu_refund(&world->ledger, (uint32_t)survivor_row, 0, rest);
}

/* What is held by the living is `held`, and a sweep has to find just that. */
static void check_after(uint64_t held, uint64_t rows, uint64_t moment)
{
	uint64_t taken = 0;

	if (charged() < held)
		fail("less is charged than the living hold", moment);
	vgpu_sweep(&world->ledger, self, self_image, vgpu_process_is_gone);
	if (charged() != held)
		fail("a sweep does not find what the living hold", moment);
	if (world->ledger.janitor || world->ledger.suspect)
		fail("a sweep is not ended", moment);
	for (int i = 0; i < VGPU_MAX_PROCESSES; i++)
		taken += !!world->ledger.rows[i].owner;
	if (taken < rows || taken > rows + spare_rows)
		fail("the rows are not those of the living", moment);
	check_rest(QUOTA - held, moment);
	check_quota(moment);
	do_write();
	check_quota(moment);
}

#endif
