"""Writes that fail under a log: before their effect, after it, or half-way."""

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_coordinator.log.log import Log
from commonweal_coordinator.log.storage import DiskStorage, LockDatabase, Storage
from commonweal_protocols.base.errors import StorageError
from tests.kit.log_place import (
    KEY,
    ORIGIN,
    Place,
)

Outcome = Literal["again", "anew"]


@dataclass
class Fault:
    """One failing write: the error comes before the effect (lost) or after it (kept). Strikes once."""

    write: str
    effect: str
    error: Exception
    strikes: int = 0
    calls: int = 0

    def around(self, write: str, action: Callable[[], None]) -> None:
        self.calls += 1
        if write != self.write or self.strikes:
            action()
            return
        self.strikes += 1
        if self.effect == "kept":
            action()
        raise self.error


class FaultyStorage:
    """A disk of which one write fails."""

    def __init__(self, disk: Storage, fault: Fault) -> None:
        self._disk = disk
        self._fault = fault

    def begin(self) -> None:
        self._disk.begin()

    def read(self, path: str) -> bytes | None:
        return self._disk.read(path)

    def staged(self) -> list[str]:
        return self._disk.staged()

    def stage(self, path: str, data: bytes) -> None:
        self._fault.around("stage", lambda: self._disk.stage(path, data))

    def create(self, files: Mapping[str, bytes]) -> None:
        if self._fault.effect == "half" and not self._fault.strikes:
            self._disk.create(dict(list(files.items())[: len(files) // 2]))
        self._fault.around("create", lambda: self._disk.create(files))

    def replace(self, path: str, data: bytes) -> None:
        self._fault.around("replace", lambda: self._disk.replace(path, data))

    def prune(self, path: str) -> None:
        self._fault.around("prune", lambda: self._disk.prune(path))

    def discard(self, path: str) -> None:
        self._fault.around("discard", lambda: self._disk.discard(path))


class FaultyLock(LockDatabase):
    """A lock database whose swap fails."""

    def __init__(self, path: Path, fault: Fault) -> None:
        super().__init__(path)
        self._fault = fault

    def swap(self, old: bytes, new: bytes) -> None:
        self._fault.around("swap", lambda: super(FaultyLock, self).swap(old, new))


def faulty(place: Place, fault: Fault, origin: str = ORIGIN, key: Ed25519PrivateKey = KEY) -> Log:
    lock = FaultyLock(place.lock, fault)
    try:
        return Log(FaultyStorage(DiskStorage(place.public), fault), lock, origin, key)
    except BaseException:
        lock.close()
        raise


def full_disk() -> OSError:
    return OSError(errno.ENOSPC, "No space left on device")


def unknown() -> StorageError:
    return StorageError("the disk went away")


FAULTS: list[tuple[str, str, Callable[[], Exception], Outcome, bool, str]] = [
    ("stage", "lost", full_disk, "again", False, "a full disk: nobody saw anything, the tree is as it was"),
    ("stage", "kept", full_disk, "again", False, "and so even if the file could not be removed"),
    ("stage", "lost", unknown, "anew", False, "not committed: the staged file is swept at the next start"),
    ("stage", "kept", unknown, "anew", False, "the same, with a staged file there to sweep"),
    ("swap", "lost", unknown, "anew", False, "nobody knows, and the next start finds the old checkpoint"),
    ("swap", "kept", unknown, "anew", True, "nobody knows, and the next start finds the new one and the staged file"),
    ("create", "lost", unknown, "anew", True, "committed: the next start applies it"),
    ("create", "half", unknown, "anew", True, "the files that are there already are the same"),
    ("create", "kept", unknown, "anew", True, "all files there, the checkpoint is not"),
    ("replace", "lost", unknown, "anew", True, "the same"),
    ("replace", "kept", unknown, "anew", True, "published, but not known to be: the next start publishes again"),
    ("prune", "lost", unknown, "anew", True, "only waste is left"),
    ("prune", "kept", unknown, "anew", True, "only the staged file is left"),
    ("discard", "lost", unknown, "anew", True, "the same"),
    ("discard", "kept", unknown, "anew", True, "everything is done, and only we do not know"),
]


@contextmanager
def failing(name: str, fragment: str, error: OSError, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Let ``os.<name>`` fail, in mid-write, on files whose path has ``fragment`` in it; yields the paths."""
    real, struck = getattr(os, name), list[str]()

    def call(fd: int, *data: memoryview) -> int:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if fragment not in path:
            return int(real(fd, *data) or 0)
        if data and path not in struck and len(data[0]) > 1:
            struck.append(path)
            return int(real(fd, data[0][: len(data[0]) // 2]))  # what a disk that fills up does first
        struck.append(path)
        raise error

    with monkeypatch.context() as m:
        m.setattr(os, name, call)
        yield struck
