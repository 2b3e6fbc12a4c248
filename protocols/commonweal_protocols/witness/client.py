"""Asking witnesses for cosignatures (C2SP tlog-witness): the log's side.

Everything that a witness says is bounded, timed and verified. What it says of its size is believed only upwards, from
the size that the request started from to the size of the checkpoint: a witness that claims more than the log has, less
than it has cosigned already, or a conflict without a size, is refused and not asked again from 0. 403 and 404 both mean
that its operator has not configured this log (witnesses differ). Only the log's own signature is sent: the other lines
are none of a witness's business, and some of them refuse more than 16 KiB. I/O and threads; no clock but a monotonic
one.
"""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from commonweal_protocols.base.canonical import parse_decimal
from commonweal_protocols.base.errors import (
    CommonwealError,
    LogError,
    MalformedError,
    RuleError,
    SignatureError,
    UnavailableError,
)
from commonweal_protocols.tlog.checkpoint import Checkpoint, parse_checkpoint
from commonweal_protocols.tlog.cosignature import CosignatureVerifier
from commonweal_protocols.tlog.note import VerifiedLine, open_note, split_note
from commonweal_protocols.tlog.policy import Policy, PolicyWitness, WitnessedBy
from commonweal_protocols.witness.channel import Channel, Reply, make_client_context, seconds_left
from commonweal_protocols.witness.witness import SIZE_TYPE, format_request

_MAX_TRIES = 3

Prove = Callable[[int, int], Sequence[bytes]]
"""(old size, new size) to the consistency proof between them: hashes of 32 bytes."""


class NotConfiguredError(RuleError):
    """The witness does not know this log, or not its key: its operator has to add the log's vkey."""


class OtherSizeError(LogError):
    """The witness stands at another size, from which the same checkpoint may be proven to it."""

    def __init__(self, message: str, size: int) -> None:
        super().__init__(message)
        self.size = size


def _own_note(note: bytes) -> tuple[bytes, Checkpoint]:
    """The note with the log's own lines only, and its checkpoint."""
    text, lines = split_note(note)
    checkpoint = parse_checkpoint(text)
    own = "".join(line.line for line in lines if line.name == checkpoint.origin)
    if not own:
        raise MalformedError(f"checkpoint {checkpoint.origin}: wanted a line of the log itself, got none")
    return f"{text}\n{own}".encode(), checkpoint


def _read_reply(
    url: str, reply: Reply, old_size: int, checkpoint: Checkpoint, verifiers: Sequence[CosignatureVerifier]
) -> tuple[VerifiedLine, ...]:
    """Turn an answer into cosignatures that hold for this checkpoint, or say why not."""
    what = f"witness {url}: {checkpoint.origin} from {old_size} to {checkpoint.size}"
    match reply.status:
        case 200:
            # An empty line in the answer would make it part of the text, which is then no checkpoint: malformed.
            return open_note(f"{checkpoint.text()}\n".encode() + reply.body, verifiers).lines
        case 403 | 404:
            raise NotConfiguredError(f"{what}: answered {reply.status}; its operator has to add this log's vkey")
        case 409:
            size = _stated_size(reply)
            if size is None or not old_size < size <= checkpoint.size:
                stated = "no size" if size is None else f"the size {size}"
                raise LogError(f"{what}: wanted a conflict with a size in between, got {stated}; it is not asked again")
            raise OtherSizeError(f"{what}: it stands at {size}", size)
        case status if status == 429 or status >= 500:
            raise UnavailableError(f"{what}: answered {status}")
        case status:
            raise LogError(f"{what}: refused with {status}")


def _stated_size(reply: Reply) -> int | None:
    text = reply.body.decode("ascii", "replace")
    if reply.kind != SIZE_TYPE or not text.endswith("\n"):
        return None
    try:
        return parse_decimal(text[:-1])
    except MalformedError:
        return None


@dataclass(frozen=True, slots=True)
class Collected:
    """What a collection came to: cosignatures that hold, whether they make the quorum, and why others are missing."""

    cosignatures: tuple[WitnessedBy, ...]
    is_quorum: bool
    errors: dict[str, CommonwealError]
    """By the witness's name in the policy; one without an address, or whose answer was not awaited, is in neither."""

    def append_to(self, note: bytes) -> bytes:
        """Return the log's note with the cosignatures' lines behind it."""
        return note + "".join(c.line for c in self.cosignatures).encode()


@dataclass(slots=True, eq=False)
class _Asked:
    """One address, which may cosign with several keys."""

    channel: Channel
    witnesses: tuple[PolicyWitness, ...]
    size: int = 0
    """The largest size that it was heard to cosign; under ``lock``."""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def ask(
        self, old_size: int, path: Sequence[bytes], own: bytes, checkpoint: Checkpoint, deadline: float
    ) -> tuple[VerifiedLine, ...]:
        # A request of an earlier collection may still be under way: one connection, one request at a time.
        if not self.lock.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise UnavailableError(f"witness {self.channel.url}: still busy with the request before")
        try:
            reply = self.channel.post(format_request(old_size, path, own), seconds_left(deadline))
            verifiers = [w.verifier for w in self.witnesses]
            lines = _read_reply(self.channel.url, reply, old_size, checkpoint, verifiers)
            self.size = max(self.size, checkpoint.size)
            return lines
        except TimeoutError as e:
            raise UnavailableError(f"witness {self.channel.url}: no time was left") from e
        finally:
            self.lock.release()

    def close(self, timeout_seconds: float) -> None:
        """Close the connection. A request under way that does not end by then ends by its own time-out."""
        if self.lock.acquire(timeout=timeout_seconds):
            self.channel.close()
            self.lock.release()


class Collector:
    """Asks a policy's witnesses in parallel, and remembers between calls what each has cosigned.

    The memory is in this process only; without it the first request to a witness costs a second one. A witness that
    stands lower than it was heard to cosign has lost its store: it is refused until this is recreated.
    One collection at a time; a slow witness holds up nobody but itself.
    """

    def __init__(self, policy: Policy, *, timeout_seconds: float = 5.0, ca_file: Path | None = None) -> None:
        """Set up; nothing is sent yet.

        Args:
            policy: Whom to ask. Witnesses without an address are not asked.
            timeout_seconds: The most that one request may take.
            ca_file: A PEM of the authorities behind https:// addresses; the system's if None.

        Raises:
            ConfigError: An address or the file cannot be used.
        """
        self.timeout_seconds = timeout_seconds
        self._ca_file = ca_file
        # Replaced as one, so that a collection has the addresses of its policy.
        self._using: tuple[Policy, tuple[_Asked, ...]] = (policy, self._ask_under(policy, ()))

    def _ask_under(self, policy: Policy, known: Sequence[_Asked]) -> tuple[_Asked, ...]:
        by_url: dict[str, tuple[PolicyWitness, ...]] = {}
        for witness in policy.witnesses:
            if witness.url is not None:
                by_url[witness.url] = (*by_url.get(witness.url, ()), witness)
        context = make_client_context(self._ca_file) if any(url.startswith("https:") for url in by_url) else None
        # What one was heard to cosign is remembered for as long as it has the same address and keys.
        kept = {a.channel.url: a for a in known if by_url.get(a.channel.url) == a.witnesses}
        return tuple(kept.get(url) or _Asked(Channel(url, context), witnesses) for url, witnesses in by_url.items())

    def set_policy(self, policy: Policy) -> None:
        """Ask under another policy from the next collection on. Thread-safe.

        Raises:
            ConfigError: An address cannot be used; the policy is as it was.
        """
        _, before = self._using
        asked = self._ask_under(policy, before)
        self._using = policy, asked
        for dropped in before:
            if dropped not in asked:
                dropped.close(self.timeout_seconds)

    def collect(self, note: bytes, prove: Prove, *, deadline_seconds: float, linger_seconds: float = 0.0) -> Collected:
        """Ask every witness, until the quorum is met or the deadline has passed.

        Args:
            note: The log's signed checkpoint.
            prove: Gives consistency proofs up to this checkpoint's size; called in this thread only.
            deadline_seconds: When to stop waiting.
            linger_seconds: How much longer to wait, within the deadline, for others once the quorum is met.

        Raises:
            MalformedError: ``note`` is not a checkpoint with the log's own line.
        """
        policy, asked = self._using
        return _Collection(policy, asked, self.timeout_seconds, note, prove).run(deadline_seconds, linger_seconds)

    def close(self) -> None:
        """Close the connections. Requests under way end by their own time-out."""
        for asked in self._using[1]:
            asked.close(self.timeout_seconds)


class _Collection:
    """One call of :meth:`Collector.collect`."""

    def __init__(
        self, policy: Policy, asked: Sequence[_Asked], timeout_seconds: float, note: bytes, prove: Prove
    ) -> None:
        self._policy = policy
        self._timeout_seconds = timeout_seconds
        self._asked = asked
        self._own, self._checkpoint = _own_note(note)
        self._prove = prove
        self._results: queue.SimpleQueue[tuple[_Asked, int, tuple[VerifiedLine, ...] | CommonwealError]]
        self._results = queue.SimpleQueue()
        self._pending = 0
        self._cosigned: dict[str, WitnessedBy] = {}
        self._errors: dict[str, CommonwealError] = {}

    def run(self, deadline_seconds: float, linger_seconds: float) -> Collected:
        self._deadline = end = time.monotonic() + deadline_seconds
        for asked in self._asked:
            self._launch(asked, asked.size, 1)
        is_quorum = False
        while self._pending:
            if not is_quorum and self._policy.is_met(self._cosigned):
                is_quorum, end = True, min(end, time.monotonic() + linger_seconds)
            try:
                # With no time left, what has arrived by now is still taken.
                asked, tries, outcome = self._results.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                break
            self._pending -= 1
            self._take(asked, tries, outcome)
        cosigned = tuple(self._cosigned[w.name] for w in self._policy.witnesses if w.name in self._cosigned)
        return Collected(cosigned, self._policy.is_met(self._cosigned), self._errors)

    def _launch(self, asked: _Asked, old_size: int, tries: int) -> None:
        size = self._checkpoint.size
        if old_size > size:
            self._fail(
                asked, LogError(f"witness {asked.channel.url}: has cosigned size {old_size} already, not {size}")
            )
            return
        path = self._prove(old_size, size) if 0 < old_size < size else ()
        deadline = min(self._deadline, time.monotonic() + self._timeout_seconds)

        def work() -> None:
            outcome: tuple[VerifiedLine, ...] | CommonwealError
            try:
                outcome = asked.ask(old_size, path, self._own, self._checkpoint, deadline)
            except CommonwealError as e:
                outcome = e
            self._results.put((asked, tries, outcome))

        self._pending += 1
        # Not a pool: a pool's threads are waited for at exit, and a witness must not be able to hold that up.
        threading.Thread(target=work, name="cosign", daemon=True).start()

    def _take(self, asked: _Asked, tries: int, outcome: tuple[VerifiedLine, ...] | CommonwealError) -> None:
        if isinstance(outcome, OtherSizeError) and tries < _MAX_TRIES:
            self._launch(asked, outcome.size, tries + 1)
        elif isinstance(outcome, CommonwealError):
            self._fail(asked, outcome)
        else:
            lines = {line.signer.key: line for line in outcome}
            for witness in asked.witnesses:
                line = lines.get(witness.verifier.key)
                if line is not None and line.at is not None:
                    self._cosigned[witness.name] = WitnessedBy(witness, line.at, line.line)
                else:
                    what = f"witness {asked.channel.url}: wanted a line of {witness.name}, got none"
                    self._errors[witness.name] = SignatureError(what)

    def _fail(self, asked: _Asked, error: CommonwealError) -> None:
        for witness in asked.witnesses:
            self._errors[witness.name] = error
