/* SPDX-License-Identifier: Apache-2.0
 *
 * Asks a driver, and says what it answered, so that two runs can be compared:
 * the driver alone, and the driver with the shim in front of it.
 *
 *	oracle versions		"name version flags" a line: what both entries
 *				of cuGetProcAddress answer
 *	oracle names FILE	a name a line: what dlsym finds in that library
 *	oracle calls FILE INIT	a name a line: what the function returns for
 *				several kinds of arguments; each call in a
 *				process of its own, because it may end there.
 *				INIT is called first, "-" for nothing
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
static const uintptr_t kinds[] = {0, 1 << 20, 512 << 20};
#define KINDS ((int)(sizeof(kinds) / sizeof(kinds[0])))

static void make_places(void)
{
	for (int kind = 1; kind < KINDS; kind++) {
		void *wanted = (void *)kinds[kind];

		if (mmap(wanted, 1 << 16, PROT_READ | PROT_WRITE,
			 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) != wanted) {
			fprintf(stderr, "oracle: no memory at %p\n", wanted);
			exit(1);
		}
	}
}

static int call(void *function, int kind)
{
	void *a = (void *)kinds[kind];

	return ((any_function)function)(a, a, a, a, a, a, a, a, a, a, a, a, a, a);
}

static void print_end_of(void *function, void *init, int kind)
{
	int ends[2], status, code = 0;
	pid_t child;

	if (pipe(ends))
		exit(1);
	fflush(stdout);
	child = fork();
	if (!child) {
		static const struct rlimit no_core;

		setrlimit(RLIMIT_CORE, &no_core);
		alarm(30);
		if (init)
			((int (*)(unsigned int))init)(0);
		code = call(function, kind);
		_exit(write(ends[1], &code, sizeof(code)) != sizeof(code));
	}
	close(ends[1]);
	if (read(ends[0], &code, sizeof(code)) != sizeof(code))
		code = -1;
	close(ends[0]);
	if (waitpid(child, &status, 0) != child)
		exit(1);
	if (WIFSIGNALED(status))
		printf(" signal-%d", WTERMSIG(status));
	else
		printf(" %d", code);
}

static void ask_calls(const char *file, const char *init)
{
	void *driver = need(dlopen(file, RTLD_NOW), file);
	void *start = strcmp(init, "-") ? need(dlsym(driver, init), init) : NULL;
	char name[128];

	make_places();
	while (next_name(name, sizeof(name))) {
		void *function = dlsym(driver, name);

		printf("%s", name);
		for (int kind = 0; function && kind < KINDS; kind++)
			print_end_of(function, start, kind);
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
