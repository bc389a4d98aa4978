/* SPDX-License-Identifier: Apache-2.0 */
#ifndef VGPU_SAY_H
#define VGPU_SAY_H

/* One line on stderr, "vgpu: " and the texts up to a NULL. */
void vgpu_say(const char *const *texts);

#endif
