/* SPDX-License-Identifier: Apache-2.0
 *
 * Asks a driver, and says what it answered, so that two runs can be compared:
 * the driver alone, and the driver with the shim in front of it.
 *
 *	oracle versions		"name version flags" a line: what both entries
 *				of cuGetProcAddress answer
 *	oracle names FILE	a name a line: what dlsym finds in that library
 *	oracle calls FILE INIT	a name a line: what the function returns for
 *				several kinds of arguments, in processes that
 *				may end there.  INIT is called first, "-" for
 *				nothing
 *
 * A function is named by the file that it is in and its symbol there.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cuda.h"

/* Younger than the libc that is compiled against. */
#ifndef MAP_FIXED_NOREPLACE
#define MAP_FIXED_NOREPLACE 0x100000
#endif

#define UNTOUCHED ((void *)7)
#define NO_STATUS (-5)

static void *need(void *found, const char *what)
{
	if (found)
		return found;
	fprintf(stderr, "oracle: %s: %s\n", what, dlerror());
	exit(1);
}

static void print_owner(void *address)
{
	Dl_info info;
	const char *file;

	if (address == UNTOUCHED || !address) {
		printf(" %s", address ? "untouched" : "null");
	} else if (!dladdr(address, &info) || !info.dli_sname || info.dli_saddr != address) {
		printf(" unnamed");
	} else {
		file = strrchr(info.dli_fname, '/');
		printf(" %s:%s", file ? file + 1 : info.dli_fname, info.dli_sname);
	}
}

/* ---- versions ----------------------------------------------------------------------- */

static void ask_versions(void)
{
	void *driver = need(dlopen("libcuda.so.1", RTLD_NOW), "libcuda.so.1");
	__typeof__(&cuGetProcAddress) first = need(dlsym(driver, "cuGetProcAddress"), "version 1");
	__typeof__(&cuGetProcAddress_v2) second = dlsym(driver, "cuGetProcAddress_v2");
	char line[256], name[128];
	unsigned int flags;
	int version;

	while (fgets(line, sizeof(line), stdin)) {
		CUdriverProcAddressQueryResult status = (CUdriverProcAddressQueryResult)NO_STATUS;
		void *found = UNTOUCHED;

		/* A name may be empty. */
		if (sscanf(line, "\"%127[^\"]\" %d %u", name, &version, &flags) != 3) {
			name[0] = 0;
			if (sscanf(line, "\"\" %d %u", &version, &flags) != 2)
				exit(1);
		}
		printf("\"%s\" %d %u:", name, version, flags);
		if (second) {
			printf(" %d", (int)second(name, &found, version, flags, &status));
			printf(" %d", (int)status);
			print_owner(found);
			found = UNTOUCHED;
			printf(" %d", (int)second(name, &found, version, flags, NULL));
			print_owner(found);
			found = UNTOUCHED;
		}
		printf(" %d", (int)first(name, &found, version, flags));
		print_owner(found);
		printf("\n");
	}
}

/* ---- names ---------------------------------------------------------------------------- */

static char *next_name(char *line, int size)
{
	if (!fgets(line, size, stdin))
		return NULL;
	line[strcspn(line, "\n")] = 0;
	return line;
}

static void ask_names(const char *file)
{
	void *driver = need(dlopen(file, RTLD_NOW), file);
	char name[128];

	while (next_name(name, sizeof(name))) {
		printf("%s", name);
		print_owner(dlsym(driver, name));
		printf("\n");
	}
}

/* ---- calls ------------------------------------------------------------------------------ */

/* As many as the longest of them takes, and more. */
typedef int (*any_function)(void *, void *, void *, void *, void *, void *, void *, void *, void *,
			    void *, void *, void *, void *, void *);

/* A place in low memory is a valid pointer, and read as a size it is one that
 * the tenant may have, or one that it may not. */
#define KINDS 3
#define PLACE (1 << 16)
static const uintptr_t kinds[KINDS] = {0, 1 << 20, 512 << 20};

static void make_places(void)
{
	for (int kind = 1; kind < KINDS; kind++) {
		void *wanted = (void *)kinds[kind];

		if (mmap(wanted, PLACE, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != wanted) {
			fprintf(stderr, "oracle: no memory at %p\n", wanted);
			exit(1);
		}
	}
}

static int call(void *function, int kind)
{
	void *a = (void *)kinds[kind];

	if (a)
		memset(a, 0, PLACE);
	return ((any_function)function)(a, a, a, a, a, a, a, a, a, a, a, a, a, a);
}

/* What each call came to: its code, or CRASHED and the signal. */
#define MOST 512
#define CRASHED (1 << 30)

static void call_from(int first, int count, void **functions, void *init, int kind, int to)
{
	static const struct rlimit no_core;

	setrlimit(RLIMIT_CORE, &no_core);
	alarm(60);
	if (init)
		((int (*)(unsigned int))init)(0);
	for (int i = first; i < count; i++) {
		int code = functions[i] ? call(functions[i], kind) : 0;

		if (write(to, &code, sizeof(code)) != sizeof(code))
			_exit(1);
	}
	_exit(0);
}

/* A child makes the calls; where it ends, the next one goes on behind that. */
static void call_all(int count, void **functions, void *init, int kind, int *codes)
{
	for (int i = 0; i < count; i++) {
		int ends[2], status;
		pid_t child;

		if (pipe(ends))
			exit(1);
		child = fork();
		if (!child)
			call_from(i, count, functions, init, kind, ends[1]);
		close(ends[1]);
		while (read(ends[0], &codes[i], sizeof(*codes)) == sizeof(*codes))
			i++;
		close(ends[0]);
		if (waitpid(child, &status, 0) != child)
			exit(1);
		if (i < count)
			codes[i] = CRASHED + (WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	}
}

static void ask_calls(const char *file, const char *init)
{
	static char names[MOST][128];
	static void *functions[MOST];
	static int codes[KINDS][MOST + 1];
	void *driver = need(dlopen(file, RTLD_NOW), file);
	void *start = strcmp(init, "-") ? need(dlsym(driver, init), init) : NULL;
	int count = 0;

	make_places();
	for (; count < MOST && next_name(names[count], sizeof(*names)); count++)
		functions[count] = dlsym(driver, names[count]);
	if (count == MOST) {
		fprintf(stderr, "oracle: too many names\n");
		exit(1);
	}
	for (int kind = 0; kind < KINDS; kind++)
		call_all(count, functions, start, kind, codes[kind]);
	for (int i = 0; i < count; i++) {
		printf("%s", names[i]);
		for (int kind = 0; functions[i] && kind < KINDS; kind++)
			if (codes[kind][i] >= CRASHED)
				printf(" signal-%d", codes[kind][i] - CRASHED);
			else
				printf(" %d", codes[kind][i]);
		printf("\n");
	}
}

int main(int count, char **words)
{
	if (count == 2 && !strcmp(words[1], "versions"))
		ask_versions();
	else if (count == 3 && !strcmp(words[1], "names"))
		ask_names(words[2]);
	else if (count == 4 && !strcmp(words[1], "calls"))
		ask_calls(words[2], words[3]);
	else
		return 2;
	return 0;
}
