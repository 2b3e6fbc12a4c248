"""``commonweal motion`` and ``commonweal vote``: an institution proposes and decides. The logic is in ``motions``."""

import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from pydantic import BaseModel, ConfigDict, ValidationError

from commonweal_node.home import DEFAULT_HOME
from commonweal_node.institution import motions
from commonweal_node.institution.amendment import describe_consequences, next_compact, parse_terms, propose_compact
from commonweal_node.institution.opened_home import OpenedHome
from commonweal_protocols.audit.vocabulary import describe_choice, describe_proposal
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import Json
from commonweal_protocols.base.errors import ConfigError
from commonweal_protocols.base.options import AsJson, Home, PassphraseFile
from commonweal_protocols.base.settings import describe, load_toml
from commonweal_protocols.base.text import printable
from commonweal_protocols.fold.motions import awaited, due_at, standing
from commonweal_protocols.fold.state import MotionState, State
from commonweal_protocols.statements.governance import Proposal, Question, Recall, Resolution
from commonweal_protocols.statements.invite import Card, CoordinatorCard
from commonweal_protocols.statements.values import Digest, Name

motion_app = typer.Typer(no_args_is_help=True, help="Propose what a consortium is to decide, and see what is proposed.")
vote_app = typer.Typer(no_args_is_help=True, help="Vote on motions, and see how they are counted.")

Which = Annotated[str, typer.Argument(help="The beginning of the motion's leaf hash, as `motion list` shows it.")]


class _Terms(BaseModel):
    """A file of terms that a motion changes: any, as the compact encodes them."""

    model_config = ConfigDict(frozen=True, extra="allow")


@motion_app.command()
def new(
    title: Annotated[str, typer.Option(help="What it is called.")],
    reasons: Annotated[str, typer.Option(help="Why.")],
    resolution: Annotated[str | None, typer.Option(help="A sentence that is to be the consortium's word.")] = None,
    question: Annotated[str | None, typer.Option(help="What is to be chosen; with --alternative.")] = None,
    alternative: Annotated[list[str] | None, typer.Option(help="Of a question; two or more.")] = None,
    terms: Annotated[Path | None, typer.Option(help="Terms of the compact that are to change (TOML).")] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="TERM=VALUE, such as quorum.updates=3; none takes a term away.")
    ] = None,
    add: Annotated[list[Path] | None, typer.Option(help="The card of a member that joins, or has a new key.")] = None,
    remove: Annotated[list[str] | None, typer.Option(help="A member that is to leave.")] = None,
    successor: Annotated[
        list[Path] | None, typer.Option(help="A coordinator-card.json: who is to coordinate next; the first one first.")
    ] = None,
    recall: Annotated[int | None, typer.Option(min=1, help="The round whose release is to be withdrawn.")] = None,
    institution: Annotated[str | None, typer.Option(help="With --recall: this one's update alone.")] = None,
    closes_in: Annotated[str, typer.Option(help="How long ballots are taken: 30m, 36h, 14d.")] = "14d",
    secret: Annotated[bool, typer.Option("--secret", help="Ballots are sealed, and opened afterwards.")] = False,
    opens_for: Annotated[str, typer.Option(help="With --secret: how long they may be opened.")] = "7d",
    home: Home = DEFAULT_HOME,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Make a motion: a resolution, a question, an amendment of the compact, or the recall of a release.

    An amendment is any of --terms, --set, --add, --remove and --successor; who joins by --add signs too (node join).

    \b
    commonweal motion new --title "without coop" --reasons "gone" --remove coop
    commonweal motion new --title "longer rounds" --reasons "more rows" --set recipe.steps=200 --set quorum.updates=3

    Who may vote, and how many must, the compact says as it is logged. Times are the log's, as its witnesses vouch.
    """  # noqa: D301 - \b keeps the lines apart
    amends = (terms is not None, *map(bool, (setting, add, remove, successor)))
    if sum((resolution is not None, question is not None, recall is not None, any(amends))) != 1:
        raise ConfigError(
            "motion new: wanted one of --resolution, --question, --recall, and an amendment: --terms, --set, --add, "
            "--remove, --successor"
        )
    if (question is None) != (not alternative) or (recall is None and institution is not None):
        raise ConfigError("motion new: wanted --alternative with --question, and --institution with --recall only")
    opened = OpenedHome(home, passphrase_file)
    try:
        proposal: Proposal
        if resolution is not None:
            proposal = Resolution(kind="resolution", text=resolution)
        elif question is not None:
            proposal = Question(kind="question", text=question, alternatives=tuple(alternative or ()))
        elif recall is not None:
            proposal = Recall(kind="recall", round=recall, institution=institution)
        else:
            other = parse_terms(setting or (), _terms(terms, successor or ()))
            proposal = _amendment(opened, other, [Card.load(path) for path in add or ()], remove or [])
    except ValidationError as e:
        raise ConfigError(f"motion new: {describe(e)}") from e
    closes_at = int(time.time()) + motions.parse_duration(closes_in)
    opens_until = closes_at + motions.parse_duration(opens_for) if secret else None
    motion = motions.make_motion(title, reasons, proposal, closes_at=closes_at, opens_until=opens_until)
    leaf = opened.submit(lambda _: motion)
    typer.echo(f"motion {leaf[:16]} is logged; next: commonweal vote cast {leaf[:16]} yes")


def _terms(file: Path | None, successors: Sequence[Path]) -> Mapping[str, object]:
    terms = load_toml(file, _Terms).model_dump(mode="json") if file is not None else {}
    heirs = [CoordinatorCard.load(path).coordinator.model_dump(mode="json") for path in successors]
    return terms | {"successors": heirs} if heirs else terms


def _amendment(
    opened: OpenedHome, terms: Mapping[str, object], add: Sequence[Card], remove: Sequence[Name]
) -> Proposal:
    state = opened.state()
    compact = next_compact(state, terms, add=add, remove=remove)
    for line in describe_consequences(state.compact, compact):
        typer.echo(f"  {printable(line)}", err=True)
    return propose_compact(opened, compact)


@motion_app.command(name="list")
def list_motions(home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """List every motion, the oldest first, and what became of it."""
    state = OpenedHome(home).state()
    if as_json:
        listed: list[Json] = [_said(state, leaf, m) for leaf, m in state.motions.items()]
        typer.echo(canonical.encode(listed).decode())
        return
    for leaf, m in state.motions.items():
        became = m.outcome.result if m.outcome else f"{m.stage}, awaiting {', '.join(awaited(state, m)) or 'its end'}"
        typer.echo(f"{leaf[:16]}  {printable(m.motion.title)}: {became}")


@motion_app.command()
def show(motion: Which, home: Home = DEFAULT_HOME, as_json: AsJson = False) -> None:
    """Show one motion: what it proposes, every ballot that counts, and who is awaited until when."""
    state = OpenedHome(home).state()
    leaf, m = motions.find(state, motion)
    if as_json:
        typer.echo(canonical.encode(_said(state, leaf, m)).decode())
        return
    typer.echo(f"motion    {leaf}, entry {m.index}, by {m.author}")
    typer.echo(f"title     {printable(m.motion.title)}")
    typer.echo(f"proposes  {printable(describe_proposal(m.motion.proposal))}")
    typer.echo(f"reasons   {printable(m.motion.reasons)}")
    typer.echo(f"wants     {m.threshold} of {len(m.electorate)}")
    for name, casts in m.ballots.items():
        why = f": {printable(casts[-1].reason)}" if casts[-1].reason else ""
        typer.echo(f"ballot    {name} {printable(describe_choice(m.motion.proposal, casts[-1].choice))}{why}")
    if m.outcome is not None:
        typer.echo(f"outcome   {m.outcome.result}")
        return
    typer.echo(f"stage     {m.stage}, until {_time(due_at(m))} in log time")
    typer.echo(f"awaited   {', '.join(awaited(state, m)) or 'nobody'}")


def _time(at: int) -> str:
    try:
        return datetime.fromtimestamp(at, UTC).isoformat()
    except (OverflowError, ValueError, OSError):
        return f"{at} s"


def _said(state: State, leaf: Digest, m: MotionState) -> Json:
    outcome = m.outcome
    return {
        "motion": leaf,
        "index": m.index,
        "author": m.author,
        "title": m.motion.title,
        "reasons": m.motion.reasons,
        "proposal": m.motion.proposal.model_dump(mode="json"),
        "electorate": list(m.electorate),
        "threshold": m.threshold,
        "stage": m.stage,
        "closes_at": m.motion.closes_at,
        "opens_until": m.motion.opens_until,
        "awaited": list(awaited(state, m)) if m.is_open else [],
        "ballots": {
            name: {
                "index": c[-1].index,
                "choice": c[-1].choice if isinstance(c[-1].choice, str) else list(c[-1].choice),
                "reason": c[-1].reason,
            }
            for name, c in m.ballots.items()
        },
        "outcome": None if outcome is None else {"result": outcome.result, "winner": outcome.winner},
    }


@vote_app.command()
def cast(
    motion: Which,
    choice: Annotated[str, typer.Argument(help="yes, no or abstain; of a question: 2,0,1 (the best first).")],
    reason: Annotated[str | None, typer.Option(help="Why; of a no it is kept as dissent, with the outcome.")] = None,
    home: Home = DEFAULT_HOME,
    passphrase_file: PassphraseFile = None,
) -> None:
    """Vote, or vote again: the newest ballot before the end counts. On a secret motion it is sealed."""
    opened = OpenedHome(home, passphrase_file)
    leaf, m = motions.find(opened.state(), motion)
    chosen = motions.parse_choice(choice, m.motion.proposal)
    secret = m.motion.is_secret
    entry = motions.vote(opened, leaf, chosen, reason, secret=secret)
    sealed = f", sealed; once voting is over: commonweal vote open {leaf[:16]}" if secret else ""
    typer.echo(f"ballot {entry[:16]} of {opened.config.institution} is logged{sealed}")


@vote_app.command(name="open")
def open_command(motion: Which, home: Home = DEFAULT_HOME, passphrase_file: PassphraseFile = None) -> None:
    """Open the ballot that this institution has sealed."""
    opened = OpenedHome(home, passphrase_file)
    leaf, _ = motions.find(opened.state(), motion)
    entry = motions.open_ballot(opened, leaf)
    typer.echo(f"ballot {entry[:16]} of {opened.config.institution} is open")


@vote_app.command()
def close(motion: Which, home: Home = DEFAULT_HOME, passphrase_file: PassphraseFile = None) -> None:
    """End a motion, or its voting where ballots are secret. The coordinator does so too; anybody may."""
    opened = OpenedHome(home, passphrase_file)
    leaf, _ = motions.find(opened.state(), motion)
    motions.end(opened, leaf)
    m = opened.state().motions[leaf]
    typer.echo(f"motion {leaf[:16]}: {m.outcome.result if m.outcome else m.stage}")


@vote_app.command()
def tally(
    motion: Which,
    explain: Annotated[bool, typer.Option("--explain", help="Each step of the count.")] = False,
    home: Home = DEFAULT_HOME,
    as_json: AsJson = False,
) -> None:
    """Count a motion from the log as this host verifies it; of an open one, as if it ended now."""
    leaf, m = motions.find(OpenedHome(home).state(), motion)
    outcome = standing(m)
    if as_json:
        steps: list[Json] = list(outcome.steps)
        said: Json = {"motion": leaf, "over": not m.is_open, "result": outcome.result, "steps": steps}
        typer.echo(canonical.encode(said).decode())
        return
    for step in outcome.steps if explain else ():
        typer.echo(f"  {printable(step)}")
    typer.echo(f"motion {leaf[:16]}: {outcome.result}{' if it ended now' * m.is_open}")
