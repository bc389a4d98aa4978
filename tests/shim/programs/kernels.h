/* SPDX-License-Identifier: Apache-2.0
 *
 * The kernel of the tests: it lasts as many nanoseconds as its argument says,
 * by the device's clock.  The simulated GPU knows it by its name.
 */
static const char kernels[] = ".version 6.0\n.target sm_50\n.address_size 64\n"
			      ".visible .entry vgpu_spin(.param .u64 ns)\n{\n"
			      "	.reg .u64 %rd<5>;\n	.reg .pred %p;\n"
			      "	ld.param.u64 %rd1, [ns];\n"
			      "	mov.u64 %rd2, %globaltimer;\n"
			      "again:\n"
			      "	mov.u64 %rd3, %globaltimer;\n"
			      "	sub.u64 %rd4, %rd3, %rd2;\n"
			      "	setp.lt.u64 %p, %rd4, %rd1;\n"
			      "	@%p bra again;\n"
			      "	ret;\n}\n";
