/* SPDX-License-Identifier: Apache-2.0
 *
 * Rewrite, NVML's devices: the tenant's are all that there are.  They are
 * numbered from 0 in NVML's own order, and a handle of any other is not handed
 * out, whichever way it is asked for.
 *
 * The driver answers first, with its own codes for whatever is wrong with the
 * question; a hidden device then is one that is not there: "not found", or by
 * its number an invalid argument.
 */
#include "nvml_view.h"

#define MAX_NEIGHBOURS 64

/* ---- by number ---------------------------------------------------------------------------- */

static nvmlReturn_t rewrite_count(const struct driver *driver, const struct tenant *tenant,
				  unsigned int *count, nvmlReturn_t (*real)(unsigned int *))
{
	struct nvml_fleet fleet;
	nvmlReturn_t rc = FORWARD(real(count));

	if (!rc)
		rc = vgpu_nvml_fleet(driver, tenant, &fleet);
	if (!rc)
		*count = fleet.count;
	return rc;
}

nvmlReturn_t nvmlDeviceGetCount(unsigned int *count)
{
	BEGIN(nvmlDeviceGetCount, count);
	return rewrite_count(driver, tenant, count, driver->real.nvmlDeviceGetCount);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	BEGIN(nvmlDeviceGetCount_v2, count);
	return rewrite_count(driver, tenant, count, driver->real.nvmlDeviceGetCount_v2);
}

/* A number beyond the fleet is sent on as one that no driver has, for the
 * driver's own code. */
static nvmlReturn_t rewrite_index(const struct driver *driver, const struct tenant *tenant,
				  unsigned int index, nvmlDevice_t *device,
				  nvmlReturn_t (*real)(unsigned int, nvmlDevice_t *))
{
	struct nvml_fleet fleet;
	nvmlDevice_t found;
	nvmlReturn_t rc;

	rc = vgpu_nvml_fleet(driver, tenant, &fleet);
	if (rc)
		return rc;
	if (!device || index >= fleet.count)
		return FORWARD(real(UINT32_MAX, device));
	rc = FORWARD(real(fleet.device[index].index, &found));
	if (!rc)
		*device = fleet.device[index].handle;
	return rc;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex(unsigned int index, nvmlDevice_t *device)
{
	BEGIN(nvmlDeviceGetHandleByIndex, index, device);
	return rewrite_index(driver, tenant, index, device,
			     driver->real.nvmlDeviceGetHandleByIndex);
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	BEGIN(nvmlDeviceGetHandleByIndex_v2, index, device);
	return rewrite_index(driver, tenant, index, device,
			     driver->real.nvmlDeviceGetHandleByIndex_v2);
}

/* An instance's number is its place on its device, and stays. */
nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
	struct nvml_fleet fleet;
	nvmlReturn_t rc;

	BEGIN(nvmlDeviceGetIndex, device, index);
	rc = FORWARD(driver->real.nvmlDeviceGetIndex(device, index));
	if (!rc)
		rc = vgpu_nvml_fleet(driver, tenant, &fleet);
	for (uint32_t i = 0; !rc && i < fleet.count; i++)
		if (fleet.device[i].handle == device)
			*index = i;
	return rc;
}

/* ---- by name --------------------------------------------------------------------------------- */

/* The answer to a question that the driver answered with `found`. */
static nvmlReturn_t only_own(const struct driver *driver, const struct tenant *tenant,
			     nvmlReturn_t rc, nvmlDevice_t found, nvmlDevice_t *device)
{
	struct nvml_device whose;

	if (!rc)
		rc = vgpu_nvml_device(driver, tenant, found, &whose);
	if (rc)
		return rc;
	if (!whose.slices)
		return NVML_ERROR_NOT_FOUND;
	*device = found;
	return NVML_SUCCESS;
}

/* A caller without a place for the answer gets the driver's code. */
#define BY_NAME(symbol, ...)                                                                       \
	nvmlDevice_t found = NULL;                                                                 \
	nvmlReturn_t rc;                                                                           \
                                                                                                   \
	BEGIN(symbol, __VA_ARGS__, device);                                                        \
	rc = FORWARD(driver->real.symbol(__VA_ARGS__, device ? &found : NULL));                    \
	return only_own(driver, tenant, rc, found, device)

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
	BY_NAME(nvmlDeviceGetHandleByUUID, uuid);
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device)
{
	BY_NAME(nvmlDeviceGetHandleByUUIDV, uuid);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
	BY_NAME(nvmlDeviceGetHandleBySerial, serial);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId(const char *bus_id, nvmlDevice_t *device)
{
	BY_NAME(nvmlDeviceGetHandleByPciBusId, bus_id);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
	BY_NAME(nvmlDeviceGetHandleByPciBusId_v2, bus_id);
}

/* Another tenant's instance is a free place. */
nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t parent, unsigned int index,
						 nvmlDevice_t *device)
{
	BY_NAME(nvmlDeviceGetMigDeviceHandleByIndex, parent, index);
}

/* ---- by neighbourhood ------------------------------------------------------------------------ */

/* A question for neighbours that the driver can be asked again. */
struct neighbours {
	nvmlReturn_t (*ask)(const struct driver *, const struct neighbours *, unsigned int *,
			    nvmlDevice_t *);
	nvmlDevice_t device;
	unsigned int number; /* of a processor, or a level */
};

static nvmlReturn_t of_processor(const struct driver *driver, const struct neighbours *which,
				 unsigned int *count, nvmlDevice_t *devices)
{
	return FORWARD(driver->real.nvmlSystemGetTopologyGpuSet(which->number, count, devices));
}

static nvmlReturn_t of_device(const struct driver *driver, const struct neighbours *which,
			      unsigned int *count, nvmlDevice_t *devices)
{
	return FORWARD(driver->real.nvmlDeviceGetTopologyNearestGpus(
		which->device, (nvmlGpuTopologyLevel_t)which->number, count, devices));
}

/* The driver is asked for all of its own, however few the caller has room for. */
static nvmlReturn_t rewrite_neighbours(const struct driver *driver, const struct tenant *tenant,
				       const struct neighbours *which, unsigned int *count,
				       nvmlDevice_t *devices)
{
	nvmlDevice_t all[MAX_NEIGHBOURS];
	unsigned int there = 0, own = 0, room;
	nvmlReturn_t rc;

	if (!count)
		return which->ask(driver, which, count, devices);
	rc = which->ask(driver, which, &there, NULL);
	if (!rc && there > MAX_NEIGHBOURS)
		there = MAX_NEIGHBOURS;
	if (!rc && there)
		rc = which->ask(driver, which, &there, all);
	if (rc)
		return rc;
	for (unsigned int i = 0; i < there && i < MAX_NEIGHBOURS; i++) {
		struct nvml_device whose;

		rc = vgpu_nvml_device(driver, tenant, all[i], &whose);
		if (rc)
			return rc;
		if (whose.slices)
			all[own++] = all[i];
	}
	room = devices ? *count : 0;
	*count = room && room < own ? room : own;
	for (unsigned int i = 0; room && i < *count; i++)
		devices[i] = all[i];
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlSystemGetTopologyGpuSet(unsigned int cpu, unsigned int *count,
					 nvmlDevice_t *devices)
{
	struct neighbours which = {of_processor, NULL, cpu};

	BEGIN(nvmlSystemGetTopologyGpuSet, cpu, count, devices);
	return rewrite_neighbours(driver, tenant, &which, count, devices);
}

nvmlReturn_t nvmlDeviceGetTopologyNearestGpus(nvmlDevice_t device, nvmlGpuTopologyLevel_t level,
					      unsigned int *count, nvmlDevice_t *devices)
{
	struct neighbours which = {of_device, device, (unsigned int)level};

	BEGIN(nvmlDeviceGetTopologyNearestGpus, device, level, count, devices);
	return rewrite_neighbours(driver, tenant, &which, count, devices);
}
