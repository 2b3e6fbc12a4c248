"""An S3 server on loopback: moto's, over real HTTP. It knows conditional puts, as the log needs them."""

import itertools
import logging
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from moto.server import ThreadedMotoServer

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "nobody", "AWS_SECRET_ACCESS_KEY": "nothing", "AWS_REGION": "us-east-1"}
"""It takes anything, but wants something."""

_NUMBERS = itertools.count()


@dataclass
class S3:
    """A running server; its buckets are in this process's memory."""

    endpoint: str

    def bucket(self) -> str:
        """The address of a new, empty bucket."""
        name = f"bucket-{next(_NUMBERS)}"
        request = urllib.request.Request(f"{self.endpoint}/{name}", method="PUT")
        with urllib.request.urlopen(request, timeout=10):
            return f"s3://{name}/a/prefix"


@contextmanager
def serve_s3(port: int = 0) -> Iterator[S3]:
    """Serve on a port of 127.0.0.1 until the block ends."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    try:
        yield S3("http://{}:{}".format(*server.get_host_and_port()))
    finally:
        server.stop()
