/* SPDX-License-Identifier: Apache-2.0
 *
 * What the files of the simulated NVML share: from a handle to the device, and
 * the checks at the start of every function, in the driver's order: initialised,
 * handle, result pointer. */
#ifndef VGPU_SIM_NVML_DEVICE_H
#define VGPU_SIM_NVML_DEVICE_H

#include <stdint.h>

/* Definitions take their visibility from the declaration. */
#pragma GCC visibility push(default)
#include "nvml.h"
#pragma GCC visibility pop

#include "machine.h"
#include "nvml_state.h"

/* The machine while NVML is initialised, else NULL. */
struct sim_machine *nvml_machine(void);

/* NVML_SUCCESS with the device's number in *index, or what to answer instead.
 * `out` is the caller's result pointer; NULL is an invalid argument. */
nvmlReturn_t nvml_index(nvmlDevice_t device, const void *out, uint32_t *index);

/* Likewise, with what the device is.  Only after success of the above. */
nvmlReturn_t nvml_identity(nvmlDevice_t device, const void *out,
			   const struct sim_identity **identity);

/* The handle of a device number. */
nvmlDevice_t nvml_handle(uint32_t index);

/* Copy a text with its end, or nothing: NVML_ERROR_INSUFFICIENT_SIZE. */
nvmlReturn_t nvml_text(const char *text, char *out, unsigned int length);

/* "GPU-8-4-4-4-12" with its end, 41 bytes. */
void nvml_uuid_text(const uint8_t uuid[16], char out[41]);

/* A function that answers one fact about what the device is. */
#define NVML_FACT(function, type, supported, value)                                                \
	nvmlReturn_t function(nvmlDevice_t device, type *out)                                      \
	{                                                                                          \
		const struct sim_identity *is;                                                     \
		nvmlReturn_t rc = nvml_identity(device, out, &is);                                 \
		if (rc == NVML_SUCCESS && !(supported))                                            \
			rc = NVML_ERROR_NOT_SUPPORTED;                                             \
		if (rc == NVML_SUCCESS)                                                            \
			*out = (type)(value);                                                      \
		return rc;                                                                         \
	}

#endif
