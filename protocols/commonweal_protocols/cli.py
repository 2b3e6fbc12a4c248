"""``commonweal``: one program, a group of commands for each role.

A group is loaded only when it is used, so an auditor's install never meets torch. Exit codes: 0 ok, 1 the evidence is
bad, 2 wrong usage or configuration, 3 an extra is not installed, 4 it could not be done here and now (disk, network),
130 interrupted.
"""

import sys
from importlib.metadata import entry_points

import click
import typer
from rich.console import Console

from commonweal_protocols.base.errors import ConfigError, LocalError, PeerError

GROUPS = {
    "adapter": "Look at adapters, compare, merge, re-compute and compress them.",
    "audit": "Re-check a consortium from its public records, and re-compute its releases.",
    "charter": "Write a community's charter, compare and publish it, and draft clauses from a deliberation.",
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
    "coordinator": "'commonweal[coordinator]'",
    "motion": "'commonweal[node]'",
    "node": "'commonweal[node]'",
    "node data": "'commonweal[node,data]'",
    "vote": "'commonweal[node]'",
}
_OURS = ("commonweal_protocols", "commonweal_adapters", "commonweal_node", "commonweal_coordinator")


class _Root(click.Group):
    """The groups, found through the entry points of the installed rooms."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(GROUPS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        points = entry_points(group="commonweal.commands", name=cmd_name)
        if cmd_name not in GROUPS or not points:
            return None
        command: click.Command = typer.main.get_command(next(iter(points)).load())
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Roles"):
            formatter.write_dl(sorted(GROUPS.items()))


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="commonweal")
def root() -> None:
    """A federation for adapting language models without a centre.

    Every command takes --help; most take --json for machines. Exit codes: 0 ok, 1 the evidence is bad,
    2 wrong usage, 3 an extra is not installed, 4 it could not be done here and now.
    """


def run(args: list[str]) -> int:
    """Run the program and return its exit code; errors are one sentence on stderr."""
    stderr = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        code = root.main(args, prog_name="commonweal", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except click.exceptions.ClickException as e:
        e.show()
        return 2
    except ConfigError as e:
        message, code = str(e), 2
    except ModuleNotFoundError as e:
        # The one place where a missing package is met: commands import theirs as late as they can.
        extra = _EXTRA.get(" ".join(args[:2])) or _EXTRA.get(" ".join(args[:1]))
        if (e.name or "").split(".")[0] in _OURS or extra is None:
            raise
        message, code = f"the package {e.name!r} is not installed; run: pip install {extra}", 3
    except PeerError as e:
        message, code = str(e), 1
    except LocalError as e:
        message, code = str(e), 4
    except (KeyboardInterrupt, click.Abort):
        message, code = "interrupted", 130
    stderr.print("commonweal:", message, markup=False)
    return code


def main() -> None:
    """The entry point of the program."""
    sys.exit(run(sys.argv[1:]))
