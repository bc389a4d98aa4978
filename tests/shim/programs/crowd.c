/* SPDX-License-Identifier: Apache-2.0
 *
 * Threads that load a library each, all at the same time, and let it look the
 * driver up; prints how many functions came from elsewhere than OWNER.
 *
 *	crowd OWNER LIBRARY...
 */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>

static pthread_barrier_t gate;
static const char *owner;
static int total;

static void *load(void *path)
{
	void *library;
	int (*strangers)(const char *), (*at_start)(void);

	pthread_barrier_wait(&gate);
	library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
	if (!library)
		return NULL;
	strangers = (__typeof__(strangers))dlsym(library, "strangers");
	at_start = (__typeof__(at_start))dlsym(library, "strangers_at_start");
	__atomic_fetch_add(&total, strangers(owner) + (at_start ? at_start() : 0),
			   __ATOMIC_RELAXED);
	return library;
}

int main(int argc, char **argv)
{
	pthread_t threads[64];
	int loaded = 0;

	if (argc < 3 || argc > 66)
		return 2;
	owner = argv[1];
	pthread_barrier_init(&gate, NULL, (unsigned int)argc - 2);
	for (int i = 2; i < argc; i++)
		pthread_create(&threads[i - 2], NULL, load, argv[i]);
	for (int i = 2; i < argc; i++) {
		void *library = NULL;

		pthread_join(threads[i - 2], &library);
		loaded += library != NULL;
	}
	printf("%d loaded, %d strangers\n", loaded, total);
	return 0;
}
