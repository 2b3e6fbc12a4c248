"""A curation as a whole: whatever interrupts it, it ends in the same bytes, and none of its words get out."""

import hashlib
import hmac
import itertools
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError

from commonweal_node.charter.charter import load_charter
from commonweal_node.rows.curate import Signer, curate, plan, write_reports
from commonweal_node.rows.language import load_identifier
from commonweal_node.rows.manifest import load_curation_key, open_manifest, sign_manifest
from commonweal_node.rows.report import to_html
from commonweal_node.rows.row import (
    Message,
    Row,
    Split,
    Text,
    format_row,
    read_examples,
    read_pairs,
    read_rows,
    read_texts,
)
from commonweal_node.rows.shapes import AS_NAMED
from commonweal_node.rows.stages import whole_text
from commonweal_node.rows.store import Store
from commonweal_node.rows.survey import load_token_counter, survey
from commonweal_node.training.local_model import LocalModel
from commonweal_protocols.base.errors import BaseModelError, ConfigError, MalformedError, SignatureError, StorageError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.cli import run
from commonweal_protocols.statements.data_manifest import DataManifest, ReasonCount
from tests.kit.community_rows import CANARY, CHARTER, DATA, EMAIL, charter, write_charter, write_sources
from tests.kit.tiny_model import save_tiny_base, tiny_tokenizer

SIGNER = Signer("valley", Ed25519PrivateKey.from_private_bytes(b"\1" * 32), b"\2" * 32)


def quiet(stage: str, done: int, total: int | None) -> None:
    """A report that nobody reads."""


def added(home: Path, sources: list[Path]) -> Store:
    store = Store(home)
    with store.locked():
        for path in sources:
            store.add(path, AS_NAMED, None, lambda _: None)
    return store


def curated(store: Store, text: str, folder: Path) -> Path:
    with store.locked():
        return curate(store, charter(folder, text), None, SIGNER, quiet)


def whole(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, bytes]:
    """What an uninterrupted curation of three sources ends in."""
    store = added(tmp_path / "wanted", write_sources(tmp_path / "in", 3, 80))
    folder = curated(store, CHARTER, tmp_path)
    return whole(folder)


# -- what comes out


def test_each_stage_does_what_it_should_to_a_community_whose_rows_are_known(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 3, 80))
    folder = curated(store, CHARTER, tmp_path)
    stages = manifest_of(folder).stages
    # Of 240 rows an eighth (30) is too short, an eighth the same text 30 times, an eighth nearly the same text.
    assert [(s.stage, s.rows_in, s.rows_out) for s in stages[:5]] == [
        ("length", 240, 210),
        ("exact-duplicates", 210, 181),
        ("near-duplicates", 181, 152),
        ("scrub", 152, 152),
        ("split", 152, 152),
    ]
    assert stages[0].reasons == (ReasonCount(reason="too short", rows=30),)
    assert stages[3].reasons == (ReasonCount(reason="email", rows=30),)
    left = list(read_rows(folder / "rows.jsonl"))
    asking = [r for r in left if r.split == "train" and b"Do you?" in format_row(r)]
    assert len(left) == 152 + len(asking) // 2
    assert set(Counter(asking).values()) == {2}, "a row that asks is seen twice"
    sides: dict[str, set[str | None]] = {}
    for row in left:
        sides.setdefault(row.body.group, set()).add(row.split)
    assert all(len(s) == 1 for s in sides.values())


def test_training_takes_what_a_curation_leaves(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 3, 80))
    folder = curated(store, CHARTER, tmp_path)
    data = store.curated / "rows.jsonl"
    assert data.resolve() == (folder / "rows.jsonl").resolve()
    manifest = write_reports(folder)
    sides: dict[Split, int] = {"train": manifest.left.train_rows, "heldout": manifest.left.heldout_rows}
    for split, n in sides.items():
        assert len(read_examples(data, split)) + len(read_texts(data, split)) + len(read_pairs(data, split)) == n


def test_the_order_in_which_sources_are_added_changes_nothing(tmp_path: Path, wanted: dict[str, bytes]) -> None:
    store = added(tmp_path / "other", write_sources(tmp_path / "in", 3, 80)[::-1])
    assert whole(curated(store, CHARTER, tmp_path)) == wanted


def test_the_same_rows_in_another_format_or_added_again_are_the_same_source(tmp_path: Path) -> None:
    (path,) = write_sources(tmp_path / "in", 1, 8)
    spelt = tmp_path / "in/other-name.jsonl"
    spelt.write_text("".join(json.dumps(json.loads(x), sort_keys=True) + "\n\n" for x in path.read_text().splitlines()))
    store = Store(tmp_path)
    with store.locked():
        assert [store.add(p, AS_NAMED, None, lambda _: None).new for p in (path, path, spelt)] == [True, False, False]
    assert len(store.sources()) == 1


# -- interruptions


def rows_in(store: Store) -> set[Path]:
    """Every file of the store that may hold rows."""
    return {p.relative_to(store.root) for p in store.root.rglob("*") if p.is_file() and p.name != "lock"}


def test_a_curation_that_is_interrupted_anywhere_leaves_nothing_and_ends_in_the_same_bytes_when_done_anew(
    tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    store, rules = added(tmp_path / "often", write_sources(tmp_path / "in", 3, 80)), charter(tmp_path)
    before = rows_in(store)

    def interrupted_at(place: int) -> bool:
        told = 0

        def report(stage: str, done: int, total: int | None) -> None:
            nonlocal told
            told += 1
            if told == place:
                raise KeyboardInterrupt

        try:
            with store.locked():
                curate(store, rules, None, SIGNER, report)
        except KeyboardInterrupt:
            assert rows_in(store) == before
            return True
        return False

    interruptions = next(place for place in itertools.count(1) if not interrupted_at(place)) - 1
    assert interruptions > 4
    assert whole(store.curated) == wanted


KILLED = """
import os, signal, sys
from pathlib import Path
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from commonweal_node.charter.charter import load_charter
from commonweal_node.rows.curate import Signer, curate
from commonweal_node.rows.shapes import AS_NAMED
from commonweal_node.rows.stages import whole_text
from commonweal_node.rows.store import Store

def report(stage, done, total):
    if done >= 200:
        os.kill(os.getpid(), signal.SIGKILL)
store = Store(Path(sys.argv[1]))
signer = Signer("valley", Ed25519PrivateKey.from_private_bytes(b"\\1" * 32), b"\\2" * 32)
with store.locked():
    if sys.argv[2] == "add":
        store.add(Path(sys.argv[3]), AS_NAMED, None, lambda size: report("add", 200 if size else 0, None))
    else:
        curate(store, load_charter(Path(sys.argv[3])), None, signer, report)
"""


def killed(store: Store, what: str, path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", KILLED, store.root.parent, what, path], capture_output=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


def test_kill_9_in_the_middle_of_a_curation_leaves_the_one_before_and_costs_no_row(
    tmp_path: Path, wanted: dict[str, bytes]
) -> None:
    first, *others = write_sources(tmp_path / "in", 3, 80)
    store = added(tmp_path / "killed", [first])
    before = whole(curated(store, CHARTER, tmp_path))
    added(tmp_path / "killed", others)
    killed(store, "curate", tmp_path / "charter.toml")
    assert (store.curations / ".open/rows.jsonl").exists(), "rows were being written"
    assert whole(store.curated) == before
    assert whole(curated(store, CHARTER, tmp_path)) == wanted
    assert not (store.curations / ".open").exists()


def test_kill_9_while_a_source_is_added_leaves_the_store_as_it_was(tmp_path: Path) -> None:
    one, two = write_sources(tmp_path / "in", 2, 80)
    store = added(tmp_path / "killed", [one])
    before, sources = rows_in(store), store.sources()
    killed(store, "add", two)
    assert (store.folder / ".open").exists(), "rows were being written"
    assert store.sources() == sources
    with store.locked():
        assert rows_in(store) == before


def test_a_curation_is_named_by_what_it_states_and_the_rows_of_earlier_ones_are_not_kept(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 2, 40))
    first = curated(store, CHARTER, tmp_path)
    wanted, written = whole(first), (first / "rows.jsonl").stat().st_mtime_ns
    assert first.name == hashlib.sha256(wanted["manifest.dsse"]).hexdigest()
    assert curated(store, CHARTER, tmp_path) == first
    assert (first / "rows.jsonl").stat().st_mtime_ns == written, "what training may be reading is left as it is"
    second = curated(store, CHARTER.replace("heldout_millis = 250", "heldout_millis = 300"), tmp_path)
    assert second != first
    assert whole(first) == {name: data for name, data in wanted.items() if name != "rows.jsonl"}
    assert curated(store, CHARTER, tmp_path) == first
    assert whole(store.curated) == wanted


def test_a_source_that_is_removed_leaves_no_row_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = write_sources(tmp_path / "in", 2, 80)
    home = tmp_path / "home"
    args = ["--institution", "v", "--data", str(one), "--charter", str(write_charter(tmp_path)), "--home", str(home)]
    assert run(["node", "init", *args]) == 0
    at = ["--home", str(home)]
    assert run(["node", "data", "add", str(one), str(two), *at]) == 0
    assert run(["node", "data", "curate", *at]) == 0
    assert run(["node", "data", "remove", "none.jsonl", *at]) == 2
    assert "none.jsonl: wanted one of source-0.jsonl, source-1.jsonl, got another name" in capsys.readouterr().err
    assert run(["node", "data", "remove", one.name, *at]) == 0
    assert "80 rows removed" in capsys.readouterr().out
    assert run(["node", "data", "curate", *at]) == 0
    for path in (p for p in home.rglob("*") if p.is_file()):
        assert b"tea0x" not in path.read_bytes(), path
    assert b"tea1x" in (home / "data/curated/rows.jsonl").read_bytes()
    assert run(["node", "data", "remove", two.name, *at]) == 0
    assert [p for p in home.rglob("*") if p.is_file() and b"tea1x" in p.read_bytes()] == [], "nothing is left to curate"


# -- what is refused


def test_a_disk_that_changes_a_row_or_loses_a_source_is_noticed_and_adding_it_again_mends_it(tmp_path: Path) -> None:
    (source,) = write_sources(tmp_path / "in", 1, 40)
    store = added(tmp_path, [source])
    (path,) = store.folder.glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b"tea0x3", b"tee0x3", 1))
    with pytest.raises(StorageError, match=r"wanted the rows of its name, got others; add source-0\.jsonl again"):
        curated(store, CHARTER, tmp_path)
    assert not store.curated.exists()
    added(tmp_path, [source])
    folder = curated(store, CHARTER, tmp_path)
    path.unlink()
    with pytest.raises(StorageError, match=r"cannot be read: .*; add source-0\.jsonl again"):
        curated(store, CHARTER, tmp_path)
    added(tmp_path, [source])
    assert curated(store, CHARTER, tmp_path) == folder


def test_one_command_at_a_time_changes_a_store(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with (
        store.locked(),
        pytest.raises(
            StorageError, match=r"data/lock: wanted the data store for this process alone, got another at work"
        ),
        Store(tmp_path).locked(),
    ):
        pass
    with store.locked():
        pass


def test_a_store_that_others_may_enter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    with pytest.raises(StorageError, match="wanted mode 0700, got 0755; run: chmod 700"), Store(tmp_path).locked():
        pass


def test_an_index_of_sources_that_was_changed_is_refused_and_costs_no_row(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 1, 8))
    (rows,) = store.folder.iterdir()
    index = store.root / "sources.json"
    for change in (b"", b'"rows":3,'):
        index.write_bytes(index.read_bytes()[:-2] + change)
        with pytest.raises(StorageError, match=r"sources\.json: wanted the index of the sources, got another file"):
            store.sources()
        with pytest.raises(StorageError, match=r"sources\.json: wanted the index"), store.locked():
            pass
    assert rows.exists()


def test_a_curation_that_leaves_nothing_on_one_side_is_refused_and_leaves_no_folder(tmp_path: Path) -> None:
    path = tmp_path / "one.jsonl"
    path.write_text('{"text": "a single text of one group"}\n')
    store = added(tmp_path, [path])
    with pytest.raises(ConfigError, match=r"wanted rows for training and rows held out, got [01] and [01]"):
        curated(store, CHARTER, tmp_path)
    assert list(store.curations.iterdir()) == []
    assert not store.curated.exists()


# -- the manifest


def manifest_of(folder: Path) -> DataManifest:
    manifest, signed_by = open_manifest((folder / "manifest.dsse").read_bytes())
    assert signed_by == public_hex(SIGNER.key)
    return manifest


def test_every_digest_of_rows_is_keyed_and_can_be_made_again_by_whoever_has_the_key(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 3, 40))
    folder = curated(store, CHARTER, tmp_path)
    manifest = manifest_of(folder)

    def keyed(files: list[Path]) -> str:
        lines = "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}\n" for p in files)
        return hmac.new(SIGNER.curation_key, lines.encode(), "sha256").hexdigest()

    assert manifest.left.rows == keyed([folder / "rows.jsonl"])
    inputs = [store.folder / f"{source.sha256}.jsonl" for source in store.sources()]
    assert manifest.taken.rows == keyed(inputs)
    long = [r for p in inputs for r in read_rows(p) if len(whole_text(r.body)) >= 20]
    sha256 = hashlib.sha256(b"".join(map(format_row, long))).hexdigest()
    assert manifest.stages[0].rows == hmac.new(SIGNER.curation_key, f"{sha256}\n".encode(), "sha256").hexdigest()
    # A later stage's, by a curation that ends with it.
    parts = CHARTER.split("[[data.stages]]\n")
    for n, stage in enumerate(manifest.stages[4:], start=5):
        shorter = curated(store, "[[data.stages]]\n".join(parts[: n + 1]), tmp_path)
        assert stage.rows == keyed([shorter / "rows.jsonl"])
    # Nor of the charter: what is not published in it is short, too.
    whole_charter = f"{load_charter(tmp_path / 'charter.toml').digest()}\n"
    assert manifest.charter == hmac.new(SIGNER.curation_key, whole_charter.encode(), "sha256").hexdigest()
    # No digest that could be tried against texts without the key: not of a file, nor of a row.
    said = manifest.to_bytes().decode()
    for path in (*inputs, folder / "rows.jsonl"):
        assert hashlib.sha256(path.read_bytes()).hexdigest() not in said
        for line in path.read_bytes().splitlines(keepends=True):
            assert hashlib.sha256(line).hexdigest() not in said
            assert hashlib.sha256(line.strip()).hexdigest() not in said


def test_a_manifest_counts_what_it_says(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 3, 80))
    folder = curated(store, CHARTER, tmp_path)
    left, rows = manifest_of(folder).left, list(read_rows(folder / "rows.jsonl"))
    assert (left.conversations, left.texts, left.preferences) == tuple(
        sum(type(r.body).__name__ == kind for r in rows) for kind in ("Example", "Text", "Pair")
    )
    for split, n, groups in (
        ("train", left.train_rows, left.train_groups),
        ("heldout", left.heldout_rows, left.heldout_groups),
    ):
        side = [r for r in rows if r.split == split]
        assert (n, groups) == (len(side), len({r.body.group for r in side}))
    assert (manifest_of(folder).taken.texts, manifest_of(folder).taken.sources) == (120, 3)


def test_a_manifest_that_was_changed_or_spelt_otherwise_is_refused(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 1, 80))
    folder = curated(store, CHARTER, tmp_path)
    data, manifest = (folder / "manifest.dsse").read_bytes(), manifest_of(folder)
    assert sign_manifest(manifest, SIGNER.key) == data
    envelope = json.loads(data)
    other = sign_manifest(manifest, Ed25519PrivateKey.generate())
    forged = json.dumps(envelope | {"payload": json.loads(other)["payload"][:-8] + "AAAAAAA="}, separators=(",", ":"))
    with pytest.raises((SignatureError, MalformedError)):
        open_manifest(forged.encode())
    swapped = other.replace(
        json.loads(other)["signatures"][0]["sig"].encode(), envelope["signatures"][0]["sig"].encode()
    )
    with pytest.raises(SignatureError):
        open_manifest(swapped)
    with pytest.raises(ValidationError):
        DataManifest.model_validate(manifest.model_dump() | {"text": "no"})


def test_the_words_of_a_trait_stay_in_the_charter(tmp_path: Path) -> None:
    text = CHARTER.replace("patterns = ['\\?$']", 'patterns = [\'\\?$\']\nphrases = ["our secret word", "and another"]')
    store = added(tmp_path, write_sources(tmp_path / "in", 1, 80))
    folder = curated(store, text, tmp_path)
    (trait,) = json.loads((folder / "report.json").read_bytes())["stages"][-1]["parameters"]["traits"]
    assert trait == {"name": "asks", "enough": 1, "extra_copies_millis": 1000, "phrases": 2, "patterns": 1}
    assert all(b"secret word" not in data for name, data in whole(folder).items())


def test_the_key_of_keyed_digests_is_made_once_and_read_by_its_owner_alone(tmp_path: Path) -> None:
    key = load_curation_key(tmp_path)
    assert len(key) == 32
    assert load_curation_key(tmp_path) == key
    (tmp_path / "keys/curation.key").chmod(0o644)
    with pytest.raises(StorageError, match="wanted mode 0600, got 0644"):
        load_curation_key(tmp_path)
    (tmp_path / "keys/curation.key").chmod(0o600)
    for size, message in ((31, "wanted 32 bytes, got 31"), (33, "of at most 32 bytes, got more")):
        (tmp_path / "keys/curation.key").write_bytes(bytes(size))
        with pytest.raises(StorageError, match=message):
            load_curation_key(tmp_path)


# -- the report


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.links: list[str] = []
        self.widths: list[float] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        found = dict(attrs)
        self.links += [v or "" for k, v in attrs if k in ("src", "href")]
        if tag == "rect" and "kept" in (found["class"] or ""):
            self.widths.append(float(found["width"] or 0))


def test_the_report_is_one_page_with_a_funnel_to_scale_and_loads_nothing(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 3, 80))
    folder = curated(store, CHARTER, tmp_path)
    page = Page()
    text = (folder / "report.html").read_text()
    page.feed(text)
    assert page.links == []
    assert page.tags["script"] == 0
    assert page.tags["svg"] == 1
    manifest = manifest_of(folder)
    counts = [240, *(s.rows_out for s in manifest.stages)]
    # A stage that adds rows is drawn as what it was given, and the rest behind it.
    kept = [counts[0], *(min(a, b) for a, b in itertools.pairwise(counts))]
    assert page.widths == [pytest.approx(420 * n / max(counts), abs=0.06) for n in kept]
    assert json.loads((folder / "report.json").read_bytes()) == json.loads(manifest.to_bytes())


def test_what_a_charter_says_cannot_become_markup(tmp_path: Path) -> None:
    store = added(tmp_path, write_sources(tmp_path / "in", 1, 80))
    folder = curated(store, CHARTER, tmp_path)
    manifest = manifest_of(folder)
    bad = ReasonCount(reason="<script>alert(1)</script>", rows=1)
    stage = manifest.stages[0].model_copy(update={"reasons": (bad,), "by": "<img src=x>"})
    page = to_html(manifest.model_copy(update={"stages": (stage,)}), "key").decode()
    assert "<script>" not in page
    assert "<img" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page


# -- nothing gets out


def test_no_word_of_a_row_is_in_a_manifest_a_report_a_message_or_a_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    home, sources = tmp_path / "home", write_sources(tmp_path / "in", 2, 80)
    rules = write_charter(tmp_path)
    bad = tmp_path / "bad.jsonl"
    bad.write_text(f'{{"text": "{CANARY}", "split": "{CANARY}"}}\n')
    args = ["--institution", "valley", "--data", str(sources[0]), "--charter", str(rules), "--home", str(home)]
    assert run(["node", "init", *args]) == 0
    at = ["--home", str(home)]
    assert run(["node", "data", "add", *map(str, sources), *at]) == 0
    assert run(["node", "data", "add", str(sources[0]), "--dry-run", "--json", *at]) == 0
    assert run(["node", "data", "add", str(bad), *at]) == 2
    for extra in ([], ["--json"]):
        assert run(["node", "data", "inspect", *extra, *at]) == 0
        assert run(["node", "data", "curate", "--dry-run", *extra, *at]) == 0
        assert run(["node", "data", "curate", *extra, *at]) == 0
        assert run(["node", "data", "report", *extra, *at]) == 0
    out, err = capfd.readouterr()
    assert "bad.jsonl, line 1: split" in err
    said = {"stdout": out.encode(), "stderr": err.encode()}
    rowless = [p for p in home.rglob("*") if p.is_file() and p.suffix != ".jsonl"]
    said |= {str(p): p.read_bytes() for p in rowless}
    said |= {"names": "\n".join(map(str, home.rglob("*"))).encode()}
    for where, data in said.items():
        for word in (CANARY, EMAIL, "tea0x3", "license of"):
            assert word.encode() not in data, f"{word} in {where}"
    assert {"manifest.dsse", "report.html", "report.json", "sources.json"} <= {p.name for p in rowless}
    # The test has teeth: the words are there, where rows are, and the address only where it was before the scrubbing.
    assert CANARY.encode() in (home / "data/curated/rows.jsonl").read_bytes()
    assert EMAIL.encode() not in (home / "data/curated/rows.jsonl").read_bytes()


def test_everything_in_the_store_is_its_owners_alone(tmp_path: Path) -> None:
    home, sources = tmp_path / "home", write_sources(tmp_path / "in", 1, 80)
    before = os.umask(0)
    try:
        args = ["--institution", "valley", "--data", str(sources[0]), "--charter", str(write_charter(tmp_path))]
        assert run(["node", "init", *args, "--home", str(home)]) == 0
        assert run(["node", "data", "add", str(sources[0]), "--home", str(home)]) == 0
        assert run(["node", "data", "curate", "--home", str(home)]) == 0
    finally:
        os.umask(before)
    for path in [home / "data", *(home / "data").rglob("*"), home / "keys/curation.key"]:
        if not path.is_symlink():
            mode = stat.S_IMODE(path.stat().st_mode)
            assert mode == (0o700 if path.is_dir() else 0o600), path


# -- the commands


def test_the_commands_say_for_machines_what_they_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home, (one, two) = tmp_path / "home", write_sources(tmp_path / "in", 2, 80)

    def said(*args: str) -> list[object]:
        capsys.readouterr()
        assert run(["node", "data", *args, "--json", "--home", str(home)]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    rules = write_charter(tmp_path)
    assert (
        run(["node", "init", "--institution", "v", "--data", str(one), "--charter", str(rules), "--home", str(home)])
        == 0
    )
    record = {
        "source": one.name,
        "rows": 80,
        "kinds": {"conversation": 20, "preference": 20, "text": 40},
        "delimiter": None,
    }
    assert said("add", str(one), "--dry-run") == [record | {"new": False}]
    assert not (home / "data").exists(), "a dry run writes nothing"
    assert said("add", str(one), str(two), "--split", "train") == [
        record | {"new": True},
        record | {"new": True, "source": two.name},
    ]
    (found,) = said("inspect")
    assert isinstance(found, dict)
    assert found["splits"] == {"train": 160}
    stages = ["length", "exact-duplicates", "near-duplicates", "scrub", "split", "traits"]
    assert said("curate", "--dry-run") == [[{"stage": s, "done": False} for s in stages]]
    (manifest,) = said("curate")
    assert isinstance(manifest, dict)
    assert [s["stage"] for s in manifest["stages"]] == stages
    assert said("curate", "--dry-run") == [[{"stage": s, "done": True} for s in stages]]
    assert said("report") == [manifest]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["add", "none.jsonl"], "none.jsonl: wanted a file, got none"),
        (["add", "none.jsonl", "--split", "test"], "--split: wanted train or heldout, got 'test'"),
        (["inspect"], "wanted at least one source, got none; run: commonweal node data add"),
        (["curate"], "run: commonweal node init"),
    ],
)
def test_a_command_that_cannot_be_done_says_what_to_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], args: list[str], message: str
) -> None:
    assert run(["node", "data", *args, "--home", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err.replace("\n", " ")


# -- the survey


def test_a_survey_counts_by_the_definition() -> None:
    texts = ["a b c", "a  B c!", *(" ".join(f"w{i}" for i in range(50)) + f" {x}" for x in "xy"), "ok then"]
    rows = [Row(Text(t, f"g{i // 2}"), "heldout" if i == 4 else None) for i, t in enumerate(texts)]
    found = survey(rows, None, None)
    lengths = sorted(map(len, texts))
    assert found.lengths.model_dump() == {
        "unit": "characters",
        "total": sum(lengths),
        "least": lengths[0],
        "median": lengths[2],
        "p90": lengths[4],
        "most": lengths[4],
    }
    assert (found.rows, found.groups, found.exact_copies, found.near_copies) == (5, 3, 1, 1)
    assert found.splits == {"heldout": 1, "not stated": 4}
    assert found.languages is None
    assert survey(rows, None, load_identifier()).languages is not None


def test_tokens_are_counted_by_the_base_models_own_tokenizer(tmp_path: Path) -> None:
    tiny_tokenizer().save_pretrained(tmp_path)
    count = load_token_counter(tmp_path)
    # One token for each byte of UTF-8.
    assert count("größe") == len("größe".encode())
    assert survey([Row(Text("größe", "g"))], count, None).lengths.total == 7
    with pytest.raises(BaseModelError, match="wanted a tokenizer, got none"):
        load_token_counter(tmp_path / "elsewhere")


# -- with a model


REVISING = CHARTER + '[[data.stages]]\nstage = "revise"\nprinciples = [1]\nmax_rows = 3\nmax_new_tokens = 4\n'


def test_the_local_model_revises_and_gives_the_same_again(tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "base")
    model = LocalModel(tmp_path / "base", None, None)
    rules = charter(tmp_path, REVISING.replace("max_rows", "share_millis = 1000\nmax_rows"))

    def end(home: Path) -> Path:
        store = added(home, write_sources(tmp_path / "in", 1, 80))
        with store.locked():
            return curate(store, rules, model, SIGNER, quiet)

    folder, other = end(tmp_path / "one"), end(tmp_path / "two")
    assert whole(folder) == whole(other)
    manifest = manifest_of(folder)
    made = [r for r in read_rows(folder / "rows.jsonl") if r.synthetic]
    asked = {r.reason: r.rows for r in manifest.stages[-1].reasons if "bound" not in r.reason}
    assert sum(asked.values()) == 3
    assert len(made) == manifest.left.synthetic == asked.get("principle 1", 0)
    assert {r.synthetic for r in made} <= {("principle 1",)}
    assert manifest.stages[-1].by == model.name


def test_a_conversation_that_has_no_room_gets_no_answer(tmp_path: Path) -> None:
    save_tiny_base(tmp_path / "base")
    model = LocalModel(tmp_path / "base", None, None)
    assert model.answer([Message("user", "x" * 600)], 4) == ""
    assert model.answer([Message("user", "x")], 500) == ""
    with pytest.raises(BaseModelError, match="wanted a base model's folder, got none"):
        LocalModel(tmp_path / "none", None, None)
    with pytest.raises(BaseModelError, match="wanted a PEFT adapter of"):
        LocalModel(tmp_path / "base", tmp_path, None)


class Parrot:
    """A reviser that answers in the asker's own words."""

    name = "parrot"

    def __init__(self) -> None:
        self.asked = 0

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> str:
        self.asked += 1
        return f"you say {messages[0].content}"


def test_a_curation_that_is_done_anew_asks_the_model_nothing_twice_and_a_withdrawn_rows_answers_are_gone(
    tmp_path: Path,
) -> None:
    store, parrot = added(tmp_path, write_sources(tmp_path / "in", 2, 80)), Parrot()
    rules = charter(tmp_path, REVISING.replace("max_rows = 3", "share_millis = 1000\nmax_rows = 100"))

    def again() -> bytes:
        with store.locked():
            curate(store, rules, parrot, SIGNER, quiet)
        return store.answers.read_bytes()

    assert b"you say tea0x" in again()
    asked = parrot.asked
    assert b"you say tea0x" in again()
    with store.locked():
        assert store.remove("source-0.jsonl") == 80
    assert b"you say tea0x" not in (kept := again())
    assert b"you say tea1x" in kept
    assert parrot.asked == asked


def test_to_revise_without_a_model_is_refused_before_anything_is_done(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="stage revise: wanted a model, got none; give --base FOLDER"):
        plan(charter(tmp_path, REVISING), None)


# -- size


LIMITED = """
import resource, sys
from pathlib import Path
import commonweal_node.commands.data
import commonweal_node.rows.curate
from commonweal_protocols.cli import run

used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) << 10
resource.setrlimit(resource.RLIMIT_DATA, (used + (112 << 20),) * 2)
sys.exit(run(["node", "data", *sys.argv[1:]]))
"""
CONTENT = "a line of a book that nobody has read yet, number {}; " * 36 + "\n"


def test_a_file_of_200_mb_is_taken_in_within_a_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    rows = 200_000_000 // len(CONTENT) + 1
    with path.open("w") as f:
        for i in range(rows):
            f.write('{"text":"' + CONTENT.replace("{}", str(i)).strip() + '"}\n')
    assert path.stat().st_size > 200_000_000
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "add", path, "--json", "--home", tmp_path / "home"],
        capture_output=True,
        check=False,
        # Threads of numpy's would reserve memory of their own.
        env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout)["rows"] == rows
    # pytest keeps folders for a while.
    path.unlink()
    shutil.rmtree(tmp_path / "home")


# -- real communities


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real communities in {DATA.name}")
def test_a_real_community_is_curated_and_loses_only_what_the_charter_says(tmp_path: Path) -> None:
    path = DATA / "region-assam.jsonl"
    text = CHARTER.replace(
        "min_characters = 20", 'min_characters = 20\n[[data.stages]]\nstage = "license"\nlicenses = ["CC-BY-SA-4.0"]'
    )
    store = added(tmp_path, [path])
    folder = curated(store, text, tmp_path)
    stages = manifest_of(folder).stages
    taken = len(path.read_bytes().splitlines())
    assert stages[0].rows_in == taken
    dropped = sum(r.rows for s in stages for r in s.reasons if re.search("short|license|earlier row", r.reason))
    assert stages[-2].rows_out == taken - dropped
    rows = list(read_rows(folder / "rows.jsonl"))
    groups = {s: {r.body.group for r in rows if r.split == s} for s in ("train", "heldout")}
    assert not groups["train"] & groups["heldout"]
