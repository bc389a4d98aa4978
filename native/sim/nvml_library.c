/* SPDX-License-Identifier: Apache-2.0
 *
 * The simulated NVML as a library: initialising, versions, error texts, and the
 * table through which nvidia-smi looks for functions that have no name.
 *
 * Initialising counts.  The machine stays mapped after the last shutdown, because
 * another thread may still be inside a call: the count alone decides whether a
 * call is answered. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "nvml_device.h"

static int initialised; /* atomic: nvmlInit calls not yet shut down */

/* The sizes that every client was compiled with. */
_Static_assert(sizeof(nvmlMemory_t) == 24, "nvmlMemory_t");
_Static_assert(sizeof(nvmlMemory_v2_t) == (NVML_MEMORY_V2 & 0xffffff), "nvmlMemory_v2_t");
_Static_assert(sizeof(nvmlBAR1Memory_t) == 24, "nvmlBAR1Memory_t");
_Static_assert(sizeof(nvmlProcessInfo_v1_t) == 16, "nvmlProcessInfo_v1_t");
_Static_assert(sizeof(nvmlProcessInfo_v2_t) == 24, "nvmlProcessInfo_v2_t");
_Static_assert(sizeof(nvmlProcessDetail_v1_t) == 32, "nvmlProcessDetail_v1_t");
_Static_assert(sizeof(nvmlProcessDetailList_v1_t) == (NVML_PROCESS_DETAIL_LIST_V1 & 0xffffff),
	       "list");
_Static_assert(sizeof(nvmlProcessUtilizationSample_t) == 32, "nvmlProcessUtilizationSample_t");
_Static_assert(sizeof(nvmlProcessUtilizationInfo_v1_t) == 40, "nvmlProcessUtilizationInfo_v1_t");
_Static_assert(sizeof(nvmlProcessesUtilizationInfo_v1_t) ==
		       (NVML_PROCESSES_UTILIZATION_INFO_V1 & 0xffffff),
	       "info");
_Static_assert(sizeof(nvmlSample_t) == 16, "nvmlSample_t");
_Static_assert(sizeof(nvmlPciInfo_v2_t) == 36, "nvmlPciInfo_v2_t");
_Static_assert(sizeof(nvmlPciInfo_t) == 68, "nvmlPciInfo_t");
_Static_assert(sizeof(nvmlPciInfoExt_v1_t) == (NVML_PCI_INFO_EXT_V1 & 0xffffff),
	       "nvmlPciInfoExt_v1_t");
_Static_assert(sizeof(nvmlUUID_t) == (nvmlUUID_v1 & 0xffffff), "nvmlUUID_t");
_Static_assert(sizeof(nvmlTemperature_v1_t) == (NVML_TEMPERATURE_V1 & 0xffffff),
	       "nvmlTemperature_v1_t");
_Static_assert(sizeof(nvmlEventData_t) == 32, "nvmlEventData_t");

int nvml_ready(void)
{
	return __atomic_load_n(&initialised, __ATOMIC_ACQUIRE) > 0;
}

struct sim_machine *nvml_machine(void)
{
	return nvml_ready() ? sim_attach() : NULL;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags)
{
	(void)flags; /* both flags only allow what we allow anyway: to go on without a device */
	if (!sim_attach())
		return NVML_ERROR_DRIVER_NOT_LOADED;
	__atomic_add_fetch(&initialised, 1, __ATOMIC_RELEASE);
	return NVML_SUCCESS;
}

/* One shutdown too many is no error, and must not undo a later nvmlInit. */
nvmlReturn_t nvmlShutdown(void)
{
	int count = __atomic_load_n(&initialised, __ATOMIC_RELAXED);

	while (count > 0 && !__atomic_compare_exchange_n(&initialised, &count, count - 1, 0,
							 __ATOMIC_ACQ_REL, __ATOMIC_RELAXED))
		;
	return NVML_SUCCESS;
}

nvmlReturn_t nvml_text(const char *text, char *out, unsigned int length)
{
	size_t size = strlen(text) + 1;

	if (!out)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (size > length)
		return NVML_ERROR_INSUFFICIENT_SIZE;
	memcpy(out, text, size);
	return NVML_SUCCESS;
}

/* The one question that a driver answers before it is initialised. */
nvmlReturn_t nvmlSystemGetNVMLVersion(char *version, unsigned int length)
{
	struct sim_machine *machine = sim_attach();

	return machine ? nvml_text(machine->nvml_version, version, length)
		       : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlSystemGetDriverVersion(char *version, unsigned int length)
{
	struct sim_machine *machine = nvml_machine();

	return machine ? nvml_text(machine->driver_version, version, length)
		       : NVML_ERROR_UNINITIALIZED;
}

nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version)
{
	struct sim_machine *machine = nvml_machine();

	if (!machine)
		return NVML_ERROR_UNINITIALIZED;
	if (!version)
		return NVML_ERROR_INVALID_ARGUMENT;
	*version = (int)machine->cuda_version;
	return NVML_SUCCESS;
}

const char *nvmlErrorString(nvmlReturn_t code)
{
	static const char *const texts[] = {
		[NVML_SUCCESS] = "Success",
		[NVML_ERROR_UNINITIALIZED] = "Uninitialized",
		[NVML_ERROR_INVALID_ARGUMENT] = "Invalid Argument",
		[NVML_ERROR_NOT_SUPPORTED] = "Not Supported",
		[NVML_ERROR_NO_PERMISSION] = "No Permission",
		[NVML_ERROR_ALREADY_INITIALIZED] = "Already Initialized",
		[NVML_ERROR_NOT_FOUND] = "Not Found",
		[NVML_ERROR_INSUFFICIENT_SIZE] = "Insufficient Size",
		[NVML_ERROR_INSUFFICIENT_POWER] = "Insufficient Power",
		[NVML_ERROR_DRIVER_NOT_LOADED] = "Driver Not Loaded",
		[NVML_ERROR_TIMEOUT] = "Timeout",
		[NVML_ERROR_IRQ_ISSUE] = "Interrupt Issue",
		[NVML_ERROR_LIBRARY_NOT_FOUND] = "Library Not Found",
		[NVML_ERROR_FUNCTION_NOT_FOUND] = "Function Not Found",
		[NVML_ERROR_CORRUPTED_INFOROM] = "Corrupted infoROM",
		[NVML_ERROR_GPU_IS_LOST] = "GPU is lost",
		[NVML_ERROR_RESET_REQUIRED] = "GPU requires reset",
		[NVML_ERROR_OPERATING_SYSTEM] = "Operating System Error",
		[NVML_ERROR_LIB_RM_VERSION_MISMATCH] = "Library and Driver Versions Differ",
		[NVML_ERROR_IN_USE] = "In Use",
		[NVML_ERROR_MEMORY] = "Insufficient Memory",
		[NVML_ERROR_NO_DATA] = "No Data",
		[NVML_ERROR_VGPU_ECC_NOT_SUPPORTED] = "ECC Not Supported with vGPU",
		[NVML_ERROR_INSUFFICIENT_RESOURCES] = "Insufficient Resources",
		[NVML_ERROR_FREQ_NOT_SUPPORTED] = "Frequency Not Supported",
		[NVML_ERROR_ARGUMENT_VERSION_MISMATCH] = "Argument Version Mismatch",
		[NVML_ERROR_DEPRECATED] = "Deprecated",
		[NVML_ERROR_NOT_READY] = "Not Ready",
		[NVML_ERROR_GPU_NOT_FOUND] = "GPU Not Found",
		[NVML_ERROR_INVALID_STATE] = "Invalid State",
		[NVML_ERROR_RESET_TYPE_NOT_SUPPORTED] = "Reset Type Not Supported",
	};
	unsigned int number = (unsigned int)code;

	return number < sizeof(texts) / sizeof(*texts) ? texts[number] : "Unknown Error";
}
