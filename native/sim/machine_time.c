/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device time: who is served when.
 *
 * There is no clock thread.  Whoever asks first accounts for the time since
 * somebody last asked: contexts with work are served in turn, a quantum each,
 * however much each has queued; one that is alone gets everything.  All work of
 * a process on a device is one sequence.  So three numbers say everything about
 * a process: device time queued, device time served, and whose turn it is.
 *
 * When a piece of work was done is read from the segments, the record of who
 * was served from when to when.  The same steps, run on a copy, foretell when
 * it will be done, so that a waiter sleeps just long enough.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>

#include "machine_internal.h"

#define CHECK_NS 5000000    /* how long a dead process may be served on */
#define SPIN_NS 20000       /* the end of a wait: a sleep is no more exact than this */
#define FORESIGHT_STEPS 512 /* a wait that needs more is looked at again */
#define FOREVER UINT64_MAX

/* The schedule of one device, apart from the device, so that it can be copied. */
struct schedule {
	uint64_t at;
	uint64_t turn_left;
	uint64_t switch_left;
	uint64_t switches;
	uint32_t turn; /* slot + 1 */
	int count;     /* contexts with work */
	struct {
		int slot;
		uint32_t weight;
		uint64_t left; /* work not done */
	} work[SIM_PROCESSES];
};

/* One context's service during one step. */
struct service {
	int index; /* into work[], -1: nobody was served */
	uint64_t start;
	uint64_t wall;
};

static void load(const struct sim_device *device, struct schedule *s)
{
	const struct sim_timeline *timeline = &device->timeline;
	s->at = timeline->last_ns;
	s->turn_left = timeline->turn_left_ns;
	s->switch_left = timeline->switch_left_ns;
	s->switches = timeline->switches;
	s->turn = timeline->turn;
	s->count = 0;
	EACH_BIT (slot, timeline->active) {
		const struct sim_share *share = &device->shares[slot];
		s->work[s->count].slot = slot;
		s->work[s->count].weight = share->weight;
		s->work[s->count++].left = share->queued_ns - share->served_ns;
	}
}

static void store(struct sim_device *device, const struct schedule *s)
{
	struct sim_timeline *timeline = &device->timeline;
	timeline->last_ns = s->at;
	timeline->turn_left_ns = s->turn_left;
	timeline->switch_left_ns = s->switch_left;
	timeline->switches = s->switches;
	timeline->turn = s->turn;
}

static void finish(struct schedule *s, int index)
{
	s->count--;
	for (int i = index; i < s->count; i++)
		s->work[i] = s->work[i + 1]; /* the order is that of the turns */
}

static uint64_t least(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The context whose turn it is, a new turn begun where the last has ended. */
static int whose_turn(struct schedule *s)
{
	int next = -1;
	for (int i = 0; i < s->count; i++) {
		if ((uint32_t)s->work[i].slot + 1 == s->turn && s->turn_left)
			return i;
		if (next < 0 && (uint32_t)s->work[i].slot + 1 > s->turn)
			next = i;
	}
	if (next < 0)
		next = 0;
	if (s->turn && (uint32_t)s->work[next].slot + 1 != s->turn) {
		s->switch_left = machine->knobs.switch_ns;
		s->switches++;
	}
	s->turn = (uint32_t)s->work[next].slot + 1;
	s->turn_left = machine->knobs.quantum_ns * s->work[next].weight / 100;
	if (!s->turn_left)
		s->turn_left = 1;
	return next;
}

/* Serve one context, at most until `until`. */
static struct service step_slices(struct schedule *s, uint64_t until)
{
	int index = whose_turn(s);
	uint64_t pause = least(s->switch_left, until - s->at);
	s->switch_left -= pause;
	s->at += pause;
	if (s->at == until)
		return (struct service){.index = -1};
	uint64_t wall = least(s->work[index].left, until - s->at);
	if (s->count > 1) {
		wall = least(wall, s->turn_left);
		s->turn_left -= wall;
	}
	struct service done = {.index = index, .start = s->at, .wall = wall};
	s->work[index].left -= wall;
	s->at += wall;
	return done;
}

/* Serve all contexts alike until the first has finished: the time each gets, 0
 * when what is left until `until` is too short to divide. */
static uint64_t step_shared(struct schedule *s, uint64_t until)
{
	uint64_t part = (until - s->at) / (uint64_t)s->count;
	for (int i = 0; i < s->count; i++)
		part = least(part, s->work[i].left);
	for (int i = 0; i < s->count; i++)
		s->work[i].left -= part;
	s->at += part * (uint64_t)s->count;
	return part;
}

static void add_busy(struct sim_sample *samples, uint64_t start, uint64_t wall, uint64_t stretch)
{
	uint64_t period = machine->knobs.sample_ns;
	uint64_t end = start + wall;
	if (!period)
		return;
	if (wall > period * (SIM_SAMPLES - 1))
		start = end - period * (SIM_SAMPLES - 1);
	while (start < end) {
		uint64_t number = start / period;
		struct sim_sample *sample = &samples[number % SIM_SAMPLES];
		uint64_t part = least(end, (number + 1) * period) - start;
		if (sample->number != number)
			*sample = (struct sim_sample){.number = number};
		sample->busy_ns += part / stretch;
		start += part;
	}
}

/* Lengthen the segment that this service continues, or begin one. */
static void add_segment(struct sim_timeline *timeline, int slot, uint64_t served, uint64_t start,
			uint64_t wall, uint32_t stretch)
{
	uint64_t length = wall / stretch;
	for (uint64_t back = 1; back <= stretch && back <= timeline->segment_count; back++) {
		struct sim_segment *last =
			&timeline->segments[(timeline->segment_count - back) % SIM_SEGMENTS];
		if (last->slot == (uint32_t)slot && last->stretch == stretch &&
		    last->served_ns + last->length_ns == served &&
		    last->start_ns + last->length_ns * stretch == start) {
			last->length_ns += length;
			return;
		}
	}
	timeline->segments[timeline->segment_count % SIM_SEGMENTS] = (struct sim_segment){
		.slot = (uint32_t)slot,
		.stretch = stretch,
		.served_ns = served,
		.start_ns = start,
		.length_ns = length,
	};
	timeline->segment_count++;
}

static void record(struct sim_device *device, int slot, uint64_t start, uint64_t wall,
		   uint32_t stretch)
{
	struct sim_share *share = &device->shares[slot];
	add_segment(&device->timeline, slot, share->served_ns, start, wall, stretch);
	add_busy(share->samples, start, wall, stretch);
	share->served_ns += wall / stretch;
	device->timeline.busy_ns += wall / stretch;
	if (share->served_ns >= share->queued_ns)
		clear_bit(device->timeline.active, slot);
}

static void advance_slices(struct sim_device *device, struct schedule *s, uint64_t now)
{
	while (s->count && s->at < now) {
		struct service done = step_slices(s, now);
		if (done.index < 0)
			return;
		record(device, s->work[done.index].slot, done.start, done.wall, 1);
		add_busy(device->timeline.samples, done.start, done.wall, 1);
		if (!s->work[done.index].left)
			finish(s, done.index);
	}
}

static void advance_shared(struct sim_device *device, struct schedule *s, uint64_t now)
{
	while (s->count && s->at < now) {
		uint64_t start = s->at;
		uint64_t part = step_shared(s, now);
		uint32_t stretch = (uint32_t)s->count;
		if (!part)
			return;
		for (int i = 0; i < s->count; i++)
			record(device, s->work[i].slot, start, part * stretch, stretch);
		add_busy(device->timeline.samples, start, part * stretch, 1);
		for (int i = s->count; i-- > 0;)
			if (!s->work[i].left)
				finish(s, i);
	}
}

void timeline_drop(struct sim_device *device, int slot)
{
	struct sim_share *share = &device->shares[slot];
	share->queued_ns = share->served_ns;
	clear_bit(device->timeline.active, slot);
}

/* The work of a killed process goes at once, though its memory waits until
 * somebody reclaims it: that needs a lock which comes before this one. */
static void drop_dead(struct sim_device *device, uint64_t now)
{
	struct sim_timeline *timeline = &device->timeline;
	if (now - timeline->checked_ns < CHECK_NS)
		return;
	timeline->checked_ns = now;
	EACH_BIT (slot, timeline->active)
		if (process_is_dead(slot))
			timeline_drop(device, slot);
}

void timeline_advance(struct sim_device *device, uint64_t now)
{
	struct sim_timeline *timeline = &device->timeline;
	struct schedule s;
	if (now <= timeline->last_ns)
		return;
	if (first_bit(timeline->active, 0) >= 0) {
		drop_dead(device, now);
		load(device, &s);
		if (machine->knobs.sharing == SIM_PROCESSOR_SHARING)
			advance_shared(device, &s, now);
		else
			advance_slices(device, &s, now);
		store(device, &s);
	}
	if (first_bit(timeline->active, 0) < 0)
		timeline->last_ns = now;
}

void timeline_repair(struct sim_device *device)
{
	struct sim_timeline *timeline = &device->timeline;
	for (int slot = 0; slot < SIM_PROCESSES; slot++) {
		struct sim_share *share = &device->shares[slot];
		if (share->served_ns > share->queued_ns)
			share->served_ns = share->queued_ns;
		if (share->served_ns < share->queued_ns)
			set_bit(timeline->active, slot);
		else
			clear_bit(timeline->active, slot);
	}
}

uint64_t sim_enqueue(uint32_t number, int slot, uint64_t ns, uint32_t launches, uint64_t *served)
{
	struct sim_device *device = device_lock(number);
	struct sim_share *share = &device->shares[slot];
	uint64_t target = share->queued_ns += ns;
	share->launches += launches;
	*served = share->served_ns;
	if (target > share->served_ns)
		set_bit(device->timeline.active, slot);
	device_unlock(device);
	return target;
}

uint64_t sim_served(uint32_t number, int slot)
{
	struct sim_device *device = device_lock(number);
	uint64_t served = device->shares[slot].served_ns;
	device_unlock(device);
	return served;
}

int sim_passed(uint32_t number, int slot, uint64_t target)
{
	struct sim_device *device = device_lock(number);
	const struct sim_share *share = &device->shares[slot];
	int passed = share->served_ns >= target || share->queued_ns < target;
	device_unlock(device);
	return passed;
}

/* When `left` more will have been served to a slot, if nobody else comes. */
static uint64_t foretell(const struct sim_device *device, int slot, uint64_t left)
{
	struct schedule s;
	load(device, &s);
	for (int i = 0; i < FORESIGHT_STEPS && s.count; i++) {
		uint64_t start = s.at, part, stretch = 1;
		int first = 0, last = s.count - 1;
		if (machine->knobs.sharing == SIM_PROCESSOR_SHARING) {
			stretch = (uint64_t)s.count;
			part = step_shared(&s, FOREVER);
		} else {
			struct service done = step_slices(&s, FOREVER);
			start = done.start;
			part = done.wall;
			first = last = done.index;
		}
		for (int k = last; k >= first; k--) {
			if (s.work[k].slot == slot && part >= left)
				return start + left * stretch;
			if (s.work[k].slot == slot)
				left -= part;
			if (!s.work[k].left)
				finish(&s, k);
		}
	}
	return s.at;
}

/* The thread's timer slack, 50 us by default, would blur every wait. */
static void sleep_until(uint64_t wake)
{
	uint64_t now = sim_now();
	if (wake > now + SPIN_NS) {
		struct timespec to = {
			.tv_sec = (time_t)((wake - SPIN_NS) / 1000000000u),
			.tv_nsec = (long)((wake - SPIN_NS) % 1000000000u),
		};
		int slack = prctl(PR_GET_TIMERSLACK, 0, 0, 0, 0);
		prctl(PR_SET_TIMERSLACK, 1UL, 0UL, 0UL, 0UL);
		while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &to, NULL) == EINTR)
			;
		if (slack > 0)
			prctl(PR_SET_TIMERSLACK, (unsigned long)slack, 0UL, 0UL, 0UL);
	}
	while (sim_now() < wake)
		;
}

void sim_wait(uint32_t number, int slot, uint64_t target)
{
	for (;;) {
		struct sim_device *device = device_lock(number);
		const struct sim_share *share = &device->shares[slot];
		uint64_t left = target > share->served_ns ? target - share->served_ns : 0;
		if (target > share->queued_ns)
			left = 0; /* dropped: nothing will ever serve it */
		uint64_t wake = left ? foretell(device, slot, left) : 0;
		device_unlock(device);
		if (!left)
			return;
		sleep_until(wake);
	}
}

/* The time at which `target` was passed, from the segments after *cursor. */
static uint64_t search(const struct sim_timeline *timeline, int slot, uint64_t target,
		       uint64_t *cursor)
{
	uint64_t oldest =
		timeline->segment_count > SIM_SEGMENTS ? timeline->segment_count - SIM_SEGMENTS : 0;
	uint64_t index = *cursor > oldest ? *cursor : oldest;
	*cursor = timeline->segment_count;
	for (; index < timeline->segment_count; index++) {
		const struct sim_segment *segment = &timeline->segments[index % SIM_SEGMENTS];
		if (segment->slot != (uint32_t)slot)
			continue;
		*cursor = index; /* not past our newest: it may still become longer */
		if (segment->served_ns + segment->length_ns < target)
			continue;
		if (target <= segment->served_ns) /* the segment of this target is no longer kept */
			return segment->start_ns;
		return segment->start_ns + (target - segment->served_ns) * segment->stretch;
	}
	return timeline->last_ns;
}

uint64_t sim_reached(uint32_t number, int slot, uint64_t target, uint64_t *cursor)
{
	struct sim_device *device = device_lock(number);
	uint64_t when = 0;
	if (device->shares[slot].served_ns >= target)
		when = target ? search(&device->timeline, slot, target, cursor) : 1;
	device_unlock(device);
	return when;
}
