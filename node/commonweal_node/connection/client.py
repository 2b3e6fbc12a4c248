"""A node's side of its coordinator's gRPC services: submissions, founding, blobs.

Guarantees: every call has a deadline, every message and every download a bound, and every failure is an error of
``errors`` that names the address. A refusal of what we sent comes back as the very PeerError that the coordinator
raised; everything else is an UnavailableError.

Retries: only ``UNAVAILABLE``, a few times, with growing and jittered pauses. Every call here may be repeated safely:
the same envelope gets the same index, a signature counts once, blobs are named by content. A transfer is resumed rather
than repeated, and one that is cut off by its deadline continues as long as bytes move; so a slow link makes a transfer
long, and only a dead one makes it fail.

What the coordinator answers is not verified here, but for a blob's digest: proofs and checkpoints are for the caller.
"""

import random
import re
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import (
    BlobError,
    ChainConflictError,
    CommonwealError,
    LogError,
    MalformedError,
    PeerError,
    RuleError,
    SignatureError,
    UnavailableError,
)
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.base.opener import is_loopback
from commonweal_protocols.base.text import printable
from commonweal_protocols.statements.upload_permit import parse_blob, sign_permit
from commonweal_protocols.statements.values import Blob, Digest
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc

T = TypeVar("T")
Progress = Callable[[int], None]
"""Called with how many of a blob's bytes are through so far."""

MAX_MESSAGE_BYTES = 2 << 20
CHUNK_BYTES = 1 << 18
"""Small enough to get through a slow link within one call."""
_FIRST_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0

_REFUSALS: dict[str, type[PeerError]] = {
    e.__name__: e for e in (MalformedError, SignatureError, LogError, RuleError, ChainConflictError, BlobError)
}
_MAX_DETAILS = 1000
"""Characters of a peer's error that are told further."""
_REFUSAL = re.compile(r"([A-Za-z]+): (.*)", re.DOTALL)
_CUT_OFF = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)


class Signatures(NamedTuple):
    """How many members have signed the draft, and how many have to."""

    signatures: int
    wanted: int


class CoordinatorClient:
    """One coordinator's services. Thread-safe; close it, or use it in ``with``.

    Args:
        address: ``host:port``; the certificate must be for this host.
        ca_pem: The authority to trust, and the only one.
        call_seconds: The deadline of a short call.
        transfer_seconds: The deadline of one call of a transfer; some bytes have to move within it.
        attempts: How often something is tried in vain, in all, before it counts as a failure.
        pause: Waits for so many seconds; a daemon passes its stop event's ``wait``.
    """

    def __init__(
        self,
        address: str,
        ca_pem: str,
        *,
        call_seconds: float = 30.0,
        transfer_seconds: float = 60.0,
        attempts: int = 5,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        self._address = address
        self._call_seconds = call_seconds
        self._transfer_seconds = transfer_seconds
        self._attempts = attempts
        self._pause = pause
        self._random = random.SystemRandom()
        credentials = grpc.ssl_channel_credentials(ca_pem.encode())
        options = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # gRPC's own pauses must not be longer than ours, or we would try in vain. How long one attempt may take is
            # left as it is: over a satellite, a handshake takes seconds.
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.max_reconnect_backoff_ms", 2000),
            ("grpc.enable_retries", 0),
            # As for the records: a proxy that the environment sets is for other hosts.
            ("grpc.enable_http_proxy", 0 if is_loopback(f"https://{address}") else 1),
            # In a call that is silent for so long a sign of life is asked for: a connection that was lost without a
            # word is replaced then, and not when TCP gives it up, after a quarter of an hour.
            ("grpc.keepalive_time_ms", 10_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.http2.max_pings_without_data", 0),
        ]
        self._channel = grpc.secure_channel(address, credentials, options)
        # Over the same connection, but closed alone: a call that blocks its thread cannot be ended in another way.
        self._waiting = grpc.secure_channel(address, credentials, options)
        # Generated code has no annotations.
        self._log = rpc.LogStub(self._channel)  # type: ignore[no-untyped-call]
        self._waiting_log = rpc.LogStub(self._waiting)  # type: ignore[no-untyped-call]
        self._founding = rpc.FoundingStub(self._channel)  # type: ignore[no-untyped-call]
        self._exchange = rpc.ExchangeStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connection; calls in progress fail."""
        self._waiting.close()
        self._channel.close()

    def end_waiting(self) -> None:
        """Have :meth:`wait_for_checkpoint` fail, now and from now on; nothing else does."""
        self._waiting.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    # -- the log and its founding

    def submit(self, envelope: bytes) -> bytes:
        """Hand in a signed statement; returns its tlog-proof, unverified.

        Raises:
            PeerError: The coordinator refuses it; as it says itself.
            UnavailableError: No answer.
        """
        reply = self._call(
            lambda: self._log.Submit(pb.SubmitRequest(envelope=envelope), timeout=self._call_seconds),
        )
        return bytes(reply.proof)

    def wait_for_checkpoint(self, larger_than: int, timeout_seconds: int) -> bytes:
        """Return the published checkpoint, unverified, once its tree is larger, or after the time anyway.

        Raises:
            UnavailableError: No answer; or waiting was ended.
        """
        request = pb.WaitRequest(larger_than=larger_than, timeout_seconds=timeout_seconds)
        try:
            reply = self._call(
                lambda: self._waiting_log.WaitForCheckpoint(request, timeout=timeout_seconds + self._call_seconds),
            )
        except ValueError as e:
            # What gRPC raises for a call that begins on a closed channel.
            raise UnavailableError(f"{self._address}: waiting has ended") from e
        return bytes(reply.checkpoint)

    def get_draft(self) -> bytes:
        """Return the draft compact's payload: what members sign.

        Raises:
            UnavailableError: No answer.
        """
        reply = self._call(lambda: self._founding.GetDraft(pb.DraftRequest(), timeout=self._call_seconds))
        return bytes(reply.payload)

    def sign(self, envelope: bytes) -> Signatures:
        """Hand in a member's signature on the draft.

        Raises:
            PeerError: The coordinator refuses it; as it says itself.
            UnavailableError: No answer.
        """
        reply = self._call(lambda: self._founding.Sign(pb.SignRequest(envelope=envelope), timeout=self._call_seconds))
        return Signatures(reply.signatures, reply.wanted)

    # -- blobs

    def put_blob(
        self, data: bytes, key: Ed25519PrivateKey, consortium: Digest, progress: Progress | None = None
    ) -> Blob:
        """Upload bytes, from where an earlier upload stopped; returns their name and size.

        Args:
            data: 1 byte or more.
            key: A member's key; signs the permit.
            consortium: Whose exchange this is.
            progress: Called from another thread.

        Raises:
            PeerError: The coordinator refuses it.
            UnavailableError: The connection is lost and stays lost.
        """
        report = progress or _no_progress
        blob = parse_blob(digest_of(data), len(data))
        header = pb.PutHeader(
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            key=public_hex(key),
            signature=sign_permit(key, consortium, blob),
        )
        at = self._stat(blob)
        try:
            self._put(data, header, at, report)
        except BlobError:
            if at.received_bytes == 0:
                raise
            # What an earlier upload left may have been spoiled by a crash there; it is deleted by now.
            self._put(data, header, self._stat(blob), report)
        report(blob.size_bytes)
        return blob

    def get_blob(self, sha256: Digest, size_bytes: int, progress: Progress | None = None) -> bytes:
        """Download a blob into memory; its digest is checked.

        Raises:
            BlobError: It is not there, or not of this size and digest.
            UnavailableError: The connection is lost and stays lost.
        """
        blob = parse_blob(sha256, size_bytes)
        received = bytearray()
        self._get(blob, received, progress or _no_progress)
        data = bytes(received)
        if (got := digest_of(data)) != blob.sha256:
            raise BlobError(f"{self._address}: blob: wanted digest {blob.sha256}, got {got}")
        return data

    def _stat(self, blob: Blob) -> pb.StatReply:
        reply: pb.StatReply = self._call(
            lambda: self._exchange.Stat(pb.StatRequest(sha256=blob.sha256), timeout=self._call_seconds),
        )
        if reply.received_bytes > blob.size_bytes:
            raise BlobError(
                f"{self._address}: blob {blob.sha256}: wanted at most {blob.size_bytes} bytes there,"
                f" got {reply.received_bytes}"
            )
        return reply

    def _put(self, data: bytes, header: pb.PutHeader, at: pb.StatReply, report: Progress) -> None:
        """Send, until the coordinator has it all; each call continues from what it says it holds."""
        blob = Blob(sha256=header.sha256, size_bytes=header.size_bytes)
        furthest, vain = at.received_bytes, 0
        while not at.complete:
            header.offset_bytes = at.received_bytes
            cut: grpc.RpcError | None = None
            try:
                at = self._exchange.Put(_put_messages(data, header, report), timeout=self._transfer_seconds)
            except grpc.RpcError as e:
                if e.code() not in _CUT_OFF:
                    raise self._translate(e) from e
                cut = e
                at = self._stat(blob)
            vain = 0 if at.complete or at.received_bytes > furthest else vain + 1
            furthest = max(furthest, at.received_bytes)
            self._after_call(vain, cut, f"blob {blob.sha256}: {furthest} of {blob.size_bytes} bytes sent")

    def _get(self, blob: Blob, received: bytearray, report: Progress) -> None:
        """Append the bytes, each of them once, and not one more than the blob's size."""
        offset = vain = 0
        while offset < blob.size_bytes:
            began, cut = offset, None
            request = pb.GetRequest(sha256=blob.sha256, offset_bytes=offset)
            call = self._exchange.Get(request, timeout=self._transfer_seconds)
            try:
                for reply in call:
                    offset += len(reply.chunk)
                    if offset > blob.size_bytes:
                        break
                    received += reply.chunk
                    report(offset)
            except grpc.RpcError as e:
                if e.code() not in _CUT_OFF:
                    raise self._translate(e) from e
                cut = e
            finally:
                call.cancel()
            if cut is None and offset != blob.size_bytes:
                raise BlobError(
                    f"{self._address}: blob {blob.sha256}: wanted {blob.size_bytes} bytes, got"
                    f" {'more' if offset > blob.size_bytes else offset}"
                )
            vain = 0 if offset > began else vain + 1
            if offset < blob.size_bytes:
                self._after_call(vain, cut, f"blob {blob.sha256}: {offset} of {blob.size_bytes} bytes received")

    # -- calls

    def _call(self, call: Callable[[], T]) -> T:
        """Make one short call, again where the coordinator cannot be reached."""
        vain = 0
        while True:
            try:
                return call()
            except grpc.RpcError as e:
                vain += 1
                if e.code() is not grpc.StatusCode.UNAVAILABLE or vain >= self._attempts:
                    raise self._translate(e) from e
                self._back_off(vain)

    def _after_call(self, vain: int, cut: grpc.RpcError | None, what: str) -> None:
        """Go on with a transfer whose last call moved bytes; pause, and at last give up, where none did."""
        if vain == 0:
            return
        # A call that was silent for its whole time has waited long enough.
        silent = cut is not None and cut.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        if silent or vain >= self._attempts:
            why = self._translate(cut) if cut is not None else f"{self._address}: takes no more"
            raise UnavailableError(f"{why}; {what}") from cut
        self._back_off(vain)

    def _back_off(self, vain: int) -> None:
        # Jitter, or all the nodes of a consortium would come back at the same moment.
        longest = min(_LONGEST_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(vain - 1, 10))
        self._pause(longest * self._random.uniform(0.5, 1.0))

    def _translate(self, error: grpc.RpcError) -> CommonwealError:
        """Return the coordinator's own refusal, or an UnavailableError."""
        details = printable((error.details() or "")[:_MAX_DETAILS])
        refusal = _REFUSAL.fullmatch(details)
        if refusal and (kind := _REFUSALS.get(refusal[1])):
            return kind(f"{self._address}: {refusal[2]}")
        return UnavailableError(f"{self._address}: {error.code().name}: {details or 'no reason given'}")


def _no_progress(_: int) -> None:
    pass


def _put_messages(data: bytes, header: pb.PutHeader, report: Progress) -> Iterator[pb.PutRequest]:
    """Yield the header, then the chunks from its offset on. gRPC runs this in a thread of its own."""
    offset = header.offset_bytes
    yield pb.PutRequest(header=header)
    while offset < len(data):
        chunk = data[offset : offset + CHUNK_BYTES]
        yield pb.PutRequest(chunk=chunk)
        offset += len(chunk)
        report(offset)
