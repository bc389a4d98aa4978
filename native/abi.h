/* SPDX-License-Identifier: Apache-2.0
 *
 * The contract between the tenant's side (shim/) and the node's side
 * (vgpu_runtime/, hooks/): the layout of the shared files and the decisions
 * taken on them.  gcc includes this file and cffi parses it, so it holds only
 * fixed-size integers, integer macros, enums, structs and prototypes.  Sharing
 * between processes is by atomic access, which C does with the __atomic
 * built-ins: a type qualifier here would be lost on cffi.
 *
 * Units: bytes, percent of a device, and nanoseconds of CLOCK_MONOTONIC where
 * a name ends in _ns.  A field's comment says who writes it.
 */
#ifndef VGPU_ABI_H
#define VGPU_ABI_H

#include <stdint.h>

/* Bump when a field moves or changes meaning.  Do not bump for a field taken
 * from `reserved`: it was zero before, and zero must mean "as before".
 * 1: first release */
#define VGPU_ABI 1

#define VGPU_GRANT_MAGIC 0x746e617267757067  /* "gpugrant" in memory order */
#define VGPU_LEDGER_MAGIC 0x726764656c757067 /* "gpuledgr" likewise */

#define VGPU_MAX_SLICES 16
#define VGPU_MAX_PROCESSES 512
#define VGPU_LANES 8
#define VGPU_NAME_SIZE 64
#define VGPU_UUID_SIZE 16

/* Device time that a slice may use at once after it was idle. */
#define VGPU_BURST_NS 20000000

enum vgpu_policy {
	VGPU_POLICY_FIXED = 1,   /* never above the quota */
	VGPU_POLICY_BALANCE = 2, /* quota guaranteed, idle cores may be borrowed */
	VGPU_POLICY_NONE = 3,    /* compute is not limited */
};

enum vgpu_kind {
	VGPU_KIND_PROCESS = 1,   /* programs under `vgpu run` */
	VGPU_KIND_CONTAINER = 2, /* one container: its ledger is not to be trusted */
};

/* What is counted in bytes, by number: device memory of slice s is account s;
 * what slice s has in host memory instead is VGPU_SPILL + s; the page-locked
 * host memory of the whole tenant is VGPU_HOST. */
#define VGPU_SPILL VGPU_MAX_SLICES
#define VGPU_HOST 32
#define VGPU_ACCOUNTS 33

/* One slice's entitlement. */
struct vgpu_quota {
	uint8_t device[VGPU_UUID_SIZE]; /* node: UUID of the device */
	uint64_t device_memory;         /* node: bytes that the device has in all */
	uint64_t memory;                /* node: bytes; device_memory = not limited */
	uint32_t cores;                 /* node: percent of the device, 1 to 100 */
	uint32_t cores_limit;           /* node: percent enforced until limit_end_ns */
	uint64_t limit_end_ns;          /* node: from then on `cores` holds; 0 = always */
	uint32_t policy;                /* node: enum vgpu_policy */
	uint32_t reserved;
	uint64_t memory_spill; /* node: bytes of `memory` that lie in host memory */
};

/* What the node gives a tenant.  The tenant maps it read-only. */
struct vgpu_grant {
	uint64_t magic;              /* node: VGPU_GRANT_MAGIC */
	uint32_t abi;                /* node: VGPU_ABI */
	uint32_t size;               /* node: bytes of this struct: shows a cut-off file */
	uint32_t sequence;           /* node: odd while a slice is being changed */
	uint32_t slice_count;        /* node: 1 to VGPU_MAX_SLICES, fixed for life */
	char tenant[VGPU_NAME_SIZE]; /* node: name, NUL-terminated, fixed for life */
	uint32_t kind;               /* node: enum vgpu_kind, fixed for life */
	uint32_t changing;           /* node: which slice, while `sequence` is odd */
	uint64_t host_memory;        /* node: bytes of page-locked host memory; 0 = not limited */
	uint32_t reserved[6];
	struct vgpu_quota slices[VGPU_MAX_SLICES];
	struct vgpu_quota before; /* node: that slice as it was, and for readers still is */
};

/* One slice's usage: what all processes of the tenant hold and have spent. */
struct vgpu_usage {
	uint64_t memory_used;       /* shim: bytes of device memory charged */
	uint64_t refusals;          /* shim: allocations refused */
	uint64_t memory_spilled;    /* shim: bytes charged that lie in host memory instead */
	uint64_t context_memory;    /* shim: bytes that a process's first context took + 1 */
	uint64_t guess_end_ns;      /* shim: until then rows may hold `guesses`; 0 = none */
	uint64_t granule;           /* shim: bytes the driver rounds up to; 0 = not known */
	uint64_t memory_padding[2]; /* launches must not slow allocations down */
	uint64_t full_ns;           /* shim: when the bucket is full again */
	uint64_t device_time_ns;    /* shim: device time debited, after settling */
	uint64_t throttled_ns;      /* shim: time that launches were delayed, summed */
	uint64_t launches;          /* shim: launches metered */
	uint64_t time_padding[4];
};

/* One process of the tenant.  `owner` alone decides whether the row is taken,
 * and names the process: a single word, so that no SIGKILL can tear it. */
struct vgpu_row {
	uint64_t owner;         /* shim: see vgpu_owner; 0 = free */
	uint64_t image;         /* shim: changes with exec, which keeps pid and start time */
	uint64_t pid_namespace; /* shim: inode of the namespace that the pid is of */
	uint64_t active;        /* shim: bit i: it has used slice i */
	uint64_t guesses;       /* shim: contexts being made, not measured: 4 bits a slice */
	uint64_t padding[3];
	uint32_t seats[VGPU_LANES]; /* shim: tid of the thread whose a lane is; 0 = nobody's */
	uint64_t seats_padding[4];
};

/* The owner of a row that counts for nothing: its process is gone, and whoever
 * sweeps is about to free it. */
#define VGPU_OWNER_VOID 0xffffffffffffffff

/* What a process holds, parted into lanes so that its threads do not fight for
 * one cache line: only the sum over a row's lanes means something, as one thread
 * may charge and another refund.  Lane 0 is for all threads, and written by atomic
 * addition; each other is one thread's, which has its seat, and writes plainly. */
struct vgpu_lane {
	uint64_t begun;                 /* shim: changes of usage begun, by all its threads */
	uint64_t ended;                 /* shim: ... and ended; never ahead of `begun` */
	uint64_t memory[VGPU_ACCOUNTS]; /* shim: bytes charged, by account */
	uint64_t padding[5];
};

/* What a tenant used.  The node reads it as untrusted input. */
struct vgpu_ledger {
	uint64_t magic;         /* node: VGPU_LEDGER_MAGIC */
	uint32_t abi;           /* node: VGPU_ABI */
	uint32_t size;          /* node: bytes of this struct */
	uint64_t janitor;       /* shim: owner of the process that sweeps; 0 = nobody */
	uint64_t janitor_image; /* shim: image of that process */
	uint64_t suspect;       /* shim: usage may exceed the rows' sum: reconcile */
	uint64_t host_used;     /* shim: bytes of page-locked host memory charged */
	uint64_t host_refusals; /* shim: page-locked allocations refused */
	uint64_t reserved;
	struct vgpu_usage slices[VGPU_MAX_SLICES];
	struct vgpu_row rows[VGPU_MAX_PROCESSES];
	struct vgpu_lane lanes[VGPU_MAX_PROCESSES][VGPU_LANES]; /* by row */
};

/* Everything else is hidden; what of these leaves a library, its exports say. */
#pragma GCC visibility push(default)

/* ---- grant.c: reading and writing a grant ----------------------------- */

enum vgpu_fault {
	VGPU_SOUND = 0,
	VGPU_TRUNCATED, /* shorter than its own or our size */
	VGPU_NOT_OURS,  /* the magic number is wrong */
	VGPU_OTHER_ABI, /* written by another version */
	VGPU_BAD_VALUE, /* a field is out of its range */
};

/* Judge `size` bytes read from a grant or ledger file. */
int vgpu_grant_check(const void *bytes, uint64_t size);
int vgpu_ledger_check(const void *bytes, uint64_t size);
/* What a fault means, in a few words for a message. */
const char *vgpu_fault_text(int fault);

/* Change one slice as seen by readers at one moment; single writer. */
void vgpu_quota_write(struct vgpu_grant *grant, uint32_t slice, const struct vgpu_quota *quota);
/* Bytes of a quota that are device memory; UINT64_MAX = not limited. */
uint64_t vgpu_device_part(const struct vgpu_quota *quota);
/* Bytes that may be charged on an account; UINT64_MAX = not limited. */
uint64_t vgpu_quota_of(const struct vgpu_grant *grant, uint32_t account);
/* A consistent copy: while a change is under way, or was left by a writer that
 * died, the slice as it was before.  Never waits. */
void vgpu_quota_read(const struct vgpu_grant *grant, uint32_t slice, struct vgpu_quota *quota);
/* Percent enforced at `now_ns`; 0 = not limited. */
uint32_t vgpu_cores_in_force(const struct vgpu_grant *grant, uint32_t slice, uint64_t now_ns);
/* Slice on the device of that UUID, or -1. */
int vgpu_slice_of(const struct vgpu_grant *grant, const uint8_t *device);

/* ---- ledger.c: charging and refunding memory --------------------------- */

/* Whether the process behind a row is gone for good; "do not know" is 0. */
typedef int (*vgpu_is_gone)(uint64_t owner, uint64_t pid_namespace);

/* The row of this process, taken if it has none; -1 when all are taken.
 * Rows that the same process left behind by exec are swept. */
int vgpu_row_take(struct vgpu_ledger *ledger, uint64_t owner, uint64_t image,
		  uint64_t pid_namespace, vgpu_is_gone is_gone);
/* Reserve before the driver is called.  0, or -1 with nothing changed when
 * `bytes` do not fit below `quota`. */
int vgpu_charge(struct vgpu_ledger *ledger, uint32_t row, uint32_t account, uint64_t bytes,
		uint64_t quota);
/* Give back what was charged on the same row and account. */
void vgpu_refund(struct vgpu_ledger *ledger, uint32_t row, uint32_t account, uint64_t bytes);
/* The same for the calling thread's own lane, see vgpu_seat_take; 0: for that of all. */
int vgpu_charge_seated(struct vgpu_ledger *ledger, uint32_t row, uint32_t seat, uint32_t account,
		       uint64_t bytes, uint64_t quota);
void vgpu_refund_seated(struct vgpu_ledger *ledger, uint32_t row, uint32_t seat, uint32_t account,
			uint64_t bytes);
/* A lane of the row for the calling thread alone, whose tid that is: one that nobody
 * has, or whose thread has ended.  0 when all are taken. */
uint32_t vgpu_seat_take(struct vgpu_ledger *ledger, uint32_t row, uint32_t tid,
			int (*is_ended)(uint32_t tid));
/* Bytes charged on an account, by all processes. */
uint64_t vgpu_charged(const struct vgpu_ledger *ledger, uint32_t account);
/* Bytes charged on it by the process of a row. */
uint64_t vgpu_row_charged(const struct vgpu_ledger *ledger, uint32_t row, uint32_t account);
/* Take back what processes that are gone still hold.  Returns the rows freed;
 * 0 at once while another process sweeps. */
uint32_t vgpu_sweep(struct vgpu_ledger *ledger, uint64_t owner, uint64_t image,
		    vgpu_is_gone is_gone);

/* ---- bucket.c: drawing device time -------------------------------------- */

/* Debit `cost_ns` of device time.  Returns how long the launch has to wait. */
uint64_t vgpu_draw(uint64_t *full_ns, uint64_t now_ns, uint64_t cost_ns, uint32_t cores,
		   uint64_t burst_ns);
/* Correct an earlier debit by what the work really took: positive is more. */
void vgpu_settle(uint64_t *full_ns, int64_t delta_ns, uint32_t cores);

/* ---- process.c: who a process is --------------------------------------- */

/* A process as one word: start time (32 bits of clock ticks), a tag of its pid
 * namespace (10 bits), pid (22 bits). */
uint64_t vgpu_owner(uint32_t pid, uint64_t start_ticks, uint64_t pid_namespace);
uint32_t vgpu_owner_pid(uint64_t owner);
/* This process; the namespace's inode through `pid_namespace`. */
uint64_t vgpu_owner_self(uint64_t *pid_namespace);
/* The owner word of another live process of our namespace; 0 if there is none. */
uint64_t vgpu_owner_of(uint32_t pid);
/* A number that changes when this process execs. */
uint64_t vgpu_image_self(void);
int vgpu_process_is_gone(uint64_t owner, uint64_t pid_namespace);

/* ---- tenant.c: a tenant's files under the state directory --------------- */

/* Why a tenant was not admitted. */
struct vgpu_shortage {
	uint32_t slice;    /* index in the asking grant */
	uint32_t is_cores; /* 0: memory is short, 1: cores are */
	uint64_t free;     /* bytes or percent still free on that device */
};

/* Directory of tenant `name` into `path`; 0 or -ENAMETOOLONG. */
int vgpu_tenant_path(const char *state, const char *name, char *path, uint32_t size);
/* The answer to a tenant for which the live tenants' quotas leave too little. */
#define VGPU_SHORT 1

/* Create <state>/tenants/<grant->tenant> with `member` (an owner word) as its first
 * member, or nothing.  0, VGPU_SHORT with `shortage` told, -EEXIST (name in use),
 * -EINVAL (bad name) or another -errno. */
int vgpu_tenant_create(const char *state, const struct vgpu_grant *grant, uint64_t member,
		       struct vgpu_shortage *shortage);
/* What the live tenants' quotas leave of the device with that UUID: bytes of its
 * `device_memory` into `memory`, percent into `cores`.  0 or -errno. */
int vgpu_tenant_room(const char *state, const uint8_t *device, uint64_t device_memory,
		     uint64_t *memory, uint64_t *cores);
/* Add a member; 0, -ENOENT (no such live tenant) or another -errno. */
int vgpu_tenant_join(const char *state, const char *name, uint64_t member);
/* Remove the tenant whatever lives in it; 0 or -errno. */
int vgpu_tenant_remove(const char *state, const char *name);
/* Remove every tenant with no live member and no live process; returns how many, or -errno. */
int vgpu_tenant_sweep(const char *state);

#pragma GCC visibility pop

#endif
