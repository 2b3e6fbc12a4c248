"""One way to read a small file, and one lock between processes."""

import os
import re
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from commonweal_protocols.base.errors import ConfigError, LocalError, MalformedError, StorageError
from commonweal_protocols.base.files import locked, put_away, read_bounded, read_if_there, show_folder
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


# -- folders that are shown


def shows(link: Path, text: str) -> None:
    def write(aside: Path) -> None:
        aside.mkdir()
        (aside / "weights").write_text(text)

    show_folder(link, write)


def test_a_folder_is_shown_whole_and_the_one_before_stays_for_who_is_reading_it(tmp_path: Path) -> None:
    link = tmp_path / "adopted"
    for text in ("one", "two", "three", "three"):
        before = link.resolve() if link.exists() else None
        shows(link, text)
        assert (link / "weights").read_text() == text
        assert before is None or (before / "weights").exists()
    assert len(list((tmp_path / "adopted.versions").iterdir())) <= 2
    assert {p.name for p in tmp_path.iterdir()} == {"adopted", "adopted.versions"}


def test_what_cannot_be_written_leaves_the_old_folder_shown(tmp_path: Path) -> None:
    link = tmp_path / "adopted"
    shows(link, "one")

    def full(aside: Path) -> None:
        aside.mkdir()
        (aside / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(StorageError, match="adopted: wanted to show another folder there: No space left"):
        show_folder(link, full)
    assert (link / "weights").read_text() == "one"
    shows(link, "two")
    assert (link / "weights").read_text() == "two"


def test_a_plain_folder_of_an_earlier_version_is_taken_over(tmp_path: Path) -> None:
    link = tmp_path / "adopted"
    link.mkdir()
    (link / "weights").write_text("old")
    shows(link, "new")
    assert link.is_symlink()
    assert (link / "weights").read_text() == "new"


def test_a_shown_folder_that_is_put_away_is_moved_itself(tmp_path: Path) -> None:
    link, away = tmp_path / "adopted", tmp_path / "recalled/leaf"
    shows(link, "one")
    put_away(link, away)
    assert not link.is_symlink()
    assert not away.is_symlink()
    assert (away / "weights").read_text() == "one"
    shows(link, "two")
    assert ((link / "weights").read_text(), (away / "weights").read_text()) == ("two", "one")
