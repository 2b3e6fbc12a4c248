"""``commonweal``: one program, a group of commands for each role.

A group is loaded only when it is used, so an auditor's install never meets torch. Exit codes: 0 ok, 1 the evidence is
bad, 2 wrong usage or configuration, 3 an extra is not installed, 4 it could not be done here and now (disk, network),
70 the program itself failed (a bug; its traceback is on stderr), 130 interrupted.
"""

import contextlib
import sys
import traceback
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.console import Console
from typer.core import TyperCommand, TyperGroup

from commonweal_protocols.base.errors import ConfigError, LocalError, PeerError, UnavailableError
from commonweal_protocols.base.text import printable

GROUPS = {
    "adapter": "Look at adapters, compare, merge, re-compute and compress them.",
    "audit": "Re-check a consortium from its public records, and re-compute its releases.",
    "charter": "Write a community's charter, compare and publish it, and draft clauses from a deliberation.",
    "compact": "Read the rules that a consortium has agreed on.",
    "coordinator": "Sequence a consortium's log, run its rounds, publish its releases.",
    "motion": "Propose what a consortium is to decide, and see what is proposed.",
    "node": "Run an institution's node: train, sign, ratify, adopt.",
    "vote": "Vote on motions, and see how they are counted.",
    "witness": "Cosign the checkpoints of logs that keep their history.",
}
"""Each group, and what it is for: said here so that help needs no group to be loaded."""

_EXTRA = {
    "adapter": "'commonweal[recompute]'",
    "audit": "'commonweal[recompute]', or give --no-recompute to check signatures and digests only",
    "charter": "'commonweal[node]'",
    "compact": "'commonweal[node]', or give a PLACE",
    "coordinator": "'commonweal[coordinator]'",
    "motion": "'commonweal[node]'",
    "node": "'commonweal[node]'",
    "node data": "'commonweal[node,data]'",
    "vote": "'commonweal[node]'",
}
_OURS = ("commonweal_protocols", "commonweal_adapters", "commonweal_node", "commonweal_coordinator")


INTERRUPTED = 130
SOFTWARE = 70
"""The code of a failure of the program itself (EX_SOFTWARE of sysexits): never 1, which is a finding."""

EXIT_CODES = {
    0: "ok",
    1: "the evidence is bad",
    2: "wrong usage or configuration",
    3: "an extra is not installed; the message names the pip command",
    4: "it could not be done here and now (disk, network)",
    SOFTWARE: "the program itself failed: a bug, its traceback is on stderr",
    INTERRUPTED: "interrupted",
}

# Of all the kinds of wrong usage typer publishes one; they have one base, whatever library it comes from.
_WrongUsage = cast("type[typer.BadParameter]", typer.BadParameter.__base__)


class _Root(TyperGroup):
    """The groups, found through the entry points of the installed rooms."""

    def list_commands(self, ctx: object) -> list[str]:
        return sorted(GROUPS)

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand | TyperGroup | None:
        points = entry_points(group="commonweal.commands", name=cmd_name)
        if cmd_name not in GROUPS or not points:
            return None
        return cast("TyperCommand | TyperGroup", typer.main.get_command(next(iter(points)).load()))

    def format_commands(self, ctx: object, formatter: Any) -> None:  # noqa: ANN401 (typer does not publish its type)
        with formatter.section("Roles"):
            formatter.write_dl(sorted(GROUPS.items()))

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401 (typer's own signature)
        try:
            return super().invoke(ctx)
        except BrokenPipeError as e:  # typer would exit 1 for it
            raise UnavailableError("the output was closed before all of it was written") from e


_app = typer.Typer(
    cls=_Root,
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain text, and no command is loaded for it
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"commonweal, version {version('commonweal')}")
        raise typer.Exit


@_app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """A federation for adapting language models without a centre.

    Every command takes --help; most take --json for machines. Exit codes: 0 ok, 1 the evidence is bad,
    2 wrong usage, 3 an extra is not installed, 4 it could not be done here and now, 70 a bug in the program.
    """


root = cast("TyperGroup", typer.main.get_command(_app))


def _check_names(args: list[str]) -> None:
    """Refuse names that are no text, before anything is made: settings and records name files in UTF-8."""
    with contextlib.suppress(FileNotFoundError):  # a folder that is gone is met where it is needed
        args = [*args, str(Path.cwd())]
    for arg in args:
        try:
            arg.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{printable(arg)}: wanted a name in UTF-8, got other bytes; rename it") from None


def run(args: list[str]) -> int:
    """Run the program and return its exit code; errors are one sentence on stderr."""
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        _check_names(args)
        code: object = root.main(args, prog_name="commonweal", standalone_mode=False)
        if code != INTERRUPTED:  # which a newer typer returns, where an older one raises Abort
            return code if isinstance(code, int) else 0
        message, status = "interrupted", INTERRUPTED
    except _WrongUsage as e:
        e.show()
        return 2
    except ConfigError as e:
        message, status = str(e), 2
    except ModuleNotFoundError as e:
        # The one place where a missing package is met: commands import theirs as late as they can.
        extra = _EXTRA.get(" ".join(args[:2])) or _EXTRA.get(" ".join(args[:1]))
        if (e.name or "").split(".")[0] in _OURS or extra is None:
            raise
        message, status = f"the package {e.name!r} is not installed; run: pip install {extra}", 3
    except PeerError as e:
        message, status = str(e), 1
    except LocalError as e:
        message, status = str(e), 4
    except (KeyboardInterrupt, typer.Abort):
        message, status = "interrupted", INTERRUPTED
    stderr.print("commonweal:", message, markup=False)
    return status


def main() -> None:
    """The entry point of the program."""
    try:
        code = run(sys.argv[1:])
    except Exception:  # noqa: BLE001 (Python would exit 1 for it, and 1 is a finding)
        traceback.print_exc()
        code = SOFTWARE
    sys.exit(code)
