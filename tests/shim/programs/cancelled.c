/* SPDX-License-Identifier: Apache-2.0
 *
 * cancelled QUOTA: a thread is refused what does not fit, while a cancellation
 * is pending for it, so that it ends at the first call that can end it.  Then
 * the first thread asks for what a neighbour holds, which says `ready` on stdin
 * once it has been killed.  Prints what the two allocations returned.
 */
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "cuda.h"

static uint64_t quota;
static CUcontext context;
static CUresult refused = CUDA_ERROR_UNKNOWN;

static void *ask_for_too_much(void *nothing)
{
	CUdeviceptr made;

	cuCtxSetCurrent(context);
	pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, NULL);
	pthread_cancel(pthread_self());
	pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, NULL);
	refused = cuMemAlloc_v2(&made, quota);
	pthread_testcancel();
	return NULL;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	CUdeviceptr made;
	void *result;
	char byte;

	quota = argc == 2 ? strtoull(argv[1], NULL, 10) : 0;
	if (cuInit(0) || cuCtxCreate_v2(&context, 0, 0) || cuMemAlloc_v2(&made, 1 << 20))
		return 1;
	usleep(50000); /* the last sweep was in an earlier tick */
	if (pthread_create(&thread, NULL, ask_for_too_much, NULL) ||
	    pthread_join(thread, &result) || result != PTHREAD_CANCELED)
		return 2;
	if (puts("cancelled") < 0 || fflush(stdout) || read(0, &byte, 1) != 1)
		return 3;
	printf("%d %d\n", refused, cuMemAlloc_v2(&made, quota / 2));
	return 0;
}
