"""The gRPC service of the log's write side: decode, call, encode. Errors become statuses in ``rpc_errors``."""

import threading
from collections.abc import Callable

import grpc

from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.rpc_errors import abort
from commonweal_protocols.base.errors import BlobError, CommonwealError, UnavailableError
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.governance import Amendment, Motion
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.statements.statement import Entry
from commonweal_protocols.statements.values import Blob
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc

MAX_WAIT_SECONDS = 60
MAX_WAITS = 192
"""Calls that wait for a checkpoint at once. Anyone may wait, so the other calls keep places of their own."""


class Admission:
    """Takes envelopes from members into the log."""

    def __init__(self, sequencer: Sequencer, blobs: BlobStore) -> None:
        self._sequencer = sequencer
        self._blobs = blobs

    def check(self, entry: Entry, state: State) -> None:
        """An update counts only once its delta is here, or the round could not be merged; and so for a compact.

        Anyone who is to vote on a compact can then read it.
        """
        match entry.statement.predicate:
            case Update(delta=delta):
                self._check_blob("update", "delta", delta)
            case Motion(proposal=Amendment(compact=compact)):
                self._check_blob("motion", "compact", compact)

    def _check_blob(self, kind: str, what: str, blob: Blob) -> None:
        if not self._blobs.has(blob.sha256):
            raise BlobError(f"{kind}: wanted {what} {blob.sha256} in the exchange first, got none")
        if (got := self._blobs.path(blob.sha256).stat().st_size) != blob.size_bytes:
            raise BlobError(f"{kind}: wanted a {what} of {blob.size_bytes} bytes, got {got}")

    def submit(self, envelope: bytes) -> bytes:
        """Sequence a member's envelope and return its proof.

        Raises:
            PeerError: It may not enter the log; nothing is kept of it.
            StorageError: It could not be made durable.
        """
        return self._sequencer.submit(envelope, check=self.check).proof


class LogService(rpc.LogServicer):
    """The log's write side. Before the founding is complete there is none, and every call says so."""

    def __init__(self, admission: Callable[[], Admission], sequencer: Callable[[], Sequencer]) -> None:
        self._admission = admission
        self._sequencer = sequencer
        self._waits = threading.BoundedSemaphore(MAX_WAITS)

    def Submit(self, request: pb.SubmitRequest, context: grpc.ServicerContext) -> pb.SubmitReply:
        """See the proto."""
        try:
            return pb.SubmitReply(proof=self._admission().submit(request.envelope))
        except CommonwealError as e:
            abort(context, e)

    def WaitForCheckpoint(self, request: pb.WaitRequest, context: grpc.ServicerContext) -> pb.CheckpointReply:
        """See the proto."""
        try:
            sequencer = self._sequencer()
            if not self._waits.acquire(blocking=False):
                raise UnavailableError(
                    f"log: wanted at most {MAX_WAITS} calls that wait for a checkpoint, got one more"
                )
            try:
                sequencer.wait(request.larger_than, min(request.timeout_seconds, MAX_WAIT_SECONDS))
            finally:
                self._waits.release()
            return pb.CheckpointReply(checkpoint=sequencer.checkpoint)
        except CommonwealError as e:
            abort(context, e)
