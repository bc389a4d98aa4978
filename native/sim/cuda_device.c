/* SPDX-License-Identifier: Apache-2.0 */
/* Devices: their number, identity and relations.  No context is needed. */
#include <stdio.h>
#include <string.h>

#include "cuda_driver.h"

CUresult device_of(CUdevice ordinal, struct device **device)
{
	if (ordinal < 0 || ordinal >= driver.device_count)
		return CUDA_ERROR_INVALID_DEVICE;
	*device = &driver.devices[ordinal];
	return CUDA_SUCCESS;
}

#define DEVICE(name, ordinal)                                                                      \
	CHECK_READY();                                                                             \
	struct device *name;                                                                       \
	TRY(device_of(ordinal, &name))

API cuDeviceGetCount(int *count)
{
	CHECK_READY();
	if (!count)
		return CUDA_ERROR_INVALID_VALUE;
	*count = driver.device_count;
	return CUDA_SUCCESS;
}

API cuDeviceGet(CUdevice *device, int ordinal)
{
	DEVICE(found, ordinal);
	if (!device)
		return CUDA_ERROR_INVALID_VALUE;
	*device = found->ordinal;
	return CUDA_SUCCESS;
}

API cuDeviceGetName(char *name, int size, CUdevice ordinal)
{
	DEVICE(device, ordinal);
	if (!name || size <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	snprintf(name, (size_t)size, "%s", device->identity->name);
	return CUDA_SUCCESS;
}

API cuDeviceGetUuid(CUuuid *uuid, CUdevice ordinal)
{
	DEVICE(device, ordinal);
	if (!uuid)
		return CUDA_ERROR_INVALID_VALUE;
	memcpy(uuid->bytes, device->identity->uuid, sizeof(uuid->bytes));
	return CUDA_SUCCESS;
}

/* Differs from the first version only on a MIG instance, and there are none. */
API cuDeviceGetUuid_v2(CUuuid *uuid, CUdevice ordinal)
{
	return cuDeviceGetUuid(uuid, ordinal);
}

static size_t total_memory(const struct device *device)
{
	return device->identity->memory_total - device->identity->memory_reserved;
}

API cuDeviceTotalMem_v2(size_t *bytes, CUdevice ordinal)
{
	DEVICE(device, ordinal);
	if (!bytes)
		return CUDA_ERROR_INVALID_VALUE;
	*bytes = total_memory(device);
	return CUDA_SUCCESS;
}

/* In null mode without a look at who has died: the cost of the call is what counts. */
static size_t memory_used(const struct device *device)
{
	if (driver.machine->knobs.null_mode)
		return __atomic_load_n(&driver.machine->devices[device->number].memory_used,
				       __ATOMIC_RELAXED);
	return sim_memory_used(device->number);
}

API cuMemGetInfo_v2(size_t *available, size_t *total)
{
	ENTER();
	CURRENT(context);
	if (!available || !total)
		return CUDA_ERROR_INVALID_VALUE;
	size_t all = total_memory(context->device);
	size_t used = memory_used(context->device);
	*total = all;
	*available = used < all ? all - used : 0;
	return CUDA_SUCCESS;
}

API cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice ordinal)
{
	DEVICE(device, ordinal);
	if (!value || device_attribute(device, attribute, value))
		return CUDA_ERROR_INVALID_VALUE;
	return CUDA_SUCCESS;
}

API cuDeviceComputeCapability(int *major, int *minor, CUdevice ordinal)
{
	DEVICE(device, ordinal);
	if (!major || !minor)
		return CUDA_ERROR_INVALID_VALUE;
	*major = (int)device->identity->capability_major;
	*minor = (int)device->identity->capability_minor;
	return CUDA_SUCCESS;
}

API cuDeviceGetProperties(CUdevprop *properties, CUdevice ordinal)
{
	static const struct {
		size_t offset;
		int attribute;
	} fields[] = {
		{offsetof(CUdevprop, maxThreadsPerBlock), 1},
		{offsetof(CUdevprop, maxThreadsDim[0]), 2},
		{offsetof(CUdevprop, maxThreadsDim[1]), 3},
		{offsetof(CUdevprop, maxThreadsDim[2]), 4},
		{offsetof(CUdevprop, maxGridSize[0]), 5},
		{offsetof(CUdevprop, maxGridSize[1]), 6},
		{offsetof(CUdevprop, maxGridSize[2]), 7},
		{offsetof(CUdevprop, sharedMemPerBlock), 8},
		{offsetof(CUdevprop, totalConstantMemory), 9},
		{offsetof(CUdevprop, SIMDWidth), 10},
		{offsetof(CUdevprop, memPitch), 11},
		{offsetof(CUdevprop, regsPerBlock), 12},
		{offsetof(CUdevprop, clockRate), 13},
		{offsetof(CUdevprop, textureAlign), 14},
	};
	DEVICE(device, ordinal);
	if (!properties)
		return CUDA_ERROR_INVALID_VALUE;
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++)
		device_attribute(device, fields[i].attribute,
				 (int *)((char *)properties + fields[i].offset));
	return CUDA_SUCCESS;
}

static void bus_id(const struct device *device, char *text, size_t size)
{
	const struct sim_identity *identity = device->identity;
	snprintf(text, size, "%04X:%02X:%02X.0", identity->pci_domain, identity->pci_bus,
		 identity->pci_device);
}

API cuDeviceGetPCIBusId(char *id, int size, CUdevice ordinal)
{
	char text[32];
	DEVICE(device, ordinal);
	if (!id || size <= 0)
		return CUDA_ERROR_INVALID_VALUE;
	bus_id(device, text, sizeof(text));
	if (strlen(text) >= (size_t)size)
		return CUDA_ERROR_INVALID_VALUE;
	strcpy(id, text);
	return CUDA_SUCCESS;
}

API cuDeviceGetByPCIBusId(CUdevice *ordinal, const char *id)
{
	unsigned domain = 0, bus, slot, function = 0;
	CHECK_READY();
	if (!ordinal || !id)
		return CUDA_ERROR_INVALID_VALUE;
	if (sscanf(id, "%x:%x:%x.%x", &domain, &bus, &slot, &function) < 3) {
		domain = 0;
		if (sscanf(id, "%x:%x.%x", &bus, &slot, &function) < 2)
			return CUDA_ERROR_INVALID_VALUE;
	}
	for (int i = 0; i < driver.device_count; i++) {
		const struct sim_identity *identity = driver.devices[i].identity;
		if (identity->pci_domain == domain && identity->pci_bus == bus &&
		    identity->pci_device == slot) {
			*ordinal = i;
			return CUDA_SUCCESS;
		}
	}
	return CUDA_ERROR_INVALID_DEVICE;
}

/* Every device reaches every other, but not itself. */
API cuDeviceCanAccessPeer(int *can, CUdevice ordinal, CUdevice other)
{
	struct device *peer;
	DEVICE(device, ordinal);
	TRY(device_of(other, &peer));
	if (!can)
		return CUDA_ERROR_INVALID_VALUE;
	*can = device != peer;
	return CUDA_SUCCESS;
}

API cuDeviceGetP2PAttribute(int *value, int attribute, CUdevice from, CUdevice to)
{
	enum { RANK = 1, ACCESS = 2, ATOMICS = 3, ARRAYS = 4, PARTIAL_ATOMICS = 5 };
	struct device *peer;
	DEVICE(device, from);
	TRY(device_of(to, &peer));
	if (!value || device == peer || attribute < RANK || attribute > PARTIAL_ATOMICS)
		return CUDA_ERROR_INVALID_VALUE;
	*value = attribute == ACCESS;
	return CUDA_SUCCESS;
}

API cuDeviceGetExecAffinitySupport(int *value, int type, CUdevice ordinal)
{
	DEVICE(device, ordinal);
	(void)device;
	if (!value || type)
		return CUDA_ERROR_INVALID_VALUE;
	*value = 0;
	return CUDA_SUCCESS;
}
