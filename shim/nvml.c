/* SPDX-License-Identifier: Apache-2.0
 *
 * NVML's beginning and end.  Both count, and between the last end and the next
 * beginning handles may change: what is remembered of them is dropped at each.
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

static nvmlReturn_t turned(nvmlReturn_t rc)
{
	if (rc == NVML_SUCCESS)
		vgpu_nvml_turned();
	return rc;
}

nvmlReturn_t nvmlInit(void)
{
	BEGIN(nvmlInit);
	return turned(FORWARD(driver->real.nvmlInit()));
}

nvmlReturn_t nvmlInit_v2(void)
{
	BEGIN(nvmlInit_v2);
	return turned(FORWARD(driver->real.nvmlInit_v2()));
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	BEGIN(nvmlInitWithFlags, flags);
	return turned(FORWARD(driver->real.nvmlInitWithFlags(flags)));
}

/* What was begun before the tenant was found faulty may be ended. */
nvmlReturn_t nvmlShutdown(void)
{
	const struct driver *driver = vgpu_driver(LIBRARY_NVML);
	nvmlReturn_t rc = FORWARD(driver->real.nvmlShutdown());

	return vgpu_nvml_depth || !vgpu_tenant()->ledger ? rc : turned(rc);
}
