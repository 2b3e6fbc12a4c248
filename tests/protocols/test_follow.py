"""A follower: what it verifies, what it remembers, and that no later answer of the log may contradict that memory."""

from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from commonweal_protocols.base.errors import (
    LogError,
    PeerError,
    RuleError,
    SignatureError,
    StorageError,
    UnavailableError,
)
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.records.replay import replay
from commonweal_protocols.records.source import DirectorySource
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.rules import FactorMean
from commonweal_protocols.statements.values import Seen
from commonweal_protocols.tlog.note import format_vkey
from commonweal_protocols.tlog.tiles import BUNDLE_ENTRIES, bundle_path
from tests.kit.federation import NAMES, ORIGIN, Federation, key_of, two_rounds
from tests.kit.memory_source import MemorySource, follower, other_history, say_unseeing, served

OTHER = "log.test/other"


def test_a_follower_stands_where_the_log_stands_and_vouches_for_that_checkpoint(tmp_path: Path) -> None:
    f = Federation()
    source = served(f)
    node = follower(source, f, tmp_path)
    assert not node.seen
    assert node.sync() == 1
    f.announce()
    assert node.sync() == len(NAMES)
    assert node.sync() == 0
    assert (node.size, node.state) == (1 + len(NAMES), f.state)
    assert node.seen == (source.seen(),)
    assert Seen.model_validate_json((tmp_path / "memory.json").read_bytes()) == source.seen()


class Busy:
    """Each time that somebody has read the checkpoint, the log grows, and another process of the home follows it."""

    def __init__(self, f: Federation, home: Path) -> None:
        self.f = f
        self.daemon = follower(served(f), f, home)
        self.shown = served(f)

    def read(self, path: str, *, max_bytes: int) -> bytes | None:
        if path != "checkpoint":
            return self.shown.read(path, max_bytes=max_bytes)
        self.shown = MemorySource(list(self.f.entries), self.f.log_key)
        self.f.say("clinic", Identity(institution="clinic"))
        self.daemon.sync()
        return self.shown.read(path, max_bytes=max_bytes)


def test_a_command_beside_a_busy_daemon_accuses_nobody_and_puts_no_memory_back(tmp_path: Path) -> None:
    f = Federation()
    source = Busy(f, tmp_path)
    for _ in range(3):
        command = Follower(source, f.state.consortium, tmp_path / "memory.json")
        command.sync()
        command.sync()
        assert command.size < source.daemon.size == len(f.entries), "it has seen less than the daemon"
        remembered = Seen.model_validate_json((tmp_path / "memory.json").read_bytes())
        assert remembered == source.daemon.seen[0]


def test_only_the_bundles_with_new_entries_are_read_again(tmp_path: Path) -> None:
    f = Federation()
    source = served(f)
    node = follower(source, f, tmp_path)
    while len(f.entries) < BUNDLE_ENTRIES - 2:
        f.say("clinic", Identity(institution="clinic", transport_key="B" * 44))
    node.sync()
    for _ in range(5):
        f.say("school", Identity(institution="school", transport_key="C" * 44))
    source.reads.clear()
    assert node.sync() == 5
    assert source.reads == ["checkpoint", bundle_path(0), bundle_path(1, 3)]
    f.say("coop", Identity(institution="coop", transport_key="D" * 44))
    source.reads.clear()
    assert node.sync() == 1
    assert source.reads == ["checkpoint", bundle_path(1, 4)]
    assert node.state == f.state


def test_before_the_founding_there_is_nothing_to_stand_on(tmp_path: Path) -> None:
    f = Federation()
    node = follower(MemorySource([], f.log_key), f, tmp_path)
    with pytest.raises(UnavailableError, match="it begins once every member has signed"):
        node.sync()
    with pytest.raises(LogError, match="wanted a founded consortium"):
        _ = node.state
    assert not (tmp_path / "memory.json").exists()


def test_a_log_that_was_seen_once_is_never_one_that_has_yet_to_begin(tmp_path: Path) -> None:
    f = Federation()
    follower(served(f), f, tmp_path).sync()
    with pytest.raises(LogError, match="wanted a signed note, got no such file"):
        follower(MemorySource([], f.log_key), f, tmp_path).sync()


# -- another log with the same history


def succeeded(f: Federation) -> MemorySource:
    """The log of another coordinator, who continues from where this one ended."""
    at, other = served(f).seen(), key_of("other log")
    heir = {"name": "heir", "key": public_hex(key_of("heir")), "log": format_vkey(OTHER, raw_public(other))}
    data = f.amendment(f.amended(coordinator=heir, succeeds=at.model_dump()), *NAMES)
    entries = [*f.entries, data]
    f.replica.add(data)
    return MemorySource(entries, other, origin=OTHER)


def raw_public(key: Ed25519PrivateKey) -> bytes:
    return key.public_key().public_bytes_raw()


@pytest.mark.parametrize("restarted", [False, True])
def test_a_follower_goes_on_under_the_successor_of_its_log(tmp_path: Path, restarted: bool) -> None:
    f = two_rounds()
    source = served(f)
    node = follower(source, f, tmp_path)
    node.sync()
    after = succeeded(f)
    source.entries, source.key, source.origin = after.entries, after.key, after.origin
    if restarted:
        node = follower(source, f, tmp_path)
    assert node.sync() == (27 if restarted else 1)
    assert (node.seen, node.state.origins) == ((source.seen(),), {ORIGIN: 26})


def test_a_successor_that_left_something_behind_is_refused(tmp_path: Path) -> None:
    f, shorter = two_rounds(), Federation()
    follower(served(f), f, tmp_path).sync()
    for data in f.entries[1:-3]:
        shorter.add(data)
    with pytest.raises(LogError, match=f"log {ORIGIN}: left behind: 26 entries were seen there, 23 were carried over"):
        follower(succeeded(shorter), shorter, tmp_path).sync()


def test_what_was_seen_of_a_successor_is_not_forgotten_where_the_old_log_is_shown_again(tmp_path: Path) -> None:
    f, before = two_rounds(), two_rounds()
    follower(succeeded(f), f, tmp_path).sync()
    before.announce()
    for _ in range(2):
        with pytest.raises(LogError, match=f"27 entries were seen in log {OTHER}, of which nothing was carried over"):
            follower(served(before), f, tmp_path).sync()


def test_a_kept_copy_shows_the_whole_history_before_anything_is_vouched_for(tmp_path: Path) -> None:
    f = Federation()
    source, copy = served(f), tmp_path / "records"
    node = Follower(source, f.state.consortium, tmp_path / "memory.json", copy)
    node.sync()
    f.announce()
    node.sync()
    assert replay(DirectorySource(copy)).state == f.state
    f.open_round()
    (copy / "checkpoint").unlink()
    (copy / "checkpoint").mkdir()
    with pytest.raises(StorageError):
        node.sync()
    assert node.seen[0].size == 1 + len(NAMES)


# -- a log that does not hold

Bend = Callable[[Federation], MemorySource]


def rolled_back(f: Federation) -> MemorySource:
    return MemorySource(f.entries[:-3], f.log_key)


def forked(f: Federation) -> MemorySource:
    return MemorySource(other_history(f), f.log_key)


def forked_and_longer(f: Federation) -> MemorySource:
    replay = Federation()
    for data in other_history(f)[1:]:
        replay.add(data)
    say_unseeing(replay, "clinic")
    return MemorySource(replay.entries, f.log_key)


def signed_by_another_key(f: Federation) -> MemorySource:
    return MemorySource(f.entries, f.coordinator)


def another_consortium(f: Federation) -> MemorySource:
    other = Federation(rule=FactorMean(weights="examples"))
    assert other.state.consortium != f.state.consortium
    return served(other)


def an_entry_changed(f: Federation) -> MemorySource:
    data = bytearray(f.entries[5])
    data[len(data) // 2] ^= 1
    return MemorySource([*f.entries[:5], bytes(data), *f.entries[6:]], f.log_key)


def a_bundle_is_missing(f: Federation) -> MemorySource:
    class Withheld(MemorySource):
        """Serves the checkpoint only."""

        def read(self, path: str, *, max_bytes: int) -> bytes | None:
            return super().read(path, max_bytes=max_bytes) if path == "checkpoint" else None

    return Withheld(f.entries, f.log_key)


# What a node that starts anew, with nothing but its memory of 26 entries, says to each.
BENT: list[tuple[Bend, type[PeerError], str]] = [
    (rolled_back, LogError, "rolled back: 26 entries were seen, 23 are here"),
    (forked, LogError, "forked: at size 26, root .* was seen"),
    (forked_and_longer, LogError, "forked: at size 26, root .* was seen"),
    (signed_by_another_key, SignatureError, "log.test/three"),
    (another_consortium, RuleError, "consortium: wanted [0-9a-f]{64}, got [0-9a-f]{64}"),
    (an_entry_changed, PeerError, ".+: "),
    (a_bundle_is_missing, LogError, "got no such file"),
]


@pytest.mark.parametrize(("bend", "error", "message"), BENT, ids=[b[0].__name__ for b in BENT])
def test_after_a_restart_a_log_that_contradicts_the_memory_is_refused_every_time(
    tmp_path: Path, bend: Bend, error: type[PeerError], message: str
) -> None:
    f = two_rounds()
    follower(served(f), f, tmp_path).sync()
    remembered = (tmp_path / "memory.json").read_bytes()
    restarted = follower(bend(f), f, tmp_path)
    for _ in range(2):
        with pytest.raises(error, match=message):
            restarted.sync()
    assert (tmp_path / "memory.json").read_bytes() == remembered
    assert restarted.seen == (), "what does not hold is vouched for by nobody"
    # The memory outlives the lie: the true log is followed on.
    honest = follower(served(f), f, tmp_path)
    assert honest.sync() == 26


RUNNING: list[tuple[Bend, type[PeerError], str]] = [
    (rolled_back, LogError, "rolled back from 26 entries to 23"),
    (forked, LogError, "forked: at size 26"),
    (forked_and_longer, LogError, "forked: at size 27"),
    (signed_by_another_key, SignatureError, "log.test/three"),
]


@pytest.mark.parametrize(("bend", "error", "message"), RUNNING, ids=[b[0].__name__ for b in RUNNING])
def test_a_running_node_notices_as_well(tmp_path: Path, bend: Bend, error: type[PeerError], message: str) -> None:
    f = two_rounds()
    source = served(f)
    node = follower(source, f, tmp_path)
    node.sync()
    before, remembered = node.seen, (tmp_path / "memory.json").read_bytes()
    bent = bend(f)
    source.entries, source.key = bent.entries, bent.key
    for _ in range(2):
        with pytest.raises(error, match=message):
            node.sync()
    assert node.seen == before
    assert (tmp_path / "memory.json").read_bytes() == remembered


def test_what_a_failed_look_has_read_is_not_the_state(tmp_path: Path) -> None:
    f = Federation()
    source = served(f)
    node = follower(source, f, tmp_path)
    node.sync()
    at = node.state
    f.announce()
    source.key = f.coordinator
    with pytest.raises(SignatureError):
        node.sync()
    assert (node.size, node.state) == (1, at)
    # Nothing of it stays in the way, even where the true log continues otherwise.
    other = Federation()
    other.say("coop", Identity(institution="coop", transport_key="G" * 44))
    source.entries, source.key = other.entries, other.log_key
    assert node.sync() == 1
    assert node.state == other.state


def test_nothing_is_vouched_for_that_could_not_be_remembered(tmp_path: Path) -> None:
    f = Federation()
    (tmp_path / "memory.json").mkdir()
    node = follower(served(f), f, tmp_path)
    with pytest.raises(StorageError):
        node.sync()
    assert node.seen == ()


@pytest.mark.parametrize("junk", [b"", b"{}", b'{"origin":"x","size":-1,"root":"00"}'])
def test_a_memory_that_is_not_one_stops_the_node_instead_of_starting_anew(tmp_path: Path, junk: bytes) -> None:
    f = Federation()
    (tmp_path / "memory.json").write_bytes(junk)
    with pytest.raises(StorageError, match=r"memory\.json: wanted the newest verified checkpoint, got another file"):
        follower(served(f), f, tmp_path).sync()
    assert (tmp_path / "memory.json").read_bytes() == junk
