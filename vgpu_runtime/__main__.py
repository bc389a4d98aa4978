# SPDX-License-Identifier: Apache-2.0
"""`python -m vgpu_runtime` is `vgpu`."""

import sys

from vgpu_runtime.cli import main

sys.exit(main())
