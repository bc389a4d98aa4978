# SPDX-License-Identifier: Apache-2.0
"""
`vgpu`, the command line: one module for each verb, each imported only when it is asked for.

A verb translates words into calls and values into text; decisions are made below. Errors are printed here
and nowhere else, as `vgpu: …` and a hint on stderr. Exit codes: 0 done, 1 failed, 2 the command line or a
quantity is wrong.
"""

from __future__ import annotations

import importlib
import os
import sys

import click

from vgpu_runtime import __version__
from vgpu_runtime.errors import EXIT_FAILED, EXIT_USAGE, VgpuError

EXIT_INTERRUPTED = 130  # as shells report a program that ended by SIGINT

VERBS = {
    "run": "Run a program within a slice of a GPU.",
    "list": "Show the tenants: their quotas and what they use.",
    "sim": "Make a simulated machine and print where its driver is.",
    "intercepts": "Show the driver functions that are changed, and how.",
}

EXAMPLES = """
\b
Examples:
  vgpu run --memory 8GiB --cores 30 -- python train.py
  vgpu run --sim h200 --memory 25% -- nvitop -1
  vgpu list
"""


class Verbs(click.Group):
    """Verbs by name; help for all of them needs none of their modules."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = importlib.import_module(f"vgpu_runtime.cli.{cmd_name}")
        command = module.command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))


@click.group(
    cls=Verbs,
    epilog=EXAMPLES,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    help="Give programs and containers an exact slice of an NVIDIA GPU: bytes of memory, percent of compute.",
)
@click.version_option(__version__, prog_name="vgpu", message="%(prog)s %(version)s")
def root() -> None:
    pass


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; the exit code."""
    try:
        code = root.main(args=arguments, prog_name="vgpu", standalone_mode=False)
        sys.stdout.flush()
    except VgpuError as error:
        return _complain(str(error), error.hint, error.exit_code)
    except click.exceptions.NoArgsIsHelpError as error:
        print(error.format_message(), file=sys.stderr)
        return EXIT_USAGE
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "vgpu"
        return _complain(error.format_message(), f"`{where} --help` shows how", EXIT_USAGE)
    except click.ClickException as error:
        return _complain(error.format_message(), "", EXIT_FAILED)
    except (KeyboardInterrupt, click.Abort):
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        # The reader has gone, as with `| head`; Python must not complain once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    return code if isinstance(code, int) else 0


def _complain(message: str, hint: str, code: int) -> int:
    print(f"vgpu: {message}", file=sys.stderr)
    if hint:
        print(f"  hint: {hint}", file=sys.stderr)
    return code
