/* SPDX-License-Identifier: Apache-2.0
 *
 * What libvgpu.so offers besides the driver's own names: a flat interface for
 * callers that cannot read C layouts, above all Python's ctypes (vgpu_shim.py).
 * Integers, bytes and NUL-terminated text only.  Nothing here calls a driver,
 * so all of it works on a machine that has none.
 *
 * Unless said otherwise a result is 0, or a negative errno with nothing
 * changed.  Memory is in bytes, cores are percent of a device.
 */
#ifndef VGPU_H
#define VGPU_H

#include <stdint.h>

/* ABI of the grant and ledger files that this library reads and writes. */
uint32_t vgpu_abi(void);

/* ---- the node's side: tenants under a state directory --------------------- */

/* Create tenant `name` with `count` slices and process `pid` as its first
 * member (0: the caller).  The arrays hold one value for each slice:
 * `devices` texts such as "GPU-..." or "MIG-...", `memory` at most
 * `device_memory` (equal: not limited), `policies` as enum vgpu_policy,
 * `spill` what of `memory` lies in host memory (NULL: nothing of any): not more
 * than it, and the rest below `device_memory`.  `host_memory` is what the tenant
 * may page-lock of the host's memory; 0: not limited.
 * -EEXIST: the name is in use.  -EINVAL: a value is out of its range.
 * -ESRCH: no such process.  1, and nothing is created: the live tenants leave
 * too little; `shortage` tells the index of the slice, whether cores (1) or
 * memory (0) are short, and how much is free. */
int vgpu_make_tenant(const char *state, const char *name, uint32_t kind, uint32_t pid,
		     uint32_t count, const char *const *devices, const uint64_t *device_memory,
		     const uint64_t *memory, const uint32_t *cores, const uint32_t *policies,
		     uint64_t *shortage, const uint64_t *spill, uint64_t host_memory);
/* What the live tenants' quotas leave of a device: bytes of its `device_memory`, and percent. */
int vgpu_device_room(const char *state, const char *device, uint64_t device_memory,
		     uint64_t *memory, uint64_t *cores);
/* Make process `pid` a further member of a tenant; -ENOENT: no such tenant. */
int vgpu_join_tenant(const char *state, const char *name, uint32_t pid);
/* Remove a tenant, whatever lives in it. */
int vgpu_remove_tenant(const char *state, const char *name);
/* Remove the tenants in which nothing lives any more; returns how many. */
int vgpu_sweep_tenants(const char *state);

/* ---- the tenant's side: the slices of the tenant that the caller runs in --- */

/* Number of slices: 0 outside of a tenant, -EIO when its files cannot be used
 * (the reason has been printed on stderr, once). */
int vgpu_own_slices(void);
/* Slice `index`: `device` takes the 16 bytes of its UUID; `cores` is 0 when
 * compute is not limited.  `memory_used` is device memory; `spilled` is held in
 * host memory instead, of the `spill` bytes of `memory` that may be.
 * -ENOENT: there is no such slice. */
int vgpu_own_slice(uint32_t index, uint8_t *device, uint64_t *memory, uint64_t *memory_used,
		   uint32_t *cores, uint32_t *policy, uint64_t *device_time_ns,
		   uint64_t *throttled_ns, uint64_t *launches, uint64_t *refusals, uint64_t *spill,
		   uint64_t *spilled);
/* Page-locked memory of the host: what the tenant may have (0: not limited) and
 * has, and how many allocations were refused.  -ENOENT: outside of a tenant.
 * -EIO: as above. */
int vgpu_own_host_memory(uint64_t *memory, uint64_t *memory_used, uint64_t *refusals);

#endif
