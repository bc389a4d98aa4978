/* SPDX-License-Identifier: Apache-2.0
 *
 * Power, heat, clocks, error counts and links.
 *
 * The limits are those of the machine's description.  What varies follows the
 * load by simple rules, stated here, so that a tool's display moves and a test
 * can compute it: watts rise in a straight line from idle to nine tenths of the
 * limit, temperature by forty degrees, and clocks are at their highest whenever
 * there was any work in the last sample. */
#include <string.h>

#include "nvml_device.h"

enum { SENSOR_CORE = 0, RISE_C = 40, SLOWDOWN_C = 90, SHUTDOWN_C = 95 };

static nvmlReturn_t load(nvmlDevice_t device, const void *out, const struct sim_identity **is,
			 unsigned int *percent)
{
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, out, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	*is = &sim_attach()->devices[index].identity;
	*percent = sim_utilisation(index);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperature(nvmlDevice_t device, unsigned int sensor,
				      unsigned int *celsius)
{
	const struct sim_identity *is;
	unsigned int percent;
	nvmlReturn_t rc = load(device, celsius, &is, &percent);

	if (rc != NVML_SUCCESS)
		return rc;
	if (sensor != SENSOR_CORE)
		return NVML_ERROR_INVALID_ARGUMENT;
	*celsius = is->temperature_c + RISE_C * percent / 100;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetTemperatureV(nvmlDevice_t device, nvmlTemperature_v1_t *temperature)
{
	unsigned int celsius;
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, temperature, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	if (temperature->version != NVML_TEMPERATURE_V1)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	rc = nvmlDeviceGetTemperature(device, temperature->sensorType, &celsius);
	if (rc == NVML_SUCCESS)
		temperature->temperature = (int)celsius;
	return rc;
}

nvmlReturn_t nvmlDeviceGetTemperatureThreshold(nvmlDevice_t device, unsigned int threshold,
					       unsigned int *celsius)
{
	enum { SHUTDOWN = 0, SLOWDOWN = 1 };
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, celsius, &index);

	if (rc != NVML_SUCCESS)
		return rc;
	if (threshold != SHUTDOWN && threshold != SLOWDOWN)
		return NVML_ERROR_NOT_SUPPORTED;
	*celsius = threshold == SHUTDOWN ? SHUTDOWN_C : SLOWDOWN_C;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetPowerUsage(nvmlDevice_t device, unsigned int *milliwatts)
{
	const struct sim_identity *is;
	unsigned int percent;
	nvmlReturn_t rc = load(device, milliwatts, &is, &percent);
	uint64_t highest;

	if (rc != NVML_SUCCESS)
		return rc;
	highest = (uint64_t)is->power_limit_mw * 9 / 10;
	*milliwatts = is->power_idle_mw;
	if (highest > is->power_idle_mw)
		*milliwatts += (unsigned int)((highest - is->power_idle_mw) * percent / 100);
	return NVML_SUCCESS;
}

NVML_FACT(nvmlDeviceGetEnforcedPowerLimit, unsigned int, 1, is->power_limit_mw)
NVML_FACT(nvmlDeviceGetPowerManagementMode, unsigned int, 1, 1)
NVML_FACT(nvmlDeviceGetPowerManagementLimit, unsigned int, 1, is->power_limit_mw)
NVML_FACT(nvmlDeviceGetPowerManagementDefaultLimit, unsigned int, 1, is->power_limit_mw)

/* The limit cannot be moved, so both ends are where it is. */
nvmlReturn_t nvmlDeviceGetPowerManagementLimitConstraints(nvmlDevice_t device, unsigned int *low,
							  unsigned int *high)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, low && high ? low : NULL, &is);

	if (rc == NVML_SUCCESS)
		*low = *high = is->power_limit_mw;
	return rc;
}

enum { CLOCK_GRAPHICS = 0, CLOCK_SM = 1, CLOCK_MEMORY = 2, CLOCK_VIDEO = 3 };

static nvmlReturn_t clock_mhz(nvmlDevice_t device, unsigned int type, unsigned int *mhz,
			      int highest)
{
	const struct sim_identity *is;
	unsigned int percent;
	nvmlReturn_t rc = load(device, mhz, &is, &percent);

	if (rc != NVML_SUCCESS)
		return rc;
	if (type > CLOCK_VIDEO)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (type == CLOCK_MEMORY)
		*mhz = is->memory_clock_mhz;
	else
		*mhz = highest || percent ? is->sm_clock_mhz : is->sm_clock_idle_mhz;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *mhz)
{
	return clock_mhz(device, type, mhz, 0);
}

nvmlReturn_t nvmlDeviceGetMaxClockInfo(nvmlDevice_t device, unsigned int type, unsigned int *mhz)
{
	return clock_mhz(device, type, mhz, 1);
}

/* 0 is the highest performance; cards for computing stay there. */
NVML_FACT(nvmlDeviceGetPerformanceState, unsigned int, 1, 0)
NVML_FACT(nvmlDeviceGetPersistenceMode, unsigned int, 1, 1)
NVML_FACT(nvmlDeviceGetDisplayActive, unsigned int, 1, 0)
NVML_FACT(nvmlDeviceGetDisplayMode, unsigned int, 1, 0)
NVML_FACT(nvmlDeviceGetComputeMode, unsigned int, 1, 0)

nvmlReturn_t nvmlDeviceGetEccMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, current && pending ? current : NULL, &is);

	if (rc == NVML_SUCCESS && !is->ecc)
		rc = NVML_ERROR_NOT_SUPPORTED;
	if (rc == NVML_SUCCESS)
		*current = *pending = 1;
	return rc;
}

/* Simulated memory does not decay. */
nvmlReturn_t nvmlDeviceGetTotalEccErrors(nvmlDevice_t device, unsigned int error,
					 unsigned int counter, unsigned long long *count)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, count, &is);

	if (rc != NVML_SUCCESS)
		return rc;
	if (!is->ecc)
		return NVML_ERROR_NOT_SUPPORTED;
	if (error > 1 || counter > 1)
		return NVML_ERROR_INVALID_ARGUMENT;
	*count = 0;
	return NVML_SUCCESS;
}

NVML_FACT(nvmlDeviceGetCurrPcieLinkGeneration, unsigned int, 1, is->pcie_generation)
NVML_FACT(nvmlDeviceGetMaxPcieLinkGeneration, unsigned int, 1, is->pcie_generation)
NVML_FACT(nvmlDeviceGetCurrPcieLinkWidth, unsigned int, 1, is->pcie_width)
NVML_FACT(nvmlDeviceGetMaxPcieLinkWidth, unsigned int, 1, is->pcie_width)
