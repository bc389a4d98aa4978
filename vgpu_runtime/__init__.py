# SPDX-License-Identifier: Apache-2.0
"""The node's side of vgpu-runtime.

This module stays light, because the OCI hook and every `vgpu` command import it first: it holds the
version and nothing else.
"""

__version__ = "0.1.0"
