# SPDX-License-Identifier: Apache-2.0
"""
Every error that a user of the node's side can meet.

* VgpuError              something failed; the hint says what to do
  + UsageError           the command line asks for what cannot be meant
  + ConfigError          a declared value is wrong: a quantity, a machine file, the state directory
  + NodeError            this machine cannot do it now: no driver, no library, no permission
  + RefusedError         more was asked than is there
    - NameInUse          a live tenant has that name
    - NoSuchTenant       no live tenant has that name
  + ProgramError         the program of `vgpu run` cannot be started

A message names the value and the rule; the hint names the cure or an example. Whoever owns an outside
thing translates its exceptions into these, and the command line prints them in one place. This module
imports the standard library only: the OCI hook raises the same errors.
"""

from __future__ import annotations

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class VgpuError(Exception):
    """Something failed: `str(error)` says what, `hint` says what to do about it."""

    exit_code = EXIT_FAILED

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


class UsageError(VgpuError):
    """The command line contradicts itself or names nothing that exists."""

    exit_code = EXIT_USAGE


class ConfigError(VgpuError):
    """A value that somebody wrote is wrong; nothing was started."""

    exit_code = EXIT_USAGE


class NodeError(VgpuError):
    """This machine cannot do it now."""


class RefusedError(VgpuError):
    """More was asked than is free."""


class NameInUse(RefusedError):
    """A live tenant has that name."""


class NoSuchTenant(RefusedError):
    """No live tenant has that name."""


class ProgramError(VgpuError):
    """The program cannot be started; the exit code is what a shell gives for it."""

    def __init__(self, message: str, *, exit_code: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.exit_code = exit_code
