"""An institution's part in motions: making one, voting, opening what was sealed, ending what is over.

What a secret ballot is opened with lies in HOME/ballots/<commitment>.json, 0600, and is on disk before the sealed
ballot is sent: without it nobody can open that any more.
"""

import re
import secrets
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from commonweal_node.institution.opened_home import OpenedHome
from commonweal_protocols.base.errors import ConfigError, RuleError, StorageError, UnavailableError
from commonweal_protocols.base.keys import read_private, write_private
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.base.settings import describe
from commonweal_protocols.fold.motions import awaited, due_at, due_closing, sealed_in_time
from commonweal_protocols.fold.state import MotionState, State
from commonweal_protocols.records.source import read_checkpoint
from commonweal_protocols.statements.governance import (
    Ballot,
    Choice,
    Closing,
    Motion,
    OpenedBallot,
    Proposal,
    Question,
    Salt,
    SealedBallot,
    seal,
)
from commonweal_protocols.statements.values import Digest, Reason

_UNITS = {"m": 60, "h": 3600, "d": 86_400}
_DURATION = re.compile(r"([1-9][0-9]{0,5})([mhd])")
_MAX_SEALED_BYTES = 4096
_CHOICE: TypeAdapter[Choice] = TypeAdapter(Choice)


class SealedChoice(Closed):
    """What opens a sealed ballot."""

    motion: Digest
    choice: Choice
    salt: Salt
    reason: Reason | None


def parse_duration(text: str) -> int:
    """Return the seconds of ``30m``, ``36h`` or ``14d``.

    Raises:
        ConfigError: Another encoding.
    """
    found = _DURATION.fullmatch(text)
    if found is None:
        raise ConfigError(f"duration: wanted a number and m, h or d, such as 14d, got {text!r}")
    return int(found[1]) * _UNITS[found[2]]


def parse_choice(text: str, proposal: Proposal) -> Choice:
    """Return a choice as people write it: yes, no, abstain; or of a question its alternatives' numbers, best first.

    Raises:
        ConfigError: It is none that this proposal takes.
    """
    if isinstance(proposal, Question):
        most = len(proposal.alternatives)
        wanted = f"abstain, or numbers from 0 to {most - 1} with commas, each once at most, the best first"
        numbers = text.split(",")
        ranked = all(n.isascii() and n.isdigit() and int(n) < most for n in numbers) and len(set(numbers)) == len(
            numbers
        )
        value: object = [int(n) for n in numbers] if ranked else text
        valid = ranked or text == "abstain"
    else:
        wanted, value, valid = "yes, no or abstain", text, text in ("yes", "no", "abstain")
    if not valid:
        raise ConfigError(f"choice: wanted {wanted}, got {text!r}")
    return _CHOICE.validate_python(tuple(value) if isinstance(value, list) else value)


def find(state: State, prefix: str) -> tuple[Digest, MotionState]:
    """Return a motion by the beginning of its entry's leaf hash.

    Raises:
        ConfigError: There is none, or several.
    """
    found = [leaf for leaf in state.motions if leaf.startswith(prefix)]
    if len(found) != 1:
        raise ConfigError(f"motion: wanted the beginning of one motion's leaf hash, got {prefix!r}, of {len(found)}")
    return found[0], state.motions[found[0]]


def vote(home: OpenedHome, motion: Digest, choice: Choice, reason: str | None, *, secret: bool) -> Digest:
    """Cast a ballot, sealed if the motion is secret; returns its entry.

    Raises:
        StorageError: What opens a sealed ballot cannot be kept.
        PeerError, LocalError: It is not logged.
    """
    if not secret:
        return home.submit(lambda _: Ballot(motion=motion, choice=choice, reason=reason))
    salt = secrets.token_hex(32)
    commitment = seal(motion, home.config.institution, choice, salt)
    kept = SealedChoice(motion=motion, choice=choice, salt=salt, reason=reason)
    write_private(_sealed(home, commitment), kept.model_dump_json().encode())
    return home.submit(lambda _: SealedBallot(motion=motion, commitment=commitment))


def open_ballot(home: OpenedHome, motion: Digest) -> Digest:
    """Open the ballot that was sealed last in time; returns the entry.

    Raises:
        UnavailableError: Ballots are still taken.
        StorageError: What opens it is not on this disk.
        PeerError, LocalError: It is not logged.
    """
    voter = home.config.institution

    def make(state: State) -> OpenedBallot:
        m = state.motions[motion]
        if m.motion.is_secret and m.stage == "open":
            raise UnavailableError(f"vote: ballots are still taken, until log time {due_at(m)}; open yours after that")
        commitment = sealed_in_time(m).get(voter)
        if commitment is None:
            raise RuleError(f"vote: {voter} has sealed no ballot in time")
        kept = _load(_sealed(home, commitment))
        return OpenedBallot(motion=motion, choice=kept.choice, salt=kept.salt, reason=kept.reason)

    return home.submit(make)


def end(home: OpenedHome, motion: Digest) -> Digest:
    """End the present stage of a motion, by the newest checkpoint if not by everybody's having acted.

    Raises:
        UnavailableError: It is not over yet; says who is awaited, and until when.
        PeerError, LocalError: It is not logged.
    """

    def make(state: State) -> Closing:
        m = state.motions[motion]
        closing = due_closing(state, motion, read_checkpoint(home.source)) if m.is_open else None
        if closing is None:
            who = ", ".join(awaited(state, m)) or "nobody"
            raise UnavailableError(
                f"close: wanted a motion whose time has come: log time {due_at(m)}; {who} may still act"
            )
        return closing

    return home.submit(make)


def make_motion(title: str, reasons: str, proposal: Proposal, *, closes_at: int, opens_until: int | None) -> Motion:
    """Return a motion of what people have written.

    Raises:
        ConfigError: A part is too long, or empty.
    """
    try:
        return Motion(title=title, reasons=reasons, proposal=proposal, closes_at=closes_at, opens_until=opens_until)
    except ValidationError as e:
        raise ConfigError(f"motion: {describe(e)}") from e


def _sealed(home: OpenedHome, commitment: Digest) -> Path:
    return home.files.ballots / f"{commitment}.json"


def _load(path: Path) -> SealedChoice:
    data = read_private(path, _MAX_SEALED_BYTES, "what opens a sealed ballot of this institution")
    try:
        return SealedChoice.model_validate_json(data)
    except ValidationError as e:
        raise StorageError(f"{path}: wanted what opens a sealed ballot of this institution: {e}") from e
