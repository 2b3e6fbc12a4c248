"""One way to read a small file, and one lock between processes."""

import os
import re
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from commonweal_protocols.base.errors import ConfigError, LocalError, MalformedError, StorageError
from commonweal_protocols.base.files import locked, read_bounded, read_if_there
from commonweal_protocols.base.keys import read_private


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_a_file_is_read_whole_up_to_its_bound(tmp_path: Path, size: int) -> None:
    path, data = tmp_path / "f", os.urandom(size)
    path.write_bytes(data)
    assert read_bounded(path, size, "a file") == read_if_there(path, size + 1, "a file") == data
    if size:
        wanted = re.escape(f"{path}: wanted a file of at most {size - 1} bytes, got more")
        with pytest.raises(StorageError, match=wanted):
            read_bounded(path, size - 1, "a file")
        with pytest.raises(MalformedError, match=wanted):
            read_if_there(path, size - 1, "a file", error=ConfigError, too_large=MalformedError)


def test_no_more_is_read_than_the_bound_and_one_byte() -> None:
    """From a pipe that never ends: whoever reads it all never returns."""
    source, sink = os.pipe()

    def write() -> None:
        try:
            while True:
                os.write(sink, bytes(1 << 16))
        except BrokenPipeError:
            pass

    writer = threading.Thread(target=write)
    writer.start()
    try:
        with pytest.raises(ConfigError, match="wanted a secret of at most 100000 bytes, got more"):
            read_bounded(Path(f"/dev/fd/{source}"), 100_000, "a secret", error=ConfigError)
    finally:
        os.close(source)
        writer.join()
        os.close(sink)


def test_a_file_that_is_not_there_is_none_or_an_error_that_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "none"
    assert read_if_there(path, 9, "a card") is None
    with pytest.raises(ConfigError, match=re.escape(f"{path}: wanted a card, got no such file; ask for it")):
        read_bounded(path, 9, "a card", error=ConfigError, if_missing="ask for it")
    with pytest.raises(StorageError, match=r"got no such file$"):
        read_bounded(path, 9, "a card")


@pytest.mark.parametrize("error", [ConfigError, StorageError])
def test_a_file_that_cannot_be_read_is_the_callers_error(tmp_path: Path, error: type[LocalError]) -> None:
    for read in (read_if_there, read_bounded):
        with pytest.raises(error, match=r"wanted a card, got a file that cannot be read: Is a directory"):
            read(tmp_path, 9, "a card", error=error)


def test_a_private_file_is_read_while_nobody_else_may(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(b"x")
    path.chmod(0o600)
    assert read_private(path, 1, "a secret") == b"x"
    path.chmod(0o640)
    with pytest.raises(StorageError, match=r"wanted mode 0600, got 0640; run: chmod 600 "):
        read_private(path, 1, "a secret")


def test_a_lock_keeps_others_out_until_its_holder_ends(tmp_path: Path) -> None:
    """A lock belongs to the open file, so that this process can play both."""
    path = tmp_path / "lock"
    with ExitStack() as holder:
        holder.enter_context(locked(path, "the store"))
        with (
            pytest.raises(StorageError, match=re.escape(f"{path}: wanted the store for this process alone")),
            locked(path, "the store"),
        ):
            pass
        # Who waits does so while the other holds it; were it not let go, this would never end.
        with locked(path, "the store", on_wait=holder.close):
            assert path.stat().st_mode & 0o777 == 0o600
    with locked(path, "the store"):
        pass


def test_a_lock_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"wanted a lock on the store, got none: "), locked(tmp_path, "the store"):
        pass


def test_what_fails_under_a_lock_is_not_taken_for_its_failure(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), locked(tmp_path / "lock", "the store"):
        (tmp_path / "none").read_bytes()
    with locked(tmp_path / "lock", "the store"):
        pass
