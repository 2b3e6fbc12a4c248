"""A gRPC server on loopback with real TLS, for as long as a test needs it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import grpc

from commonweal_coordinator.serving.tls import TlsFiles


@contextmanager
def serving(tls: TlsFiles, register: Callable[[grpc.Server], None]) -> Iterator[str]:
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.max_receive_message_length", 2 << 20)])
    register(server)
    credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.chain.read_bytes())])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(0).wait()
