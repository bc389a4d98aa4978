/* SPDX-License-Identifier: Apache-2.0
 *
 * Times processes, not calls.
 *
 *	starts exec PRELOAD COUNT PROGRAM	one after the other, by turns bare and with
 *						PRELOAD: a line "bare ours" of nanoseconds each
 *	starts crowd PRELOAD COUNT SIZE		SIZE processes at once that set the driver up and
 *						allocate, likewise; nanoseconds until all are done
 *	starts member				one of a crowd
 *
 * The tenant is the one that the environment names; bare, PRELOAD is left out.
 */
#include <dlfcn.h>
#include <spawn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "cuda.h"

#define LARGEST_CROWD 1024

extern char **environ;

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void fail(const char *what)
{
	fprintf(stderr, "starts: %s\n", what);
	exit(1);
}

static void set_preload(const char *preload)
{
	if (preload)
		setenv("LD_PRELOAD", preload, 1);
	else
		unsetenv("LD_PRELOAD");
}

static pid_t spawn(char **command)
{
	pid_t child;

	if (posix_spawn(&child, command[0], NULL, NULL, command, environ))
		fail("a process could not be started");
	return child;
}

static void reap(pid_t child)
{
	int status;

	if (waitpid(child, &status, 0) != child || status)
		fail("a process has failed");
}

/* ---- one process ------------------------------------------------------------------------ */

static uint64_t time_exec(char **command)
{
	uint64_t start = now_ns();

	reap(spawn(command));
	return now_ns() - start;
}

/* ---- a crowd ------------------------------------------------------------------------------ */

static void *find(void *driver, const char *name)
{
	void *found = dlsym(driver, name);

	if (!found)
		fail(name);
	return found;
}

#define FUNCTION(symbol) __typeof__(&symbol) symbol##_ = (__typeof__(&symbol))find(driver, #symbol)

static int be_member(void)
{
	void *driver = dlopen("libcuda.so.1", RTLD_NOW);
	CUdeviceptr pointer;
	CUcontext context;

	if (!driver)
		fail(dlerror());
	FUNCTION(cuInit);
	FUNCTION(cuDevicePrimaryCtxRetain);
	FUNCTION(cuCtxSetCurrent);
	FUNCTION(cuMemAlloc_v2);
	return cuInit_(0) || cuDevicePrimaryCtxRetain_(&context, 0) || cuCtxSetCurrent_(context) ||
	       cuMemAlloc_v2_(&pointer, 4096);
}

static uint64_t time_crowd(char *self, int size)
{
	char *command[] = {self, "member", NULL};
	pid_t members[LARGEST_CROWD];
	uint64_t start = now_ns();

	for (int i = 0; i < size; i++)
		members[i] = spawn(command);
	for (int i = 0; i < size; i++)
		reap(members[i]);
	return now_ns() - start;
}

static uint64_t time_once(char **argv, const char *preload)
{
	set_preload(preload);
	return strcmp(argv[1], "exec") ? time_crowd(argv[0], atoi(argv[4])) : time_exec(argv + 4);
}

int main(int argc, char **argv)
{
	if (argc == 2 && !strcmp(argv[1], "member"))
		return be_member();
	if (argc != 5 || (strcmp(argv[1], "exec") && atoi(argv[4]) > LARGEST_CROWD))
		fail("see the head of starts.c");
	/* The first ones read files that the others find in memory. */
	time_once(argv, NULL);
	time_once(argv, argv[2]);
	for (int i = 0; i < atoi(argv[3]); i++) {
		int ours_first = i % 2;
		uint64_t first = time_once(argv, ours_first ? argv[2] : NULL);
		uint64_t second = time_once(argv, ours_first ? NULL : argv[2]);

		printf("%llu %llu\n", (unsigned long long)(ours_first ? second : first),
		       (unsigned long long)(ours_first ? first : second));
	}
	return 0;
}
