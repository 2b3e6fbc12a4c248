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

# Long because every call shares one rule of time-outs, retries and resumed transfers.

import hashlib
import os
import random
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NamedTuple, Self, TypeVar

import grpc
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.base.errors import (
    BlobError,
    ChainConflictError,
    CommonwealError,
    LogError,
    MalformedError,
    PeerError,
    RuleError,
    SignatureError,
    StorageError,
    UnavailableError,
)
from commonweal_protocols.base.files import sync_directory
from commonweal_protocols.base.keys import public_hex
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
        self._channel = grpc.secure_channel(
            address,
            grpc.ssl_channel_credentials(ca_pem.encode()),
            options=[
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # gRPC's own reconnection must not be slower than our pauses, or we would try in vain.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 2000),
                ("grpc.enable_retries", 0),
            ],
        )
        # Generated code has no annotations.
        self._log = rpc.LogStub(self._channel)  # type: ignore[no-untyped-call]
        self._founding = rpc.FoundingStub(self._channel)  # type: ignore[no-untyped-call]
        self._exchange = rpc.ExchangeStub(self._channel)  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the connection; calls in progress fail."""
        self._channel.close()

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
            UnavailableError: No answer.
        """
        request = pb.WaitRequest(larger_than=larger_than, timeout_seconds=timeout_seconds)
        reply = self._call(
            lambda: self._log.WaitForCheckpoint(request, timeout=timeout_seconds + self._call_seconds),
        )
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
        self, source: bytes | Path, key: Ed25519PrivateKey, consortium: Digest, progress: Progress | None = None
    ) -> Blob:
        """Upload bytes, or a file, from where an earlier upload stopped; returns its name and size.

        Args:
            source: Must not change meanwhile.
            key: A member's key; signs the permit.
            consortium: Whose exchange this is.
            progress: Called from another thread.

        Raises:
            PeerError: The coordinator refuses it.
            StorageError: ``source`` cannot be read.
            UnavailableError: The connection is lost and stays lost.
        """
        report = progress or _no_progress
        with _Source(source) as opened:
            blob = parse_blob(*opened.measure())
            header = pb.PutHeader(
                sha256=blob.sha256,
                size_bytes=blob.size_bytes,
                key=public_hex(key),
                signature=sign_permit(key, consortium, blob),
            )
            at = self._stat(blob)
            try:
                self._put(opened, header, at, report)
            except BlobError:
                if at.received_bytes == 0:
                    raise
                # What an earlier upload left may have been spoiled by a crash there; it is deleted by now.
                self._put(opened, header, self._stat(blob), report)
        report(blob.size_bytes)
        return blob

    def get_blob(self, sha256: Digest, size_bytes: int, progress: Progress | None = None) -> bytes:
        """Download a blob into memory; its digest is checked.

        Raises:
            BlobError: It is not there, or not of this size and digest.
            UnavailableError: The connection is lost and stays lost.
        """
        blob = parse_blob(sha256, size_bytes)
        data = bytearray()
        self._get(blob, 0, data.extend, progress or _no_progress)
        self._check_digest(blob, hashlib.sha256(data).hexdigest())
        return bytes(data)

    def save_blob(self, sha256: Digest, size_bytes: int, destination: Path, progress: Progress | None = None) -> None:
        """Download a blob into a file, from where an earlier download stopped.

        ``destination`` appears in one step, durable and with its digest checked; until then the bytes lie beside it
        in a file that ends in ``.partial``. One download to one destination at a time.

        Raises:
            BlobError: It is not there, or not of this size and digest.
            StorageError: The file cannot be written.
            UnavailableError: The connection is lost and stays lost; what came so far is kept.
        """
        blob = parse_blob(sha256, size_bytes)
        partial = destination.with_name(f"{destination.name}.partial")
        try:
            destination.parent.mkdir(parents=True, exist_ok=True)
            resumed = partial.exists()
            try:
                self._fill(partial, blob, progress or _no_progress)
            except BlobError:
                if not resumed:
                    raise
                # What lay here may have been of another blob, or spoiled by a crash.
                self._fill(partial, blob, progress or _no_progress)
            os.replace(partial, destination)
            sync_directory(destination.parent)
        except OSError as e:
            raise StorageError(f"{destination}: cannot be written ({size_bytes} bytes): {e.strerror}") from e

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

    def _put(self, source: "_Source", header: pb.PutHeader, at: pb.StatReply, report: Progress) -> None:
        """Send, until the coordinator has it all; each call continues from what it says it holds."""
        blob = Blob(sha256=header.sha256, size_bytes=header.size_bytes)
        furthest, vain = at.received_bytes, 0
        while not at.complete:
            header.offset_bytes = at.received_bytes
            cut: grpc.RpcError | None = None
            try:
                at = self._exchange.Put(_put_messages(source, header, report), timeout=self._transfer_seconds)
            except grpc.RpcError as e:
                if source.trouble is not None:
                    raise source.trouble from e
                if e.code() not in _CUT_OFF:
                    raise self._translate(e) from e
                cut = e
                at = self._stat(blob)
            vain = 0 if at.complete or at.received_bytes > furthest else vain + 1
            furthest = max(furthest, at.received_bytes)
            self._after_call(vain, cut, f"blob {blob.sha256}: {furthest} of {blob.size_bytes} bytes sent")

    def _get(self, blob: Blob, offset: int, sink: Callable[[bytes], object], report: Progress) -> None:
        """Receive the bytes from ``offset`` on, each of them once, and not one more than the blob's size."""
        vain = 0
        while offset < blob.size_bytes:
            began, cut = offset, None
            request = pb.GetRequest(sha256=blob.sha256, offset_bytes=offset)
            call = self._exchange.Get(request, timeout=self._transfer_seconds)
            try:
                for reply in call:
                    offset += len(reply.chunk)
                    if offset > blob.size_bytes:
                        break
                    sink(reply.chunk)
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

    def _fill(self, partial: Path, blob: Blob, report: Progress) -> None:
        """Make ``partial`` the whole blob, durably; or delete it where it cannot become that."""
        with partial.open("a+b") as f:
            try:
                self._get(blob, f.seek(0, os.SEEK_END), f.write, report)
                f.seek(0)
                self._check_digest(blob, hashlib.file_digest(f, "sha256").hexdigest())
            except BlobError:
                partial.unlink()
                raise
            os.fsync(f.fileno())

    def _check_digest(self, blob: Blob, got: str) -> None:
        if got != blob.sha256:
            raise BlobError(f"{self._address}: blob: wanted digest {blob.sha256}, got {got}")

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


def _put_messages(source: "_Source", header: pb.PutHeader, report: Progress) -> Iterator[pb.PutRequest]:
    """Yield the header, then the chunks from its offset on. gRPC runs this in a thread of its own."""
    offset, size = header.offset_bytes, header.size_bytes
    yield pb.PutRequest(header=header)
    while offset < size:
        chunk = source.read_at(offset, min(CHUNK_BYTES, size - offset))
        yield pb.PutRequest(chunk=chunk)
        offset += len(chunk)
        report(offset)


class _Source:
    """Bytes or a file, read at any offset. Several threads may read."""

    def __init__(self, source: bytes | Path) -> None:
        self._name = str(source) if isinstance(source, Path) else "blob"
        # gRPC swallows what its sending thread raises; anyone who made the call looks here.
        self.trouble: StorageError | None = None
        try:
            self._from: bytes | BinaryIO = source.open("rb") if isinstance(source, Path) else source
        except OSError as e:
            raise StorageError(f"{self._name}: cannot be read: {e.strerror}") from e

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if not isinstance(self._from, bytes):
            self._from.close()

    def measure(self) -> tuple[str, int]:
        """Return the SHA-256 and the size of all of it."""
        digest, size = hashlib.sha256(), 0
        while chunk := self._read(size, CHUNK_BYTES):
            digest.update(chunk)
            size += len(chunk)
        return digest.hexdigest(), size

    def read_at(self, offset: int, length: int) -> bytes:
        """Return 1 to ``length`` bytes.

        Raises:
            StorageError: The file cannot be read, or has become shorter; also kept in ``trouble``.
        """
        try:
            if chunk := self._read(offset, length):
                return chunk
            raise StorageError(f"{self._name}: wanted a byte at {offset}, got the end; it changed while it was sent")
        except StorageError as e:
            self.trouble = e
            raise

    def _read(self, offset: int, length: int) -> bytes:
        if isinstance(self._from, bytes):
            return self._from[offset : offset + length]
        try:
            return os.pread(self._from.fileno(), length, offset)
        except OSError as e:
            raise StorageError(f"{self._name}: cannot be read: {e.strerror}") from e
