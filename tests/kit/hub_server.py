"""A coordinator's log service as a process, for tests that kill it: ``python -m tests.kit.hub_server HOME PORT``.

It founds the tests' consortium, or continues with what is there, says ``ready``, and serves until it is killed.
"""

import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc

from commonweal_coordinator.log.log import Log
from commonweal_coordinator.log.sequencer import Sequencer
from commonweal_coordinator.serving.service import LogService
from commonweal_coordinator.serving.tls import load_or_create_tls
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc
from tests.kit.federation import ORIGIN, Federation


@dataclass(frozen=True)
class _Admission:
    """Admits every entry that the compact allows."""

    sequencer: Sequencer

    def submit(self, envelope: bytes) -> bytes:
        return self.sequencer.submit(envelope).proof


def main(home: Path, port: int) -> None:
    f, lock = Federation(), home / "lock.db"
    make = Log.open if lock.exists() else Log.create
    log = make(home / "public", lock, ORIGIN, f.log_key)
    if not log.size:
        log.append(f.entries)
    sequencer = Sequencer.load(log, DirectorySource(home / "public"), f.coordinator)
    tls = load_or_create_tls(home / "tls", ["127.0.0.1"])
    server = grpc.server(ThreadPoolExecutor(8), options=[("grpc.so_reuseport", 0)])
    service = LogService(lambda: _Admission(sequencer), lambda: sequencer)  # type: ignore[arg-type, return-value]
    rpc.add_LogServicer_to_server(service, server)  # type: ignore[no-untyped-call]
    credentials = grpc.ssl_server_credentials([(tls.key.read_bytes(), tls.chain.read_bytes())])
    server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    print("ready", flush=True)
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
