# SPDX-License-Identifier: Apache-2.0
"""
The demonstration: a simulated H200, two tenants on it at once, one screen.

`python -m vgpu_runtime.demo` runs it. `tenant.py` is the CUDA program that each tenant runs, `places.py` makes
tenants of it (containers through the OCI hook, or processes under `vgpu run`), `bundle.py` makes the containers'
bundles, `screen.py` judges and prints. It ends with 1 when something is not as promised.
"""
