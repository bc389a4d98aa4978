/* SPDX-License-Identifier: Apache-2.0
 *
 * Times driver calls on request: a line "NAME COUNT THREADS LIVE" on stdin is
 * answered by the nanoseconds from the first call to the last, of COUNT calls by
 * so many threads while so many small allocations live.  The same program runs
 * with the shim and without, side by side, so that a difference is the shim's
 * and not the hour's.
 *
 * It finds the driver as the CUDA runtime does: dlopen, then dlsym.
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "cuda.h"

/* An empty kernel: only the launch itself is to be seen. */
static const char IMAGE[] = ".version 6.0\n.target sm_50\n.address_size 64\n"
			    ".visible .entry nothing() { ret; }\n";

/* Every driver function that is called here. */
#define FUNCTIONS(X)                                                                               \
	X(cuInit)                                                                                  \
	X(cuDeviceGet)                                                                             \
	X(cuDevicePrimaryCtxRetain)                                                                \
	X(cuCtxSetCurrent)                                                                         \
	X(cuCtxGetDevice)                                                                          \
	X(cuCtxCreate_v2)                                                                          \
	X(cuCtxDestroy_v2)                                                                         \
	X(cuCtxSynchronize)                                                                        \
	X(cuModuleLoadData)                                                                        \
	X(cuModuleGetFunction)                                                                     \
	X(cuLaunchKernel)                                                                          \
	X(cuMemAlloc_v2)                                                                           \
	X(cuMemFree_v2)                                                                            \
	X(cuMemAllocAsync)                                                                         \
	X(cuMemFreeAsync)                                                                          \
	X(cuMemGetInfo_v2)

static struct {
#define FIELD(symbol) __typeof__(&symbol) symbol;
	FUNCTIONS(FIELD)
} cuda;

static CUfunction kernel;
static CUcontext context;

/* Drivers cut small allocations out of a large block. */
#define SMALL 4096
/* No device has it. */
#define TOO_MUCH ((size_t)1 << 45)
#define MOST_LIVE 1000000
#define MOST_THREADS 64

static void *find(void *library, const char *name)
{
	void *address = dlsym(library, name);

	if (!address) {
		fprintf(stderr, "driver_calls: the driver has no %s\n", name);
		exit(1);
	}
	return address;
}

static void check(CUresult result, const char *what)
{
	if (result) {
		fprintf(stderr, "driver_calls: %s failed with %d\n", what, (int)result);
		exit(1);
	}
}

#define CHECK(call) check(call, #call)

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void launches(long count)
{
	for (long i = 0; i < count; i++)
		CHECK(cuda.cuLaunchKernel(kernel, 1, 1, 1, 1, 1, 1, 0, NULL, NULL, NULL));
}

static void launches_and_waits(long count)
{
	for (long i = 0; i < count; i++) {
		launches(1);
		CHECK(cuda.cuCtxSynchronize());
	}
}

static void pairs_of(long count, size_t bytes)
{
	CUdeviceptr pointer;

	for (long i = 0; i < count; i++) {
		CHECK(cuda.cuMemAlloc_v2(&pointer, bytes));
		CHECK(cuda.cuMemFree_v2(pointer));
	}
}

static void pairs(long count)
{
	pairs_of(count, SMALL);
}

static void pairs_2m(long count)
{
	pairs_of(count, (size_t)2 << 20);
}

static void pairs_64m(long count)
{
	pairs_of(count, (size_t)64 << 20);
}

static void pairs_1g(long count)
{
	pairs_of(count, (size_t)1 << 30);
}

/* In stream order: the pool keeps the memory until the batch ends. */
static void pairs_async(long count)
{
	CUdeviceptr pointer;

	for (long i = 0; i < count; i++) {
		CHECK(cuda.cuMemAllocAsync(&pointer, SMALL, NULL));
		CHECK(cuda.cuMemFreeAsync(pointer, NULL));
	}
}

static void contexts(long count)
{
	CUcontext made;

	for (long i = 0; i < count; i++) {
		CHECK(cuda.cuCtxCreate_v2(&made, 0, 0));
		CHECK(cuda.cuCtxDestroy_v2(made));
	}
	CHECK(cuda.cuCtxSetCurrent(context));
}

static void refusals(long count)
{
	CUdeviceptr pointer;

	for (long i = 0; i < count; i++)
		if (cuda.cuMemAlloc_v2(&pointer, TOO_MUCH) != CUDA_ERROR_OUT_OF_MEMORY)
			check(CUDA_ERROR_UNKNOWN, "an allocation that is too large");
}

static void infos(long count)
{
	size_t free, total;

	for (long i = 0; i < count; i++)
		CHECK(cuda.cuMemGetInfo_v2(&free, &total));
}

static void passes(long count)
{
	CUdevice device;

	for (long i = 0; i < count; i++)
		CHECK(cuda.cuCtxGetDevice(&device));
}

static const struct {
	const char *name;
	void (*run)(long count);
} operations[] = {
	{"launch", launches},
	{"launch+wait", launches_and_waits},
	{"alloc+free", pairs},
	{"alloc+free:2MiB", pairs_2m},
	{"alloc+free:64MiB", pairs_64m},
	{"alloc+free:1GiB", pairs_1g},
	{"async-alloc+free", pairs_async},
	{"context", contexts},
	{"refusal", refusals},
	{"meminfo", infos},
	{"pass-through", passes},
};

/* ---- a batch -------------------------------------------------------------------------- */

static CUdeviceptr live[MOST_LIVE];
static long lives;

static void keep_alive(long wanted)
{
	for (; lives < wanted && lives < MOST_LIVE; lives++)
		CHECK(cuda.cuMemAlloc_v2(&live[lives], SMALL));
	while (lives > wanted)
		CHECK(cuda.cuMemFree_v2(live[--lives]));
}

struct batch {
	void (*run)(long count);
	long count; /* for each thread */
	pthread_barrier_t gate;
};

static void *work(void *argument)
{
	struct batch *batch = argument;

	CHECK(cuda.cuCtxSetCurrent(context));
	pthread_barrier_wait(&batch->gate);
	batch->run(batch->count);
	return NULL;
}

static uint64_t time_threads(struct batch *batch, int threads)
{
	pthread_t thread[MOST_THREADS];
	uint64_t start;

	pthread_barrier_init(&batch->gate, NULL, (unsigned int)threads + 1);
	for (int i = 0; i < threads; i++)
		if (pthread_create(&thread[i], NULL, work, batch))
			check(CUDA_ERROR_UNKNOWN, "a thread");
	pthread_barrier_wait(&batch->gate);
	start = now_ns();
	for (int i = 0; i < threads; i++)
		pthread_join(thread[i], NULL);
	pthread_barrier_destroy(&batch->gate);
	return now_ns() - start;
}

static uint64_t time_here(const struct batch *batch)
{
	uint64_t start = now_ns();

	batch->run(batch->count);
	return now_ns() - start;
}

static void serve(void)
{
	long count, threads, alive;
	char name[32];

	while (scanf("%31s %ld %ld %ld", name, &count, &threads, &alive) == 4)
		for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++) {
			struct batch batch = {.run = operations[i].run, .count = count / threads};

			if (strcmp(name, operations[i].name) || threads > MOST_THREADS)
				continue;
			keep_alive(alive);
			printf("%llu\n",
			       (unsigned long long)(threads > 1 ? time_threads(&batch, (int)threads)
								: time_here(&batch)));
			fflush(stdout);
			/* What the batch has queued must not be the next one's. */
			CHECK(cuda.cuCtxSynchronize());
		}
}

int main(void)
{
	void *driver = dlopen("libcuda.so.1", RTLD_NOW);
	CUdevice device;
	CUmodule module;
	CUdeviceptr held;

	if (!driver) {
		fprintf(stderr, "driver_calls: %s\n", dlerror());
		return 1;
	}
#define LOAD(symbol) cuda.symbol = (__typeof__(cuda.symbol))find(driver, #symbol);
	FUNCTIONS(LOAD)
	CHECK(cuda.cuInit(0));
	CHECK(cuda.cuDeviceGet(&device, 0));
	CHECK(cuda.cuDevicePrimaryCtxRetain(&context, device));
	CHECK(cuda.cuCtxSetCurrent(context));
	CHECK(cuda.cuModuleLoadData(&module, IMAGE));
	CHECK(cuda.cuModuleGetFunction(&kernel, module, "nothing"));
	/* Keeps the block in use, so that a pair is not the making and unmaking of one. */
	CHECK(cuda.cuMemAlloc_v2(&held, SMALL));
	puts("ready");
	fflush(stdout);
	serve();
	return 0;
}
