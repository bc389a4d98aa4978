/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The simulated CUDA driver inside one process: its state, its objects and the
 * functions that its parts share.
 *
 * One lock, `driver.lock`, guards everything here; a public function holds it
 * from ENTER() to its return.  It is let go only in wait_for(), so after that
 * an object may be gone.  What other processes see lives in the machine.
 */
#ifndef VGPU_SIM_CUDA_DRIVER_H
#define VGPU_SIM_CUDA_DRIVER_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>

/* Exported, although everything else is hidden. */
#pragma GCC visibility push(default)
#include "cuda_abi.h"
#pragma GCC visibility pop
#define API __attribute__((visibility("default"))) CUresult

#include "machine.h"

/* A function and its twin for programs with a default stream per thread. */
#define TWINS(symbol, twin, parameters, expression)                                                \
	API symbol parameters                                                                      \
	{                                                                                          \
		enum { per_thread = 0 };                                                           \
		return (expression);                                                               \
	}                                                                                          \
	API symbol##_##twin parameters                                                             \
	{                                                                                          \
		enum { per_thread = 1 };                                                           \
		return (expression);                                                               \
	}

/* ---- cuda_init.c: the driver as a whole ---- */

enum driver_state { DRIVER_NEW, DRIVER_READY, DRIVER_FORKED, DRIVER_ENDED };

struct context;
struct stream;
struct event;
struct pool;

/* A device as this process numbers it. */
struct device {
	uint32_t number; /* in the machine */
	int ordinal;
	const struct sim_identity *identity;
	struct context *primary;
	unsigned retained;
	unsigned primary_flags;
	struct pool *default_pool;
	struct pool *pool;      /* the one in use */
	struct event **pending; /* recorded, not reached, in the order of their targets */
	int pending_count, pending_room;
	uint64_t cursor;                              /* our place in the machine's segments */
	uint64_t served;                              /* as last heard */
	uint64_t graph_reserved, graph_reserved_high; /* the stock of graphs */
	uint64_t graph_live, graph_mapped, graph_used_high;
	uint64_t graph_target; /* the newest free takes effect there */
	int contexts;          /* alive in this process */
};

extern struct driver {
	int state; /* enum driver_state */
	int slot;
	int device_count;
	struct sim_machine *machine;
	pthread_mutex_t lock;
	struct device devices[SIM_DEVICES];
} driver;

CUresult driver_not_ready(void);
static inline void driver_release(pthread_mutex_t **lock)
{
	pthread_mutex_unlock(*lock);
}

#define CHECK_READY()                                                                              \
	do {                                                                                       \
		if (__builtin_expect(                                                              \
			    __atomic_load_n(&driver.state, __ATOMIC_ACQUIRE) != DRIVER_READY, 0))  \
			return driver_not_ready();                                                 \
	} while (0)

#define ENTER()                                                                                    \
	CHECK_READY();                                                                             \
	__attribute__((cleanup(driver_release), unused)) pthread_mutex_t *held_ = &driver.lock;    \
	pthread_mutex_lock(held_)

/* Return from the caller when `result` is an error. */
#define TRY(result)                                                                                \
	do {                                                                                       \
		CUresult try_ = (result);                                                          \
		if (__builtin_expect(try_ != CUDA_SUCCESS, 0))                                     \
			return try_;                                                               \
	} while (0)

/* ---- cuda_object.c: handles ---- */

enum object_kind {
	OBJECT_FREE,
	OBJECT_CONTEXT,
	OBJECT_STREAM,
	OBJECT_EVENT,
	OBJECT_MODULE,
	OBJECT_FUNCTION,
	OBJECT_POOL,
	OBJECT_PHYSICAL,
	OBJECT_ARRAY,
	OBJECT_MIPMAP,
	OBJECT_EXTERNAL,
	OBJECT_GRAPH,
	OBJECT_NODE,
	OBJECT_EXEC,
	OBJECT_USER
};

/* Starts every object that a client holds a handle of. */
struct object {
	uint32_t kind;
	uint32_t generation;          /* of this cell: a handle kept too long is noticed */
	struct object *next, *before; /* among the objects of one context */
	struct context *context;      /* whose end ends it, or NULL */
};

void *object_new(enum object_kind kind, struct context *owner); /* zeroed; NULL: no memory */
void object_free(void *object);
/* The object behind a handle, or NULL if it is none of that kind. */
void *object_of(const void *handle, enum object_kind kind);

/* ---- cuda_device.c ---- */

CUresult device_of(CUdevice ordinal, struct device **device);
int device_attribute(const struct device *device, int attribute, int *value); /* cuda_attribute.c */

/* ---- cuda_range.c: what lies where ---- */

enum range_kind {
	RANGE_BLOCK, /* 2 MiB of device memory, divided among small allocations */
	RANGE_DEVICE,
	RANGE_MANAGED,
	RANGE_HOST,       /* allocated by us */
	RANGE_REGISTERED, /* the client's own */
	RANGE_MAPPED,     /* physical memory mapped at reserved addresses */
	RANGE_IMPORTED    /* another process's, by cuIpcOpenMemHandle */
};

struct heap;

struct range {
	struct range *left, *right;
	uint32_t priority;
	uint32_t kind;
	uintptr_t base;
	size_t size;   /* of the mapping */
	size_t wanted; /* what the client asked for */
	uint64_t charged;
	uint64_t id;
	uint32_t shared; /* among this process's shared things; 0: it is its own */
	uint32_t opened; /* how often, when it is imported */
	size_t skip;     /* where the client's part begins, when it is imported from a pool */
	struct external *external; /* whose memory it shows, or NULL */
	struct heap *heap;         /* for device memory */
	struct context *context;
	struct device *device;
	unsigned flags;              /* of host memory: the client's; else RANGE_* below */
	void *detail;                /* struct block or struct physical */
	struct range *next, *before; /* in its heap */
};

#define RANGE_OF_GRAPH 1u   /* `charged` while the graph has it allocated */
#define RANGE_IN_STOCK 4u   /* ... or has had since memory of graphs was trimmed */
#define RANGE_ACCESSIBLE 2u /* mapped memory that copies may touch */

struct range *range_add(enum range_kind kind, uintptr_t base, size_t size);
void range_remove(struct range *range);
struct range *range_at(uintptr_t address);            /* the one around it, or NULL */
bool range_free_between(uintptr_t base, size_t size); /* nothing of ours there */
struct range *range_next(uintptr_t address);          /* first with base >= address */

/* ---- cuda_heap.c: device memory ---- */

/* Device memory with one owner: a context, or a pool. */
struct heap {
	struct device *device;
	struct context *context;
	struct pool *pool;
	struct range *ranges; /* all of them */
	struct range *open;   /* blocks with room, by `detail` */
	bool keeps_empty;     /* a pool's: what is free stays charged */
	bool shareable;       /* all of it can be exported from the beginning */
	bool host;            /* memory of the host, not charged */
	uint64_t charged;
	uint64_t used;
};

#define BLOCK_SIZE (2UL << 20)

/* One allocation, found by any address inside it. */
struct allocation {
	struct range *range;
	uintptr_t base;
	size_t size;
};

CUresult heap_alloc(struct heap *heap, enum range_kind kind, size_t bytes, CUdeviceptr *pointer);
void heap_free(const struct allocation *allocation);
void heap_destroy(struct heap *heap);
void heap_release(struct heap *heap, uint64_t keep); /* give back what is free, down to `keep` */
void heap_forget(struct range *range);               /* a range that it holds, with its memory */
/* Memory of the heap's device that no range of it shows. */
CUresult heap_charge(struct heap *heap, size_t bytes);
void heap_refund(struct heap *heap, size_t bytes);
/* A range of the heap where memory is mapped already, and is not charged; NULL: no room. */
struct range *heap_place(struct heap *heap, enum range_kind kind, void *memory, size_t size);
/* Memory that is shared already, at an address of ours, as a range of the heap. */
CUresult heap_adopt(struct heap *heap, enum range_kind kind, uint32_t shared, struct range **made);
CUresult heap_alloc_low(struct heap *heap, size_t bytes, CUdeviceptr *pointer);
void *map_memory(size_t bytes);     /* cuda_map.c: zero, aligned to 2 MiB; NULL: no room */
void *map_low_memory(size_t bytes); /* likewise, below 4 GiB */
bool find_allocation(uintptr_t address, struct allocation *found);
uint64_t next_buffer_id(void);

/* True when [address, address + bytes) is memory that a copy may touch. */
bool memory_valid(CUdeviceptr address, size_t bytes);

/* ---- cuda_pool.c ---- */

void pools_settle(
	struct device *device); /* at a synchronisation: idle memory above the thresholds goes */
void pools_shrink(struct device *device); /* when memory is short: all idle memory goes */
CUresult pool_alloc(struct pool *pool, size_t bytes, CUdeviceptr *pointer);
CUresult device_pools(struct device *device); /* make the default pool if there is none yet */
CUmemoryPool pool_handle(struct pool *pool);
void pools_empty(struct device *device); /* when the last context goes: everything goes */
void allocation_free(const struct allocation *allocation); /* of any owner */

/* ---- cuda_vmm.c: physical memory ---- */

struct physical;

/* The physical memory of a handle, held once more: for the tiles of a sparse
 * array on that device. */
CUresult physical_hold(CUmemGenericAllocationHandle handle, uint64_t offset, uint64_t bytes,
		       const struct device *device, struct physical **physical);
void physical_hold_again(struct physical *physical);
void physical_let_go(struct physical *physical);

/* ---- cuda_context.c ---- */

#define CONTEXT_LIMITS 11

struct context {
	struct object object;
	struct device *device;
	unsigned flags;
	unsigned version;
	unsigned peers; /* bit: memory of that device may be used */
	bool primary, alive;
	int references; /* of cuCtxAttach */
	int cache_config, shared_config;
	uint64_t id;
	uint64_t blocking_target; /* newest work of the null stream and the streams that wait for it
				   */
	struct object *objects;
	struct heap *heap;
	struct stream *null_stream, *thread_stream;
	size_t limits[CONTEXT_LIMITS];
	uint64_t limits_charged; /* what they take beyond what a new context has */
};

CUresult context_current(struct context **context); /* 201 without one, 709 if it is gone */
CUresult context_of(CUcontext handle, struct context **context);
CUresult context_or_current(CUcontext handle, struct context **context);
#define CURRENT(name)                                                                              \
	struct context *name;                                                                      \
	TRY(context_current(&name))

/* ---- cuda_stream.c ---- */

struct capture;
struct node;

struct stream {
	struct object object;
	unsigned flags;
	int priority;
	bool legacy;
	uint64_t id;
	uint64_t target; /* newest work */
	uint64_t *queue; /* targets of what may still be pending, a ring */
	uint32_t head, count;
	bool busy_host;                    /* a host function of it has not returned yet */
	bool closing;                      /* destroyed, with work still behind a host function */
	struct later *later, **later_last; /* what waits behind the host function */
	uint32_t later_count;
	struct capture *capture;
	struct node **tips; /* while capturing: what the next node depends on */
	int tip_count, tip_room;
};

CUresult stream_of(CUstream handle, bool per_thread, struct stream **stream);
struct stream *stream_new(struct context *context, unsigned flags, int priority);
void stream_free(struct stream *stream);
/* Put work on a stream; blocks while its queue is full. */
CUresult stream_work(struct stream *stream, uint64_t ns, uint32_t launches);
uint64_t stream_target(const struct stream *stream);
/* Wait until what was put there is done, host functions too. */
CUresult stream_finish(struct stream *stream);
void wait_for(struct device *device, uint64_t target);
void note_served(struct device *device, uint64_t served);
static inline struct device *stream_device(const struct stream *stream)
{
	return stream->object.context->device;
}

/* A stream whose next work has to wait for a host function. */
static inline bool stream_held(const struct stream *stream)
{
	return stream->busy_host || stream->later;
}

/* ---- cuda_callback.c ---- */

/* Something to be done by the driver's own thread when the stream gets there. */
struct callback {
	CUhostFn function; /* one of these two, or */
	CUstreamCallback callback;
	CUstream handle; /* what the client called the stream */
	void *data;
	unsigned write_bytes; /* a value to write to `data` */
	uint64_t value;
};

CUresult callback_start(struct stream *stream, const struct callback *callback); /* not held */
CUresult callback_run(const struct callback *callback); /* soon, on no stream */
/* Wait for the driver's thread to have got on; false: this is that thread. */
bool callback_wait(void);

/* ---- cuda_later.c ---- */

struct work;

CUresult later_work(struct stream *stream, const struct work *work);
CUresult later_callback(struct stream *stream, const struct callback *callback);
void later_continue(struct stream *stream); /* its host function has returned */
void later_drop(struct stream *stream);

/* ---- cuda_event.c ---- */

struct event {
	struct object object;
	unsigned flags;
	bool recorded, reached;
	struct stream *held_on; /* its record waits behind a host function of that stream */
	uint64_t serial;        /* one more for each record */
	struct device *device;
	uint64_t target;
	uint64_t stamp;     /* when it was reached */
	uint64_t capture;   /* number of the capture it was recorded in; 0: none */
	struct node **tips; /* the nodes that it stands for */
	int tip_count;
	uint32_t shared; /* with other processes; 0: not */
};

CUresult event_of(CUevent handle, struct event **event);
void events_reached(struct device *device); /* stamp what has been passed */
void event_forget(struct event *event);
CUresult event_record(struct event *event, struct stream *stream);
CUresult event_record_now(struct event *event, struct stream *stream);
void event_hold(struct event *event, struct stream *stream);
CUresult event_wait(struct event *event, struct stream *stream);

/* ---- cuda_ipc_event.c ---- */

void event_tell(const struct event *event);   /* its other users: it was recorded here */
bool event_remote(const struct event *event); /* recorded by another process, not reached */
void event_wait_remote(struct event *event);
void event_unshare(struct event *event);

/* ---- cuda_capture.c ---- */

CUresult capture_forbids(void); /* error 900 if this thread may not make unsafe calls now */
CUresult capture_forbids_sync(struct stream *stream);
void capture_drop(struct stream *stream);                          /* the stream goes */
CUresult capture_join(struct stream *stream, struct event *event); /* wait for a captured event */
bool capture_any(void);
uint64_t capture_number(const struct capture *capture);
#define UNSAFE() TRY(capture_forbids())

#endif
