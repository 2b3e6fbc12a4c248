"""A round of real processes in which one node trains on what its own `node data curate` has left of its rows."""

import json
from pathlib import Path

import pytest

from commonweal_protocols.records.source import DirectorySource, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.statements.statement import open_entry
from tests.kit.processes import CANARY, Processes, write_rows

pytestmark = pytest.mark.slow

CHARTER = """\
community = "the valley"
version = 1
principles = ["ask first"]
data_policy = "by consent"
[[data.stages]]
stage = "length"
max_characters = 200
[[data.stages]]
stage = "exact-duplicates"
[[data.stages]]
stage = "split"
keep_given = true
"""


def curate(p: Processes, name: str, rows: Path) -> DataManifest:
    """Have an institution's own commands take rows in and curate them; its node trains on what is left."""
    home = p.node(name)
    (home / "charter.toml").write_text(CHARTER)
    settings = (home / "node.toml").read_text().splitlines()
    data = [line for line in settings if line.startswith("data = ")]
    changed = [line for line in settings if line not in data]
    changed += ['data = "data/curated/rows.jsonl"', 'charter = "charter.toml"']
    (home / "node.toml").write_text("".join(f"{line}\n" for line in changed))
    p.command("node", "data", "add", rows, "--home", home)
    return DataManifest.model_validate_json(p.command("node", "data", "curate", "--home", home, "--json"))


def test_an_update_trained_on_curated_rows_names_the_logged_manifest_and_no_row_is_anywhere_else(
    tmp_path: Path,
) -> None:
    rows = {name: write_rows(tmp_path / f"{name}.jsonl", name) for name in ("clinic", "coop")}
    lines = rows["clinic"].read_text().splitlines()
    # Three copies and one that is too long: what is trained on is not what was added.
    too_long = json.loads(lines[3])
    too_long["messages"][1]["content"] += " and on" * 50
    rows["clinic"].write_text("".join(f"{line}\n" for line in [*lines, *lines[:3], json.dumps(too_long)]))
    with Processes(tmp_path, rows=rows, rounds=1, steps=5) as p:
        manifest = curate(p, "clinic", rows["clinic"])
        assert (manifest.taken.conversations, manifest.left.train_rows, manifest.left.heldout_rows) == (28, 16, 8)
        p.start_all()
        state = p.wait("a ratified release and both decisions", lambda: p.finished(1))
        source = DirectorySource(p.public)
        entries = list(read_entries(source, 0, unverified_size(read_checkpoint(source))))
        opened = {e.leaf: e.statement.predicate for e in map(open_entry, entries)}
        assert [(leaf, m) for leaf, m in opened.items() if isinstance(m, DataManifest)] == [
            (state.manifests["clinic"].leaf, manifest)
        ]
        updates = [u for u in opened.values() if isinstance(u, Update)]
        assert {(u.data_leaf, u.num_examples) for u in updates} == {(state.manifests["clinic"].leaf, 16), (None, 16)}
        report = json.loads(p.command("audit", "run", p.public, "--no-memory", "--json"))
        assert report["rounds"][0]["data_leaves"] == {"clinic": state.manifests["clinic"].leaf}
        assert not any(CANARY.encode() in e for e in entries)
        store = p.node("clinic") / "data"
        assert CANARY in (store / "curated/rows.jsonl").read_text(), "or nothing could be found elsewhere"
        elsewhere = [path for path in tmp_path.rglob("*") if path.is_file() and not path.is_relative_to(store)]
        assert [x for x in elsewhere if x.suffix != ".jsonl" and CANARY.encode() in x.read_bytes()] == []
