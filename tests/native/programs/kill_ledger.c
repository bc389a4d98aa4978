/* SPDX-License-Identifier: Apache-2.0
 *
 * kill_ledger OPERATION MODE: a process is interrupted after every instruction
 * of an operation on a ledger or grant, and another one looks at what is left.
 *
 *	each	killed after each instruction, or after some hundred of them that
 *		are spread evenly where there are more
 *	state	killed at each change of the shared files: together with the
 *		instructions in between, which change nothing that outlives the
 *		process, this is every instruction of operations however long
 *	pair	killed at each change; then a second process, that sweeps, too
 *	stop	stopped at each change while others sweep and charge, then let go
 *	exec	at each change it begins another program, as a thread may
 *
 * What is interrupted, and what must hold then, is in kill_world.h.  Stepping
 * takes microseconds an instruction, so this is built with a ledger of a few
 * rows.  Prints how many interruptions there were.
 */
#define _GNU_SOURCE
#include <sys/mman.h>

#include "kill_world.h"

#define MOST_KILLS 150

/* ---- stepping ----------------------------------------------------------------------------------
 */

/* One instruction; 0 when the operation is over, and the child has ended. */
static int goes_on(pid_t child)
{
	if (!stepping_step(child))
		stepping_give_up("the operation did not return");
	if (!world->is_done)
		return 1;
	stepping_finish(child);
	return 0;
}

/* Step until the files change; 0 when the child has ended.  At each change the
 * invariants are looked at. */
static int step_to_change(pid_t child, uint64_t moment)
{
	static char earlier[sizeof(struct world)];

	memcpy(earlier, world, sizeof(*world));
	while (goes_on(child))
		if (memcmp(earlier, world, sizeof(*world))) {
			check_at(moment);
			return 1;
		}
	return 0;
}

/* The victim at its change number `count`; 0 when there are not so many, and it has ended. */
static pid_t victim_at(uint64_t count)
{
	pid_t child = start_victim(operation);

	check_at(0);
	for (uint64_t i = 0; i < count; i++)
		if (!step_to_change(child, count))
			return 0;
	return child;
}

static uint64_t kill_at_each_state(void)
{
	for (uint64_t count = 0;; count++) {
		pid_t child;

		make_world();
		child = victim_at(count);
		if (!child) {
			check_after(LIVING, 2, count);
			return count;
		}
		stepping_kill(child);
		check_after(LIVING, 2, count);
	}
}

static uint64_t count_steps(void)
{
	pid_t child;
	uint64_t steps = 0;

	make_world();
	child = start_victim(operation);
	while (goes_on(child))
		steps++;
	return steps;
}

static uint64_t kill_at_each_instruction(void)
{
	uint64_t steps = count_steps(), stride = 1 + steps / MOST_KILLS, kills = 0;

	for (uint64_t end = 0; end < steps; end += stride, kills++) {
		pid_t child;

		make_world();
		child = start_victim(operation);
		for (uint64_t i = 0; i < end; i++)
			if (!goes_on(child))
				fail("it is not the same at every time", end);
		check_at(end);
		stepping_kill(child);
		check_after(LIVING, 2, end);
	}
	return kills;
}

/* The first one's kill at each state, the second one's at each of what it then does. */
static uint64_t kill_pairs(void)
{
	static const struct operation sweeping = {"sweep", do_sweep, 0, 0, 0, 0};
	uint64_t kills = 0;

	for (uint64_t count = 0;; count++)
		for (uint64_t second = 0;; second++, kills++) {
			pid_t child, sweeper;
			int is_alive = 1;

			make_world();
			child = victim_at(count);
			if (!child)
				return kills;
			stepping_kill(child);
			world->truth = 0;
			sweeper = start_victim(&sweeping);
			for (uint64_t i = 0; is_alive && i < second; i++)
				is_alive = step_to_change(sweeper, count * 1000 + second);
			if (is_alive)
				stepping_kill(sweeper);
			check_after(LIVING, 2, count * 1000 + second);
			if (!is_alive)
				break;
		}
}

static uint64_t stop_at_each_state(void)
{
	for (uint64_t count = 0;; count++) {
		pid_t child;
		int row;

		make_world();
		child = victim_at(count);
		if (!child)
			return count;
		vgpu_sweep(&world->ledger, self, self_image, vgpu_process_is_gone);
		check_at(count);
		row = vgpu_row_take(&world->ledger, dead[0], 1, here, nobody_is_gone);
		if (row < 0)
			fail("no row can be had while another process stands still", count);
		while (!vgpu_charge(&world->ledger, (uint32_t)row, 0, 10, QUOTA - CHANGE))
			check_at(count);
		while (vgpu_row_charged(&world->ledger, (uint32_t)row, 0))
			vgpu_refund(&world->ledger, (uint32_t)row, 0, 10);
		check_at(count);
		stepping_finish(child);
		world->truth = operation->after;
		check_at(count);
		world->truth = 0; /* its process has ended */
		check_after(LIVING, 2, count);
	}
}

/* ---- another program in the same process -------------------------------------------------------
 */

static void begin_again(void)
{
	char fd[16];

	snprintf(fd, sizeof(fd), "%d", world_fd);
	execl("/proc/self/exe", "kill_ledger", "reborn", fd, NULL);
	_exit(4);
}

/* The program that was begun: takes its row, and stands still. */
static int be_reborn(void)
{
	uint64_t owner = vgpu_owner_self(&here);

	victim_row =
		vgpu_row_take(&world->ledger, owner, vgpu_image_self(), here, vgpu_process_is_gone);
	world->truth = 0;
	raise(SIGSTOP);
	return 0;
}

static void await_signal(pid_t child, int expected)
{
	int status = 0;

	if (ptrace(PTRACE_CONT, child, 0, 0) || waitpid(child, &status, 0) != child ||
	    !WIFSTOPPED(status) || WSTOPSIG(status) != expected)
		stepping_give_up("the child did not begin another program");
}

static uint64_t exec_at_each_state(void)
{
	for (uint64_t count = 0;; count++) {
		pid_t child;

		make_world();
		child = victim_at(count);
		if (!child)
			return count;
		stepping_divert(child, begin_again);
		await_signal(child, SIGTRAP);
		await_signal(child, SIGSTOP);
		if (charged() != LIVING)
			fail("the new program does not take back what the old one held", count);
		spare_rows = 1;
		check_after(LIVING, 3, count);
		spare_rows = 0;
		stepping_kill(child);
		check_after(LIVING, 2, count);
	}
}

/* -------------------------------------------------------------------------------------------------
 */

static const struct {
	const char *name;
	uint64_t (*run)(void);
} modes[] = {
	{"each", kill_at_each_instruction}, {"state", kill_at_each_state}, {"pair", kill_pairs},
	{"stop", stop_at_each_state},       {"exec", exec_at_each_state},
};

/* A process that has ended, or one that lives as long as we do. */
static uint64_t other_process(int lives)
{
	pid_t child = fork();
	uint64_t owner;

	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		for (;;)
			pause();
	}
	owner = vgpu_owner_of((uint32_t)child);
	if (!lives && (kill(child, SIGKILL) || waitpid(child, NULL, 0) != child))
		stepping_give_up("no process can be made");
	return owner;
}

static void prepare(void)
{
	self = vgpu_owner_self(&here);
	self_image = vgpu_image_self();
	dead[0] = other_process(0);
	dead[1] = other_process(0);
	bystander = other_process(1);
}

int main(int argc, char **argv)
{
	int is_reborn = argc == 3 && !strcmp(argv[1], "reborn");

	if (argc != 3)
		return 2;
	world_fd = is_reborn ? atoi(argv[2]) : (int)syscall(SYS_memfd_create, "world", 0);
	if (world_fd < 0 || ftruncate(world_fd, sizeof(*world)))
		return 2;
	world = mmap(NULL, sizeof(*world), PROT_READ | PROT_WRITE, MAP_SHARED, world_fd, 0);
	if (world == MAP_FAILED)
		return 2;
	if (is_reborn)
		return be_reborn();
	for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++)
		if (!strcmp(argv[1], operations[i].name))
			operation = &operations[i];
	prepare();
	for (size_t i = 0; operation && i < sizeof(modes) / sizeof(*modes); i++)
		if (!strcmp(argv[2], modes[i].name)) {
			printf("%llu\n", (unsigned long long)modes[i].run());
			return 0;
		}
	return 2;
}
