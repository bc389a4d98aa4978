/* SPDX-License-Identifier: Apache-2.0
 *
 * A child that runs one instruction at a time, so that it can be killed, be
 * stopped or begin another program after any of them.  The child calls
 * stepping_begin() where the stepping is to start, and ends by exiting.
 */
#ifndef STEPPING_H
#define STEPPING_H

#include <elf.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static inline void stepping_give_up(const char *why)
{
	fprintf(stderr, "stepping: %s\n", why);
	_exit(2);
}

/* In the child. */
static inline void stepping_begin(void)
{
	if (ptrace(PTRACE_TRACEME, 0, 0, 0))
		stepping_give_up("this process may not be traced");
	syscall(SYS_kill, getpid(), SIGSTOP);
}

/* Wait until the child has called stepping_begin(). */
static inline void stepping_await(pid_t child)
{
	int status = 0;

	if (waitpid(child, &status, 0) != child || !WIFSTOPPED(status) ||
	    WSTOPSIG(status) != SIGSTOP)
		stepping_give_up("the child did not begin");
}

/* One instruction; 0 when the child has exited, whose status is judged. */
static inline int stepping_step(pid_t child)
{
	int status = 0;

	if (ptrace(PTRACE_SINGLESTEP, child, 0, 0) || waitpid(child, &status, 0) != child)
		stepping_give_up("the child cannot be stepped");
	if (WIFEXITED(status) && !WEXITSTATUS(status))
		return 0;
	if (!WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
		stepping_give_up("the child ended in a way of its own");
	return 1;
}

static inline void stepping_kill(pid_t child)
{
	int status = 0;

	if (kill(child, SIGKILL) || waitpid(child, &status, 0) != child || !WIFSIGNALED(status))
		stepping_give_up("the child cannot be killed");
}

/* Let the child run on to its end. */
static inline void stepping_finish(pid_t child)
{
	int status = 0;

	if (ptrace(PTRACE_CONT, child, 0, 0) || waitpid(child, &status, 0) != child)
		stepping_give_up("the child cannot go on");
	if (!WIFEXITED(status) || WEXITSTATUS(status))
		stepping_give_up("the child, having been stopped, did not end well");
}

static inline void stepping_registers(pid_t child, struct user_regs_struct *registers,
				      struct iovec *block)
{
	*block = (struct iovec){registers, sizeof(*registers)};
	if (ptrace(PTRACE_GETREGSET, child, NT_PRSTATUS, block))
		stepping_give_up("the child's registers cannot be read");
}

static inline uint64_t stepping_where(pid_t child)
{
	struct user_regs_struct registers;
	struct iovec block;

	stepping_registers(child, &registers, &block);
#ifdef __x86_64__
	return registers.rip;
#else
	return registers.pc;
#endif
}

/* The child goes on in `function`, as if it had been called just there. */
static inline void stepping_divert(pid_t child, void (*function)(void))
{
	struct user_regs_struct registers;
	struct iovec block;

	stepping_registers(child, &registers, &block);
#ifdef __x86_64__
	registers.rip = (uintptr_t)function;
	registers.rsp = ((registers.rsp - 1024) & ~15ull) - 8;
	registers.orig_rax = -1ull; /* no system call is to be begun again */
#else
	registers.pc = (uintptr_t)function;
	registers.sp = (registers.sp - 1024) & ~15ull;
#endif
	if (ptrace(PTRACE_SETREGSET, child, NT_PRSTATUS, &block))
		stepping_give_up("the child's registers cannot be written");
}

/* Where the child will be when the function that it has just entered returns, or
 * 0 where this is not known. */
static inline uint64_t stepping_return_address(pid_t child, uint64_t came_from)
{
#ifdef __x86_64__
	struct user_regs_struct registers;
	struct iovec block;

	/* A function that has returned has not been entered. */
	if ((uint8_t)ptrace(PTRACE_PEEKTEXT, child, came_from, 0) == 0xc3)
		return 0;
	stepping_registers(child, &registers, &block);
	return (uint64_t)ptrace(PTRACE_PEEKTEXT, child, registers.rsp, 0);
#else
	return 0;
#endif
}

/* Let the child run, without steps, to `address`. */
static inline void stepping_run_to(pid_t child, uint64_t address)
{
#ifdef __x86_64__
	long there = ptrace(PTRACE_PEEKTEXT, child, address, 0);
	struct user_regs_struct registers;
	struct iovec block;
	int status = 0;

	ptrace(PTRACE_POKETEXT, child, address, (there & ~0xffl) | 0xcc); /* int3 */
	if (ptrace(PTRACE_CONT, child, 0, 0) || waitpid(child, &status, 0) != child ||
	    !WIFSTOPPED(status) || WSTOPSIG(status) != SIGTRAP)
		stepping_give_up("the child did not come back");
	ptrace(PTRACE_POKETEXT, child, address, there);
	stepping_registers(child, &registers, &block);
	registers.rip = address;
	if (ptrace(PTRACE_SETREGSET, child, NT_PRSTATUS, &block))
		stepping_give_up("the child's registers cannot be written");
#endif
}

#endif
