/* SPDX-License-Identifier: Apache-2.0
 *
 * Launches kernels of a known length for as long as told.
 *
 *	spin HOW SECONDS NS [NS...]
 *
 * HOW: kernel, ex, cooperative, or ptsz (the twin of the first); "sync-" before
 * it waits for each kernel.  Lengths take turns.  Prints, after a first second
 * in which the bucket settles, "begin"; then for each further second, on
 * one line, the device time of the kernels that it completed and the time
 * that took, in nanoseconds.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda.h"
#include "kernels.h"

#define WARM_UP_NS 1000000000ull

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static CUresult launch(const char *how, CUfunction function, uint64_t ns)
{
	void *arguments[] = {&ns};
	CUlaunchConfig config = {1, 1, 1, 1, 1, 1, 0, NULL, NULL, 0};

	if (!strcmp(how, "kernel"))
		return cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL);
	if (!strcmp(how, "ptsz"))
		return cuLaunchKernel_ptsz(function, 1, 1, 1, 1, 1, 1, 0, NULL, arguments, NULL);
	if (!strcmp(how, "ex"))
		return cuLaunchKernelEx(&config, function, arguments, NULL);
	if (!strcmp(how, "cooperative"))
		return cuLaunchCooperativeKernel(function, 1, 1, 1, 1, 1, 1, 0, NULL, arguments);
	return CUDA_ERROR_INVALID_VALUE;
}

static void check(CUresult rc, const char *what)
{
	if (rc) {
		fprintf(stderr, "%s: %d\n", what, (int)rc);
		exit(1);
	}
}

int main(int argc, char **argv)
{
	uint64_t begin, second, launched = 0, turn = 0;
	int sync, seconds;
	CUcontext context;
	CUfunction function;
	CUmodule module;
	const char *how;

	if (argc < 4)
		return 2;
	sync = !strncmp(argv[1], "sync-", 5);
	how = argv[1] + 5 * sync;
	seconds = atoi(argv[2]);
	check(cuInit(0), "cuInit");
	check(cuCtxCreate_v2(&context, 0, 0), "cuCtxCreate_v2");
	check(cuModuleLoadData(&module, kernels()), "cuModuleLoadData");
	check(cuModuleGetFunction(&function, module, "vgpu_spin"), "cuModuleGetFunction");
	begin = second = now_ns();
	for (int done = -1; done < seconds;) {
		uint64_t ns = strtoull(argv[3 + turn++ % (uint64_t)(argc - 3)], NULL, 10);

		check(launch(how, function, ns), how);
		launched += ns;
		if (sync)
			check(cuCtxSynchronize(), "cuCtxSynchronize");
		if (now_ns() - second < WARM_UP_NS)
			continue;
		check(cuCtxSynchronize(), "cuCtxSynchronize");
		if (done < 0)
			printf("begin\n");
		else
			printf("%llu %llu\n", (unsigned long long)launched,
			       (unsigned long long)(now_ns() - second));
		fflush(stdout);
		second = now_ns();
		launched = 0;
		done++;
	}
	return begin > second;
}
