/* SPDX-License-Identifier: Apache-2.0
 *
 * The tenant's devices, as NVML knows them: the handle of each slice, found by
 * its UUID.  Devices that are not the tenant's are never touched.
 *
 * The fleet is found once for each time that NVML begins, and every call then
 * works on a copy of its own.  Invariant: a fleet that is used was told by the
 * driver after NVML last began.  Who finds it being written, or of an earlier
 * epoch, asks the driver again; nobody waits.
 *
 * A MIG instance is a slice on a whole device, and the tenant of an instance
 * sees that device too, as a program does that was given the instance alone.
 */
#include <string.h>

#include "nvml_view.h"

#define UUID_TEXT_SIZE 96

/* ---- asking the driver -------------------------------------------------------------- */

/* "GPU-" or "MIG-", and 8-4-4-4-12 hexadecimal digits. */
static void write_uuid(const char *kind, const uint8_t *uuid, char *text)
{
	static const char digits[] = "0123456789abcdef";

	memcpy(text, kind, 4);
	text += 4;
	for (int i = 0; i < VGPU_UUID_SIZE; i++) {
		if (i == 4 || i == 6 || i == 8 || i == 10)
			*text++ = '-';
		*text++ = digits[uuid[i] >> 4];
		*text++ = digits[uuid[i] & 15];
	}
	*text = 0;
}

static int is_nothing(nvmlReturn_t rc)
{
	return rc == NVML_ERROR_NOT_FOUND || rc == NVML_ERROR_INVALID_ARGUMENT ||
	       rc == NVML_ERROR_FUNCTION_NOT_FOUND;
}

static nvmlReturn_t find_handle(const struct driver *driver, const char *kind, const uint8_t *uuid,
				nvmlDevice_t *handle)
{
	char text[UUID_TEXT_SIZE];

	write_uuid(kind, uuid, text);
	return FORWARD(driver->real.nvmlDeviceGetHandleByUUID(text, handle));
}

/* The whole device of a handle, entered in NVML's order if it is new. */
static nvmlReturn_t enter_whole(const struct driver *driver, struct nvml_fleet *fleet,
				nvmlDevice_t handle, struct nvml_device **entered)
{
	struct nvml_device *device = fleet->device;
	unsigned int index;
	nvmlReturn_t rc;

	for (uint32_t i = 0; i < fleet->count; i++)
		if (fleet->device[i].handle == handle) {
			*entered = &fleet->device[i];
			return NVML_SUCCESS;
		}
	rc = FORWARD(driver->real.nvmlDeviceGetIndex(handle, &index));
	if (rc)
		return rc;
	while (device < fleet->device + fleet->count && device->index < index)
		device++;
	memmove(device + 1, device,
		(size_t)(fleet->device + fleet->count - device) * sizeof(*device));
	fleet->count++;
	*device =
		(struct nvml_device){.handle = handle, .index = index, .slice = SLICE_NOT_GRANTED};
	*entered = device;
	return NVML_SUCCESS;
}

static nvmlReturn_t enter_instance(const struct driver *driver, struct nvml_fleet *fleet,
				   nvmlDevice_t handle, int slice)
{
	struct nvml_device *whole;
	nvmlDevice_t parent;
	nvmlReturn_t rc =
		FORWARD(driver->used.nvmlDeviceGetDeviceHandleFromMigDeviceHandle(handle, &parent));

	if (!rc)
		rc = enter_whole(driver, fleet, parent, &whole);
	if (rc)
		return rc;
	whole->slices |= (uint16_t)(1u << slice);
	fleet->instance[fleet->instances++] = (struct nvml_device){
		.handle = handle, .slices = (uint16_t)(1u << slice), .slice = (int8_t)slice};
	return NVML_SUCCESS;
}

static nvmlReturn_t enter_slice(const struct driver *driver, struct nvml_fleet *fleet,
				const uint8_t *uuid, int slice)
{
	struct nvml_device *whole;
	nvmlDevice_t handle;
	nvmlReturn_t rc = find_handle(driver, "GPU-", uuid, &handle);

	if (is_nothing(rc)) {
		rc = find_handle(driver, "MIG-", uuid, &handle);
		return rc ? rc : enter_instance(driver, fleet, handle, slice);
	}
	if (!rc)
		rc = enter_whole(driver, fleet, handle, &whole);
	if (rc)
		return rc;
	whole->slice = (int8_t)slice;
	whole->slices |= (uint16_t)(1u << slice);
	return NVML_SUCCESS;
}

/* Whether what was found may be remembered: all slices were answered for. */
static nvmlReturn_t find_fleet(const struct driver *driver, const struct tenant *tenant,
			       struct nvml_fleet *fleet, int *is_final)
{
	memset(fleet, 0, sizeof(*fleet));
	*is_final = 1;
	for (uint32_t i = 0; i < tenant->grant->slice_count && i < VGPU_MAX_SLICES; i++) {
		struct vgpu_quota quota;
		nvmlReturn_t rc;

		vgpu_quota_read(tenant->grant, i, &quota);
		rc = enter_slice(driver, fleet, quota.device, (int)i);
		if (rc == NVML_ERROR_UNINITIALIZED)
			return rc;
		/* A device that is there but does not answer may do so the next time. */
		if (rc && !is_nothing(rc))
			*is_final = 0;
	}
	return NVML_SUCCESS;
}

/* ---- remembering ---------------------------------------------------------------------- */

void vgpu_nvml_begins(void)
{
	struct process *process = vgpu_process();

	if (process)
		__atomic_fetch_add(&process->nvml.epoch, 1, __ATOMIC_ACQ_REL);
}

/* A consistent copy of the fleet of this epoch; whether there is one. */
static int recall(const struct process *process, uint64_t epoch, struct nvml_fleet *fleet)
{
	uint32_t before = __atomic_load_n(&process->nvml.sequence, __ATOMIC_ACQUIRE);
	uint64_t words[NVML_FLEET_WORDS];

	if (before & 1 ||
	    __atomic_load_n(&process->nvml.fleet_epoch, __ATOMIC_RELAXED) != epoch + 1)
		return 0;
	for (size_t i = 0; i < NVML_FLEET_WORDS; i++)
		words[i] = __atomic_load_n(&process->nvml.fleet[i], __ATOMIC_ACQUIRE);
	if (__atomic_load_n(&process->nvml.sequence, __ATOMIC_RELAXED) != before)
		return 0;
	memcpy(fleet, words, sizeof(*fleet));
	return 1;
}

static void remember(struct process *process, uint64_t epoch, const struct nvml_fleet *fleet)
{
	uint32_t sequence = __atomic_load_n(&process->nvml.sequence, __ATOMIC_RELAXED);
	uint64_t words[NVML_FLEET_WORDS];

	memcpy(words, fleet, sizeof(words));
	if (sequence & 1 ||
	    !__atomic_compare_exchange_n(&process->nvml.sequence, &sequence, sequence + 1, 0,
					 __ATOMIC_ACQUIRE, __ATOMIC_RELAXED))
		return;
	__atomic_store_n(&process->nvml.fleet_epoch, epoch + 1, __ATOMIC_RELEASE);
	for (size_t i = 0; i < NVML_FLEET_WORDS; i++)
		__atomic_store_n(&process->nvml.fleet[i], words[i], __ATOMIC_RELEASE);
	__atomic_store_n(&process->nvml.sequence, sequence + 2, __ATOMIC_RELEASE);
}

nvmlReturn_t vgpu_nvml_fleet(const struct driver *driver, const struct tenant *tenant,
			     struct nvml_fleet *fleet)
{
	struct process *process = vgpu_process();
	uint64_t epoch = process ? __atomic_load_n(&process->nvml.epoch, __ATOMIC_ACQUIRE) : 0;
	nvmlReturn_t rc;
	int is_final;

	if (process && recall(process, epoch, fleet))
		return NVML_SUCCESS;
	rc = find_fleet(driver, tenant, fleet, &is_final);
	if (!rc && process && is_final)
		remember(process, epoch, fleet);
	return rc;
}

/* ---- one device -------------------------------------------------------------------------- */

/* The driver judges a handle that is not in the fleet: it may be none at all. */
static nvmlReturn_t ask_device(const struct driver *driver, const struct tenant *tenant,
			       nvmlDevice_t handle, struct nvml_device *device)
{
	uint8_t uuid[VGPU_UUID_SIZE];
	char text[UUID_TEXT_SIZE];
	nvmlReturn_t rc = FORWARD(driver->used.nvmlDeviceGetUUID(handle, text, sizeof(text)));

	*device = (struct nvml_device){.handle = handle, .slice = SLICE_NOT_GRANTED};
	if (rc || vgpu_parse_uuid(text, uuid))
		return rc;
	device->slice = (int8_t)vgpu_slice_of(tenant->grant, uuid);
	if (device->slice >= 0)
		device->slices = (uint16_t)(1u << device->slice);
	return rc;
}

nvmlReturn_t vgpu_nvml_device(const struct driver *driver, const struct tenant *tenant,
			      nvmlDevice_t handle, struct nvml_device *device)
{
	struct nvml_fleet fleet;
	nvmlReturn_t rc = vgpu_nvml_fleet(driver, tenant, &fleet);

	if (rc)
		return rc;
	for (uint32_t i = 0; i < fleet.count; i++)
		if (fleet.device[i].handle == handle) {
			*device = fleet.device[i];
			return rc;
		}
	for (uint32_t i = 0; i < fleet.instances; i++)
		if (fleet.instance[i].handle == handle) {
			*device = fleet.instance[i];
			return rc;
		}
	return ask_device(driver, tenant, handle, device);
}
