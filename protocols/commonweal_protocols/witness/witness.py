"""A witness: it cosigns a checkpoint only if that log's tree still begins with everything it cosigned before.

C2SP tlog-witness, ``add-checkpoint``. The request, at most 128 KiB::

    old <size> | LF
    <base64 hash> | LF                   0 to 63 times: the consistency proof from there
    LF
    the signed checkpoint

The checks and their answers, in this order: parse (400), origin known (404), log's signature (403), old <= size (400);
then, as one step for each origin, old == stored size (409 and that size), proof (422), **persist**, answer (200 and the
cosignature lines). Nothing is released before the store is durable; the store's row is also the copy for monitors.

At its first sight of a log a witness believes it: from then on it holds the log to that. A witness whose store is
rolled back (a restored backup, a copied disk) cannot notice, and may then cosign a fork of its own: keep the store out
of backups, and give a witness that lost it a new key and a new name. No network here; the clock is given.
"""

import base64
import enum
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from commonweal_protocols.base.canonical import digest_of, parse_base64, parse_decimal
from commonweal_protocols.base.errors import ConfigError, LogError, MalformedError, SignatureError, StorageError
from commonweal_protocols.tlog.checkpoint import Checkpoint, parse_checkpoint
from commonweal_protocols.tlog.cosignature import CosignatureVerifier, CosignerKey, cosign, make_cosignature_verifier
from commonweal_protocols.tlog.merkle import EMPTY_ROOT, HASH_BYTES, MAX_PATH, verify_consistency
from commonweal_protocols.tlog.note import OpenedNote, Verifier, open_note, split_note
from commonweal_protocols.witness.store import Stored, WitnessStore

MAX_REQUEST_BYTES = 128 << 10
SIZE_TYPE = "text/x.tlog.size"
"""The media type of a 409's body."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """An unverified request: the size that the proof starts from, the proof (hashes of 32 bytes), the signed note."""

    old_size: int
    path: tuple[bytes, ...]
    note: bytes


def format_request(old_size: int, path: Sequence[bytes], note: bytes) -> bytes:
    """Return a request's body."""
    lines = [f"old {old_size}", *(base64.b64encode(h).decode() for h in path)]
    return "\n".join(lines).encode() + b"\n\n" + note


def parse_request(body: bytes) -> AddCheckpoint:
    """Parse a request in its one encoding; nothing is verified.

    Raises:
        MalformedError: Another form, or above a bound.
    """
    if len(body) > MAX_REQUEST_BYTES:
        raise MalformedError(f"add-checkpoint: wanted at most {MAX_REQUEST_BYTES} bytes, got {len(body)}")
    head, divider, note = body.partition(b"\n\n")
    try:
        lines = head.decode("ascii").split("\n")
    except UnicodeDecodeError as e:
        raise MalformedError("add-checkpoint: wanted ASCII up to the checkpoint") from e
    if not divider or not lines[0].startswith("old "):
        raise MalformedError(f"add-checkpoint: wanted 'old <size>', hashes, an empty line, got {lines[0][:80]!r}")
    if len(lines) - 1 > MAX_PATH:
        raise MalformedError(f"add-checkpoint: wanted at most {MAX_PATH} hashes, got {len(lines) - 1}")
    old_size = parse_decimal(lines[0].removeprefix("old "))
    return AddCheckpoint(old_size, tuple(parse_base64(line, size=HASH_BYTES) for line in lines[1:]), note)


class Outcome(enum.IntEnum):
    """What came of a request; the number is the HTTP status that says so."""

    COSIGNED = 200
    MALFORMED = 400
    NOT_SIGNED = 403
    UNKNOWN_LOG = 404
    OTHER_SIZE = 409
    INCONSISTENT = 422


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one request.

    ``body`` is for the peer: the cosignature lines, the stored size and a newline at OTHER_SIZE, or the outcome's name.
    ``why`` is for our own log: it may quote the request.
    """

    outcome: Outcome
    body: str
    why: str


def _refuse(outcome: Outcome, why: str) -> Answer:
    return Answer(outcome, outcome.name.lower().replace("_", " ") + "\n", why)


def _parse_claim(text: str) -> Checkpoint:
    """A checkpoint, also one of size 0 with another root: that is well-formed and untrue, so its answer is another."""
    lines = text.split("\n")
    if len(lines) == 4 and lines[1] == "0":
        empty = Checkpoint(lines[0], 0, EMPTY_ROOT)
        parse_checkpoint(empty.text())
        return Checkpoint(lines[0], 0, parse_base64(lines[2], size=HASH_BYTES))
    return parse_checkpoint(text)


class Witness:
    """One witness with its keys and its store. Safe to call from several threads; the store orders them."""

    def __init__(
        self,
        name: str,
        keys: Sequence[CosignerKey],
        logs: Sequence[Verifier],
        store: WitnessStore,
        clock: Callable[[], float],
    ) -> None:
        """Set up; nothing is read or written yet.

        Args:
            name: The witness's key name.
            keys: Its Ed25519 key, or that and an ML-DSA-44 key: each gives a line. Used for nothing else.
            logs: The log keys to believe, each for the origin that is its name; several of one while keys change.
            store: Where it remembers. Opened by the caller, who closes it.
            clock: Seconds since the epoch, as ``time.time`` gives them.

        Raises:
            ConfigError: No key, or a log's key is this witness's own.
            MalformedError: The name is not a key name.
        """
        if not keys:
            raise ConfigError(f"witness {name}: wanted at least one key")
        self.name = name
        self._keys = tuple(keys)
        self._verifiers = tuple(make_cosignature_verifier(name, key.public_key()) for key in keys)
        self._store = store
        self._clock = clock
        self._logs: dict[str, tuple[Verifier, ...]] = {}
        self.set_logs(logs)

    @property
    def verifiers(self) -> tuple[CosignatureVerifier, ...]:
        """What others need to know this witness by, one for each key."""
        return self._verifiers

    @property
    def origins(self) -> tuple[str, ...]:
        """The logs that it watches."""
        return tuple(sorted(self._logs))

    def set_logs(self, logs: Sequence[Verifier]) -> None:
        """Believe these log keys from the next request on, and no others. What is stored stays.

        Raises:
            ConfigError: A key is this witness's own: its cosignatures would be the log's signatures.
        """
        own = {v.key[1:] for v in self._verifiers}
        by_origin: dict[str, tuple[Verifier, ...]] = {}
        for verifier in logs:
            if verifier.key[1:] in own:
                raise ConfigError(f"log {verifier.name}: wanted another key than this witness's own; one key, one role")
            by_origin[verifier.name] = (*by_origin.get(verifier.name, ()), verifier)
        self._logs = by_origin  # one assignment: requests under way keep the set that they began with

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer one request.

        Raises:
            StorageError: The store cannot say or keep what was cosigned, or the clock has gone back: nothing is signed.
        """
        try:
            request = parse_request(body)
            text, _ = split_note(request.note)
            claim = _parse_claim(text)
        except MalformedError as e:
            return _refuse(Outcome.MALFORMED, str(e))
        keys = self._logs.get(claim.origin)
        if keys is None:
            return _refuse(Outcome.UNKNOWN_LOG, f"origin {claim.origin}: wanted one of {len(self._logs)} known logs")
        try:
            opened = open_note(request.note, keys)
        except MalformedError as e:
            return _refuse(Outcome.MALFORMED, str(e))
        except SignatureError as e:
            return _refuse(Outcome.NOT_SIGNED, str(e))
        if request.old_size > claim.size:
            why = f"{claim.origin}: wanted an old size of at most {claim.size}, got {request.old_size}"
            return _refuse(Outcome.MALFORMED, why)
        return self._advance(request, claim, opened)

    def _advance(self, request: AddCheckpoint, claim: Checkpoint, opened: OpenedNote) -> Answer:
        with self._store.locked(claim.origin) as slot:
            stored = slot.read()
            size, root = (stored.size, stored.root) if stored else (0, EMPTY_ROOT)
            if request.old_size != size:
                why = f"{claim.origin}: wanted a proof from {size}, got one from {request.old_size}"
                return Answer(Outcome.OTHER_SIZE, f"{size}\n", why)
            try:
                verify_consistency(size, root, claim.size, claim.root, request.path)
            except LogError as e:
                # It may be the log's fork: worth a line that people look at.
                log.warning("%s: not cosigned: %s", claim.origin, e)
                return _refuse(Outcome.INCONSISTENT, str(e))
            at = int(self._clock())
            if stored and at < stored.at:
                raise StorageError(f"clock: wanted at least {stored.at}, when {claim.origin} was cosigned, got {at}")
            # Encoded anew from what was parsed, and with those lines only that were verified.
            lines = "".join(cosign(claim, self.name, key, at=at) for key in self._keys)
            note = f"{claim.text()}\n{''.join(line.line for line in opened.lines)}{lines}".encode()
            slot.write(Stored(claim.origin, claim.size, claim.root, at, note))
        # THE COMMIT POINT is the end of that block. Above it nothing has left us; from here on the store knows better
        # than any restart, and a caller that never hears this answer asks again and gets 409 or a new time.
        return Answer(Outcome.COSIGNED, lines, f"{claim.origin}: cosigned size {claim.size}, from {size}")

    def latest(self, origin_hash: str) -> bytes | None:
        """Return the newest checkpoint cosigned for an origin, as a note with the log's lines and this witness's.

        Args:
            origin_hash: SHA-256 of the origin as 64 lower-case hex digits, as in the monitors' address.

        Raises:
            StorageError: The store cannot be read.
        """
        stored = self._store.read(origin_hash)
        return stored.note if stored else None

    def latest_by_origin(self) -> dict[str, Stored | None]:
        """Return what is stored for each log that it watches; None where nothing was cosigned yet.

        Raises:
            StorageError: The store cannot be read.
        """
        return {origin: self._store.read(digest_of(origin.encode())) for origin in self.origins}
