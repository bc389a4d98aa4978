/* SPDX-License-Identifier: Apache-2.0
 *
 * NVML's beginning.  It counts, and between the last end and the next beginning
 * handles may change: what is remembered of them is dropped before each, so that
 * whoever asks from then on finds NVML either not up or as it now is.
 */
#include "nvml_view.h"

__thread int vgpu_nvml_depth __attribute__((tls_model("initial-exec")));

void vgpu_nvml_enter(void)
{
	vgpu_nvml_depth++;
}

void vgpu_nvml_leave(void)
{
	vgpu_nvml_depth--;
}

nvmlReturn_t nvmlInit(void)
{
	BEGIN(nvmlInit);
	vgpu_nvml_begins();
	return FORWARD(driver->real.nvmlInit());
}

nvmlReturn_t nvmlInit_v2(void)
{
	BEGIN(nvmlInit_v2);
	vgpu_nvml_begins();
	return FORWARD(driver->real.nvmlInit_v2());
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	BEGIN(nvmlInitWithFlags, flags);
	vgpu_nvml_begins();
	return FORWARD(driver->real.nvmlInitWithFlags(flags));
}
