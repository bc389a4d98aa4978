# SPDX-License-Identifier: Apache-2.0
"""
Find the real ``nvidia-smi`` and print its path, fetching it once.

Debian (non-free) and Ubuntu (restricted) package NVIDIA's own ``nvidia-smi``. It
runs on the simulated GPU as it does on a card, and so proves that a tenant's view
holds for the tool that everybody asks. It may not be redistributed: it is never
installed, never in the checkout, and fetched by each machine for itself from the
sources that its own apt already trusts, with the further component switched on in
a private configuration. So it works for an ordinary user, and changes nothing.

Only the program is used. The libraries under it come from the simulated GPU.

    python tests/tools/nvidia_smi.py [--cache DIRECTORY]     path on stdout; 1 and the reason if there is none
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

APT = Path("/etc/apt")


class Unavailable(Exception):
    """This machine cannot get an ``nvidia-smi``; the message says why."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """Where a distribution keeps the program."""

    components: str
    packages: str
    """Matches the names of packages that hold it."""
    preferred: tuple[str, ...]
    """Those to take first: the versions that our tests have seen."""


DISTRIBUTIONS = {
    "debian": Distribution("main contrib non-free", r"nvidia-smi", ("nvidia-smi",)),
    "ubuntu": Distribution("main restricted", r"nvidia-utils-\d+", ("nvidia-utils-550", "nvidia-utils-535")),
}


@dataclass(frozen=True, slots=True)
class Source:
    """One place that apt may take packages from, without its components."""

    options: str
    uri: str
    suite: str

    def line(self, components: str) -> str:
        """Return it in apt's one-line form."""
        return f"deb {self.options + ' ' if self.options else ''}{self.uri} {self.suite} {components}"


def find(cache: Path) -> Path:
    """Return the path of a runnable ``nvidia-smi``, fetched into ``cache`` if it is not there yet.

    Raises
        Unavailable: no such package can be had here.
    """
    release = os_release()
    name, codename = release.get("ID", ""), release.get("VERSION_CODENAME", "")
    if name not in DISTRIBUTIONS:
        raise Unavailable(f"only Debian and Ubuntu package nvidia-smi; this is {name or 'an unknown system'}")
    program = cache / f"{name}-{codename}" / "nvidia-smi"
    if not program.exists():
        for tool in ("apt-get", "apt-cache", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise Unavailable(f"{tool} is not on this machine")
        program.parent.mkdir(parents=True, exist_ok=True)
        fetch(DISTRIBUTIONS[name], codename, program)
    return program


def is_program(path: Path) -> bool:
    """Say whether a path is an ELF file itself: a package also has scripts of the program's name."""
    if path.is_symlink() or not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def os_release() -> dict[str, str]:
    """Return the fields of ``/etc/os-release``."""
    try:
        text = Path("/etc/os-release").read_text()
    except OSError as error:
        raise Unavailable(f"cannot tell the distribution: {error}") from error
    return {key: value.strip("\"'") for key, _, value in (line.partition("=") for line in text.splitlines()) if key}


def fetch(distribution: Distribution, codename: str, program: Path) -> None:
    """Download and unpack the package in a scratch directory; keep only the program."""
    sources = [source for source in apt_sources() if source.suite == codename]
    if not sources:
        raise Unavailable(f"apt on this machine has no source for {codename}")
    with tempfile.TemporaryDirectory(prefix="nvidia-smi-", dir=program.parent) as scratch_name:
        scratch = Path(scratch_name)
        apt = private_apt(scratch, [source.line(distribution.components) for source in sources])
        run([*apt("apt-get"), "update"], scratch)
        listed = run([*apt("apt-cache"), "pkgnames", "nvidia-"], scratch).split()
        packages = [name for name in listed if re.fullmatch(distribution.packages, name)]
        if not packages:
            raise Unavailable(f"the component is reachable but holds no package {distribution.packages}")
        chosen = next((name for name in distribution.preferred if name in packages), min(packages))
        run([*apt("apt-get"), "download", chosen], scratch)
        (package,) = scratch.glob("*.deb")
        run(["dpkg-deb", "--extract", str(package), str(scratch / "tree")], scratch)
        found = [path for path in (scratch / "tree").rglob("nvidia-smi") if is_program(path)]
        if not found:
            raise Unavailable(f"the package {chosen} holds no program nvidia-smi")
        found[0].chmod(0o755)
        found[0].replace(program)


def private_apt(scratch: Path, lines: list[str]) -> Callable[[str], list[str]]:
    """Return a function that makes the start of a command line for an apt with its own state."""
    for directory in ("state/lists/partial", "cache/archives/partial"):
        (scratch / directory).mkdir(parents=True)
    (scratch / "sources.list").write_text("".join(line + "\n" for line in lines))
    settings = {
        "Dir::State": scratch / "state",
        "Dir::State::status": "/var/lib/dpkg/status",
        "Dir::Cache": scratch / "cache",
        "Dir::Etc::sourcelist": scratch / "sources.list",
        "Dir::Etc::sourceparts": "/dev/null",
        # The downloader's own user may not enter a private directory.
        "APT::Sandbox::User": "",
        "Acquire::Languages": "none",
        "Acquire::Retries": "2",
        "APT::Get::List-Cleanup": "false",
    }
    options = [word for key, value in settings.items() for word in ("-o", f"{key}={value}")]
    return lambda tool: [tool, *options]


def run(command: list[str], directory: Path) -> str:
    """Run one command and return what it prints.

    Raises
        Unavailable: it fails; with its last lines.
    """
    environment = {**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
    try:
        done = subprocess.run(
            command, cwd=directory, env=environment, capture_output=True, text=True, timeout=300, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        reason = " ".join(done.stderr.split()[-60:])
        raise Unavailable(f"{command[0]} {command[-2 if command[-1] == 'update' else -1]} failed: {reason}")
    return done.stdout


def apt_sources() -> list[Source]:
    """Return the binary-package sources of this machine's apt that carry the main component."""
    found: list[Source] = []
    for path in [APT / "sources.list", *sorted((APT / "sources.list.d").glob("*"))]:
        try:
            text = path.read_text()
        except OSError:
            continue
        if path.suffix == ".sources":
            found += deb822_sources(text)
        elif path.suffix == ".list":
            found += one_line_sources(text)
    return found


def one_line_sources(text: str) -> list[Source]:
    """Read apt's one-line format.

    >>> one_line_sources("deb [signed-by=/k.gpg] http://mirror/debian trixie main contrib")
    [Source(options='[signed-by=/k.gpg]', uri='http://mirror/debian', suite='trixie')]
    """
    pattern = re.compile(r"^deb[ \t]+(?:(\[[^]]*\])[ \t]+)?(\S+)[ \t]+(\S+)[ \t]+([^#\n]*)", re.M)
    return [
        Source(options, uri, suite)
        for options, uri, suite, components in pattern.findall(text)
        if "main" in components.split()
    ]


def deb822_sources(text: str) -> list[Source]:
    """Read apt's paragraph format.

    A key written out in the paragraph, instead of named by its path, is left to
    apt's own trusted keys.
    """
    found = []
    for paragraph in re.split(r"\n[ \t]*\n", re.sub(r"^#.*\n?", "", text, flags=re.M)):
        fields = {
            key.lower(): " ".join(value.split())
            for key, value in re.findall(r"^([A-Za-z0-9-]+):(.*(?:\n[ \t].*)*)", paragraph, re.M)
        }
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes") == "no":
            continue
        if "main" not in fields.get("components", "").split():
            continue
        options = []
        if fields.get("signed-by", "").startswith("/"):
            options.append(f"signed-by={fields['signed-by'].replace(' ', ',')}")
        if fields.get("check-valid-until") == "no":
            options.append("check-valid-until=no")
        if fields.get("trusted") == "yes":
            options.append("trusted=yes")
        bracket = f"[{' '.join(options)}]" if options else ""
        found += [Source(bracket, uri, suite) for uri in fields["uris"].split() for suite in fields["suites"].split()]
    return found


def default_cache() -> Path:
    """Return the directory of this user's cache where the program is kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "vgpu-runtime" / "nvidia-smi"


def main(arguments: list[str] | None = None) -> int:
    """Print the path; the exit status of the program."""
    parser = argparse.ArgumentParser(description="Print the path of the real nvidia-smi, fetching it once.")
    parser.add_argument(
        "--cache", type=Path, default=default_cache(), help="where it is kept (default: the user's cache)"
    )
    options = parser.parse_args(arguments)
    try:
        print(find(options.cache.resolve()))
    except (Unavailable, OSError) as error:
        print(f"nvidia-smi is not available: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
