"""What an institution states of its rows in the log: bounded, in one encoding, its own, and without a word of them."""

import csv
import hashlib
import json
import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from commonweal_node.rows.manifest import load_manifest
from commonweal_node.rows.row import read_rows
from commonweal_node.rows.store import Store
from commonweal_protocols.audit.story import tell
from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import ConfigError, MalformedError, RuleError
from commonweal_protocols.cli import run
from commonweal_protocols.statements.data_manifest import MAX_MANIFEST_BYTES, DataManifest, StageRecord
from commonweal_protocols.statements.envelope import parse_envelope
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.statements.statement import Header, Statement, open_entry, parse_statement
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES
from tests.kit.community_rows import CANARY, EMAIL, write_charter, write_sources
from tests.kit.federation import Federation, data_manifest
from tests.kit.institution import NAME, Node

MANIFEST = data_manifest("clinic")
HEADER = Header(consortium="c" * 64, seq=3, prev="b" * 64, seen=())


@pytest.fixture
def f() -> Federation:
    made = Federation()
    made.announce()
    made.open_round()
    return made


# -- the rule


def test_the_newest_manifest_of_an_institution_counts_and_touches_nobody_elses(f: Federation) -> None:
    f.say("clinic", MANIFEST)
    f.say("coop", data_manifest("coop", train_rows=5))
    f.say("clinic", data_manifest("clinic", train_rows=6))
    assert {n: m.manifest.left.train_rows for n, m in f.state.manifests.items()} == {"clinic": 6, "coop": 5}
    assert f.state.manifests["clinic"].leaf == open_entry(f.entries[-1]).leaf


def test_nobody_states_what_anothers_rows_went_through(f: Federation) -> None:
    with pytest.raises(RuleError, match=r"data manifest: wanted institution coop \(the author\), got clinic"):
        f.say("coop", MANIFEST)
    with pytest.raises(RuleError, match="wanted a member as the author"):
        f.say("hub", MANIFEST)


def naming(f: Federation, name: str, leaf: str | None) -> Update:
    return f.update(name).model_copy(update={"data_leaf": leaf})


def test_an_update_names_its_authors_newest_manifest_or_none(f: Federation) -> None:
    f.say("clinic", MANIFEST)
    first = f.state.manifests["clinic"].leaf
    f.say("clinic", data_manifest("clinic", train_rows=6))
    f.say("coop", data_manifest("coop"))
    mine, theirs = f.state.manifests["clinic"].leaf, f.state.manifests["coop"].leaf
    for other in (first, theirs, "0" * 64):
        with pytest.raises(RuleError, match=f"update: wanted as its data {mine} .the newest.*got {other}"):
            f.say("clinic", naming(f, "clinic", other))
    with pytest.raises(RuleError, match=f"wanted as its data none: school has stated none, got {mine}"):
        f.say("school", naming(f, "school", mine))
    f.say("clinic", naming(f, "clinic", mine))
    f.say("school", naming(f, "school", None))
    assert set(f.state.rounds[-1].updates) == {"clinic", "school"}


def test_the_story_and_the_report_tell_what_the_rows_went_through(f: Federation) -> None:
    f.say("clinic", MANIFEST)
    f.say("clinic", naming(f, "clinic", leaf := f.state.manifests["clinic"].leaf))
    replayed = Federation()
    history = []
    for data in f.entries:
        if data not in replayed.entries:
            replayed.add(data)
        history.append((open_entry(data), replayed.state))
    told = {c.kind: c.sentence for c in tell(history)}
    assert told["data"] == (
        "clinic states what its rows went through: of 12 rows, 8 train and 2 are held out, 0 of them synthetic; "
        "stages: language."
    )
    assert f"of the data manifest {leaf[:16]}…" in told["update"]


# -- the form


def test_a_manifest_has_one_encoding_whatever_its_mappings_order() -> None:
    payload = Statement(HEADER, MANIFEST).payload()
    assert parse_statement(payload).predicate == MANIFEST
    assert canonical.parse(payload, max_bytes=MAX_ENTRY_BYTES)
    turned = payload.replace(
        b'"keep_undetermined":true,"languages":["as","en"]', b'"languages":["as","en"],"keep_undetermined":true'
    )
    assert turned != payload
    with pytest.raises(MalformedError):
        parse_statement(turned)


@pytest.mark.parametrize(
    ("why", "change"),
    [
        ("a reason twice", {"reasons": [{"reason": "a", "rows": 1}] * 2}),
        ("reasons that are not sorted", {"reasons": [{"reason": r, "rows": 1} for r in "ba"]}),
        ("too many reasons", {"reasons": [{"reason": f"{i:04}", "rows": 1} for i in range(401)]}),
        ("a long reason", {"reasons": [{"reason": "x" * 201, "rows": 1}]}),
        ("a parameter's name that is text", {"parameters": {"What we say": 1}}),
        ("a parameter that is long", {"parameters": {"a": "x" * 201}}),
        ("a parameter of too many", {"parameters": {"a": list(range(101))}}),
        ("a mapping of mappings", {"parameters": {"a": [{"b": {"c": 1}}]}}),
        ("fewer than no rows", {"rows_out": -1}),
        ("a digest that is none", {"rows": "x"}),
        ("a row", {"row": "text"}),
    ],
)
def test_a_stage_with_one_thing_wrong_is_refused(why: str, change: dict[str, object]) -> None:
    said = json.loads(MANIFEST.stages[0].to_canonical())
    assert StageRecord.model_validate_json(json.dumps(said)) == MANIFEST.stages[0]
    with pytest.raises(ValidationError):
        StageRecord.model_validate_json(json.dumps(said | change))


def test_a_manifest_too_large_for_an_entry_is_not_made() -> None:
    wide = MANIFEST.stages[0].model_copy(update={"parameters": {f"p{i}": ("x" * 200,) * 10 for i in range(20)}})
    with pytest.raises(MalformedError, match=f"manifest: wanted at most {MAX_MANIFEST_BYTES} bytes, got"):
        MANIFEST.model_copy(update={"stages": (wide, wide)}).to_bytes()


# -- the rows that it is of


@pytest.fixture
def node(f: Federation, tmp_path: Path) -> Node:
    """A node whose rows, their names and their columns all hold the canary, curated by its charter."""
    sources = [p.rename(p.with_name(f"{CANARY}-{p.name}")) for p in write_sources(tmp_path / "in", 2, 80)]
    table = tmp_path / f"in/{CANARY}.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([f"asked {CANARY}", f"said {CANARY}", f"thread {CANARY}"])
        writer.writerows(
            (f"What is {i} {CANARY}?", f"{CANARY} {i} it is, and {EMAIL}", f"{CANARY} {i}") for i in range(40)
        )
    home, at = tmp_path / "home", ["--home", str(tmp_path / "home")]
    rules = ["--charter", str(write_charter(tmp_path))]
    assert run(["node", "init", "--institution", NAME, "--data", str(sources[0]), *rules, *at]) == 0
    columns = [f"user=asked {CANARY}", f"assistant=said {CANARY}", f"group=thread {CANARY}"]
    assert run(["node", "data", "add", *map(str, sources), *at]) == 0
    assert run(["node", "data", "add", str(table), *(a for c in columns for a in ("--map", c)), *at]) == 0
    assert run(["node", "data", "curate", *at]) == 0
    # The federation's key of that institution takes the place of the one that `init` made.
    (home / "keys/institution.pem").unlink()
    return Node(home, f)


def test_nothing_of_a_row_is_in_what_the_log_gets_not_even_a_digest_to_try_texts_against(
    f: Federation, node: Node
) -> None:
    data = (node.home / "data/curated/rows.jsonl").resolve()
    node.learner.manifest = load_manifest(data, NAME, node.home)
    f.add(node.answer())
    assert node.said()[-2:] == [DataManifest, Update]
    entry = f.entries[-2]
    payload = parse_envelope(entry).payload
    for word in (CANARY, EMAIL, "license of", "thread", ".csv", ".jsonl"):
        assert word not in payload.decode().lower()
    # Every digest in it is keyed, or of the key, or of the log: none is a file's, a line's, a text's or the charter's.
    files = [p.read_bytes() for p in (node.home / "data").rglob("*.jsonl")]
    lines = [line for whole in files for line in whole.splitlines(keepends=True)]
    texts = [text for row in read_rows(data) for text in re.findall(r"'([^']*)'", str(row.body))]
    guesses = [*files, *lines, *(line.strip() for line in lines), *(t.encode() for t in texts)]
    found = set(re.findall(r"[0-9a-f]{64}", payload.decode()))
    assert len(found) > 8
    assert not found & {hashlib.sha256(guess).hexdigest() for guess in guesses}
    # The canary is in what was curated, or this would prove nothing.
    assert any(CANARY.encode() in line for line in lines)
    assert len(texts) > 100


def test_only_the_manifest_of_these_very_rows_under_this_key_is_taken(node: Node, tmp_path: Path) -> None:
    data = (node.home / "data/curated/rows.jsonl").resolve()
    assert load_manifest(data, NAME, node.home) is not None
    with pytest.raises(ConfigError, match="wanted a manifest of coop, got one of clinic"):
        load_manifest(data, "coop", node.home)
    with pytest.raises(ConfigError, match=r"wanted the manifest of rows.jsonl, got one of other rows"):
        load_manifest(data, NAME, tmp_path)
    data.write_bytes(data.read_bytes() + b"\n")
    with pytest.raises(ConfigError, match=r"wanted the manifest of rows.jsonl, got one of other rows"):
        load_manifest(data, NAME, node.home)


def test_rows_that_come_from_no_curation_have_no_manifest(node: Node, tmp_path: Path) -> None:
    assert load_manifest(next((tmp_path / "in").glob("*.jsonl")), NAME, node.home) is None
    assert Store(node.home).curated.is_symlink()
