"""A certificate for loopback and the authority that vouches for it: ``tests/conftest.py`` gives the fixture to all."""

import pytest

from commonweal_coordinator.serving.tls import TlsFiles, load_or_create_tls


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> TlsFiles:
    return load_or_create_tls(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])
