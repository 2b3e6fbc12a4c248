"""Whatever bytes arrive, a parser accepts them in their one encoding or refuses them; nothing else escapes.

The targets are in ``fuzz/targets.py``, and their corpus of valid samples in ``fuzz/corpus/``. A longer hunt:
``python -m tests.fuzz.run TARGET -max_total_time=SECONDS NEW_FOLDER tests/fuzz/corpus/TARGET``.
"""

import importlib.util
import inspect
import json
import pkgutil
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import commonweal_adapters
import commonweal_protocols
from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import MalformedError
from tests.fuzz import targets
from tests.fuzz.seeds import CORPUS, FOUND, make_seeds
from tests.fuzz.targets import TARGETS, accepts

ROOT = Path(__file__).parents[2]
SECONDS, RUNS = 1, 50_000  # of the fuzzer, for each target: whichever is over first
EDITS_PER_SAMPLE = 100
# Parsers of what only its own program writes, of a person's settings, or of what is fuzzed in or as parts; and what
# opens no bytes at all.
NOT_FOREIGN = {
    "parse_memory",
    "parse_log",
    "open_cosigned_proof",
    "open_entries",
    "parse_toml",
    "open_part",
    "open_source",
    "open_database",
}


def samples(target: str) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in sorted((CORPUS / target).iterdir())}


def test_every_parser_of_foreign_bytes_is_fuzzed() -> None:
    parsers = {
        name
        for room in (commonweal_protocols, commonweal_adapters)
        for info in pkgutil.walk_packages(room.__path__, f"{room.__name__}.")
        if not info.ispkg
        for name, value in vars(importlib.import_module(info.name)).items()
        if inspect.isfunction(value) and name.startswith(("parse_", "open_"))
    }
    assert {"parse_envelope", "open_note", "parse_bundle"} <= parsers
    assert parsers - NOT_FOREIGN - vars(targets).keys() == set(), "wanted a target in tests/fuzz/targets.py"


def test_the_corpus_has_every_sample_that_the_encoders_make_and_each_is_accepted() -> None:
    kept = {target: {n for n in samples(target) if not n.startswith(FOUND)} for target in TARGETS}
    assert kept == {target: set(made) for target, made in make_seeds().items()}
    refused = [f"{t}/{n}" for t, names in kept.items() for n in names if not accepts(t, samples(t)[n])]
    assert not refused, "has a format changed? then: python -m tests.fuzz.seeds"


def test_what_was_found_once_is_a_finding_no_more() -> None:
    found = [f for f in sorted(CORPUS.glob(f"*/{FOUND}*")) if not accepts(f.parent.name, f.read_bytes())]
    assert {f.name for f in found} == {"found-nesting", "found-true-for-one"}


def edits(data: bytes, rng: random.Random) -> Iterator[bytes]:
    """One small change after another: a bit, a byte more or fewer, a part twice, cut out, alone or backwards."""
    for _ in range(EDITS_PER_SAMPLE):
        at, to = sorted(rng.sample(range(len(data) + 1), 2))
        yield data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]
        for edge in (at, to):
            yield (
                data[:edge]
                + rng.choice([b"\0", b"\n", b" ", b'"', b"9", b"\xff", b"\xc2\xa0", b"\\u0000"])
                + data[edge:]
            )
        yield data[:at] + data[at + 1 :]
        yield data[:at] + data[at:to] * 2 + data[to:]
        yield data[:at] + data[to:]
        yield data[at:to]
        yield data[:at] + data[at:to][::-1] + data[to:]


STRANGERS: list[canonical.Json] = [None, True, 0, -1, 2**53 - 1, "", "é\n", [], [[]], {}, {"": None}]


def replaced(value: canonical.Json) -> Iterator[canonical.Json]:
    """``value`` with one thing in it after another replaced by something of any type, left out, or added."""
    yield from STRANGERS
    if isinstance(value, dict):
        for key, inner in value.items():
            yield {k: v for k, v in value.items() if k != key}
            yield from ({**value, key: other} for other in replaced(inner))
        yield {**value, "": None}
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield value[:i] + value[i + 1 :]
            yield from ([*value[:i], other, *value[i + 1 :]] for other in replaced(inner))
        yield from (value[::-1], [*value, *value[-1:]], [*value, None])


def restructured(target: str, data: bytes) -> Iterator[bytes]:
    """The edits of a sample that is JSON, or that has JSON behind a length, each encoded as it should be."""
    start = 8 if target in ("adapter", "delta", "encoded", "layout") else 0
    end = start + int.from_bytes(data[:start], "little") if start else len(data)
    if data[start : start + 1] != b"{":
        return
    for value in replaced(json.loads(data[start:end])):
        text = canonical.encode(value)
        if start:
            text += b" " * (-len(text) % 8)
        yield (len(text).to_bytes(8, "little") if start else b"") + text + data[end:]


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_small_change_is_accepted_in_its_one_encoding_or_refused(target: str) -> None:
    rng = random.Random(target)
    results = [accepts(target, data) for sample in samples(target).values() for data in edits(sample, rng)]
    assert False in results


@pytest.mark.parametrize(
    "target", ["adapter", "delta", "encoded", "envelope", "join", "json", "layout", "statement", "verdict"]
)
def test_a_value_of_any_other_type_is_accepted_in_its_one_encoding_or_refused(target: str) -> None:
    results = [accepts(target, data) for sample in samples(target).values() for data in restructured(target, sample)]
    assert len(results) > 100
    assert target == "json" or False in results


@pytest.mark.parametrize("target", sorted(TARGETS))
def test_nothing_and_noise_are_refused(target: str) -> None:
    rng = random.Random(target)
    assert not accepts(target, b"")
    assert not any(accepts(target, rng.randbytes(rng.randrange(9, 200))) for _ in range(300))


@pytest.mark.parametrize(("before", "after"), [("[", "]"), ('{"a":', "}"), ('{"\\n":', "}"), ("[1,", ",2]")])
@pytest.mark.parametrize("leaf", ["1", '"\\n\\u0001"', '{"\\n":1}', '"é"', '{"é":"\\n"}'])
def test_nesting_of_any_depth_is_parsed_or_refused(before: str, after: str, leaf: str) -> None:
    # Between what can still be read and what can still be written again lie a few depths, others on each Python.
    depths = [*range(1, 900, 50), *range(900, 1020), 5_000, 9_000]
    parsed = []
    for depth in depths:
        try:
            canonical.parse((before * depth + leaf + after * depth).encode(), max_bytes=1 << 20)
        except MalformedError:
            continue
        parsed.append(depth)
    assert parsed == depths[: len(parsed)]
    assert 1 in parsed


@pytest.mark.skipif(
    not importlib.util.find_spec("atheris"), reason="wanted atheris; there are wheels for some machines"
)
@pytest.mark.parametrize("target", sorted(TARGETS))
def test_a_fuzzer_finds_nothing(target: str, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    command = [sys.executable, "-m", "tests.fuzz.run", target, f"-max_total_time={SECONDS}"]
    command += [
        f"-runs={RUNS}",
        "-timeout=20",
        f"-artifact_prefix={tmp_path}/",
        str(tmp_path / "corpus"),
        str(CORPUS / target),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    findings = [f.read_bytes() for f in tmp_path.iterdir() if f.is_file()]
    assert done.returncode == 0, f"found {findings}; keep it as corpus/{target}/{FOUND}...\n{done.stderr[-3000:]}"
    assert re.search(r"^Done [0-9]{3,} runs", done.stderr, re.MULTILINE), done.stderr[-3000:]
