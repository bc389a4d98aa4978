/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Events that several processes use.
 *
 * What they share is where the event was recorded last: by which process, on
 * which device, after how much of its work.  That says all to whoever asks; the
 * event of a process that has ended has been reached.
 */
#include <string.h>

#include "cuda_share.h"

#define MAGIC 0x7667707565766eULL

struct ipc_event {
	uint64_t magic;
	uint64_t generation;
	uint64_t number;
};

/* The note of the shared thing. */
struct record {
	uint64_t target;
	uint64_t process; /* generation of the slot; 0: never recorded */
	uint32_t device;
	int32_t slot;
};

_Static_assert(sizeof(struct ipc_event) <= sizeof(CUipcEventHandle), "it fits a handle");
_Static_assert(sizeof(struct record) <= SIM_NOTE, "it fits a note");

static struct record record_of(const struct event *event)
{
	struct record record;
	memcpy(&record, share_entry(event->shared)->note, sizeof(record));
	return record;
}

void event_tell(const struct event *event)
{
	if (!event->shared)
		return;
	const struct record record = {
		.target = event->target,
		.process = driver.machine->processes[driver.slot].generation,
		.device = event->device->number,
		.slot = driver.slot,
	};
	sim_shared_note((int)event->shared - 1, &record, sizeof(record));
}

/* True when the last record is another process's and has not been passed. */
static bool is_remote(const struct record *record)
{
	const struct sim_process *process = &driver.machine->processes[record->slot];
	return record->process && record->slot != driver.slot &&
	       process->generation == record->process && process->state == SIM_PROCESS_LIVE &&
	       !sim_passed(record->device, record->slot, record->target);
}

bool event_remote(const struct event *event)
{
	struct record record;
	if (!event->shared || driver.machine->knobs.null_mode)
		return false;
	record = record_of(event);
	return is_remote(&record);
}

void event_wait_remote(struct event *event)
{
	struct record record;
	if (!event->shared || driver.machine->knobs.null_mode)
		return;
	record = record_of(event);
	while (is_remote(&record)) {
		pthread_mutex_unlock(&driver.lock);
		sim_wait(record.device, record.slot, record.target);
		pthread_mutex_lock(&driver.lock);
	}
}

void event_unshare(struct event *event)
{
	if (event->shared)
		share_drop(event->shared);
	event->shared = 0;
}

API cuIpcGetEventHandle(CUipcEventHandle *handle, CUevent of)
{
	const struct sim_shared wanted = {.kind = SIM_SHARED_EVENT, .device = SIM_DEVICES};
	struct event *event;
	ENTER();
	TRY(event_of(of, &event));
	if (!handle || !(event->flags & CU_EVENT_INTERPROCESS))
		return CUDA_ERROR_INVALID_VALUE;
	if (!event->shared) {
		TRY(share_make(&wanted, &event->shared));
		if (event->recorded)
			event_tell(event);
	}
	const struct ipc_event ipc = {
		.magic = MAGIC,
		.generation = share_entry(event->shared)->generation,
		.number = event->shared - 1,
	};
	memset(handle, 0, sizeof(*handle));
	memcpy(handle, &ipc, sizeof(ipc));
	return CUDA_SUCCESS;
}

API cuIpcOpenEventHandle(CUevent *opened, CUipcEventHandle handle)
{
	struct ipc_event ipc;
	uint32_t shared;
	ENTER();
	CURRENT(context);
	memcpy(&ipc, &handle, sizeof(ipc));
	if (!opened)
		return CUDA_ERROR_INVALID_VALUE;
	if (ipc.magic != MAGIC || ipc.number >= SIM_SHARED)
		return CUDA_ERROR_INVALID_HANDLE;
	if (share_hold((int)ipc.number, ipc.generation, &shared))
		return CUDA_ERROR_MAP_FAILED;
	struct event *event = object_new(OBJECT_EVENT, context);
	if (!event) {
		share_drop(shared);
		return CUDA_ERROR_OUT_OF_MEMORY;
	}
	event->flags = CU_EVENT_INTERPROCESS | CU_EVENT_DISABLE_TIMING;
	event->shared = shared;
	*opened = (CUevent)event;
	return CUDA_SUCCESS;
}
