/* SPDX-License-Identifier: Apache-2.0
 *
 * The fuzz target without a fuzzer.
 *
 *	fuzz COUNT SEED		so many inputs by chance, the same for one seed
 *	fuzz FILE		one input
 *
 * Prints how many there were.  The seed of the input at which the program ends
 * is left in the file `crash`: `fuzz 1 $(cat crash)` runs that one again.
 */
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "abi.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define LONGEST (8 + 12 * 256)

static uint64_t chance;

static uint64_t next(void)
{
	chance ^= chance << 13;
	chance ^= chance >> 7;
	chance ^= chance << 17;
	return chance;
}

/* Words that stand at an edge of something. */
static uint64_t interesting(void)
{
	static const uint64_t words[] = {0,
					 1,
					 2,
					 3,
					 15,
					 16,
					 17,
					 100,
					 101,
					 VGPU_MAX_PROCESSES - 1,
					 VGPU_MAX_PROCESSES,
					 1ull << 22,
					 1ull << 31,
					 UINT32_MAX,
					 1ull << 63,
					 UINT64_MAX - 1,
					 UINT64_MAX,
					 VGPU_GRANT_MAGIC,
					 VGPU_LEDGER_MAGIC,
					 0x100000001ull};

	return words[next() % (sizeof(words) / sizeof(*words))];
}

static size_t make_input(uint8_t *data)
{
	size_t size = next() % 8 ? next() % 400 : next() % LONGEST;

	for (size_t i = 0; i < size; i++)
		data[i] = (uint8_t)(next() >> 32);
	for (size_t at = 8 + 4; at + 8 <= size; at += 12) /* as patches are made */
		if (next() % 2) {
			uint64_t word = interesting();

			memcpy(data + at, &word, sizeof(word));
		}
	return size;
}

#define DIGITS 21

/* A page of a file outlives us, however we end. */
static char *open_crash(void)
{
	int fd = open("crash", O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	char *text = MAP_FAILED;

	if (fd >= 0 && !ftruncate(fd, DIGITS))
		text = mmap(NULL, DIGITS, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (text == MAP_FAILED)
		exit(2);
	close(fd);
	return text;
}

static int replay(const char *path)
{
	static uint8_t data[1 << 20];
	FILE *file = fopen(path, "rb");

	return file ? LLVMFuzzerTestOneInput(data, fread(data, 1, sizeof(data), file)) : 2;
}

int main(int argc, char **argv)
{
	static uint8_t data[LONGEST];
	unsigned long count;
	uint64_t seed;
	char *crash;

	if (argc == 2)
		return replay(argv[1]);
	if (argc != 3)
		return 2;
	count = strtoul(argv[1], NULL, 10);
	seed = strtoull(argv[2], NULL, 10);
	crash = open_crash();
	for (unsigned long i = 0; i < count; i++, seed++) {
		snprintf(crash, DIGITS, "%020llu", (unsigned long long)seed);
		chance = seed * 0x9e3779b97f4a7c15ull | 1;
		LLVMFuzzerTestOneInput(data, make_input(data));
	}
	remove("crash");
	printf("%lu\n", count);
	return 0;
}
