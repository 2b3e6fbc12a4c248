"""What a node says in a masked round, and the secret that it all follows from.

::

    masking/<round entry's leaf>/secret         32 random bytes, 0600, made before the first word
    masking/<round entry's leaf>/<kind>.json    what was said, kept before it is said; the vector is in sent/

A node says one thing at each stage. What it would say follows from its secret and the log; if the log has become
another one, what is kept differs, and nothing is said. The folder goes with the round: then nobody, this node included,
can take the mask off its input again.
"""

import secrets
import shutil
from pathlib import Path

from commonweal_adapters.exact.privacy import privatise
from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.secure.member import Member
from commonweal_adapters.secure.shamir import SECRET_BYTES
from commonweal_node.home import NodeHome
from commonweal_node.institution.answer_store import Answers
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import RuleError, StorageError
from commonweal_protocols.base.files import read_bounded, write_atomic
from commonweal_protocols.base.keys import read_private
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.fold.masked_round import Masking
from commonweal_protocols.fold.state import RoundState
from commonweal_protocols.fold.weights import Voice, weigh
from commonweal_protocols.statements.secure_messages import Advertisement, Confirmation, Reveal, SealedShares
from commonweal_protocols.statements.values import Count, Digest, Name
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

Message = Advertisement | SealedShares | Confirmation | Reveal


class MaskedInput(Closed):
    """What was masked, with whom, and with the weight of how many examples."""

    vector: Digest
    partners: tuple[Name, ...]
    num_examples: Count


class MaskedRound:
    """This node's part in the open round, which is masked; owned by the institution's thread."""

    def __init__(self, home: Path, r: RoundState, masking: Masking, name: Name) -> None:
        self._folder = NodeHome(home).masking / r.leaf
        self._round = r
        self._masking = masking
        self._name = name

    def due(self) -> Message | None:
        """Return what is to be said now, kept already; None where it is said, another's turn, or the update's.

        Raises:
            RuleError: The log has become another one than that in which this node has spoken.
            StorageError: It cannot be kept; then it must not be said.
        """
        m, name = self._masking, self._name
        if name in self._round.refusals:
            return None
        match m.stage:
            case "advertise" if name in m.absent({}):
                return self._kept("advertisement", self._member(create=True).advertise())
            case "seal" if name in m.absent({}):
                return self._kept("sealed-shares", self._member().seal())
            case "reveal" if name in m.absent({}) and name not in m.confirmed:
                return self._kept("confirmation", self._member().confirm())
            case "reveal" if name in m.absent({}):
                return self._kept("reveal", self._member().reveal())
        return None

    def objection(self) -> str:
        """Why this node cannot give its masked input, though it is due; empty if it can.

        Raises:
            RuleError: It is not due.
            StorageError: The round's secret cannot be read.
        """
        if self._masking.stage != "mask" or self._name not in self._masking.absent(self._round.updates):
            raise RuleError(
                f"round {self._round.round.round}: wanted {self._name} in the stage mask, but the round is in the "
                f"stage {self._masking.stage}, with {', '.join(sorted(self._masking.sealed)) or 'nobody'}"
            )
        try:
            self._member().check_partners()
        except RuleError as e:
            return str(e)[:500]
        return ""

    def mask(self, answers: Answers, delta: GridTensors, num_examples: int) -> tuple[MaskedInput, bytes]:
        """Mask a delta, and keep what comes of it: two vectors under the same masks show how they differ.

        Asked again for the same round, it returns the same, whatever ``delta`` and ``num_examples`` are then.

        Raises:
            RuleError: A partner's box is not what it must be, there are too few partners, or other ones than before.
            StorageError: It cannot be kept; then it must not be shown.
        """
        r, partners, path = self._round, self._masking.partners(self._name), self._folder / "input.json"
        if not path.exists():
            if r.privacy is not None:
                delta = privatise(delta, r.privacy, secrets.token_bytes)
            # What the fold makes of this member's word: in masked rounds a weight needs nobody else's.
            (weight,) = weigh(r.round.rule.weights, [Voice(num_examples, ())])
            vector = self._member().mask(delta, weight)
            answers.save_delta(digest_of(vector), vector)
            made = MaskedInput(vector=digest_of(vector), partners=partners, num_examples=num_examples)
            write_atomic(path, made.to_canonical(), mode=0o600)
        kept = MaskedInput.model_validate_json(_read(path))
        if kept.partners != partners:
            raise RuleError(f"update: wanted it masked with {list(kept.partners)} as before, got {list(partners)}")
        sent = answers.load_delta(kept.vector)
        if sent is None:
            raise StorageError(f"{path}: wanted its vector {kept.vector} among the deltas that were sent, got none")
        return kept, sent

    def _member(self, *, create: bool = False) -> Member:
        path = self._folder / "secret"
        if create and not path.exists():
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomic(path, secrets.token_bytes(SECRET_BYTES), mode=0o600)
        return Member(
            self._masking,
            self._round.round.round,
            self._name,
            read_private(path, SECRET_BYTES, "the secret of this masked round"),
        )

    def _kept(self, kind: str, said: Message) -> Message:
        path, data = self._folder / f"{kind}.json", said.to_canonical()
        if path.exists() and _read(path) != data:
            raise RuleError(
                f"{kind} of round {said.round}: wanted to say what was said before, got another log; nothing is said"
            )
        write_atomic(path, data, mode=0o600)
        return said


def forget_rounds(home: Path, open_leaf: str | None) -> None:
    """Erase the secrets of all rounds but the open one.

    Raises:
        StorageError: They cannot be removed.
    """
    folder = NodeHome(home).masking
    for old in folder.iterdir() if folder.exists() else ():
        if old.name != open_leaf:
            try:
                shutil.rmtree(old)
            except OSError as e:
                raise StorageError(f"{old}: the secrets of a round that is over cannot be removed: {e.strerror}") from e


def _read(path: Path) -> bytes:
    return read_bounded(path, MAX_ENTRY_BYTES, "what this round was answered with")
