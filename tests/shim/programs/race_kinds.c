/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that allocate and free memory of every kind at the edge of a quota.
 *
 *	race_kinds MEMBERS THREADS ROUNDS CHUNK QUOTA MACHINE FILE
 *
 * It begins when as many processes are there.  Each thread goes through ROUNDS rounds, frees what
 * it has and ends.  After each allocation it looks up what the device has really given, in the file
 * of the simulated MACHINE; what is more than QUOTA is a violation.  That of killed processes does
 * not count: the machine takes it back when it is asked.
 *
 * FILE is shared by all processes of the race: how many are there, violations, allocations made,
 * and refused, for each kind.  Anything but success and "out of memory" ends it.
 */
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cuda.h"
#include "sim/machine.h"

#define KEPT 4
#define ROW (512u << 10)

CUresult cuMemAddressReserve(CUdeviceptr *pointer, size_t bytes, size_t alignment,
			     CUdeviceptr wanted, unsigned long long flags);
CUresult cuMemAddressFree(CUdeviceptr pointer, size_t bytes);
CUresult cuStreamCreate(CUstream *stream, unsigned int flags);

enum kind { LINEAR, PITCHED, MANAGED, ORDERED, OWN_POOL, BLOCK, ARRAY, KINDS };

static struct {
	uint64_t arrived, violations, made[KINDS], refused[KINDS];
} *shared;
static const struct sim_machine *machine;
static uint64_t chunk, quota;
static int rounds;
static CUcontext context;
static CUmemoryPool pool;

struct piece {
	int is_held;
	enum kind kind;
	uint64_t bytes;
	CUdeviceptr pointer;
	CUmemGenericAllocationHandle handle;
	CUarray array;
};

struct thread {
	pthread_t id;
	unsigned int seed;
	CUstream stream;
	struct piece pieces[KEPT];
};

static void must(CUresult rc, int line)
{
	if (rc) {
		fprintf(stderr, "line %d: the driver returned %d\n", line, (int)rc);
		exit(3);
	}
}

#define MUST(call) must(call, __LINE__)

/* A block, mapped, and held by its mapping alone. */
static CUresult make_block(struct piece *piece)
{
	const CUmemAllocationProp of = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					.location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	CUresult rc = cuMemCreate(&piece->handle, piece->bytes, &of, 0);

	if (rc)
		return rc;
	MUST(cuMemAddressReserve(&piece->pointer, piece->bytes, 0, 0, 0));
	MUST(cuMemMap(piece->pointer, piece->bytes, 0, piece->handle, 0));
	MUST(cuMemRelease(piece->handle));
	return CUDA_SUCCESS;
}

static CUresult make(struct thread *thread, struct piece *piece)
{
	const CUDA_ARRAY3D_DESCRIPTOR of = {.Width = ROW / 16,
					    .Height = piece->bytes / ROW,
					    .Format = CU_AD_FORMAT_FLOAT,
					    .NumChannels = 4};
	size_t pitch;

	switch (piece->kind) {
	case LINEAR:
		return cuMemAlloc_v2(&piece->pointer, piece->bytes);
	case PITCHED:
		return cuMemAllocPitch_v2(&piece->pointer, &pitch, ROW, piece->bytes / ROW, 4);
	case MANAGED:
		return cuMemAllocManaged(&piece->pointer, piece->bytes, CU_MEM_ATTACH_GLOBAL);
	case ORDERED:
		return cuMemAllocAsync(&piece->pointer, piece->bytes, thread->stream);
	case OWN_POOL:
		return cuMemAllocFromPoolAsync(&piece->pointer, piece->bytes, pool, thread->stream);
	case BLOCK:
		return make_block(piece);
	default:
		return cuArray3DCreate_v2(&piece->array, &of);
	}
}

static void end(struct thread *thread, struct piece *piece)
{
	piece->is_held = 0;
	switch (piece->kind) {
	case ORDERED:
	case OWN_POOL:
		MUST(cuMemFreeAsync(piece->pointer, thread->stream));
		break;
	case BLOCK:
		MUST(cuMemUnmap(piece->pointer, piece->bytes));
		MUST(cuMemAddressFree(piece->pointer, piece->bytes));
		break;
	case ARRAY:
		MUST(cuArrayDestroy(piece->array));
		break;
	default:
		MUST(cuMemFree_v2(piece->pointer));
	}
}

static uint64_t really_used(void)
{
	return __atomic_load_n(&machine->devices[0].memory_used, __ATOMIC_SEQ_CST);
}

static void look(void)
{
	size_t available, total;

	if (really_used() <= quota)
		return;
	/* Of the living only. */
	MUST(cuMemGetInfo_v2(&available, &total));
	if (really_used() > quota)
		__atomic_fetch_add(&shared->violations, 1, __ATOMIC_RELAXED);
}

static void play(struct thread *thread)
{
	struct piece *piece = &thread->pieces[rand_r(&thread->seed) % KEPT];
	CUresult rc;

	if (piece->is_held) {
		end(thread, piece);
		return;
	}
	piece->kind = (enum kind)(rand_r(&thread->seed) % KINDS);
	piece->bytes = chunk * (1 + (uint64_t)rand_r(&thread->seed) % 4);
	rc = make(thread, piece);
	if (rc == CUDA_ERROR_OUT_OF_MEMORY) {
		__atomic_fetch_add(&shared->refused[piece->kind], 1, __ATOMIC_RELAXED);
		MUST(cuStreamSynchronize(thread->stream));
		return;
	}
	MUST(rc);
	piece->is_held = 1;
	__atomic_fetch_add(&shared->made[piece->kind], 1, __ATOMIC_RELAXED);
	look();
}

static void *work(void *argument)
{
	struct thread *thread = argument;

	MUST(cuCtxSetCurrent(context));
	for (int i = 0; i < rounds; i++)
		play(thread);
	for (int i = 0; i < KEPT; i++)
		if (thread->pieces[i].is_held)
			end(thread, &thread->pieces[i]);
	return NULL;
}

static void *map_file(const char *path, size_t bytes, int is_written)
{
	int fd = open(path, is_written ? O_RDWR : O_RDONLY);
	void *memory = mmap(NULL, bytes, is_written ? PROT_READ | PROT_WRITE : PROT_READ,
			    MAP_SHARED, fd, 0);

	if (fd < 0 || memory == MAP_FAILED)
		exit(2);
	return memory;
}

int main(int argc, char **argv)
{
	const CUmemPoolProps of = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				   .location = {CU_MEM_LOCATION_TYPE_DEVICE, 0}};
	static struct thread threads[64];
	int count;

	if (argc != 8 || (count = atoi(argv[2])) > 64)
		return 2;
	rounds = atoi(argv[3]);
	chunk = strtoull(argv[4], NULL, 10);
	quota = strtoull(argv[5], NULL, 10);
	machine = map_file(argv[6], sizeof(*machine), 0);
	shared = map_file(argv[7], sizeof(*shared), 1);
	MUST(cuInit(0));
	MUST(cuCtxCreate_v2(&context, 0, 0));
	MUST(cuMemPoolCreate(&pool, &of));
	__atomic_fetch_add(&shared->arrived, 1, __ATOMIC_SEQ_CST);
	while (__atomic_load_n(&shared->arrived, __ATOMIC_SEQ_CST) < strtoull(argv[1], NULL, 10))
		sched_yield();
	for (int i = 0; i < count; i++) {
		threads[i].seed = (unsigned int)(i * 7919 + (uintptr_t)shared / 4096);
		/* Half of them share the null stream. */
		if (i % 2)
			MUST(cuStreamCreate(&threads[i].stream, 1));
		pthread_create(&threads[i].id, NULL, work, &threads[i]);
	}
	for (int i = 0; i < count; i++)
		pthread_join(threads[i].id, NULL);
	MUST(cuCtxSynchronize());
	MUST(cuMemPoolDestroy(pool));
	return 0;
}
