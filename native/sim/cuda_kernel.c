/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What a kernel does and how long it takes.
 *
 * Images are not read and kernels are not executed; they take time.  How much,
 * in this order:
 *   a kernel of the list below   as its entry says, and it does its work;
 *   a name ending in _<N>ns, _<N>us or _<N>ms    that long;
 *   VGPU_SIM_KERNEL_NS in the environment        that many nanoseconds;
 *   otherwise                                    the machine's `kernel_ns`.
 *
 * A listed kernel's work is done when it is put on the stream, in stream order;
 * the device's memory is this process's, so nobody can look earlier.
 */
#include <ctype.h>
#include <stdlib.h>
#include <string.h>

#include "cuda_work.h"

/* vgpu_spin(uint64 ns): keeps the device busy for so long. */
static uint64_t spin(const unsigned char *arguments, bool run)
{
	uint64_t ns;
	(void)run;
	memcpy(&ns, arguments, sizeof(ns));
	return ns;
}

/* vgpu_axpb(uint32 *x, uint32 a, uint32 b, uint32 n): x[i] = a * x[i] + b. */
static uint64_t axpb(const unsigned char *arguments, bool run)
{
	CUdeviceptr pointer;
	uint32_t a, b, n;
	memcpy(&pointer, arguments, 8);
	memcpy(&a, arguments + 8, 4);
	memcpy(&b, arguments + 12, 4);
	memcpy(&n, arguments + 16, 4);
	uint32_t *x = (uint32_t *)(uintptr_t)pointer;
	if (run && memory_valid(pointer, (size_t)n * 4))
		for (uint32_t i = 0; i < n; i++)
			x[i] = a * x[i] + b;
	return 0; /* as any kernel */
}

static const struct known_kernel known[] = {
	{"vgpu_spin", {8}, spin},
	{"vgpu_axpb", {8, 4, 4, 4}, axpb},
};

static uint64_t suffix_ns(const char *name)
{
	size_t length = strlen(name);
	uint64_t unit = 1, value = 0, scale = 1;
	if (length < 4 || name[length - 1] != 's' || !strchr("num", name[length - 2]))
		return 0;
	unit = name[length - 2] == 'u' ? 1000 : name[length - 2] == 'm' ? 1000000 : 1;
	size_t digit = length - 2;
	for (; digit && isdigit((unsigned char)name[digit - 1]) && scale < 1000000000; scale *= 10)
		value += scale * (uint64_t)(name[--digit] - '0');
	return digit && name[digit - 1] == '_' ? value * unit : 0;
}

static uint64_t default_ns(void)
{
	const char *text = getenv("VGPU_SIM_KERNEL_NS");
	return text && *text ? strtoull(text, NULL, 10) : driver.machine->knobs.kernel_ns;
}

void kernel_resolve(struct function *function)
{
	for (size_t i = 0; i < sizeof(known) / sizeof(known[0]); i++)
		if (!strcmp(known[i].name, function->name))
			function->known = &known[i];
	function->ns = suffix_ns(function->name);
	if (!function->ns)
		function->ns = default_ns();
}

/* Arguments packed in one buffer lie as in a C struct. */
static const unsigned char *packed(void **extra, size_t *size)
{
	const unsigned char *buffer = NULL;
	for (; extra && *extra != CU_LAUNCH_PARAM_END; extra += 2) {
		if (*extra == CU_LAUNCH_PARAM_BUFFER_POINTER)
			buffer = extra[1];
		else if (*extra == CU_LAUNCH_PARAM_BUFFER_SIZE)
			*size = *(size_t *)extra[1];
	}
	return buffer;
}

CUresult kernel_arguments(const struct launch *launch, unsigned char *arguments)
{
	const struct known_kernel *kernel = launch->function->known;
	size_t size = 0, from = 0, to = 0;
	if (!kernel)
		return CUDA_SUCCESS;
	const unsigned char *buffer = packed(launch->extra, &size);
	for (int i = 0; i < 4 && kernel->sizes[i]; i++) {
		size_t bytes = kernel->sizes[i];
		from = (from + bytes - 1) / bytes * bytes;
		if (buffer && from + bytes <= size)
			memcpy(arguments + to, buffer + from, bytes);
		else if (launch->arguments && launch->arguments[i])
			memcpy(arguments + to, launch->arguments[i], bytes);
		else
			return CUDA_ERROR_INVALID_VALUE;
		from += bytes;
		to += bytes;
	}
	return CUDA_SUCCESS;
}

uint64_t kernel_ns(const struct function *function, const unsigned char *arguments)
{
	uint64_t ns = function->known ? function->known->body(arguments, false) : 0;
	return ns ? ns : function->ns;
}

void kernel_run(const struct function *function, const unsigned char *arguments)
{
	if (function->known)
		function->known->body(arguments, true);
}
