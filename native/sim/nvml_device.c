/* SPDX-License-Identifier: Apache-2.0
 *
 * Which devices there are, how a client finds one, and what it is.
 *
 * A handle is the address of an element of an array of ours, so that any other
 * pointer is known to be none.  Handles stay good across shutdown and a new
 * nvmlInit, as the vendor's do. */
#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "nvml_device.h"

struct nvmlDevice_st {
	char used; /* an element must have a size; nothing is kept here */
};

static struct nvmlDevice_st handles[SIM_DEVICES];

nvmlDevice_t nvml_handle(uint32_t index)
{
	return &handles[index];
}

nvmlReturn_t nvml_index(nvmlDevice_t device, const void *out, uint32_t *index)
{
	struct sim_machine *machine = nvml_machine();

	if (!machine)
		return NVML_ERROR_UNINITIALIZED;
	if (device < handles || device >= handles + machine->device_count || !out)
		return NVML_ERROR_INVALID_ARGUMENT;
	*index = (uint32_t)(device - handles);
	return NVML_SUCCESS;
}

nvmlReturn_t nvml_identity(nvmlDevice_t device, const void *out,
			   const struct sim_identity **identity)
{
	uint32_t index;
	nvmlReturn_t rc = nvml_index(device, out, &index);

	if (rc == NVML_SUCCESS)
		*identity = &sim_attach()->devices[index].identity;
	return rc;
}

void nvml_uuid_text(const uint8_t uuid[16], char out[41])
{
	int at = sprintf(out, "GPU-");

	for (int i = 0; i < 16; i++)
		at += sprintf(out + at, i == 4 || i == 6 || i == 8 || i == 10 ? "-%02x" : "%02x",
			      uuid[i]);
}

nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count)
{
	struct sim_machine *machine = nvml_machine();

	if (!machine)
		return NVML_ERROR_UNINITIALIZED;
	if (!count)
		return NVML_ERROR_INVALID_ARGUMENT;
	*count = machine->device_count;
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, nvmlDevice_t *device)
{
	struct sim_machine *machine = nvml_machine();

	if (!machine)
		return NVML_ERROR_UNINITIALIZED;
	if (index >= machine->device_count || !device)
		return NVML_ERROR_INVALID_ARGUMENT;
	*device = nvml_handle(index);
	return NVML_SUCCESS;
}

typedef int (*matcher)(const struct sim_identity *is, const char *wanted);

static nvmlReturn_t find(matcher matches, const char *wanted, nvmlDevice_t *device)
{
	struct sim_machine *machine = nvml_machine();

	if (!machine)
		return NVML_ERROR_UNINITIALIZED;
	if (!wanted || !device)
		return NVML_ERROR_INVALID_ARGUMENT;
	for (uint32_t i = 0; i < machine->device_count; i++)
		if (matches(&machine->devices[i].identity, wanted)) {
			*device = nvml_handle(i);
			return NVML_SUCCESS;
		}
	return NVML_ERROR_NOT_FOUND;
}

static int has_uuid(const struct sim_identity *is, const char *wanted)
{
	char text[41];

	nvml_uuid_text(is->uuid, text);
	return !strcasecmp(text, wanted);
}

static int has_serial(const struct sim_identity *is, const char *wanted)
{
	return !strcmp(is->serial, wanted);
}

/* "domain:bus:device.function", the domain and the function may be missing. */
static int has_bus_id(const struct sim_identity *is, const char *wanted)
{
	unsigned int domain = 0, bus, device, function = 0;

	if (sscanf(wanted, "%x:%x:%x.%x", &domain, &bus, &device, &function) < 3) {
		domain = 0;
		if (sscanf(wanted, "%x:%x.%x", &bus, &device, &function) < 2)
			return 0;
	}
	return domain == is->pci_domain && bus == is->pci_bus && device == is->pci_device &&
	       !function;
}

nvmlReturn_t nvmlDeviceGetHandleByUUID(const char *uuid, nvmlDevice_t *device)
{
	return find(has_uuid, uuid, device);
}

nvmlReturn_t nvmlDeviceGetHandleByUUIDV(const nvmlUUID_t *uuid, nvmlDevice_t *device)
{
	char text[41];

	if (!nvml_ready())
		return NVML_ERROR_UNINITIALIZED;
	if (!uuid || !device)
		return NVML_ERROR_INVALID_ARGUMENT;
	if (uuid->version != nvmlUUID_v1)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	if (uuid->type == NVML_UUID_TYPE_ASCII)
		memcpy(text, uuid->value.str, sizeof(text));
	else if (uuid->type == NVML_UUID_TYPE_BINARY)
		nvml_uuid_text(uuid->value.bytes, text);
	else
		return NVML_ERROR_INVALID_ARGUMENT;
	text[sizeof(text) - 1] = 0;
	return find(has_uuid, text, device);
}

nvmlReturn_t nvmlDeviceGetHandleBySerial(const char *serial, nvmlDevice_t *device)
{
	return find(has_serial, serial, device);
}

nvmlReturn_t nvmlDeviceGetHandleByPciBusId_v2(const char *bus_id, nvmlDevice_t *device)
{
	return find(has_bus_id, bus_id, device);
}

nvmlReturn_t nvmlDeviceGetIndex(nvmlDevice_t device, unsigned int *index)
{
	return nvml_index(device, index, index);
}

nvmlReturn_t nvmlDeviceGetName(nvmlDevice_t device, char *name, unsigned int length)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, name, &is);

	return rc == NVML_SUCCESS ? nvml_text(is->name, name, length) : rc;
}

nvmlReturn_t nvmlDeviceGetUUID(nvmlDevice_t device, char *uuid, unsigned int length)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, uuid, &is);
	char text[41];

	if (rc != NVML_SUCCESS)
		return rc;
	nvml_uuid_text(is->uuid, text);
	return nvml_text(text, uuid, length);
}

nvmlReturn_t nvmlDeviceGetSerial(nvmlDevice_t device, char *serial, unsigned int length)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, serial, &is);

	if (rc == NVML_SUCCESS && !is->serial[0])
		rc = NVML_ERROR_NOT_SUPPORTED;
	return rc == NVML_SUCCESS ? nvml_text(is->serial, serial, length) : rc;
}

nvmlReturn_t nvmlDeviceGetPciInfo_v2(nvmlDevice_t device, nvmlPciInfo_v2_t *pci)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, pci, &is);

	if (rc != NVML_SUCCESS)
		return rc;
	memset(pci, 0, sizeof(*pci));
	/* The short form holds a domain of four digits, as the vendor's does. */
	snprintf(pci->busIdLegacy, sizeof(pci->busIdLegacy), "%04X:%02X:%02X.0",
		 is->pci_domain & 0xffff, is->pci_bus & 0xff, is->pci_device & 0xff);
	pci->domain = is->pci_domain;
	pci->bus = is->pci_bus;
	pci->device = is->pci_device;
	pci->pciDeviceId = is->pci_device_id;
	pci->pciSubSystemId = is->pci_subsystem_id;
	return NVML_SUCCESS;
}

static void bus_id(const struct sim_identity *is, char out[32])
{
	snprintf(out, 32, "%08X:%02X:%02X.0", is->pci_domain, is->pci_bus, is->pci_device);
}

nvmlReturn_t nvmlDeviceGetPciInfo_v3(nvmlDevice_t device, nvmlPciInfo_t *pci)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, pci, &is);

	if (rc != NVML_SUCCESS)
		return rc;
	memset(pci, 0, sizeof(*pci));
	bus_id(is, pci->busId);
	/* The longer structure begins with the shorter one. */
	return nvmlDeviceGetPciInfo_v2(device, (nvmlPciInfo_v2_t *)(void *)pci);
}

nvmlReturn_t nvmlDeviceGetPciInfoExt(nvmlDevice_t device, nvmlPciInfoExt_v1_t *pci)
{
	enum { DISPLAY_CONTROLLER = 3, CONTROLLER_3D = 2 };
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, pci, &is);

	if (rc != NVML_SUCCESS)
		return rc;
	if (pci->version != NVML_PCI_INFO_EXT_V1)
		return NVML_ERROR_ARGUMENT_VERSION_MISMATCH;
	pci->domain = is->pci_domain;
	pci->bus = is->pci_bus;
	pci->device = is->pci_device;
	pci->pciDeviceId = is->pci_device_id;
	pci->pciSubSystemId = is->pci_subsystem_id;
	pci->baseClass = DISPLAY_CONTROLLER;
	pci->subClass = CONTROLLER_3D;
	bus_id(is, pci->busId);
	return NVML_SUCCESS;
}

nvmlReturn_t nvmlDeviceGetCudaComputeCapability(nvmlDevice_t device, int *major, int *minor)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, major && minor ? major : NULL, &is);

	if (rc != NVML_SUCCESS)
		return rc;
	*major = (int)is->capability_major;
	*minor = (int)is->capability_minor;
	return NVML_SUCCESS;
}

/* Lanes for 32-bit arithmetic in one multiprocessor, by capability. */
static unsigned int cores_per_sm(const struct sim_identity *is)
{
	unsigned int capability = is->capability_major * 10 + is->capability_minor;

	return capability == 70 || capability == 75 || capability == 80 ? 64 : 128;
}

NVML_FACT(nvmlDeviceGetMinorNumber, unsigned int, 1, is->minor_number)
NVML_FACT(nvmlDeviceGetBrand, unsigned int, 1, is->nvml_brand)
NVML_FACT(nvmlDeviceGetArchitecture, unsigned int, 1, is->nvml_architecture)
NVML_FACT(nvmlDeviceGetNumGpuCores, unsigned int, 1, is->sm_count *cores_per_sm(is))
NVML_FACT(nvmlDeviceGetVirtualizationMode, unsigned int, 1, 0)

/* Multi-instance: capable devices have it switched off, so that there are no
 * instances to be found; others have never heard of it. */
enum { MIG_INSTANCES = 7 };

nvmlReturn_t nvmlDeviceGetMigMode(nvmlDevice_t device, unsigned int *current, unsigned int *pending)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, current && pending ? current : NULL, &is);

	if (rc == NVML_SUCCESS && !is->mig_capable)
		rc = NVML_ERROR_NOT_SUPPORTED;
	if (rc == NVML_SUCCESS)
		*current = *pending = 0;
	return rc;
}

nvmlReturn_t nvmlDeviceGetMigDeviceHandleByIndex(nvmlDevice_t device, unsigned int index,
						 nvmlDevice_t *mig)
{
	const struct sim_identity *is;
	nvmlReturn_t rc = nvml_identity(device, mig, &is);

	if (rc != NVML_SUCCESS)
		return rc;
	if (!is->mig_capable)
		return NVML_ERROR_NOT_SUPPORTED;
	return index < MIG_INSTANCES ? NVML_ERROR_NOT_FOUND : NVML_ERROR_INVALID_ARGUMENT;
}

NVML_FACT(nvmlDeviceGetMaxMigDeviceCount, unsigned int, 1, is->mig_capable ? MIG_INSTANCES : 0)
NVML_FACT(nvmlDeviceIsMigDeviceHandle, unsigned int, 1, 0)
