/* SPDX-License-Identifier: Apache-2.0
 *
 * leader_ends: the first thread ends, another one lives on until stdin does.
 * The kernel shows such a process as a zombie.
 */
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

static void *stay(void *nothing)
{
	char byte;

	/* Only now is the first thread surely on its way out. */
	usleep(20000);
	if (write(1, "\n", 1) != 1)
		exit(1);
	while (read(0, &byte, 1) > 0)
		;
	exit(0);
}

int main(void)
{
	pthread_t thread;

	if (pthread_create(&thread, NULL, stay, NULL))
		return 1;
	pthread_exit(NULL);
}
