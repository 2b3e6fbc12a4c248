"""A small community for the tests of curations: rows of every kind, copies, personal data, and a canary in each row."""

import json
from collections.abc import Iterator
from pathlib import Path

from commonweal_node.charter.charter import Charter, load_charter

CANARY = "zanzibarquokka"
"""One word, so that nothing may have split it: in every text, group, licence, and in what is not kept."""
EMAIL = "quokka@example.org"
CHARTER = """\
community = "Valley"
version = 3
principles = ["ask before advising", "say what others do, too"]
data_policy = "what members wrote for this"
[data]
[[data.stages]]
stage = "length"
min_characters = 20
[[data.stages]]
stage = "exact-duplicates"
[[data.stages]]
stage = "near-duplicates"
[[data.stages]]
stage = "scrub"
kinds = ["email", "ip"]
[[data.stages]]
stage = "split"
heldout_millis = 250
[[data.stages]]
stage = "traits"
[[data.stages.traits]]
name = "asks"
enough = 1
patterns = ['\\?$']
"""
DATA = Path(__file__).parents[3] / "shared/data/communities"
"""Seven real communities, on the machines that have them."""


def rows(source: int, count: int) -> Iterator[dict[str, object]]:
    """One source's rows: one of eight is too short, one a copy, one nearly one, one has an address, two ask."""
    for i in range(count):
        topic = " ".join(f"{word}{source}x{i}" for word in ("tea", "rice", "rain", "bread", "salt", "wool", "clay"))
        marks: dict[str, object] = {"license": f"license of {CANARY}", "source": CANARY, "meta": {CANARY: CANARY}}
        said = f"{CANARY} says {topic}"
        match i % 8:
            case 0:
                yield marks | {"text": CANARY}
            case 1:
                yield marks | {"text": f"{CANARY} knows this one already, as does everybody"}
            case 2:
                long = " ".join(f"{CANARY}{k}" for k in range(200))
                yield marks | {"text": f"{long} {source} {i}"}
            case 3:
                yield marks | {"text": f"{said}; write to {EMAIL}"}
            case 4 | 5:
                turns = [{"role": "user", "content": f"{topic}?"}, {"role": "assistant", "content": f"{said}. Do you?"}]
                yield marks | {"messages": turns, "meta": {"qid": f"{CANARY} {source} {i // 4}"}}
            case _:
                yield marks | {"prompt": f"{topic}?", "chosen": said, "rejected": f"no {topic}"}


def write_sources(folder: Path, sources: int, count: int) -> list[Path]:
    """Write so many sources of so many rows each."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for s in range(sources):
        path = folder / f"source-{s}.jsonl"
        path.write_text("".join(json.dumps(r) + "\n" for r in rows(s, count)))
        paths.append(path)
    return paths


def write_charter(folder: Path, text: str = CHARTER) -> Path:
    """Write the charter's file."""
    path = folder / "charter.toml"
    path.write_text(text)
    return path


def charter(folder: Path, text: str = CHARTER) -> Charter:
    """Write the charter and read it."""
    return load_charter(write_charter(folder, text))
