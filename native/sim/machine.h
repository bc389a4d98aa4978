/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated machine: the layout of the one shared file that is all of it,
 * and the functions by which both simulated libraries use it.
 *
 * Python writes the constant part (everything marked C), zeroes the rest and
 * moves the file into place; the C side only attaches.  The file is sparse:
 * what no process used takes no room.
 *
 * Who is alive is decided by the kernel, not by process numbers, because the
 * users of one machine may live in different containers: each process holds a
 * lock on two bytes of the file, beyond its end, for as long as it lives.
 *
 * All times are nanoseconds of CLOCK_MONOTONIC, all sizes are bytes.
 * Constant fields are marked C, fields under a device's lock D, under the
 * machine's lock M.
 *
 * cffi parses this file: only integers, arrays, enums, structs, prototypes.
 */
#ifndef VGPU_SIM_MACHINE_H
#define VGPU_SIM_MACHINE_H

#include <stdint.h>

/* Bump when a field moves or changes meaning; a reader refuses another number. */
#define SIM_ABI 2
#define SIM_MAGIC 0x4d49535550475601 /* also tells the byte order */
#define SIM_DEVICES 16
#define SIM_PROCESSES 512
#define SIM_ACTIVE_WORDS 8 /* 64 processes to a word */
#define SIM_SAMPLES 64     /* utilisation samples kept */
#define SIM_SEGMENTS 8192  /* service segments kept for each device */
#define SIM_SHARED 4096    /* things that several processes may hold */
#define SIM_NOTE 64
#define SIM_LACKS 4096
#define SIM_NAME 96

/* How contexts with work share a device. */
enum sim_sharing {
	SIM_TIME_SLICES = 0,      /* one at a time, a quantum each, as hardware does */
	SIM_PROCESSOR_SHARING = 1 /* all at once, each at 1/k of the speed */
};

enum sim_process_state {
	SIM_PROCESS_NONE = 0,
	SIM_PROCESS_LIVE = 1,
	SIM_PROCESS_ENDED = 2 /* its counters stay readable until the slot is needed */
};

/* What one device is.  All C. */
struct sim_identity {
	char name[SIM_NAME];
	char serial[32];
	uint8_t uuid[16];
	uint32_t pci_domain;
	uint32_t pci_bus;
	uint32_t pci_device;
	uint32_t pci_device_id; /* device id << 16 | vendor id */
	uint32_t pci_subsystem_id;
	uint32_t minor_number;    /* the N of /dev/nvidiaN */
	uint64_t memory_total;    /* what NVML calls total */
	uint64_t memory_reserved; /* kept by the driver; CUDA's total is the difference */
	uint64_t bar1_total;
	uint64_t shared_per_sm;
	uint64_t shared_per_block;
	uint64_t shared_per_block_optin;
	uint64_t l2_cache;
	uint32_t sm_count;
	uint32_t capability_major;
	uint32_t capability_minor;
	uint32_t threads_per_sm;
	uint32_t blocks_per_sm;
	uint32_t registers_per_sm;
	uint32_t memory_bus_bits;
	uint32_t sm_clock_mhz;     /* highest */
	uint32_t memory_clock_mhz; /* highest */
	uint32_t sm_clock_idle_mhz;
	uint32_t power_limit_mw;
	uint32_t power_idle_mw;
	uint32_t temperature_c; /* when idle */
	uint32_t pcie_generation;
	uint32_t pcie_width;
	uint32_t ecc; /* 1: error correction is there and on */
	uint32_t mig_capable;
	uint32_t nvml_brand; /* NVML's numbers, passed through */
	uint32_t nvml_architecture;
	uint32_t reserved[29];
};

/* How the machine behaves.  All C. */
struct sim_knobs {
	uint64_t context_overhead;  /* charged for the first context of a process on a device */
	uint64_t kernel_ns;         /* a kernel that nothing else says anything about */
	uint64_t copy_latency_ns;   /* of every copy and set */
	uint64_t copy_bytes_per_us; /* 0: copies take only their latency */
	uint64_t quantum_ns;        /* a time slice */
	uint64_t switch_ns;         /* the device serves nobody for so long when it turns */
	uint64_t launch_cpu_ns; /* processor time that a launch costs its caller, beyond our own */
	uint64_t alloc_cpu_ns;  /* likewise an allocation or a free */
	uint64_t sample_ns;     /* period of NVML's utilisation samples */
	uint64_t module_overhead; /* charged for each module and library while it is loaded */
	uint32_t queue_depth;     /* launches pending on a stream before the next one blocks */
	uint32_t sharing;         /* enum sim_sharing */
	uint32_t null_mode;       /* 1: kernels and copies take no time and are not accounted */
	uint32_t process_view;    /* 1: NVML lists processes; 0: it says "not supported" */
	int32_t pid_offset;       /* NVML reports pid + this: "the host counts otherwise" */
	uint32_t reserved[25];
};

/* One process that has initialised the driver. */
struct sim_process {
	uint32_t state;         /* M: enum sim_process_state */
	int32_t pid;            /* M: in its own pid namespace */
	uint64_t pid_namespace; /* M: that namespace's inode */
	uint64_t start_ticks;   /* M: field 22 of /proc/PID/stat */
	uint64_t generation;    /* M: one more for each user of the slot */
	uint64_t begin_ns;      /* M */
	uint64_t end_ns;        /* M */
	char name[SIM_NAME];    /* M: path of the executable */
};

/* What one process did to one device within one sample period. */
struct sim_sample {
	uint64_t number;  /* D: the sample covers [number, number + 1) * sample_ns */
	uint64_t busy_ns; /* D */
};

/* One process on one device. */
struct sim_share {
	uint64_t memory;    /* D: bytes held, contexts included: `own` and its shared things */
	uint64_t peak;      /* D: highest value of `memory` */
	uint64_t queued_ns; /* D: device time ever asked for */
	uint64_t served_ns; /* D: device time ever given; work is active while it is less */
	uint64_t launches;  /* D: kernels enqueued, those of graphs included */
	uint32_t contexts;  /* D: live contexts */
	uint32_t weight;    /* D: length of its time slices in percent of the quantum */
	uint64_t own;       /* D: bytes that no other process can hold */
	uint64_t reserved;
	struct sim_sample samples[SIM_SAMPLES];
};

/* A stretch of time in which one process was served without interruption:
 * device time [served_ns, served_ns + length_ns) was given from start_ns on,
 * at one part in `stretch` of the full speed. */
struct sim_segment {
	uint32_t slot;      /* D */
	uint32_t stretch;   /* D */
	uint64_t served_ns; /* D */
	uint64_t start_ns;  /* D */
	uint64_t length_ns; /* D */
};

struct sim_timeline {
	uint64_t last_ns;        /* D: all time before it is accounted for */
	uint64_t turn_left_ns;   /* D: rest of the time slice in progress */
	uint64_t switch_left_ns; /* D: rest of the switch in progress */
	uint64_t busy_ns;        /* D: device time ever given, to all */
	uint64_t switches;       /* D */
	uint64_t checked_ns;     /* D: when the other users were last seen alive */
	uint32_t turn;           /* D: slot + 1 of the process served last; 0: none yet */
	uint32_t reserved;
	uint64_t active[SIM_ACTIVE_WORDS]; /* D: bit set: the process has work */
	struct sim_sample samples[SIM_SAMPLES];
	uint64_t segment_count; /* D: ever begun; the newest is count - 1 */
	struct sim_segment segments[SIM_SEGMENTS];
};

struct sim_device {
	struct sim_identity identity; /* C */
	uint64_t lock[8];             /* a robust, process-shared pthread mutex */
	uint64_t memory_used;         /* D: sum over the shares, and the next */
	uint64_t memory_unowned;      /* D: held by an open file alone, of no process */
	uint64_t reserved[6];
	struct sim_timeline timeline;
	struct sim_share shares[SIM_PROCESSES];
};

enum sim_shared_kind {
	SIM_SHARED_NONE = 0,
	SIM_SHARED_MEMORY = 1,  /* bytes in the file of shared memory */
	SIM_SHARED_OUTSIDE = 2, /* counted here, but the bytes are another driver's */
	SIM_SHARED_POOL = 3,    /* only its note */
	SIM_SHARED_MULTICAST = 4,
	SIM_SHARED_EVENT = 5
};

/* Something that several processes may hold: it is there until the last of them
 * lets go or dies, and until no open file stands for it.  Charged once, to the
 * process that made it; when that one lets go, to another holder. */
struct sim_shared {
	uint32_t kind;   /* M: enum sim_shared_kind */
	uint32_t device; /* M: that it is charged to; SIM_DEVICES: none, it is on the host */
	int32_t owner;   /* M and D: slot that it is charged to; -1: nobody */
	uint32_t reserved;
	uint64_t generation;                /* M: one more for each user of the entry */
	uint64_t size;                      /* M: bytes charged */
	uint64_t offset;                    /* M: in the file of shared memory */
	uint64_t key[2];                    /* M: of outside memory, the file that it came as */
	uint64_t holders[SIM_ACTIVE_WORDS]; /* M: bit set: that process holds it */
	uint8_t note[SIM_NOTE];             /* M: what its holders tell one another */
};

struct sim_machine {
	uint64_t magic;        /* C: SIM_MAGIC, written last */
	uint32_t abi;          /* C: SIM_ABI */
	uint32_t device_count; /* C */
	uint64_t size;         /* C: of this struct */
	uint32_t cuda_version; /* C: 12040 is 12.4 */
	uint32_t reserved0;
	char driver_version[32]; /* C: "550.163.01" */
	char nvml_version[32];   /* C: "12.550.163.01" */
	char name[SIM_NAME];     /* C: what the user called the machine */
	char lacks[SIM_LACKS]; /* C: exports that this driver does not have, each after a newline */
	struct sim_knobs knobs; /* C */
	uint64_t boot;          /* hash of the boot the mutable part belongs to; 0: none yet */
	int64_t wall_offset_ns; /* wall clock minus monotonic, fixed at first use */
	uint64_t lock[8];       /* a robust, process-shared pthread mutex */
	uint64_t generation;    /* M: slots ever taken */
	uint64_t live[SIM_ACTIVE_WORDS]; /* M: bit set: the slot's state is SIM_PROCESS_LIVE */
	uint32_t shared_top;             /* M: entries of `shared` ever used */
	uint32_t reserved1;
	uint64_t reserved2[5];
	struct sim_process processes[SIM_PROCESSES];
	struct sim_shared shared[SIM_SHARED];
	struct sim_device devices[SIM_DEVICES];
};

/* ---- what NVML needs ----
 * Device numbers are indices into `devices`; the caller checks them.
 * Results in memory of the caller's; none of these blocks for long. */

struct sim_usage {
	int32_t pid; /* in the caller's pid namespace, pid_offset added */
	uint32_t slot;
	uint64_t memory;
	uint64_t served_ns;
	uint32_t contexts;
	uint32_t reserved;
	char name[SIM_NAME]; /* path of the executable as the process sees it */
};

struct sim_load {
	int32_t pid;       /* as above; 0 for the device as a whole */
	uint32_t percent;  /* busy part of the sample */
	uint64_t stamp_us; /* end of the sample, microseconds of the wall clock */
};

/* The machine, mapped and ready; the same pointer each time.  NULL: there is
 * none, and the first failure has said why on stderr. */
struct sim_machine *sim_attach(void);

/* Processes with a context on a device, the dead reclaimed first.  Returns how
 * many there are; fills at most `capacity`.  Processes that the caller's pid
 * namespace cannot see are left out. */
int sim_usages(uint32_t device, struct sim_usage *out, int capacity);

/* A process by the pid that sim_usages() reports, on any device: 0, or -1. */
int sim_find_process(int32_t pid, struct sim_usage *out);

/* Bytes in use on a device, the dead reclaimed first. */
uint64_t sim_memory_used(uint32_t device);

/* Busy percent of a device over the newest complete sample. */
uint32_t sim_utilisation(uint32_t device);

/* Complete samples that end after `since_us`, oldest first: of the device, or
 * of its processes (those that were busy).  Return and `capacity` as above. */
int sim_device_loads(uint32_t device, uint64_t since_us, struct sim_load *out, int capacity);
int sim_process_loads(uint32_t device, uint64_t since_us, struct sim_load *out, int capacity);

/* ---- what CUDA needs ---- */

/* Take a slot for this process: its number, or -1 when all are taken. */
int sim_join(void);

/* Give the slot back: work not done is dropped, memory freed. */
void sim_leave(int slot);

/* After fork, in the child: let go of the parent's slot without touching it. */
void sim_forget(void);

/* Take `bytes` of a device: 0, or -1 when it has not that much left. */
int sim_charge(uint32_t device, int slot, uint64_t bytes);
void sim_refund(uint32_t device, int slot, uint64_t bytes);

/* Make something that others may hold too, after the given kind, device, size,
 * key and note: its number, or -1.  `size` must have been charged before. */
int sim_shared_make(int slot, const struct sim_shared *wanted);

/* Hold it as well: 0, or -1 when it is not there any more. */
int sim_shared_hold(int slot, int number, uint64_t generation);
void sim_shared_drop(int slot, int number);

/* An open file that stands for it and keeps it, in whatever process: a
 * descriptor, or -1.  And what a descriptor stands for: a number, or -1. */
int sim_shared_open(int number);
int sim_shared_of(int descriptor);

/* Outside memory that somebody holds already: its number, or -1. */
int sim_shared_find(const uint64_t key[2]);

/* The entry; what it holds may change at any time but for the holder. */
const struct sim_shared *sim_shared_entry(int number);
void sim_shared_note(int number, const void *note, uint64_t bytes);

/* The file of shared memory, to map from; -1: there is none. */
int sim_shared_file(void);

/* Count one context more or less; the first charges the overhead: 0, or -1. */
int sim_context_begin(uint32_t device, int slot);
void sim_context_end(uint32_t device, int slot);

/* Time now, as the machine counts it. */
uint64_t sim_now(void);

/* Ask for `ns` of device time and count `launches`; returns the process's
 * target: the work is done when its served_ns has reached it.  *served is what
 * it has been given by now. */
uint64_t sim_enqueue(uint32_t device, int slot, uint64_t ns, uint32_t launches, uint64_t *served);

/* What the process has been given by now. */
uint64_t sim_served(uint32_t device, int slot);

/* 1: it has been given `target`, or never will be, because it has ended. */
int sim_passed(uint32_t device, int slot, uint64_t target);

/* Sleep until the process has been given `target`. */
void sim_wait(uint32_t device, int slot, uint64_t target);

/* When a target was reached.  *cursor is the caller's place in the segments,
 * 0 at first; targets of one cursor must not decrease.  0: not reached yet. */
uint64_t sim_reached(uint32_t device, int slot, uint64_t target, uint64_t *cursor);

#endif
