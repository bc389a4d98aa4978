/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What is put on streams: copies, fills, kernels, host functions and memory,
 * and the graphs that the same things make when a stream captures.
 *
 * `struct work` is the one form of all of them.  A stream does it at once, a
 * capturing stream keeps it as a node, an executable graph as a step.
 */
#ifndef VGPU_SIM_CUDA_WORK_H
#define VGPU_SIM_CUDA_WORK_H

#include "cuda_driver.h"

/* ---- cuda_copy.c: what moves bytes ---- */

/* A box of bytes: rows of `width`, `height` rows, `depth` layers. */
struct copy {
	char *to;
	const char *from;
	size_t to_pitch, from_pitch;
	size_t to_layer, from_layer; /* bytes from one layer to the next */
	size_t width, height, depth;
};

struct fill {
	char *to;
	size_t pitch;
	uint32_t value;
	unsigned element;
	size_t width, height; /* width in elements */
};

void copy_run(const struct copy *copy);
void fill_run(const struct fill *fill);
uint64_t copy_ns(uint64_t bytes);
CUresult copy_parse(const CUDA_MEMCPY3D *parameters, struct copy *copy);
CUresult copy_check_fill(const struct fill *fill);

/* ---- cuda_kernel.c: kernels that this driver knows ---- */

struct function;

struct launch {
	struct function *function;
	unsigned grid[3], block[3];
	unsigned shared;
	bool cooperative;
	void **arguments;
	void **extra;
};

#define KNOWN_ARGUMENTS 32 /* bytes that the largest known kernel takes */

struct known_kernel {
	const char *name;
	uint8_t sizes[4]; /* of its arguments, 0 ends them */
	/* Its duration; does its work when `run`. */
	uint64_t (*body)(const unsigned char *arguments, bool run);
};

struct function {
	struct object object;
	char *name;
	struct module *module;
	const struct known_kernel *known;
	uint64_t ns; /* of one launch, when not known */
	int shared_max, carveout, cluster_flag, policy;
	int block[3], shared; /* of the oldest launch interface, its arguments too */
	unsigned char packed[32];
};

void kernel_resolve(struct function *function);
/* Copy the arguments of a known kernel: they need not outlive the call. */
CUresult kernel_arguments(const struct launch *launch, unsigned char *arguments);
uint64_t kernel_ns(const struct function *function, const unsigned char *arguments);
void kernel_run(const struct function *function, const unsigned char *arguments);

/* ---- cuda_module.c, cuda_launch.c ---- */

struct module {
	struct object object;
	bool library;
	struct function **functions;
	int count, room;
	struct {
		char *name;
		CUdeviceptr pointer;
	} *globals;
	int global_count;
	uint32_t charged;            /* bit: for being loaded on that device */
	struct module *next_library; /* of all libraries */
};

/* It takes memory where it is first used; again costs nothing. */
CUresult module_charge(struct module *module, struct device *device);
void libraries_leave(struct device *device); /* its last context has ended */
void module_free(struct module *module);
CUresult launch_check(const struct launch *launch, struct context *context);

/* ---- cuda_graph.c ---- */

struct graph;

/* What a node does: one of the union's, by `type`. */
struct work {
	unsigned type; /* CU_GRAPH_NODE_TYPE_* */
	union {
		struct {
			struct launch launch;
			unsigned char arguments[KNOWN_ARGUMENTS];
		} kernel;
		struct {
			struct copy copy;
			CUDA_MEMCPY3D parameters;
		} memcpy;
		struct fill memset;
		CUDA_HOST_NODE_PARAMS host;
		struct graph *child;
		struct event *event;
		struct {
			CUdeviceptr pointer;
			size_t bytes;
			struct device *device;
		} memory;
	};
};

struct node {
	struct object object;
	struct graph *graph;
	struct node *next; /* in the order of their making */
	struct work *work;
	struct node **after; /* what it waits for */
	size_t after_count;
	struct node *copy; /* while a graph is being cloned */
	unsigned id;
	int mark; /* of the walk in progress */
};

struct graph {
	struct object object;
	struct node *first, **last;
	size_t count;
	unsigned ids;
	int mark;
	bool child; /* belongs to a node */
	struct user_reference *users;
};

/* cuda_user_object.c */
void user_references_drop(struct user_reference **list);
CUresult user_references_copy(struct user_reference **to, struct user_reference *from);

struct graph *graph_new(void);
void graph_free(struct graph *graph);
struct graph *graph_clone(struct graph *graph);
struct node *graph_add(struct graph *graph, const struct work *work, struct node *const *after,
		       size_t count);
/* Nodes so that each comes after those it waits for; malloc'ed; NULL for a cycle. */
struct node **graph_order(struct graph *graph);
bool node_waits_for(const struct node *node, const struct node *other);
/* True when every node of `tips` is one of `ends` or before one of them. */
bool graph_joined(struct node *const *tips, int count, struct node *const *ends, int end_count);
CUgraph graph_handle(struct graph *graph);

/* What a client says of a node, made into what it does. */
CUresult work_of_kernel(const CUDA_KERNEL_NODE_PARAMS *parameters, bool second_version,
			struct work *work);
CUresult work_of_copy(const CUDA_MEMCPY3D *parameters, struct work *work);
CUresult work_of_fill(const CUDA_MEMSET_NODE_PARAMS *parameters, struct work *work);

CUresult graph_reserve(struct work *work); /* addresses for an allocation node */
void graph_unreserve(const struct work *work);
CUresult graph_memory_alloc(struct range *range); /* memory, when the node is launched */
void graph_memory_free(struct range *range);
void graph_memory_end(struct device *device); /* with the last context */
/* If the stream is capturing, put the work into its graph: *captured is true. */
CUresult capture_work(struct stream *stream, const struct work *work, bool *captured);
/* Do it now: the memory part, and the time part through stream_work(). */
CUresult work_do(const struct work *work, struct stream *stream);
/* Either of the two. */
CUresult stream_do(struct stream *stream, const struct work *work);

/* ---- cuda_graph_exec.c, cuda_graph_update.c ---- */

struct step {
	const struct node *node; /* only its identity: the graph may be gone */
	bool disabled;
	struct work work;
};

struct exec {
	struct object object;
	struct step *steps;
	size_t count, room;
	uint64_t flags;
	struct user_reference *users;
	uint64_t topology; /* tells one shape of graph from another */
};

CUresult exec_flatten(struct exec *exec, struct graph *graph);
CUresult graph_memory_bring(const struct exec *exec); /* before it is launched */

/* ---- cuda_capture.c, cuda_capture_calls.c ---- */

struct capture {
	struct capture *next; /* of all under way */
	struct graph *graph;
	struct stream *origin;
	pthread_t thread;
	CUstreamCaptureMode mode;
	bool invalid;
	bool into; /* a graph of the client's */
	uint64_t id;
};

CUresult capture_begin(struct stream *stream, const struct capture *capture,
		       struct node *const *tips, size_t count);
void capture_end(struct capture *capture);
bool capture_joined(const struct capture *capture); /* all streams drawn in came back */
CUresult capture_set_tips(struct stream *stream, struct node *const *tips, size_t count);
CUresult capture_add_tips(struct stream *stream, struct node *const *tips, int count);
bool capture_is_mine(const struct capture *capture);
struct capture *capture_implied(const struct stream *stream);

#endif
