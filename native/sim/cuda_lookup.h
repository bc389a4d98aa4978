/* SPDX-License-Identifier: Apache-2.0 */
/* The table from which cuGetProcAddress answers. */
#ifndef VGPU_SIM_CUDA_LOOKUP_H
#define VGPU_SIM_CUDA_LOOKUP_H

/* One binary interface of one function; the rows are sorted by name. */
struct abi_row {
	const char *name;   /* as asked for, without suffix */
	int version;        /* of the toolkit that introduced it */
	int flags;          /* 2: for a default stream per thread */
	const char *symbol; /* the export's name */
	void *function;     /* the exported symbol itself */
};

extern const struct abi_row abi_rows[];
extern const int abi_row_count;

#endif
