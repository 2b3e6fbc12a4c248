"""A node's memory of what it trained and said: durable before it is said, so a restart says the same again.

::

    answers/<round entry's leaf>.dsse      the signed answer to a round
    sent/<sha256>                          the delta that an answer names
    receipts/<leaf>.tlog-proof             the proof that an entry of ours is in the log
    own/round-<n>.safetensors              this community's own adapter after round n
    shared.safetensors                     the release that was last decided on
    adopted/                               what serves now, as a PEFT folder
    adopted.leaf                           the release entry that it is from; empty once that was recalled
    recalled/<release entry's leaf>/       what served until its release was recalled
"""

import re
from pathlib import Path

from commonweal_adapters.files.delta import GridTensors, read_adapter, write_adapter
from commonweal_node.home import NodeHome
from commonweal_protocols.base.files import put_away, read_if_there, write_atomic
from commonweal_protocols.statements.compact import AdapterSpec
from commonweal_protocols.statements.values import MAX_BLOB_BYTES, Digest
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_OWN = re.compile(r"round-([1-9][0-9]{0,8})\.safetensors")


class Answers:
    """Files below a node's home; owned by the one thread that holds the institution's turn."""

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

    def save_adopted_from(self, release_leaf: Digest) -> None:
        """Remember which release serves from now on.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._home.adopted_from, release_leaf.encode())

    def adopted_from(self) -> str | None:
        """Return the release that serves; empty where it was withdrawn, None where none was ever adopted."""
        data = read_if_there(self._home.adopted_from, 64, "which release serves")
        return None if data is None else data.decode("ascii", "replace")

    def withdraw_adopted(self, release_leaf: Digest) -> Path:
        """Move what serves away, in one step; returns where it lies.

        Raises:
            StorageError: It cannot be moved.
        """
        away = self._home.recalled / release_leaf
        put_away(self._home.adopted, away)
        # Last: after a crash before this it is found gone already, and all of it is done again.
        write_atomic(self._home.adopted_from, b"")
        return away

    def save_own(self, round_number: int, adapter: GridTensors) -> None:
        """Keep this community's own adapter after a round.

        Raises:
            StorageError: It cannot be kept.
        """
        write_atomic(self._own(round_number), write_adapter(adapter, self._spec))

    def load_own(self, round_number: int) -> GridTensors | None:
        """Return this community's own adapter after a round, or None."""
        return self._load(self._own(round_number))

    def newest_own(self) -> GridTensors | None:
        """Return this community's own adapter after the newest round that it has one of, or None."""
        names = (_OWN.fullmatch(path.name) for path in self._home.own.glob("round-*"))
        rounds = [int(name[1]) for name in names if name is not None]
        return self.load_own(max(rounds)) if rounds else None

    def _load(self, path: Path) -> GridTensors | None:
        data = read_if_there(path, MAX_BLOB_BYTES, "an adapter")
        return None if data is None else read_adapter(data, self._spec)

    def _delta(self, sha256: Digest) -> Path:
        return self._home.sent / sha256

    def _receipt(self, leaf: Digest) -> Path:
        return self._home.receipts / f"{leaf}.tlog-proof"

    def _own(self, round_number: int) -> Path:
        return self._home.own / f"round-{round_number}.safetensors"
