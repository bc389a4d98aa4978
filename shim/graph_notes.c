/* SPDX-License-Identifier: Apache-2.0
 *
 * What is known of the executable graphs that allocate: see graphs.h.
 */
#include "graphs.h"

/* Records of one graph are told apart by their slice: no two handles are that close. */
static uint64_t key_of(CUgraphExec exec, uint32_t slice)
{
	return (uintptr_t)exec + slice;
}

void vgpu_graph_forget(struct process *process, CUgraphExec exec)
{
	if (!__atomic_load_n(&process->graphs_with_memory, __ATOMIC_RELAXED))
		return;
	for (uint32_t slice = 0; slice < VGPU_MAX_SLICES; slice++) {
		struct record *record =
			vgpu_record_take(&process->records, RECORD_GRAPH, key_of(exec, slice));

		if (!record)
			continue;
		vgpu_record_free(&process->records, record);
		__atomic_fetch_sub(&process->graphs_with_memory, 1, __ATOMIC_RELAXED);
	}
}

CUresult vgpu_graph_note(struct process *process, const struct graph_need *need, CUgraphExec exec)
{
	struct records *records = &process->records;

	vgpu_graph_forget(process, exec);
	for (uint32_t slice = 0; slice < VGPU_MAX_SLICES; slice++) {
		struct record *record;

		if (!need->peak[slice])
			continue;
		record = vgpu_record_new(records);
		if (!record) {
			vgpu_graph_forget(process, exec);
			return CUDA_ERROR_OUT_OF_MEMORY;
		}
		*record = (struct record){.kind = RECORD_GRAPH,
					  .key = key_of(exec, slice),
					  .account = (uint8_t)slice,
					  .bytes = need->peak[slice],
					  .sum = need->sum[slice],
					  .is_holding = need->now[slice] != 0};
		__atomic_fetch_add(&process->graphs_with_memory, 1, __ATOMIC_RELAXED);
		vgpu_record_enter(records, record);
	}
	return CUDA_SUCCESS;
}

static int copy_record(struct record *record, void *copy)
{
	*(struct record *)copy = *record;
	return 0;
}

static int note_launch(struct record *record, void *copy)
{
	const struct record *from = copy;

	record->stream = from->stream;
	record->trims = from->trims;
	record->epoch = from->epoch;
	return 0;
}

int vgpu_graph_known(struct process *process, CUgraphExec exec, uint32_t slice, struct record *copy)
{
	return vgpu_record_visit(&process->records, RECORD_GRAPH, key_of(exec, slice), copy_record,
				 copy);
}

void vgpu_graph_note_launch(struct process *process, const struct record *record)
{
	vgpu_record_visit(&process->records, RECORD_GRAPH, record->key, note_launch,
			  (void *)record);
}
