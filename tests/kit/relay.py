"""A way to a server that is as networks are: slow, and at times lost without a word."""

import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress


@contextmanager
def relay(address: str, *, delay_seconds: float = 0.0) -> Iterator[tuple[str, Callable[[], None]]]:
    """A TCP relay whose bytes take so long each way; yields its address, and what loses the connections there are.

    Over a lost one nothing comes any more, not even its end. New ones are as before.
    """
    host, _, port = address.rpartition(":")
    lost: set[socket.socket] = set()
    held: list[socket.socket] = []

    def pump(source: socket.socket, sink: socket.socket) -> None:
        late: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        threading.Thread(target=deliver, args=(late, source, sink), daemon=True).start()
        data = b"-"
        while data:
            data = b""
            with suppress(OSError):
                data = source.recv(1 << 16)
            late.put((time.monotonic() + delay_seconds, data))

    def deliver(late: "queue.SimpleQueue[tuple[float, bytes]]", source: socket.socket, sink: socket.socket) -> None:
        data = b"-"
        while data:
            at, data = late.get()
            time.sleep(max(0.0, at - time.monotonic()))
            if source not in lost:
                with suppress(OSError):
                    sink.sendall(data) if data else sink.shutdown(socket.SHUT_WR)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection((host, int(port)))
                held.extend((near, far))
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=pump, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}", lambda: lost.update(held)
        finally:
            # Only a shutdown wakes a thread that waits for a connection or for bytes.
            listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for s in held:
                with suppress(OSError):
                    s.shutdown(socket.SHUT_RDWR)
                s.close()
