"""The exchange over gRPC: members put blobs, anyone gets them. Content decides names, a signed permit decides entry.

``Put`` takes a header, then chunks from the header's offset on. Where the stream ends early, or the offset is not where
the upload stands, the answer says how much is here and the client continues from there; so a broken connection costs at
most the chunk in flight. Nothing of a ``Put`` is stored before its permit, its member and its size are checked.

Every call has an end: a client that neither sends nor takes is cut off after ``Limits.call_seconds``, and resumes if it
was merely slow. ``Get`` and ``Stat`` ask for no permit, because the same blobs are public records; ``max_transfers``
keeps them from taking every thread.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import grpc

from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.rpc_errors import abort
from commonweal_protocols.base.errors import (
    BlobError,
    CommonwealError,
    MalformedError,
    RuleError,
    SignatureError,
    UnavailableError,
)
from commonweal_protocols.statements.upload_permit import parse_blob, verify_permit
from commonweal_protocols.statements.values import Blob, Digest, PublicKey
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc

MAX_CHUNK_BYTES = 1 << 20
SENT_CHUNK_BYTES = 1 << 18
"""Smaller than what is taken: on a slow link a chunk has to get through within one call."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Who may put what, and how much of this host it may take."""

    consortium: Digest
    max_blob_bytes: int
    members: Callable[[], frozenset[PublicKey]]
    """Asked anew at each ``Put``: membership may change while we run."""
    max_transfers: int = 16
    """``Put`` and ``Get`` calls at one time."""
    call_seconds: float = 300.0


class ExchangeService(rpc.ExchangeServicer):
    """Decodes, checks, and calls the store."""

    def __init__(self, blobs: BlobStore, limits: Limits) -> None:
        self._blobs = blobs
        self._limits = limits
        self._transfers = threading.BoundedSemaphore(limits.max_transfers)

    def Stat(self, request: pb.StatRequest, context: grpc.ServicerContext) -> pb.StatReply:
        """See the proto."""
        try:
            return pb.StatReply(
                complete=self._blobs.has(request.sha256), received_bytes=self._blobs.received_bytes(request.sha256)
            )
        except CommonwealError as e:
            abort(context, e)

    def Put(self, request_iterator: Iterator[pb.PutRequest], context: grpc.ServicerContext) -> pb.StatReply:
        """See the proto."""
        try:
            self._begin_transfer(context)
            return self._put(request_iterator)
        except CommonwealError as e:
            abort(context, e)

    def Get(self, request: pb.GetRequest, context: grpc.ServicerContext) -> Iterator[pb.GetReply]:
        """See the proto."""
        try:
            if not self._blobs.has(request.sha256):
                abort(context, BlobError(f"blob {request.sha256}: not here"), grpc.StatusCode.NOT_FOUND)
            self._begin_transfer(context)
            with self._blobs.open(request.sha256) as f:
                if request.offset_bytes > (size := f.seek(0, 2)):
                    raise MalformedError(
                        f"blob {request.sha256}: wanted an offset of at most {size}, got {request.offset_bytes}"
                    )
                f.seek(request.offset_bytes)
                while chunk := f.read(SENT_CHUNK_BYTES):
                    yield pb.GetReply(chunk=chunk)
        except CommonwealError as e:
            abort(context, e)

    def _begin_transfer(self, context: grpc.ServicerContext) -> None:
        """Take one of the transfers, for as long as this call lasts and at most for the time limit."""
        if not self._transfers.acquire(blocking=False):
            raise UnavailableError(f"exchange: wanted at most {self._limits.max_transfers} transfers, got one more")
        timer = threading.Timer(self._limits.call_seconds, context.cancel)
        timer.daemon = True

        def end() -> None:
            timer.cancel()
            self._transfers.release()

        # Runs however the call ends; a call that has ended already does not take callbacks.
        if not context.add_callback(end):
            end()
            raise UnavailableError("exchange: the call has ended already")
        timer.start()

    def _put(self, messages: Iterator[pb.PutRequest]) -> pb.StatReply:
        first = next(messages, None)
        if first is None or first.WhichOneof("part") != "header":
            raise MalformedError(f"put: wanted the header first, got {first and first.WhichOneof('part')}")
        owner, blob = self._check(first.header)
        received = self._blobs.begin(owner, blob)
        if received == blob.size_bytes and self._blobs.has(blob.sha256):
            return pb.StatReply(complete=True, received_bytes=received)
        offset = first.header.offset_bytes
        if offset != received:
            return pb.StatReply(complete=False, received_bytes=received)
        for message in messages:
            if message.WhichOneof("part") != "chunk":
                raise MalformedError("put: wanted chunks after the header, got another header or nothing")
            if not 1 <= (length := len(message.chunk)) <= MAX_CHUNK_BYTES:
                raise MalformedError(f"put: wanted a chunk of 1 to {MAX_CHUNK_BYTES} bytes, got {length}")
            received = self._blobs.append(owner, blob, offset, message.chunk)
            offset += length
            if received < offset:
                return pb.StatReply(complete=False, received_bytes=received)
        if offset < blob.size_bytes:
            return pb.StatReply(complete=False, received_bytes=received)
        self._blobs.finish(owner, blob)
        return pb.StatReply(complete=True, received_bytes=blob.size_bytes)

    def _check(self, header: pb.PutHeader) -> tuple[PublicKey, Blob]:
        blob = parse_blob(header.sha256, header.size_bytes)
        if blob.size_bytes > self._limits.max_blob_bytes:
            raise RuleError(
                f"blob {blob.sha256}: wanted at most {self._limits.max_blob_bytes} bytes, got {blob.size_bytes}"
            )
        if header.key not in self._limits.members():
            raise SignatureError(f"blob {blob.sha256}: wanted a member's key, got {header.key[:64]!r}")
        verify_permit(header.key, header.signature, self._limits.consortium, blob)
        return header.key, blob
