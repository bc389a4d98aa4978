/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Device attributes.
 *
 * Every number that a public header gives a meaning has an answer, because
 * clients read them all at start and take an error for a broken driver.  What
 * depends on the device comes from its identity; the rest is the same for all
 * data-centre parts of the last years; a feature that the simulator has not is 0.
 */
#include <string.h>

#include "cuda_driver.h"

#define HIGHEST 161 /* in the newest header that we know */

/* Attributes that are the same on every device; those absent here are 0. */
static const int common[HIGHEST + 1] = {
	[1] = 1024,                                         /* threads in a block */
	[2] = 1024,                                         /* block size x, y, z */
	[3] = 1024,        [4] = 64,      [5] = 2147483647, /* grid size x, y, z */
	[6] = 65535,       [7] = 65535,   [9] = 65536,      /* constant memory */
	[10] = 32,                                          /* warp */
	[11] = 2147483647,                                  /* pitch */
	[12] = 65536,                                       /* registers in a block */
	[14] = 512,                                         /* texture alignment */
	[15] = 1,                                           /* copies overlap kernels */
	[19] = 1,                                           /* host memory can be mapped */
	[21] = 131072,                                      /* texture sizes */
	[22] = 131072,     [23] = 65536,  [24] = 16384,
	[25] = 16384,      [26] = 16384,  [27] = 32768,
	[28] = 32768,      [29] = 2048,   [30] = 512, /* surface alignment */
	[31] = 1,                                     /* concurrent kernels */
	[40] = 3,                                     /* copy engines */
	[41] = 1,                                     /* unified addressing */
	[42] = 32768,      [43] = 2048,   [44] = 1,
	[45] = 32768,      [46] = 32768,  [47] = 8192,
	[48] = 8192,       [49] = 32768,  [51] = 32, /* texture pitch alignment */
	[52] = 32768,      [53] = 32768,  [54] = 2046,
	[55] = 32768,      [56] = 131072, [57] = 65536,
	[58] = 16384,      [59] = 16384,  [60] = 16384,
	[61] = 32768,      [62] = 2048,   [63] = 32768,
	[64] = 32768,      [65] = 2048,   [66] = 32768,
	[67] = 32768,      [68] = 2046,   [69] = 268435456,
	[70] = 131072,     [71] = 65000,  [72] = 2097120,
	[73] = 32768,      [74] = 32768,  [77] = 32768,
	[78] = 1,                    /* stream priorities */
	[79] = 1,                    /* L1 cache */
	[80] = 1,          [83] = 1, /* managed memory */
	[87] = 2,                    /* single to double precision */
	[89] = 1,                    /* concurrent managed access */
	[90] = 1,                    /* preemption */
	[91] = 1,                    /* registered host pointers are device pointers */
	[92] = 1,                    /* stream memory operations */
	[93] = 1,          [94] = 1,      [95] = 1, /* cooperative launch */
	[99] = 1,                                   /* host memory can be registered */
	[102] = 1,                                  /* virtual memory management */
	[103] = 1,                                  /* its descriptors */
	[111] = 1024,                               /* shared memory reserved in each block */
	[112] = 1,                                  /* sparse arrays */
	[115] = 1,                                  /* memory pools */
	[119] = 1,                                  /* their descriptors */
	[121] = 1,                                  /* arrays mapped later */
	[122] = 1,                                  /* stream memory operations, 64 bits */
	[123] = 1,         [126] = 1,               /* memory synchronisation domains */
	[125] = 1,                                  /* events between processes */
	[131] = -1,                                 /* NUMA node of the device: none */
	[141] = 1,         [142] = 1,     [144] = 1,
	[145] = 1, /* memory on the host, likewise */
};

#define FIELD(number, field, scale)                                                                \
	{number, scale, offsetof(struct sim_identity, field),                                      \
	 sizeof(((struct sim_identity *)0)->field)}

/* Attributes that are fields of the device's identity. */
static const struct {
	int attribute;
	int scale;
	size_t offset, size;
} fields[] = {
	FIELD(8, shared_per_block, 1),
	FIELD(13, sm_clock_mhz, 1000),
	FIELD(16, sm_count, 1),
	FIELD(32, ecc, 1),
	FIELD(33, pci_bus, 1),
	FIELD(34, pci_device, 1),
	FIELD(36, memory_clock_mhz, 1000),
	FIELD(37, memory_bus_bits, 1),
	FIELD(38, l2_cache, 1),
	FIELD(39, threads_per_sm, 1),
	FIELD(50, pci_domain, 1),
	FIELD(75, capability_major, 1),
	FIELD(76, capability_minor, 1),
	FIELD(81, shared_per_sm, 1),
	FIELD(82, registers_per_sm, 1),
	FIELD(97, shared_per_block_optin, 1),
	FIELD(106, blocks_per_sm, 1),
	FIELD(139, pci_device_id, 1),
	FIELD(140, pci_subsystem_id, 1),
};

#define MULTICAST 132

int device_attribute(const struct device *device, int attribute, int *value)
{
	const char *identity = (const char *)device->identity;
	if (attribute < 1 || attribute > HIGHEST)
		return -1;
	*value = common[attribute];
	if (attribute == MULTICAST)
		*value = device->identity->capability_major >= 9;
	for (size_t i = 0; i < sizeof(fields) / sizeof(fields[0]); i++) {
		if (fields[i].attribute != attribute)
			continue;
		uint64_t wide = 0; /* little-endian, as all machines with these GPUs are */
		memcpy(&wide, identity + fields[i].offset, fields[i].size);
		*value = (int)wide * fields[i].scale;
	}
	return 0;
}
