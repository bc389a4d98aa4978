/* SPDX-License-Identifier: Apache-2.0
 *
 * What belongs to this process alone.  It lives in memory that the kernel
 * wipes in a child of fork, so that a child begins, whatever its parent was
 * doing at that moment, with no row, no allocations, no events and every lock
 * free.  All zero is therefore the valid beginning of everything here.
 */
#ifndef VGPU_PROCESS_H
#define VGPU_PROCESS_H

#include "estimate.h"
#include "shim.h"

#define MAX_DEVICES 64

/* A lock for a few instructions; never held over a driver or system call. */
struct lock {
	uint32_t is_held;
};

void vgpu_lock(struct lock *lock);
void vgpu_unlock(struct lock *lock);
/* The same where its holder may be in a system call: whoever waits sleeps. */
void vgpu_lock_and_sleep(struct lock *lock);

/* ---- process.c: seats ------------------------------------------------------------------ */

/* What of the ledger, and of the unused records, is the calling thread's alone.
 * Of another process than `owner` says, it means nothing: a child of fork. */
struct seat {
	uint64_t owner;
	uint32_t number; /* 0: none was free */
};

extern __thread struct seat vgpu_my_seat __attribute__((tls_model("initial-exec")));

/* ---- records.c: which allocation was charged how -------------------------------- */

#define RECORD_BUCKETS (1u << 17)            /* 100,000 allocations: less than one in each */
#define ALIGNED __attribute__((aligned(64))) /* nobody else's cache line */
#define RECORD_STRIPES 64                    /* locks: each for every 64th bucket */

/* What a key is.  Numbers of two kinds may be equal and mean two things. */
enum record_kind {
	RECORD_POINTER, /* memory by address; if it is of a pool, that is charged instead */
	RECORD_HOST,    /* page-locked memory, by address */
	RECORD_OBJECT,  /* array, mipmapped array or external memory */
	RECORD_CONTEXT, /* what a context takes for itself */
	RECORD_MODULE,  /* what a module or library takes */
	RECORD_BLOCK,   /* physical memory; in no table, its handles and mappings are */
	RECORD_HANDLE,  /* a handle of a block */
	RECORD_MAPPING, /* a mapping of a block, by address, of `bytes` */
	RECORD_BINDING, /* a block that a multicast object, or a sparse array, holds */
	RECORD_GRAPH,   /* an executable graph that allocates `bytes`; see graph_memory.c */
	RECORD_LATE,    /* memory freed behind work; by the event after that, see late.c */
};

struct pool;

struct record {
	struct record *next;
	uint64_t key;
	union {
		uint64_t bytes; /* what they mean, and whether they are charged, says the kind */
		uint64_t owner; /* BINDING: the object that holds the block */
	};
	union {
		uint64_t spilled; /* charged on the spill account besides */
		uint64_t sum;     /* GRAPH: bytes without what it uses twice */
	};
	CUcontext context; /* whose end is its end; NULL: no context's */
	union {
		struct record *block; /* HANDLE, MAPPING, BINDING */
		struct pool *pool;    /* POINTER: where it is from; NULL: from no pool */
		uint64_t stream;      /* GRAPH: on which it was launched last */
	};
	union {
		uint32_t row;
		uint32_t trims; /* GRAPH: the pool's when it was launched last */
	};
	union {
		uint32_t count; /* uses: of a BLOCK by all its holders; of a HANDLE */
		uint32_t epoch; /* GRAPH: like `trims` */
	};
	uint8_t account; /* see VGPU_ACCOUNTS */
	uint8_t kind;
	uint8_t is_holding; /* GRAPH: some of its memory outlives a launch */
};

struct records {
	struct {
		struct lock lock;
		uint32_t padding[15];
	} stripes[RECORD_STRIPES] ALIGNED;
	struct {
		struct lock lock;
		struct record *free;              /* records given back */
		struct record *fresh, *fresh_end; /* records never used */
		uint64_t padding[4];
	} stocks[VGPU_LANES] ALIGNED; /* by seat */
	struct record *buckets[RECORD_BUCKETS];
};

/* A record to be filled in; NULL when memory is exhausted. */
struct record *vgpu_record_new(struct records *records);
void vgpu_record_free(struct records *records, struct record *record);
/* Enter by kind and key.  Never fails.  Returns a record that had the same ones,
 * whose object the driver must have ended without our seeing it, or NULL. */
struct record *vgpu_record_enter(struct records *records, struct record *record);
/* Take out what is known of a key; NULL: nothing. */
struct record *vgpu_record_take(struct records *records, enum record_kind kind, uint64_t key);
/* Call `visit` with the record of a key, under the table's lock: a few instructions,
 * nothing that waits.  It takes the record out by returning 1.  Returns what it
 * returned, or -1 when nothing is known of the key. */
int vgpu_record_visit(struct records *records, enum record_kind kind, uint64_t key,
		      int (*visit)(struct record *record, void *argument), void *argument);
/* Take out all that `matches`, chained by `next`. */
struct record *vgpu_record_take_all(struct records *records,
				    int (*matches)(const struct record *record, const void *what),
				    const void *what);

/* ---- markers.c ------------------------------------------------------------------------ */

#define MARKERS 64

enum marker_state {
	MARKER_EMPTY,   /* no events yet */
	MARKER_READY,   /* events that nobody uses */
	MARKER_BUSY,    /* a thread works on it */
	MARKER_PENDING, /* recorded, not seen complete */
};

/* A pair of events round one launch. */
struct marker {
	uint32_t state;
	uint32_t slice;
	CUcontext context;
	CUevent start, end;
	struct estimate *estimate;
	uint64_t cost_ns;   /* what the launch was debited */
	uint64_t launches;  /* of its function, before it */
	uint64_t begin_ns;  /* when the start event was recorded */
	uint64_t issued_ns; /* the process's count at that moment */
};

/* ---- nvml_fleet.c ----------------------------------------------------------------------- */

/* One NVML device of the tenant's. */
struct nvml_device {
	nvmlDevice_t handle;
	uint32_t index;  /* NVML's own number; of an instance unused */
	uint16_t slices; /* bit i: slice i is on it; of a whole device its instances' too */
	int8_t slice;    /* the one that it is itself, or SLICE_NOT_GRANTED */
	uint8_t unused;
};

struct nvml_fleet {
	uint32_t count, instances;
	struct nvml_device device[VGPU_MAX_SLICES];   /* whole devices, in NVML's order */
	struct nvml_device instance[VGPU_MAX_SLICES]; /* MIG instances */
};

#define NVML_FLEET_WORDS (sizeof(struct nvml_fleet) / sizeof(uint64_t))

/* What is remembered of NVML. */
struct nvml_memory {
	uint64_t epoch;       /* NVML has begun so many times */
	uint32_t sequence;    /* odd while the rest is written */
	uint64_t fleet_epoch; /* epoch + 1 that the fleet is of; 0: there is none */
	uint64_t fleet[NVML_FLEET_WORDS];
};

/* ---- the whole ---------------------------------------------------------------------------- */

struct process {
	uint64_t pid;   /* where the kernel cannot wipe: whose this is */
	uint64_t owner; /* 0: not asked yet; see vgpu_owner */
	uint64_t image, pid_namespace;
	uint64_t swept_ns;            /* when this process swept last */
	struct lock row_lock;         /* taken by the thread that takes the row */
	uint32_t row;                 /* row of the ledger + 1; 0: none yet */
	uint32_t device_count;        /* 0: not known yet */
	int8_t slice_of[MAX_DEVICES]; /* by CUdevice */
	struct records records;
	uint32_t contexts[VGPU_MAX_SLICES];     /* alive and charged, by slice */
	uint64_t context_base[VGPU_MAX_SLICES]; /* bytes charged as long as there are any */
	uint64_t contexts_made;
	uint32_t nvml_pid;  /* this process, as NVML calls it; 0: not known */
	struct pool *pools; /* pools.c: all that were ever seen */
	struct lock pools_lock;
	uint32_t pools_dirty;        /* some pool may hold less than it is charged */
	uint32_t has_bindings;       /* blocks.c: some block is bound to an object */
	uint32_t graphs_with_memory; /* records of graphs that allocate */
	uint32_t late_frees;         /* records of memory freed behind work, or more */
	struct estimates estimates;
	struct marker markers[MARKERS];
	uint64_t issued_ns;    /* device time debited between measurements, summed */
	uint64_t measurements; /* taken so far */
	uint64_t patient_ns;   /* launches wait for no measurement before this time */
	struct nvml_memory nvml;
};

/* NULL when there is no memory for it. */
struct process *vgpu_process(void);
/* NULL also when nothing was kept of this process yet. */
struct process *vgpu_process_if_any(void);
/* Row of this process in the ledger, taken at the first call; -1: none is free. */
int vgpu_process_row(const struct tenant *tenant, struct process *process);
/* The calling thread's seat in this process' row, taken at the first call; 0: it has none. */
uint32_t vgpu_process_take_seat(const struct tenant *tenant, const struct process *process,
				uint32_t row);

static inline uint32_t vgpu_process_seat(const struct tenant *tenant, const struct process *process,
					 uint32_t row)
{
	return likely(vgpu_my_seat.owner == __atomic_load_n(&process->owner, __ATOMIC_RELAXED))
		       ? vgpu_my_seat.number
		       : vgpu_process_take_seat(tenant, process, row);
}

/* Take back what dead processes hold, unless this process did so less than
 * `period_ns` ago.  Whether it did now. */
int vgpu_process_sweep(const struct tenant *tenant, struct process *process, uint64_t period_ns);
/* Note that this process has used a slice. */
void vgpu_process_active(const struct tenant *tenant, int row, int slice);

#endif
