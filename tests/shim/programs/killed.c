/* SPDX-License-Identifier: Apache-2.0
 *
 * killed OPERATION KILLS QUOTA [MACHINE]
 *
 * This process holds memory of a tenant and survives.  Others of the tenant do
 * the operation on the driver, and each is killed after another instruction
 * that it executes in the shim (in the driver nothing is charged or refunded).
 * After each kill the survivor asks for all that nobody living holds, to the last byte.  Prints the
 * kills, and how many of them left something charged that had to be taken back.
 *
 * Started as `killed OPERATION` it is the one that is killed.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include "abi.h"
#include "cuda.h"
#include "machine.h"
#include "tools/stepping.h"

#define KEPT (16u << 20)
#define SIZE (8u << 20)

static struct vgpu_ledger *ledger;
static const struct sim_machine *machine; /* NULL: a real one */
static CUdeviceptr held;
static CUmemoryPool pool;
static CUmemGenericAllocationHandle block;
static CUarray array;

static void need(CUresult rc, const char *what)
{
	if (!rc)
		return;
	fprintf(stderr, "killed: %s: the driver returned %d\n", what, rc);
	exit(1);
}

/* ---- the operations --------------------------------------------------------------------------
 */

static void have_memory(void)
{
	need(cuMemAlloc_v2(&held, SIZE), "cuMemAlloc before");
}

static void have_async_memory(void)
{
	need(cuMemAllocAsync(&held, SIZE, NULL), "cuMemAllocAsync before");
	need(cuCtxSynchronize(), "cuCtxSynchronize");
}

static void do_alloc(void)
{
	CUdeviceptr made;

	need(cuMemAlloc_v2(&made, SIZE), "cuMemAlloc");
}

static void do_free(void)
{
	need(cuMemFree_v2(held), "cuMemFree");
}

static void do_managed(void)
{
	CUdeviceptr made;

	need(cuMemAllocManaged(&made, SIZE, CU_MEM_ATTACH_GLOBAL), "cuMemAllocManaged");
}

static void do_pitch(void)
{
	CUdeviceptr made;
	size_t pitch;

	need(cuMemAllocPitch_v2(&made, &pitch, 1000, SIZE / 1024, 4), "cuMemAllocPitch");
}

static void do_async(void)
{
	CUdeviceptr made;

	need(cuMemAllocAsync(&made, SIZE, NULL), "cuMemAllocAsync");
}

static void do_free_async(void)
{
	need(cuMemFreeAsync(held, NULL), "cuMemFreeAsync");
}

static void have_pool(void)
{
	CUmemPoolProps properties = {.allocType = CU_MEM_ALLOCATION_TYPE_PINNED,
				     .location.type = CU_MEM_LOCATION_TYPE_DEVICE};
	uint64_t threshold = UINT64_MAX;

	need(cuMemPoolCreate(&pool, &properties), "cuMemPoolCreate");
	need(cuMemPoolSetAttribute(pool, CU_MEMPOOL_ATTR_RELEASE_THRESHOLD, &threshold),
	     "cuMemPoolSetAttribute");
}

static void do_pool(void)
{
	need(cuMemAllocFromPoolAsync(&held, SIZE, pool, NULL), "cuMemAllocFromPoolAsync");
}

/* What it keeps is charged, though nothing is allocated. */
static void have_full_pool(void)
{
	have_pool();
	do_pool();
	need(cuMemFreeAsync(held, NULL), "cuMemFreeAsync before");
	need(cuCtxSynchronize(), "cuCtxSynchronize");
}

static void do_trim(void)
{
	need(cuMemPoolTrimTo(pool, 0), "cuMemPoolTrimTo");
}

static void do_block(void)
{
	CUmemAllocationProp properties = {.type = CU_MEM_ALLOCATION_TYPE_PINNED,
					  .location.type = CU_MEM_LOCATION_TYPE_DEVICE};

	need(cuMemCreate(&block, SIZE, &properties, 0), "cuMemCreate");
}

static void do_release(void)
{
	need(cuMemRelease(block), "cuMemRelease");
}

static void do_array(void)
{
	CUDA_ARRAY_DESCRIPTOR description = {1024, SIZE / 4096, CU_AD_FORMAT_FLOAT, 1};

	need(cuArrayCreate_v2(&array, &description), "cuArrayCreate");
}

static void do_array_end(void)
{
	need(cuArrayDestroy(array), "cuArrayDestroy");
}

static void do_context(void)
{
	CUcontext context;

	need(cuCtxCreate_v2(&context, 0, 0), "cuCtxCreate");
}

static const struct {
	const char *name;
	void (*prepare)(void); /* in a context; NULL: there is none yet */
	void (*run)(void);
} operations[] = {
	{"first-context", NULL, do_context},
	{"alloc", have_memory, do_alloc},
	{"free", have_memory, do_free},
	{"managed", have_memory, do_managed},
	{"pitch", have_memory, do_pitch},
	{"async", have_async_memory, do_async},
	{"free-async", have_async_memory, do_free_async},
	{"pool", have_pool, do_pool},
	{"trim", have_full_pool, do_trim},
	{"block", have_memory, do_block},
	{"release", do_block, do_release},
	{"array", have_memory, do_array},
	{"array-end", do_array, do_array_end},
	{"context", have_memory, do_context},
};

static int be_killed(const char *name)
{
	for (size_t i = 0; i < sizeof(operations) / sizeof(*operations); i++)
		if (!strcmp(name, operations[i].name)) {
			need(cuInit(0), "cuInit");
			if (operations[i].prepare) {
				do_context();
				operations[i].prepare();
			}
			stepping_begin();
			operations[i].run();
			_exit(0);
		}
	return 2;
}

/* ---- stepping ------------------------------------------------------------------------------- */

static uint64_t shim_begin, shim_end;

/* The shim's instructions in the child's memory. */
static void find_shim(pid_t child)
{
	char path[64], line[PATH_MAX + 128];
	FILE *maps;

	snprintf(path, sizeof(path), "/proc/%d/maps", child);
	maps = fopen(path, "re");
	shim_begin = 0;
	while (maps && fgets(line, sizeof(line), maps))
		if (strstr(line, "/libvgpu.so\n") && strstr(line, " r-xp "))
			shim_begin = strtoull(line, NULL, 16),
			shim_end = strtoull(strchr(line, '-') + 1, NULL, 16);
	if (maps)
		fclose(maps);
	if (!shim_begin)
		stepping_give_up("the shim is not in the child");
}

static pid_t start_victim(const char *name)
{
	pid_t child = fork();

	if (child < 0)
		stepping_give_up("no process can be made");
	if (!child) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		execl("/proc/self/exe", "killed", name, NULL);
		_exit(4);
	}
	stepping_await(child);
	find_shim(child);
	return child;
}

static int is_in_shim(uint64_t where)
{
	return where >= shim_begin && where < shim_end;
}

/* Step until so many instructions of the shim have been executed; how many
 * were, which is less when the child has ended.  What the shim calls runs at
 * full speed. */
static uint64_t step_in_shim(pid_t child, uint64_t wanted)
{
	uint64_t done = 0, back;

	while (done < wanted) {
		uint64_t where = stepping_where(child);

		if (!stepping_step(child))
			break;
		if (!is_in_shim(where))
			continue;
		done++;
		if (is_in_shim(stepping_where(child)))
			continue;
		back = stepping_return_address(child, where);
		if (back)
			stepping_run_to(child, back);
	}
	return done;
}

/* ---- the survivor ------------------------------------------------------------------------------
 */

static uint64_t charged(void)
{
	return __atomic_load_n(&ledger->slices[0].memory_used, __ATOMIC_SEQ_CST);
}

static void fail(const char *what, uint64_t instruction)
{
	fprintf(stderr, "killed after instruction %llu: %s (charged %llu, janitor %llx)\n",
		(unsigned long long)instruction, what, (unsigned long long)charged(),
		(unsigned long long)ledger->janitor);
	exit(1);
}

/* A process looks for the dead once a tick of the coarse clock. */
static void await_tick(void)
{
	struct timespec before, now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &before);
	do {
		usleep(1000);
		clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	} while (now.tv_nsec == before.tv_nsec && now.tv_sec == before.tv_sec);
}

/* `living`: what this process has charged. */
static void check(uint64_t living, uint64_t quota, uint64_t instruction)
{
	CUdeviceptr rest, more;
	uint64_t rows = 0;

	if (charged() < living)
		fail("less is charged than the living hold", instruction);
	await_tick();
	if (cuMemAlloc_v2(&rest, quota - living))
		fail("what fits is refused", instruction);
	if (cuMemAlloc_v2(&more, 1) != CUDA_ERROR_OUT_OF_MEMORY)
		fail("what does not fit is not refused", instruction);
	need(cuMemFree_v2(rest), "cuMemFree of the rest");
	if (charged() != living)
		fail("not exactly what the living hold is charged", instruction);
	if (ledger->janitor || ledger->suspect)
		fail("a sweep is not ended", instruction);
	for (int i = 0; i < VGPU_MAX_PROCESSES; i++)
		rows += !!ledger->rows[i].owner;
	if (rows != 1)
		fail("the rows are not those of the living", instruction);
}

static void map_ledger(void)
{
	char path[PATH_MAX];
	int fd;

	snprintf(path, sizeof(path), "%s/ledger", getenv("VGPU_TENANT"));
	fd = open(path, O_RDWR | O_CLOEXEC);
	ledger = mmap(NULL, sizeof(*ledger), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (fd < 0 || ledger == MAP_FAILED)
		stepping_give_up("the ledger cannot be mapped");
	close(fd);
}

/* One half of the kills is spread evenly; the other is of the last instructions,
 * as what is charged for the first time is charged there. */
static uint64_t moment(uint64_t instructions, uint64_t i, uint64_t kills)
{
	uint64_t half = kills / 2, from_end = kills - i;

	if (i < half)
		return instructions * i / half;
	return instructions > from_end ? instructions - from_end : 0;
}

static void map_machine(const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);

	machine = mmap(NULL, sizeof(*machine), PROT_READ, MAP_SHARED, fd, 0);
	if (fd < 0 || machine == MAP_FAILED)
		stepping_give_up("the machine cannot be mapped");
	close(fd);
}

static int survive(const char *name, uint64_t kills, uint64_t quota)
{
	uint64_t living, instructions, left = 0;
	CUdeviceptr kept;

	map_ledger();
	need(cuInit(0), "cuInit");
	do_context();
	need(cuMemAlloc_v2(&kept, KEPT), "cuMemAlloc of the survivor");
	living = charged();
	instructions = step_in_shim(start_victim(name), UINT64_MAX);
	check(living, quota, instructions);
	for (uint64_t i = 0; i < kills; i++) {
		uint64_t end = moment(instructions, i, kills);
		pid_t child = start_victim(name);

		if (step_in_shim(child, end) < end)
			fail("it is not the same at every time", end);
		if (machine && machine->devices[0].memory_used > charged())
			fail("more is held than is charged", end);
		stepping_kill(child);
		left += charged() > living;
		check(living, quota, end);
	}
	printf("%llu %llu\n", (unsigned long long)kills, (unsigned long long)left);
	return 0;
}

int main(int argc, char **argv)
{
	if (argc == 2)
		return be_killed(argv[1]);
	if (argc != 4 && argc != 5)
		return 2;
	if (argc == 5)
		map_machine(argv[4]);
	return survive(argv[1], strtoull(argv[2], NULL, 10), strtoull(argv[3], NULL, 10));
}
