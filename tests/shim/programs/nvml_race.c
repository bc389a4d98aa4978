/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that ask NVML what there is while others begin and end it.
 *
 *	nvml_race ROUNDS DEVICES TOTAL
 *
 * Whoever asks is told of so many devices of so many bytes, or that NVML is not
 * up; anything else ends it.  Prints how often it was up.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#include "nvml.h"

static int rounds, turning;
static unsigned int devices;
static unsigned long long total;
static unsigned long answers;

/* What NVML says now: its code, and with success the truth. */
static nvmlReturn_t ask(void)
{
	unsigned int count = devices;
	nvmlMemory_t memory = {.total = total};
	nvmlDevice_t device;
	nvmlReturn_t rc = nvmlDeviceGetCount_v2(&count);

	if (!rc)
		rc = nvmlDeviceGetHandleByIndex_v2(devices - 1, &device);
	if (!rc)
		rc = nvmlDeviceGetMemoryInfo(device, &memory);
	if (count != devices || memory.total != total)
		exit(5);
	__atomic_fetch_add(&answers, !rc, __ATOMIC_RELAXED);
	return rc;
}

/* As long as this thread has not ended it, NVML is up. */
static void *turn(void *argument)
{
	for (int i = 0; i < rounds; i++) {
		if (nvmlInit_v2())
			exit(3);
		if (ask())
			exit(6);
		if (nvmlShutdown())
			exit(3);
	}
	__atomic_fetch_sub(&turning, 1, __ATOMIC_RELEASE);
	return NULL;
}

static void *look(void *argument)
{
	while (__atomic_load_n(&turning, __ATOMIC_ACQUIRE)) {
		nvmlReturn_t rc = ask();

		if (rc != NVML_SUCCESS && rc != NVML_ERROR_UNINITIALIZED)
			exit(4);
	}
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t threads[8];

	if (argc != 4)
		return 2;
	rounds = atoi(argv[1]);
	devices = (unsigned int)atoi(argv[2]);
	total = strtoull(argv[3], NULL, 10);
	/* The driver is not instrumented: how its first beginning publishes its own
	 * locks to other threads, the thread sanitizer could not see. */
	if (nvmlInit_v2() || nvmlShutdown())
		return 1;
	turning = 4;
	for (int i = 0; i < 8; i++)
		if (pthread_create(&threads[i], NULL, i % 2 ? turn : look, NULL))
			return 1;
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	printf("%lu\n", answers);
	return 0;
}
