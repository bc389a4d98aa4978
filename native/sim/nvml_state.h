/* SPDX-License-Identifier: Apache-2.0
 *
 * Whether NVML is initialised: the one thing that nvml_exports.c, which must not
 * see nvml.h, shares with the rest. */
#ifndef VGPU_SIM_NVML_STATE_H
#define VGPU_SIM_NVML_STATE_H

/* 1 between the first nvmlInit and the last nvmlShutdown. */
int nvml_ready(void);

#endif
