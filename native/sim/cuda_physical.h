/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Physical memory: what a handle of cuMemCreate stands for, or one that was
 * imported, or a multicast object, which has handles and mappings alike.
 */
#ifndef VGPU_SIM_CUDA_PHYSICAL_H
#define VGPU_SIM_CUDA_PHYSICAL_H

#include "cuda_share.h"

struct multicast;

struct physical {
	struct object object;
	struct device *device; /* NULL: memory of the host, or none; not charged */
	CUmemAllocationProp properties;
	size_t size;
	uint64_t offset;             /* in this process's file, when it is not shared */
	uint32_t shared;             /* with other processes; 0: it has no such handle */
	unsigned handles, mappings;  /* it is there while there is either */
	struct multicast *multicast; /* what it is instead of memory, or NULL */
};

struct physical *physical_new(size_t size); /* with one handle; NULL: no memory */
CUresult physical_of(CUmemGenericAllocationHandle handle, struct physical **physical);
CUresult physical_map(const struct physical *physical, void *at, size_t size);

/* cuda_multicast.c */
void multicast_free(struct multicast *multicast);
CUresult multicast_import(struct physical *physical);

#endif
