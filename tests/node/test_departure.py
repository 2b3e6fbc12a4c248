"""Leaving with everything that was said: the folder that is written, and what is noticed when it is not whole."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from commonweal_node.institution.departure import write_departure
from commonweal_node.institution.opened_home import OpenedHome
from commonweal_protocols.base.canonical import digest_of, encode
from commonweal_protocols.base.errors import ConfigError, LogError, PeerError, RuleError, SignatureError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.departure import Departure, check_departure, check_whole
from commonweal_protocols.records.follower import Follower
from commonweal_protocols.statements.compact import Quorum
from commonweal_protocols.statements.governance import Exit
from commonweal_protocols.statements.statement import open_entry
from commonweal_protocols.statements.values import Seen
from commonweal_protocols.statements.witness_quorum import policy_of
from commonweal_protocols.tlog.note import format_vkey, parse_vkey
from commonweal_protocols.tlog.policy import NO_QUORUM, Policy, PolicyLog
from tests.kit.federation import NAMES, ORIGIN, Federation, key_of, save_key
from tests.kit.town import Town
from tests.kit.witnesses import policy_text


@pytest.fixture
def left(town: Town) -> tuple[Town, Path]:
    """Coop has announced itself, voted, gone over to another key and left."""
    hub, home = town.hub, town.home("coop")
    hub.announce()
    motion = town.moves("clinic", "--resolution", "x")
    town.does("coop", "vote", "cast", motion, "no", "--reason", "not like this")
    hub.catch_up()
    hub.sequencer.submit(hub.f.rotation("coop", "coop-2"))
    (home / "keys/institution.pem").unlink()
    save_key(home / "keys/institution.pem", key_of("coop-2"))
    (home / "own").mkdir()
    (home / "own/round-1.safetensors").write_bytes(b"an adapter")
    (home / "adopted").mkdir()
    (home / "adopted/adapter_config.json").write_bytes(b"{}")
    (home / "charter.toml").write_text('community = "coop"\n')
    (home / "node.toml").write_text('institution = "coop"\ndata = "rows.jsonl"\ncharter = "charter.toml"\n')
    (home / "rows.jsonl").write_text("what no one else may see\n")
    out = town.folder / "departure"
    town.does("coop", "node", "exit", "--yes", "--reason", "no funds", "--out", out)
    assert "once coop has left: of 2 members" in town.program.err
    assert "once coop has left: warning: one lost key" in town.program.err
    return town, out


def test_an_institution_leaves_with_all_that_it_has_said(left: tuple[Town, Path]) -> None:
    town, out = left
    state = town.state()
    assert "coop" not in {m.institution for m in state.compact.members}
    checked = check_departure(out, policy_of(state.compact))
    entries = town.hub.f.entries
    keys = {public_hex(key_of("coop")), public_hex(key_of("coop-2"))}
    own = [i for i, data in enumerate(entries) if i and keys & set(open_entry(data).signers)]
    assert checked.departure.entries == tuple(own)
    assert len(own) == 4, "its announcement, its ballot, its rotation, its exit"
    assert checked.last == Exit(institution="coop", reason="no funds")
    for index in own:
        assert (out / f"entries/{index}.dsse").read_bytes() == entries[index]
    assert (out / "own/round-1.safetensors").read_bytes() == b"an adapter"
    assert (out / "charter.toml").exists()
    assert "no funds" in (out / "README.md").read_text()


def test_its_rows_and_keys_stay_where_they_were(left: tuple[Town, Path]) -> None:
    town, out = left
    secrets = [(town.home("coop") / p).read_bytes() for p in ("rows.jsonl", "keys/institution.pem")]
    for path in out.rglob("*"):
        assert not path.is_file() or path.read_bytes() not in secrets


def test_anybody_checks_it_by_the_program(left: tuple[Town, Path], tmp_path: Path) -> None:
    town, out = left
    assert town.program("audit", "departure", out) == 0
    assert "coop: all 4 entries, from its first to its exit, and nothing else" in town.program.out
    assert "the log and its witnesses are those that the folder names" in town.program.out
    policy = tmp_path / "policy"
    policy.write_text(policy_text(policy_of(town.state().compact)))
    assert town.program("audit", "departure", out, "--policy", policy) == 0
    assert "that the folder names" not in town.program.out


def test_a_folder_is_not_believed_about_whose_log_it_is(left: tuple[Town, Path], tmp_path: Path) -> None:
    _, out = left
    stranger = parse_vkey(format_vkey(ORIGIN, key_of("stranger").public_key().public_bytes_raw()))
    with pytest.raises(SignatureError):
        check_departure(out, Policy((PolicyLog(stranger),), (), (), NO_QUORUM))


def test_who_has_left_gets_the_folder_again_and_nothing_more_is_said(left: tuple[Town, Path]) -> None:
    town, out = left
    size = town.hub.sequencer.state.size
    again = town.folder / "again"
    said = town.does("coop", "node", "exit", "--yes", "--reason", "no funds", "--out", again)
    assert "is logged" not in said
    assert "once coop has left" not in town.program.err
    assert town.hub.sequencer.state.size == size
    assert check_departure(again).departure.entries == check_departure(out).departure.entries
    assert "exists already" in town.does("coop", "node", "exit", "--yes", "--reason", "x", "--out", out, code=2)


def test_who_is_still_a_member_has_no_departure(town: Town) -> None:
    town.hub.announce()
    home = town.home("coop")
    with pytest.raises(RuleError, match="wanted an institution that has left, got coop"):
        write_departure(OpenedHome(home), town.folder / "departure")
    assert not (town.folder / "departure").exists()


def test_a_log_that_shows_another_history_while_one_leaves_is_caught(
    left: tuple[Town, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    town, _ = left
    home, seen = town.home("coop"), Seen(origin=ORIGIN, size=4, root="0" * 64)
    monkeypatch.setattr(Follower, "seen", (seen,))
    with pytest.raises(LogError, match="forked: at size 4"):
        write_departure(OpenedHome(home), tmp_path / "another")


# -- a folder that somebody has changed


def rewritten(out: Path, change: Callable[[dict[str, object]], object]) -> None:
    manifest = json.loads((out / "departure.json").read_text())
    change(manifest)
    (out / "departure.json").write_bytes(encode(manifest) + b"\n")


def drop(place: int) -> Callable[[Path], None]:
    def do(out: Path) -> None:
        def change(manifest: dict[str, list[int]]) -> None:
            del manifest["entries"][place]

        rewritten(out, change)  # type: ignore[arg-type]

    return do


def swap_proofs(out: Path) -> None:
    one, two = sorted((out / "entries").glob("*.tlog-proof"))[:2]
    held = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(held)


def other_words(out: Path) -> None:
    path = sorted((out / "entries").glob("*.dsse"))[-1]
    path.write_bytes(path.read_bytes().replace(b'"sig":"', b'"sig":"A', 1))


def another_place(out: Path) -> None:
    first = json.loads((out / "departure.json").read_text())["entries"][0]
    for kind in ("dsse", "tlog-proof"):
        (out / f"entries/{first}.{kind}").rename(out / f"entries/0.{kind}")

    def change(manifest: dict[str, list[int]]) -> None:
        manifest["entries"][0] = 0

    rewritten(out, change)  # type: ignore[arg-type]


CHANGES: list[tuple[str, Callable[[Path], object], str]] = [
    ("the first entry is left out", drop(0), "wanted number 0 of the entries of coop, after None; got 1"),
    ("one in the middle is left out", drop(1), "wanted number 1 of the entries of coop"),
    ("the exit is left out", drop(3), "wanted the exit of coop as the last entry, got Rotation"),
    ("a place that is another entry's", another_place, "wanted the proof of this place"),
    ("a proof of another place", swap_proofs, "inclusion|leaf|root"),
    ("an entry in other words", other_words, "inclusion|leaf|root"),
    ("a file is changed", lambda out: (out / "charter.toml").write_text("x"), "charter.toml: wanted sha256"),
    ("a file is gone", lambda out: (out / "README.md").unlink(), "README.md: wanted this file"),
    ("an entry's file is gone", lambda out: shutil.rmtree(out / "entries"), "wanted this file in the folder, got none"),
    ("another institution", lambda out: rewritten(out, lambda m: m.update(institution="clinic")), "the exit of clinic"),
    (
        "another consortium",
        lambda out: rewritten(out, lambda m: m.update(consortium="0" * 64)),
        "wanted an entry in",
    ),
    ("no rules", lambda out: rewritten(out, lambda m: m.update(files={})), "wanted compact.json among its files"),
    (
        "a way out of the folder",
        lambda out: rewritten(out, lambda m: m.update(files={"../x": "0" * 64})),
        "departure",
    ),
    (
        "another encoding of the manifest",
        lambda out: (out / "departure.json").write_bytes(b" " + (out / "departure.json").read_bytes()),
        "wanted its one encoding",
    ),
]


def test_a_folder_that_is_not_whole_is_refused(left: tuple[Town, Path], tmp_path: Path) -> None:
    town, out = left
    policy = policy_of(town.state().compact)
    for why, change, message in CHANGES:  # one folder is enough for all
        changed = tmp_path / "changed" / why.replace(" ", "-")
        shutil.copytree(out, changed)
        check_departure(changed, policy)
        change(changed)
        with pytest.raises(PeerError, match=message):
            check_departure(changed, policy)
        assert town.program("audit", "departure", changed) == 1


def test_there_must_be_a_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises((ConfigError, PeerError)):
        check_departure(tmp_path / "file")


# -- what is whole


def test_a_chain_goes_on_under_another_key() -> None:
    f = Federation()
    f.announce()
    f.rotate("coop", "coop-2")
    f.say("coop", Exit(institution="coop", reason="no funds"))
    own = [open_entry(f.entries[i]) for i in (NAMES.index("coop") + 1, 4, 5)]
    assert check_whole(own, f.state.consortium, "coop").reason == "no funds"
    with pytest.raises(LogError, match="wanted number 1"):
        check_whole([own[0], own[2]], f.state.consortium, "coop")


def test_one_who_came_back_has_two_chains_and_another_s_is_none_of_them() -> None:
    f = Federation(names=(*NAMES, "library"), quorum=Quorum(updates=2, ratifications=3, amendments=3))
    f.announce()
    for name in ("coop", "library"):
        f.say(name, Exit(institution=name, reason="no funds"))
    f.add(f.amendment(f.amended(members=[*f.members(), member("coop-2")]), "clinic", "school", "coop-2"))
    f.keys["coop"] = key_of("coop-2")
    f.say("coop", Exit(institution="coop", reason="again"))
    entries = [open_entry(data) for data in f.entries]
    first, library, second = [entries[3], entries[5]], [entries[4], entries[6]], [entries[8]]
    assert check_whole([*first, *second], f.state.consortium, "coop").reason == "again"
    with pytest.raises(LogError, match="wanted number 2 of the entries of coop"):
        check_whole([*library, *second], f.state.consortium, "coop")


def member(key: str) -> dict[str, object]:
    return {"institution": "coop", "key": public_hex(key_of(key))}


def test_the_manifest_has_one_encoding() -> None:
    d = Departure(consortium="0" * 64, institution="coop", entries=(1, 2), files={"b": "1" * 64, "a": "0" * 64})
    assert Departure.model_validate_json(d.to_bytes()) == d
    assert d.to_bytes().index(b'"a"') < d.to_bytes().index(b'"b"')
    assert len(digest_of(d.to_bytes())) == 64
