/* SPDX-License-Identifier: Apache-2.0
 *
 * A program that is linked to the driver: prints what its calls return.  Weak
 * references, so that it also starts where there is no driver.
 */
#include <stdio.h>

#include "cuda.h"
#include "nvml.h"

extern __typeof__(cuInit) cuInit __attribute__((weak));
extern __typeof__(cuMemFree_v2) cuMemFree_v2 __attribute__((weak));
extern __typeof__(cuMemGetInfo_v2) cuMemGetInfo_v2 __attribute__((weak));
extern __typeof__(cuLaunchKernelEx) cuLaunchKernelEx __attribute__((weak));
extern __typeof__(nvmlInit_v2) nvmlInit_v2 __attribute__((weak));

int main(void)
{
	printf("cuInit %d\n", cuInit ? (int)cuInit(0) : -1);
	printf("cuMemFree_v2 %d\n", cuMemFree_v2 ? (int)cuMemFree_v2(0) : -1);
	printf("cuMemGetInfo_v2 %d\n", cuMemGetInfo_v2 ? (int)cuMemGetInfo_v2(0, 0) : -1);
	printf("cuLaunchKernelEx %d\n", cuLaunchKernelEx ? (int)cuLaunchKernelEx(0, 0, 0, 0) : -1);
	printf("nvmlInit_v2 %d\n", nvmlInit_v2 ? (int)nvmlInit_v2() : -1);
	return 0;
}
