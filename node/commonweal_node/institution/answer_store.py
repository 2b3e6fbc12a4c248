"""A node's memory of what it trained and said: durable before it is said, so a restart says the same again.

::

    answers/<round entry's leaf>.dsse      the signed answer to a round
    sent/<sha256>                          the delta that an answer names
    receipts/<leaf>.tlog-proof             the proof that an entry of ours is in the log
    own/round-<n>.safetensors              this community's own adapter after round n: the best and the newest
    update/round-<n>.safetensors           what was trained in round n, and could serve
    releases/<sha256>.safetensors          the releases that a choice may fall on
    shared.safetensors                     the release that was last decided on
    adopted/                               what serves now, as a PEFT folder
    serving.json                           what that is
    recalled/<release entry's leaf>/       what served until its release was recalled
"""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from commonweal_adapters.files.delta import GridTensors, read_adapter, write_adapter
from commonweal_node.home import NodeHome
from commonweal_node.institution.choice import CandidateKey
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import StorageError
from commonweal_protocols.base.files import put_away, read_if_there, write_atomic
from commonweal_protocols.base.schema import Closed
from commonweal_protocols.base.settings import describe
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.values import MAX_BLOB_BYTES, Blob, Digest, Natural
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_MAX_SERVING_BYTES = 4096
_ROUND = re.compile(r"round-([1-9][0-9]{0,8})\.safetensors")


class Kept(Closed):
    """What serves. ``release_leaf`` is the entry of the release in it, empty without one."""

    key: CandidateKey
    release_leaf: Digest | Literal[""]
    best_own: Natural
    """After which round the community's own adapter was the best."""
    over_alone_micros: tuple[int, int, int]
    """What serves against that: the difference in micronats for each token, and its 95 % interval."""


class Answers:
    """Files below a node's home; owned by the institution's thread."""

    def __init__(self, home: Path, spec: AdapterSpec) -> None:
        self._home = NodeHome(home)
        self._spec = spec

    def save_answer(self, round_leaf: Digest, envelope: bytes) -> None:
        """Keep a signed answer.

        Raises:
            StorageError: It cannot be kept; then it must not be said.
        """
        write_atomic(self._home.answers / f"{round_leaf}.dsse", envelope)

    def load_answer(self, round_leaf: Digest) -> bytes | None:
        """Return the answer that was given to a round, or None."""
        return read_if_there(self._home.answers / f"{round_leaf}.dsse", MAX_ENTRY_BYTES, "an answer to a round")

    def save_delta(self, sha256: Digest, data: bytes) -> None:
        """Keep a delta: should the coordinator be lost with it, its successor has it from us.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._delta(sha256), data)

    def load_delta(self, sha256: Digest) -> bytes | None:
        """Return a delta that was sent, or None."""
        return read_if_there(self._delta(sha256), MAX_BLOB_BYTES, "a delta that was sent")

    def save_receipt(self, leaf: Digest, proof: bytes) -> None:
        """Keep the proof that an entry is in the log.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._receipt(leaf), proof)

    def has_receipt(self, leaf: Digest) -> bool:
        """Whether the proof of an entry is kept."""
        return self._receipt(leaf).exists()

    def save_shared(self, adapter: GridTensors) -> None:
        """Keep the release that was last decided on.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._home.shared, write_adapter(adapter, self._spec))

    def load_shared(self) -> GridTensors | None:
        """Return the release that was last decided on, or None."""
        return self._load(self._home.shared)

    def save_serving(self, kept: Kept) -> None:
        """Remember what serves from now on.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._home.serving, kept.to_canonical())

    def serving(self) -> Kept | None:
        """Return what serves; None where nothing does.

        Raises:
            StorageError: The file is damaged.
        """
        path = self._home.serving
        data = read_if_there(path, _MAX_SERVING_BYTES, "what serves")
        try:
            return None if data is None else Kept.model_validate_json(data)
        except ValidationError as e:
            raise StorageError(f"{path}: wanted what serves, got {describe(e)}; move it away to choose again") from e

    def withdraw_adopted(self, release_leaf: Digest) -> Path:
        """Move what serves away, in one step; returns where it lies.

        Raises:
            StorageError: It cannot be moved.
        """
        away = self._home.recalled / release_leaf
        put_away(self._home.adopted, away)
        # Last: after a crash before this it is found gone already, and all of it is done again.
        _remove(self._home.serving)
        return away

    def save_own(self, round_number: int, adapter: GridTensors) -> None:
        """Keep this community's own adapter after a round.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._round("own", round_number), write_adapter(adapter, self._spec))

    def load_own(self, round_number: int) -> GridTensors | None:
        """Return this community's own adapter after a round, or None."""
        return self._load(self._round("own", round_number))

    def newest_own(self) -> GridTensors | None:
        """Return this community's own adapter after the newest round that it has one of, or None."""
        rounds = self.rounds_of("own")
        return self.load_own(max(rounds)) if rounds else None

    def rounds_of(self, folder: Literal["own", "update"]) -> list[int]:
        """Return the rounds of which there is an own adapter, or an update."""
        names = (_ROUND.fullmatch(path.name) for path in (self._home.root / folder).glob("round-*"))
        return sorted(int(name[1]) for name in names if name is not None)

    def save_update(self, round_number: int, adapter: GridTensors) -> None:
        """Keep what was trained in a round.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._round("update", round_number), write_adapter(adapter, self._spec))

    def load_update(self, round_number: int) -> GridTensors | None:
        """Return what was trained in a round, or None."""
        return self._load(self._round("update", round_number))

    def save_release(self, blob: Blob, adapter: GridTensors) -> None:
        """Keep a release, so that a later choice need not fetch it.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._release(blob), write_adapter(adapter, self._spec))

    def load_release(self, blob: Blob) -> GridTensors | None:
        """Return a release that is kept, or None."""
        return self._load(self._release(blob))

    def load_release_bytes(self, blob: Blob) -> bytes | None:
        """Return the very bytes of a release that is kept, or None."""
        data = read_if_there(self._release(blob), MAX_BLOB_BYTES, "an adapter")
        return data if data is not None and digest_of(data) == blob.sha256 else None

    def forget_releases(self, but: Collection[Blob]) -> None:
        """Remove the releases that no choice can fall on any more.

        Raises:
            StorageError: A file cannot be removed.
        """
        kept = {self._release(blob) for blob in but}
        for path in self._home.releases.glob("*.safetensors"):
            if path not in kept:
                _remove(path)

    def forget(self, folder: Literal["own", "update"], but: Collection[int]) -> None:
        """Remove what can be no candidate any more, so that a folder does not grow with the rounds.

        Raises:
            StorageError: A file cannot be removed.
        """
        for number in self.rounds_of(folder):
            if number not in but:
                _remove(self._round(folder, number))

    def _load(self, path: Path) -> GridTensors | None:
        data = read_if_there(path, MAX_BLOB_BYTES, "an adapter")
        return None if data is None else read_adapter(data, self._spec)

    def _delta(self, sha256: Digest) -> Path:
        return self._home.sent / sha256

    def _receipt(self, leaf: Digest) -> Path:
        return self._home.receipts / f"{leaf}.tlog-proof"

    def _release(self, blob: Blob) -> Path:
        return self._home.releases / f"{blob.sha256}.safetensors"

    def _round(self, folder: str, round_number: int) -> Path:
        return self._home.root / folder / f"round-{round_number}.safetensors"


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as e:
        raise StorageError(f"{path}: cannot be removed: {e.strerror}") from e
