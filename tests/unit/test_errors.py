# SPDX-License-Identifier: Apache-2.0
"""The tree of errors is the one that its docstring draws."""

from __future__ import annotations

import inspect
import re

from vgpu_runtime import errors


def test_every_error_stands_in_the_picture_at_its_place() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for indent, name in re.findall(r"^( *)[*+-] (\w+)", errors.__doc__ or "", re.MULTILINE):
        del path[len(indent) // 2 :]
        drawn[name] = path[-1] if path else "Exception"
        path.append(name)
    there = {
        name: kind.__bases__[0].__name__
        for name, kind in vars(errors).items()
        if inspect.isclass(kind) and issubclass(kind, Exception)
    }
    assert drawn == there


def test_what_somebody_wrote_wrongly_exits_2_and_what_failed_exits_1() -> None:
    for kind in (errors.VgpuError, errors.NodeError, errors.RefusedError, errors.NameInUse, errors.NoSuchTenant):
        assert kind("x").exit_code == 1
    for kind in (errors.UsageError, errors.ConfigError):
        assert kind("x").exit_code == 2
    assert errors.ProgramError("x", exit_code=127).exit_code == 127


def test_a_hint_is_kept_beside_the_message() -> None:
    error = errors.RefusedError("too much", hint="ask for less")
    assert (str(error), error.hint) == ("too much", "ask for less")
