/* SPDX-License-Identifier: Apache-2.0 */
/* A C program that is linked to libcuda.so.1, as pycuda and old CUDA programs are. */
#include <stdio.h>
#include <stdlib.h>

#include "cuda.h"

#define CHECK(call)                                                                                \
	do {                                                                                       \
		CUresult result = (call);                                                          \
		if (result != CUDA_SUCCESS) {                                                      \
			fprintf(stderr, "%s: %d\n", #call, (int)result);                           \
			exit(1);                                                                   \
		}                                                                                  \
	} while (0)

enum { COUNT = 1000 };

int main(void)
{
	CUdevice device;
	CUcontext context;
	CUmodule module;
	CUfunction kernel;
	CUdeviceptr memory;
	CUstream stream;
	char name[64];
	uint32_t x[COUNT], a = 2, b = 1, n = COUNT;
	void *arguments[] = {&memory, &a, &b, &n};
	CUlaunchConfig config = {.gridDimX = 8,
				 .gridDimY = 1,
				 .gridDimZ = 1,
				 .blockDimX = 128,
				 .blockDimY = 1,
				 .blockDimZ = 1};

	for (uint32_t i = 0; i < COUNT; i++)
		x[i] = i;
	CHECK(cuInit(0));
	CHECK(cuDeviceGet(&device, 0));
	CHECK(cuDeviceGetName(name, sizeof(name), device));
	CHECK(cuDevicePrimaryCtxRetain(&context, device));
	CHECK(cuCtxSetCurrent(context));
	CHECK(cuModuleLoadData(&module, "image"));
	CHECK(cuModuleGetFunction(&kernel, module, "vgpu_axpb"));
	CHECK(cuMemAlloc_v2(&memory, sizeof(x)));
	CHECK(cuMemcpyHtoD_v2(memory, x, sizeof(x)));
	CHECK(cuStreamCreate(&stream, 0));
	config.hStream = stream;
	CHECK(cuLaunchKernelEx(&config, kernel, arguments, NULL));
	CHECK(cuStreamSynchronize(stream));
	CHECK(cuMemcpyDtoH_v2(x, memory, sizeof(x)));
	CHECK(cuMemFree_v2(memory));
	CHECK(cuDevicePrimaryCtxRelease_v2(device));
	printf("%s: x[7] = %u\n", name, x[7]);
	return 0;
}
