/* SPDX-License-Identifier: Apache-2.0
 *
 * The flat interface of vgpu.h.
 */
#include <errno.h>
#include <string.h>

#include "shim.h"

uint32_t vgpu_abi(void)
{
	return VGPU_ABI;
}

/* ---- the node's side -------------------------------------------------------------------- */

static int owner_of(uint32_t pid, uint64_t *owner)
{
	uint64_t pid_namespace;

	*owner = pid ? vgpu_owner_of(pid) : vgpu_owner_self(&pid_namespace);
	return *owner ? 0 : -ESRCH;
}

/* What is not limited never spills, so that the part in the device has to be less
 * than the device. */
static int memory_is_valid(uint64_t device_memory, uint64_t memory, uint64_t spill)
{
	return spill ? spill <= memory && memory - spill < device_memory : memory <= device_memory;
}

static int fill_quota(struct vgpu_quota *quota, const char *device, uint64_t device_memory,
		      uint64_t memory, uint64_t spill, uint32_t cores, uint32_t policy)
{
	if (!device || vgpu_parse_uuid(device, quota->device) ||
	    !memory_is_valid(device_memory, memory, spill))
		return -EINVAL;
	quota->device_memory = device_memory;
	quota->memory = memory;
	quota->cores = cores;
	quota->policy = policy;
	quota->memory_spill = spill;
	return 0;
}

int vgpu_make_tenant(const char *state, const char *name, uint32_t kind, uint32_t pid,
		     uint32_t count, const char *const *devices, const uint64_t *device_memory,
		     const uint64_t *memory, const uint32_t *cores, const uint32_t *policies,
		     uint64_t *shortage, const uint64_t *spill, uint64_t host_memory)
{
	struct vgpu_grant grant = {.magic = VGPU_GRANT_MAGIC,
				   .abi = VGPU_ABI,
				   .size = sizeof(grant),
				   .slice_count = count,
				   .kind = kind,
				   .host_memory = host_memory};
	struct vgpu_shortage why = {0, 0, 0};
	size_t length = strlen(name);
	uint64_t member;
	int error;

	if (length >= sizeof(grant.tenant) || count < 1 || count > VGPU_MAX_SLICES ||
	    (kind != VGPU_KIND_PROCESS && kind != VGPU_KIND_CONTAINER))
		return -EINVAL;
	memcpy(grant.tenant, name, length);
	for (uint32_t i = 0; i < count; i++) {
		error = fill_quota(&grant.slices[i], devices[i], device_memory[i], memory[i],
				   spill ? spill[i] : 0, cores[i], policies[i]);
		if (error)
			return error;
	}
	error = owner_of(pid, &member);
	if (!error)
		error = vgpu_tenant_create(state, &grant, member, &why);
	if (error == VGPU_SHORT) {
		shortage[0] = why.slice;
		shortage[1] = why.is_cores;
		shortage[2] = why.free;
	}
	return error;
}

int vgpu_device_room(const char *state, const char *device, uint64_t device_memory,
		     uint64_t *memory, uint64_t *cores)
{
	uint8_t uuid[VGPU_UUID_SIZE];

	if (!device || vgpu_parse_uuid(device, uuid))
		return -EINVAL;
	return vgpu_tenant_room(state, uuid, device_memory, memory, cores);
}

int vgpu_join_tenant(const char *state, const char *name, uint32_t pid)
{
	uint64_t member;
	int error = owner_of(pid, &member);

	return error ? error : vgpu_tenant_join(state, name, member);
}

int vgpu_remove_tenant(const char *state, const char *name)
{
	return vgpu_tenant_remove(state, name);
}

int vgpu_sweep_tenants(const char *state)
{
	return vgpu_tenant_sweep(state);
}

/* ---- the tenant's side -------------------------------------------------------------------- */

int vgpu_own_slices(void)
{
	const struct tenant *tenant = vgpu_tenant();

	return tenant->is_faulty ? -EIO : (int)tenant->grant->slice_count;
}

int vgpu_own_slice(uint32_t index, uint8_t *device, uint64_t *memory, uint64_t *memory_used,
		   uint32_t *cores, uint32_t *policy, uint64_t *device_time_ns,
		   uint64_t *throttled_ns, uint64_t *launches, uint64_t *refusals, uint64_t *spill,
		   uint64_t *spilled)
{
	const struct tenant *tenant = vgpu_tenant();
	const struct vgpu_usage *usage;
	struct vgpu_quota quota;

	if (!tenant->ledger || index >= tenant->grant->slice_count)
		return -ENOENT;
	usage = &tenant->ledger->slices[index];
	vgpu_quota_read(tenant->grant, index, &quota);
	memcpy(device, quota.device, sizeof(quota.device));
	*memory = quota.memory;
	*cores = vgpu_cores_in_force(tenant->grant, index, vgpu_now_ns());
	*policy = quota.policy;
	*memory_used = __atomic_load_n(&usage->memory_used, __ATOMIC_RELAXED);
	*device_time_ns = __atomic_load_n(&usage->device_time_ns, __ATOMIC_RELAXED);
	*throttled_ns = __atomic_load_n(&usage->throttled_ns, __ATOMIC_RELAXED);
	*launches = __atomic_load_n(&usage->launches, __ATOMIC_RELAXED);
	*refusals = __atomic_load_n(&usage->refusals, __ATOMIC_RELAXED);
	*spill = quota.memory_spill;
	*spilled = __atomic_load_n(&usage->memory_spilled, __ATOMIC_RELAXED);
	return 0;
}

int vgpu_own_host_memory(uint64_t *memory, uint64_t *memory_used, uint64_t *refusals)
{
	const struct tenant *tenant = vgpu_tenant();

	if (!tenant->ledger)
		return tenant->is_faulty ? -EIO : -ENOENT;
	*memory = __atomic_load_n(&tenant->grant->host_memory, __ATOMIC_RELAXED);
	*memory_used = __atomic_load_n(&tenant->ledger->host_used, __ATOMIC_RELAXED);
	*refusals = __atomic_load_n(&tenant->ledger->host_refusals, __ATOMIC_RELAXED);
	return 0;
}
