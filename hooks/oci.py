# SPDX-License-Identifier: Apache-2.0
"""
What a container engine tells a hook, and what limits a container asks for.

Engines differ in what they tell: the state on stdin is JSON from each of them, but only some name the root
directory there, and only the bundle's config.json has the environment. This module reads both and gives one
picture. It judges no quantity: texts such as `8GiB` stay texts here.

Limits come from one source as a whole: the OCI annotations if there is any of ours, else the environment. A
tenant chooses its environment itself, so it must not be able to complete or soften what was annotated.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vgpu_runtime.errors import ConfigError, NodeError

_LIMITS = ("memory", "spill", "host_memory", "cores", "policy", "devices")
_NAME_LENGTH = 63  # what a tenant's name may have


@dataclass(frozen=True, slots=True)
class State:
    """What the engine says on stdin."""

    id: str
    status: str
    pid: int  # of the container's first process, in the hook's pid namespace; 0 when there is none
    bundle: Path
    root: str | None  # crun names it here too
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Container:
    """A container that is being created. `rootfs` is absolute, on the host."""

    state: State
    rootfs: Path
    environment: Mapping[str, str]
    annotations: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a container asks for, as written; None where it is silent."""

    memory: str | None
    spill: str | None
    host_memory: str | None
    cores: str | None
    policy: str | None
    devices: str | None
    # How each of them is called where it was written, for messages.
    names: Mapping[str, str]

    @property
    def source(self) -> str:
        """The kind of place that the limits come from."""
        return "annotations" if self.names["memory"].startswith("vgpu.io/") else "variables"


def _object(value: Any, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise NodeError(f"{what} is not a JSON object", hint="start the hook from a container engine, as an OCI hook")
    return value


def _texts(value: Any, what: str) -> dict[str, str]:
    return {str(key): str(each) for key, each in _object({} if value is None else value, what).items()}


def _parse(text: str | bytes, what: str) -> dict[str, Any]:
    try:
        return _object(json.loads(text), what)
    except ValueError as error:
        raise NodeError(
            f"{what} is not JSON: {error}", hint="start the hook from a container engine, as an OCI hook"
        ) from None


def _environment(entries: Any) -> dict[str, str]:
    """`process.env` as a mapping. Of a name that is there twice the last counts, as engines append."""
    pairs = (entry.partition("=") for entry in entries or () if isinstance(entry, str))
    return {name: value for name, _, value in pairs}


def read_state(text: str | bytes) -> State:
    """The state on stdin. Raises NodeError when it is none."""
    state = _parse(text, "the state on stdin")
    identity, bundle, pid, root = (state.get(key) for key in ("id", "bundle", "pid", "root"))
    if not isinstance(identity, str) or not identity or not isinstance(bundle, str) or not bundle.startswith("/"):
        raise NodeError("the state on stdin lacks `id` or an absolute `bundle`", hint="use an OCI container engine")
    return State(
        id=identity,
        status=str(state.get("status", "")),
        pid=pid if isinstance(pid, int) else 0,
        bundle=Path(bundle),
        root=root if isinstance(root, str) else None,
        annotations=_texts(state.get("annotations"), "`annotations` of the state"),
    )


def read_container(state: State) -> Container:
    """The container that a state is about, from its bundle. Raises NodeError when it cannot be told."""
    file = state.bundle / "config.json"
    try:
        config = _parse(file.read_bytes(), str(file))
    except OSError as error:
        raise NodeError(f"cannot read {file}: {error.strerror}", hint="the hook runs as root of the host") from None
    root = state.root or _object(config.get("root") or {}, f"`root` of {file}").get("path")
    if not isinstance(root, str) or not root:
        raise NodeError(f"{file} has no root.path", hint="use an OCI container engine")
    return Container(
        state=state,
        rootfs=state.bundle / root,
        environment=_environment(_object(config.get("process") or {}, f"`process` of {file}").get("env")),
        annotations=_texts(config.get("annotations"), f"`annotations` of {file}") | dict(state.annotations),
    )


def limits_of(container: Container) -> Limits | None:
    """What the container asks for, or None when it asks for nothing.

    An empty value is a value, and a wrong one: a variable that was meant to be filled in must not come to
    mean "no limit".
    """
    annotated = {limit: f"vgpu.io/{limit.replace('_', '-')}" for limit in _LIMITS}
    for names, values in (
        (annotated, container.annotations),
        ({limit: f"VGPU_{limit.upper()}" for limit in _LIMITS}, container.environment),
    ):
        found = {limit: values.get(name) for limit, name in names.items()}
        if any(value is not None for value in found.values()):
            return Limits(**found, names=names)
    return None


def tenant_name(identity: str) -> str:
    """The tenant's name for a container id: the id itself where it can be one.

    Otherwise a short digest of the whole id tells apart what replacing and cutting made alike.
    """
    name = re.sub(r"[^A-Za-z0-9._-]", "_", identity)
    if name == identity and len(name) <= _NAME_LENGTH and name[0] not in ".-":
        return name
    digest = hashlib.sha256(identity.encode(errors="surrogateescape")).hexdigest()[:8]
    return f"{name.lstrip('.-')[: _NAME_LENGTH - 9]}-{digest}".lstrip("-")


def device_names(text: str, where: str) -> list[str]:
    """The devices that a comma list names, as written: indices or UUIDs."""
    names = [name.strip() for name in text.split(",")]
    if not all(names) or len(set(names)) != len(names):
        raise ConfigError(
            f"{where} {text!r}: it must be a comma list of device indices or UUIDs, each once",
            hint="write for example 0, or 0,2, or GPU-8f1c6d1e-0000-4000-8000-000000000000",
        )
    return names
