"""A consortium as a member of another, as real processes: its delegate's daemon gives its release, both logs agree."""

import json
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.processes import Processes, tiny_terms, write_rows

pytestmark = pytest.mark.slow


def consortium(home: Path, name: str, members: tuple[str, str], **options: Sequence[str]) -> Processes:
    """A consortium of two that trains for five steps, once; ``options`` are of a member's ``node init``."""
    home.mkdir()
    terms = tiny_terms(home, 5).replace('"three"', f'"{name}"').replace('"factor-mean"', '"svd"')
    rows: Mapping[str, Path] = {m: write_rows(home / f"{m}.jsonl", m) for m in members}
    return Processes(home, terms=terms, rows=rows, rounds=1, node_options=options)


def test_a_delegates_daemon_gives_its_consortiums_release_and_an_auditor_of_both_logs_finds_it_so(
    tmp_path: Path,
) -> None:
    with consortium(tmp_path / "ring", "ring", ("clinic", "library")) as ring:
        ring.start_all()
        inner = ring.wait("the inner release and all decisions", partial(ring.finished, 1))
        for name in ring.names:
            ring.stop(name)
        invite, ca = json.loads((ring.coordinator / "invite.json").read_text()), tmp_path / "ring-ca.pem"
        ca.write_text(invite["ca_pem"])
        records = ["--speaks-for-records", invite["records"], "--speaks-for-ca", str(ca)]
        speaks_for = ["--speaks-for", inner.consortium, *records]
        with consortium(tmp_path / "union", "union", ("coop", "delta"), delta=speaks_for) as union:
            union.start_all()
            state = union.wait("the outer release and all decisions", partial(union.finished, 1))
            # Code 4: its local port is taken, by the daemon.
            checks = json.loads(union.command("node", "doctor", "--home", union.node("delta"), "--json", code=4))
    (speaks,) = [c for c in checks if c["name"] == "speaks for"]
    assert (speaks["ok"], speaks["found"].split(",")[0]) == (True, inner.consortium)
    logged, update = inner.rounds[0].release, state.rounds[0].updates["delta"].update
    assert logged is not None
    assert update.release is not None
    assert (update.release.release_leaf, update.release.adapter) == (logged.leaf, logged.release.adapter)
    # Two institutions with sixteen training rows each.
    assert update.num_examples == 2 * 16
    (check,) = json.loads(union.command("audit", "foreign", union.public, "--other", ring.public, "--json"))
    assert (check["verdict"], check["named"]["institution"]) == ("holds", "delta")
    assert check["sentence"].endswith("start and delta make it, byte for byte")
    union.command("audit", "run", "--dir", union.public, "--no-memory")
