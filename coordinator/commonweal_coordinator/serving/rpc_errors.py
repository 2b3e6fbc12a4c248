"""Errors as gRPC statuses: one table, one way out.

What is wrong with a peer's bytes goes to the peer in full, because it needs the wanted and the got to fix them. What
is wrong on our side goes to our log; the peer reads the class name only, since those messages hold paths.
"""

import logging
from typing import NoReturn

import grpc

from commonweal_protocols.base.errors import (
    BaseModelError,
    BlobError,
    ChainConflictError,
    CommonwealError,
    ConfigError,
    LogError,
    MalformedError,
    PeerError,
    RuleError,
    SignatureError,
    StorageError,
    UnavailableError,
)

log = logging.getLogger(__name__)

STATUS: dict[type[CommonwealError], grpc.StatusCode] = {
    MalformedError: grpc.StatusCode.INVALID_ARGUMENT,
    SignatureError: grpc.StatusCode.PERMISSION_DENIED,
    LogError: grpc.StatusCode.FAILED_PRECONDITION,
    RuleError: grpc.StatusCode.FAILED_PRECONDITION,
    ChainConflictError: grpc.StatusCode.FAILED_PRECONDITION,
    BlobError: grpc.StatusCode.DATA_LOSS,
    ConfigError: grpc.StatusCode.INTERNAL,
    StorageError: grpc.StatusCode.RESOURCE_EXHAUSTED,
    # The one status that a client retries by itself.
    UnavailableError: grpc.StatusCode.UNAVAILABLE,
    BaseModelError: grpc.StatusCode.INTERNAL,
}

# The status travels in HTTP/2 trailers, of which a peer takes 8 KiB; a character may need 12 bytes there.
_MAX_DETAIL_CHARACTERS = 500


def refusal(error: PeerError) -> str:
    """Return what a peer is told of its own mistake: the class name and the message, as far as that is of use."""
    return f"{type(error).__name__}: {error}"[:_MAX_DETAIL_CHARACTERS]


def abort(context: grpc.ServicerContext, error: CommonwealError, status: grpc.StatusCode | None = None) -> NoReturn:
    """End this RPC with the status for ``error``, or with a closer-fitting ``status``. Never returns."""
    name = type(error).__name__
    details = name
    if isinstance(error, PeerError):
        details = refusal(error)
    else:
        # Being asked too early is everyday; the rest is for the operator to fix.
        log.log(logging.INFO if isinstance(error, UnavailableError) else logging.ERROR, "%s: %s", name, error)
    kind = next(k for k in type(error).__mro__ if k in STATUS)
    context.abort(status or STATUS[kind], details)
    raise AssertionError("context.abort returned")
