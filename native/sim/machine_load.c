/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Utilisation as NVML reports it: the busy part of whole sample periods.
 *
 * The samples are written as device time is accounted for and live in the
 * shared file, so that a tool which asks once and exits sees them as well.
 */
#include "machine_internal.h"

static uint32_t percent(const struct sim_sample *sample, uint64_t number)
{
	uint64_t period = machine->knobs.sample_ns;
	if (sample->number != number)
		return 0;
	uint64_t rounded = (sample->busy_ns * 100 + period / 2) / period;
	return rounded > 100 ? 100 : (uint32_t)rounded;
}

/* Samples [first, past) are complete and still kept. */
static void complete(uint64_t since_us, uint64_t *first, uint64_t *past)
{
	uint64_t period = machine->knobs.sample_ns;
	uint64_t now = sim_now();
	int64_t since = (int64_t)(since_us * 1000u) - machine->wall_offset_ns;
	*past = now / period;
	*first = *past > SIM_SAMPLES - 1 ? *past - (SIM_SAMPLES - 1) : 0;
	if (since > 0 && (uint64_t)since >= now)
		*first = *past;
	else if (since > 0 && (uint64_t)since / period > *first)
		*first = (uint64_t)since / period;
}

static uint64_t end_us(uint64_t number)
{
	int64_t end = (int64_t)((number + 1) * machine->knobs.sample_ns) + machine->wall_offset_ns;
	return (uint64_t)end / 1000u;
}

uint32_t sim_utilisation(uint32_t number)
{
	if (!machine->knobs.sample_ns)
		return 0;
	struct sim_device *device = device_lock(number);
	uint64_t sample = sim_now() / machine->knobs.sample_ns;
	sample -= sample > 0;
	uint32_t result = percent(&device->timeline.samples[sample % SIM_SAMPLES], sample);
	device_unlock(device);
	return result;
}

int sim_device_loads(uint32_t number, uint64_t since_us, struct sim_load *out, int capacity)
{
	uint64_t first, past;
	int count = 0;
	if (!machine->knobs.sample_ns)
		return 0;
	struct sim_device *device = device_lock(number);
	complete(since_us, &first, &past);
	for (uint64_t sample = first; sample < past; sample++) {
		if (end_us(sample) <= since_us)
			continue;
		if (count < capacity)
			out[count] = (struct sim_load){
				.percent = percent(&device->timeline.samples[sample % SIM_SAMPLES],
						   sample),
				.stamp_us = end_us(sample),
			};
		count++;
	}
	device_unlock(device);
	return count;
}

int sim_process_loads(uint32_t number, uint64_t since_us, struct sim_load *out, int capacity)
{
	struct sim_usage users[64];
	uint64_t first, past;
	int found = sim_usages(number, users, 64), count = 0;
	if (!machine->knobs.sample_ns)
		return 0;
	struct sim_device *device = device_lock(number);
	complete(since_us, &first, &past);
	for (uint64_t sample = first; sample < past; sample++) {
		for (int i = 0; i < found && i < 64; i++) {
			const struct sim_share *share = &device->shares[users[i].slot];
			uint32_t busy = percent(&share->samples[sample % SIM_SAMPLES], sample);
			if (!busy || end_us(sample) <= since_us)
				continue;
			if (count < capacity)
				out[count] = (struct sim_load){users[i].pid, busy, end_us(sample)};
			count++;
		}
	}
	device_unlock(device);
	return count;
}
