"""The gRPC service of a founding or a re-founding: decode, call, encode. Errors become statuses in ``rpc_errors``."""

from collections.abc import Callable

import grpc

from commonweal_coordinator.serving.rpc_errors import abort
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_protocols.base.errors import CommonwealError
from commonweal_protocols.wire import commonweal_pb2 as pb
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc


class FoundingService(rpc.FoundingServicer):
    """Hands out the draft that is open, and takes signatures on it."""

    def __init__(self, draft: Callable[[], Draft], on_signed: Callable[[], None]) -> None:
        self._draft = draft
        self._on_signed = on_signed

    def GetDraft(self, request: pb.DraftRequest, context: grpc.ServicerContext) -> pb.DraftReply:
        """See the proto."""
        try:
            return pb.DraftReply(payload=self._draft().payload)
        except CommonwealError as e:
            abort(context, e)

    def Sign(self, request: pb.SignRequest, context: grpc.ServicerContext) -> pb.SignReply:
        """See the proto."""
        try:
            signatures, wanted = self._draft().sign(request.envelope)
            self._on_signed()
            return pb.SignReply(signatures=signatures, wanted=wanted)
        except CommonwealError as e:
            abort(context, e)
