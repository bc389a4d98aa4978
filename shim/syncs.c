/* SPDX-License-Identifier: Apache-2.0
 *
 * Settle: pools let go of idle memory when a program waits for the device, or
 * asks and hears that it is done.  After such a call the pools that have something
 * to let go of are read again; with none, a call costs two loads.
 */
#include "pools.h"

static CUresult synchronised(const struct driver *driver, CUresult rc)
{
	struct process *process = vgpu_process_if_any();

	if (unlikely(process && vgpu_pools_are_dirty(process)) && !rc)
		vgpu_pools_refresh(driver, vgpu_tenant(), process);
	return rc;
}

#define SYNCHRONISES(symbol, parameters, arguments)                                                \
	CUresult symbol parameters                                                                 \
	{                                                                                          \
		const struct driver *driver = vgpu_driver(LIBRARY_CUDA);                           \
                                                                                                   \
		return synchronised(driver, driver->real.symbol arguments);                        \
	}

SYNCHRONISES(cuStreamSynchronize, (CUstream stream), (stream))
SYNCHRONISES(cuStreamSynchronize_ptsz, (CUstream stream), (stream))
SYNCHRONISES(cuStreamQuery, (CUstream stream), (stream))
SYNCHRONISES(cuStreamQuery_ptsz, (CUstream stream), (stream))
SYNCHRONISES(cuEventSynchronize, (CUevent event), (event))
SYNCHRONISES(cuEventQuery, (CUevent event), (event))
SYNCHRONISES(cuCtxSynchronize, (void), ())
SYNCHRONISES(cuCtxSynchronize_v2, (CUcontext context), (context))
