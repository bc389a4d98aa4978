/* SPDX-License-Identifier: Apache-2.0 */
/* A process that is killed inside the machine's own code: with a lock held and
 * its books half written.  Compiled with the simulator's machine*.c. */
#include <signal.h>
#include <stdio.h>
#include <string.h>

#include "machine_internal.h"

int main(int count, char **arguments)
{
	const char *where = count > 1 ? arguments[1] : "";
	uint64_t served;
	if (!sim_attach())
		return 1;
	int slot = sim_join();
	if (slot < 0 || sim_context_begin(0, slot) || sim_charge(0, slot, 1 << 30))
		return 2;
	if (!strcmp(where, "device")) {
		struct sim_device *device = device_lock(0);
		device->memory_used = 12345;
		device->shares[slot].served_ns = device->shares[slot].queued_ns + 7;
	} else if (!strcmp(where, "machine")) {
		machine_lock();
		memset(machine->live, 0, sizeof(machine->live));
	} else if (!strcmp(where, "working")) {
		sim_enqueue(0, slot, 3600000000000, 1, &served);
	} else if (!strcmp(where, "sharing")) {
		/* Half let go of: it is charged to a process that does not hold it. */
		const struct sim_shared wanted = {.kind = SIM_SHARED_MEMORY, .size = 1 << 28};
		int number = sim_charge(0, slot, wanted.size) ? -1 : sim_shared_make(slot, &wanted);
		if (number < 0)
			return 5;
		machine_lock();
		clear_bit(machine->shared[number].holders, slot);
		device_lock(0)->shares[slot].memory = 54321;
	} else {
		return 3;
	}
	raise(SIGKILL);
	return 4;
}
