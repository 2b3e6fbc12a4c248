"""How long a peer may take to say what it wants, for both of the coordinator's servers.

A server that waits for ever is stopped by anyone who opens enough connections and sends a byte now and then. Neither
uvicorn nor gRPC's server has a bound on that: uvicorn's own is for silence between requests, and gRPC's threads wait
for a request whose headers are here without an end.
"""

import asyncio
import fcntl
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import grpc
from uvicorn.protocols.http.auto import AutoHTTPProtocol

REQUEST_SECONDS = 10.0
"""For one request to arrive, from its first byte to its last; and for a reader to take anything of its answer."""

T = TypeVar("T")


def impatient_http(seconds: float) -> type[asyncio.Protocol]:
    """Return uvicorn's HTTP protocol with a bound on slow requests, and on answers that are not taken.

    What is sent after an answer (the rest of a body that nobody wants, say) is the next request, and is under the same
    bound.
    """

    class Impatient(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            self._since = self.loop.time()
            self._untaken = 0
            self._look()

        def on_response_complete(self) -> None:
            self._since = self.loop.time()
            super().on_response_complete()

        def _look(self) -> None:
            if self.transport.is_closing():
                return
            untaken = self.transport.get_write_buffer_size() + _unacknowledged(self.transport)
            is_answering = self.cycle is not None and not self.cycle.response_complete
            # An answer may take long to make and long to take, as long as something of it is taken.
            if is_answering and (not untaken or untaken != self._untaken):
                self._since = self.loop.time()
            self._untaken = untaken
            if self.loop.time() - self._since > seconds:
                self.transport.abort()
                return
            self.loop.call_later(seconds / 4, self._look)

    return Impatient


def _unacknowledged(transport: asyncio.Transport) -> int:
    """The bytes that the kernel still holds for the peer: megabytes, of which a slow reader takes a few at a time."""
    size = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return int.from_bytes(size, sys.byteorder)


class RequestDeadline(grpc.ServerInterceptor):  # type: ignore[misc]  # gRPC has no annotations
    """Ends a call whose one request message does not arrive in time. Calls that stream requests look after themselves.

    On the wire a call with one message is a stream of one, and only as a stream does a handler get to know of the call
    before its message is here.
    """

    def __init__(self, seconds: float = REQUEST_SECONDS) -> None:
        self._seconds = seconds

    def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], grpc.RpcMethodHandler | None],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler | None:
        """See ``grpc.ServerInterceptor``."""
        handler = continuation(handler_call_details)
        if handler is None or handler.request_streaming:
            return handler
        if handler.response_streaming:
            return grpc.stream_stream_rpc_method_handler(
                self._with_deadline(handler.unary_stream), handler.request_deserializer, handler.response_serializer
            )
        return grpc.stream_unary_rpc_method_handler(
            self._with_deadline(handler.unary_unary), handler.request_deserializer, handler.response_serializer
        )

    def _with_deadline(
        self, behavior: Callable[[Any, grpc.ServicerContext], T]
    ) -> Callable[[Iterator[Any], grpc.ServicerContext], T]:
        def call(requests: Iterator[Any], context: grpc.ServicerContext) -> T:
            timer = threading.Timer(self._seconds, context.cancel)
            timer.daemon = True
            timer.start()
            try:
                request = next(requests)
            except StopIteration:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, "wanted one message, got none")
                raise AssertionError("context.abort returned") from None
            finally:
                timer.cancel()
            return behavior(request, context)

        return call
