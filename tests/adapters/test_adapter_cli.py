"""``commonweal adapter``: through the real program, on PEFT folders, on files, and on a log."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy

from commonweal_adapters.exact.weighted_sum import factor_mean
from commonweal_adapters.files.delta import GridTensors, from_grid, read_adapter, read_delta, write_adapter, write_delta
from commonweal_adapters.files.encode import quantise, read_encoded
from commonweal_adapters.files.peft_files import CONFIG, WEIGHTS, load_adapter, save_adapter
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.recompute import merge_release
from commonweal_adapters.rules.plural import distance_micros
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import BlobError
from commonweal_protocols.statements.delta_encoding import Encoding
from tests.kit.blocked_imports import run_blocked
from tests.kit.encodings import delta, equal
from tests.kit.federation import TINY, two_rounds
from tests.kit.terminal import Terminal

NAMES = ("clinic", "school", "coop")
SORTED = TINY.model_copy(update={"modules": tuple(sorted(TINY.modules, key=lambda m: m.name)), "seed": 0})


@pytest.fixture
def folders(tmp_path: Path) -> list[Path]:
    for i, name in enumerate(NAMES):
        save_adapter(tmp_path / name, TINY, delta(i + 1, TINY), "hub/base")
    return [tmp_path / name for name in NAMES]


def answer(program: Terminal, *args: str | Path, code: int = 0) -> Any:  # noqa: ANN401 - what JSON holds
    assert program("adapter", *args, "--json") == code, program.err
    return json.loads(program.out)


# -- inspect


def test_inspect_says_what_an_adapter_is(program: Terminal, folders: list[Path]) -> None:
    found = answer(program, "inspect", folders[0])
    assert (found["rank"], found["alpha"], found["layers"], found["base"]) == (2, 4, 2, "hub/base")
    assert [m["module"] for m in found["modules"]] == sorted(m.name for m in TINY.modules)
    assert (found["problems"], found["fit"]["off_grid"]) == ([], 0)
    assert sum(m["share"] for m in found["modules"]) == pytest.approx(1)
    assert program("adapter", "inspect", folders[0]) == 0
    for shown in ("rank      2\n", "layers    2\n", "mlp.up_proj", "base      hub/base\n", "‖s·B·A‖"):
        assert shown in program.out


def test_inspect_shows_what_is_wrong_and_exits_1(program: Terminal, folders: list[Path], tmp_path: Path) -> None:
    tensors = from_grid(delta(1, TINY), 20)
    tensors[min(tensors)][0, 0] = math.nan
    (folders[0] / WEIGHTS).write_bytes(safetensors.numpy.save(tensors))
    config = json.loads((folders[0] / CONFIG).read_text())
    (folders[0] / CONFIG).write_text(json.dumps({**config, "r": 3, "base_model_name_or_path": "x\x1b[2J[red]"}))
    found = answer(program, "inspect", folders[0], code=1)
    assert [p for p in found["problems"] if "1 values are not finite" in p]
    assert [p for p in found["problems"] if "r: wanted 2, which the tensors have, got 3" in p]
    assert (found["modules"], found["fit"]) == ([], None)
    assert program("adapter", "inspect", folders[0]) == 1
    assert "problems  r: wanted 2" in program.out
    assert "base      x?[2J[red]\n" in program.out


def test_inspect_says_which_grid_is_too_fine(program: Terminal, tmp_path: Path) -> None:
    save_adapter(tmp_path, TINY.model_copy(update={"grid_bits": 8}), delta(1, TINY, 1 << 20), "b")
    assert answer(program, "inspect", tmp_path, "--grid-bits", "10")["problems"] == []
    (problem,) = answer(program, "inspect", tmp_path, "--grid-bits", "20", code=1)["problems"]
    assert "wanted at most ±2^4 for this grid" in problem


def test_inspect_reads_a_consortiums_own_files(program: Terminal, tmp_path: Path) -> None:
    (tmp_path / "delta").write_bytes(write_delta(delta(1, TINY), TINY))
    found = answer(program, "inspect", tmp_path / "delta")
    assert (found["is_delta"], found["dtypes"], found["alpha"]) == (True, ["I32"], None)
    assert program("adapter", "inspect", tmp_path / "delta") == 0
    assert "is delta  yes\n" in program.out
    assert "‖A‖" in program.out
    assert "‖s·B·A‖" not in program.out


# -- diff


def test_diff_tells_the_same_from_another(program: Terminal, folders: list[Path]) -> None:
    same = answer(program, "diff", folders[0], folders[0])
    assert [row["module"] for row in same] == ["all", *sorted(m.name for m in TINY.modules)]
    assert same[0]["cosine_product"] == pytest.approx(1)
    other = answer(program, "diff", folders[0], folders[1])
    assert abs(other[0]["cosine_product"]) < 0.9
    assert program("adapter", "diff", folders[0], folders[1]) == 0
    assert "mlp.up_proj" in program.out


def test_diff_of_another_shape_is_refused_and_a_rank_is_no_shape(
    program: Terminal, folders: list[Path], tmp_path: Path
) -> None:
    wide = TINY.model_copy(update={"rank": 4})
    save_adapter(tmp_path / "wide", wide, delta(1, wide), "b")
    assert answer(program, "diff", folders[0], tmp_path / "wide")[0]["cosine_factors"] is None
    other = TINY.model_copy(update={"layers": 1})
    save_adapter(tmp_path / "short", other, delta(1, other), "b")
    assert program("adapter", "diff", folders[0], tmp_path / "short") == 1
    assert "wanted the layers and modules of rank 2, alpha 4, 2 layers" in program.err


# -- merge


def test_merge_writes_the_rules_adapter_and_states_its_error(
    program: Terminal, folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = answer(program, "merge", *folders, "--weight", "3", "--weight", "1", "--weight", "1", "--out", out)
    zeros = GridTensors({n: np.zeros_like(q) for n, q in delta(1, SORTED).items()})
    grids = [load_adapter(f).grid(20) for f in folders]
    weights = (3, 1, 1)
    wanted = factor_mean(zeros, [Delta(str(i), weights[i], Held(grid)) for i, grid in enumerate(grids)])
    data = (out / WEIGHTS).read_bytes()
    assert equal(read_adapter(data, SORTED), wanted)
    assert report["adapter_sha256"] == digest_of(data)
    assert [i["weight"] for i in report["inputs"]] == [3, 1, 1]
    # The stated error, from the dense products.
    off = whole = 0.0
    for name in (n for n, _ in zeros.items() if "lora_A" in n):
        b_name = name.replace("lora_A", "lora_B")
        exact = sum(w * g[b_name].astype(float) @ g[name] for w, g in zip(weights, grids, strict=True)) / 5
        off += float(np.sum((wanted[b_name].astype(float) @ wanted[name] - exact) ** 2))
        whole += float(np.sum(exact**2))
    assert report["error_micros"] == math.floor(1e6 * math.sqrt(off / whole))
    assert program("adapter", "inspect", out) == 0
    assert program("adapter", "merge", *folders, "--out", out) == 0
    assert "error against the exact merge" in program.out


@pytest.mark.parametrize(
    ("rule", "params"),
    [
        ("trimmed-mean", ["hostile=1"]),
        ("median", []),
        ("ties", ["density_millis=300"]),
        ("dare", ["drop_millis=500", "seed=3"]),
        ("multi-krum", ["hostile=1"]),
        ("norm-bound", ["norm_micros=1000"]),
        ("svd", []),
    ],
)
def test_merge_takes_every_kind_of_rule_by_name(
    program: Terminal, folders: list[Path], tmp_path: Path, rule: str, params: list[str]
) -> None:
    args = [x for p in params for x in ("--rule-param", p)]
    digests = {
        answer(program, "merge", *folders, "--rule", rule, *args, "--seed", seed, "--out", tmp_path / "o")[
            "adapter_sha256"
        ]
        for seed in ("1", "1", "2")
    }
    assert len(digests) == (2 if rule == "dare" else 1)


def test_merge_from_a_start_merges_what_was_trained_since(
    program: Terminal, folders: list[Path], tmp_path: Path
) -> None:
    args = (
        "--rule",
        "task-arithmetic",
        "--rule-param",
        "scale_millis=500",
        "--start",
        folders[0],
        "--out",
        tmp_path / "o",
    )
    answer(program, "merge", folders[1], folders[1], *args)
    start, trained, made = (load_adapter(f).grid(20) for f in (folders[0], folders[1], tmp_path / "o"))
    for name, q in made.items():
        assert np.abs(2 * q - (start[name] + trained[name])).max() <= 1


def test_rules_of_a_higher_rank_write_what_the_mean_misses(
    program: Terminal, folders: list[Path], tmp_path: Path
) -> None:
    stacked = answer(program, "merge", *folders, "--rule", "stack", "--out", tmp_path / "stack")
    assert (stacked["rank"], stacked["error_micros"]) == (6, 0)
    assert answer(program, "inspect", tmp_path / "stack")["rank"] == 6
    mean = answer(program, "merge", *folders, "--rule", "exact-residual", "--out", tmp_path / "mean")
    assert mean["error_micros"] > 0
    assert answer(program, "inspect", tmp_path / "mean/residual")["rank"] == 6


WRONG_MERGES: list[tuple[list[str], int, str]] = [
    (["--rule", "vibes"], 2, "--rule: wanted one of centred-clipping"),
    (["--rule", "ties"], 2, "density_millis: Field required; give it as --rule-param density_millis=INTEGER"),
    (["--rule", "ties", "--rule-param", "density_millis=0"], 2, "density_millis: Input should be greater"),
    (["--rule", "ties", "--rule-param", "density_millis=x"], 2, "wanted NAME=INTEGER, each name once, got 'density"),
    (["--rule-param", "weights=1"], 2, "wanted NAME=INTEGER"),
    (["--rule-param", "mood=1"], 2, "mood: Extra inputs are not permitted"),
    (["--rule", "stack", "--rule-param", "k=1"], 2, "stack has no parameters"),
    (["--weight", "1"], 2, "--weight: wanted one for each of 3 adapters, or none, got 1"),
    (["--rule", "median", *["--weight", "1"] * 3], 2, "in median every adapter counts once; leave it out"),
    (["--rule", "trimmed-mean", "--rule-param", "hostile=2"], 1, "trimmed-mean"),
]  # fmt: skip


@pytest.mark.parametrize(("args", "code", "message"), WRONG_MERGES, ids=[" ".join(w[0]) for w in WRONG_MERGES])
def test_a_merge_that_cannot_be_says_how_to_mend_it(
    program: Terminal, folders: list[Path], tmp_path: Path, args: list[str], code: int, message: str
) -> None:
    assert program("adapter", "merge", *folders, *args, "--out", tmp_path / "out") == code
    assert message in program.err
    assert not (tmp_path / "out").exists()


def test_adapters_of_two_bases_are_not_merged_until_somebody_knows_that_they_are_one(
    program: Terminal, folders: list[Path], tmp_path: Path
) -> None:
    save_adapter(tmp_path / "other", TINY, delta(1, TINY), "elsewhere/base")
    merge = ("adapter", "merge", folders[0], folders[1])
    assert program(*merge, tmp_path / "other", "--out", tmp_path / "out") == 1
    assert "got one of 'elsewhere/base'; if both are names of one base model, give --any-base" in program.err
    assert program(*merge, "--start", tmp_path / "other", "--out", tmp_path / "out") == 1
    assert "elsewhere/base" in program.err
    assert not (tmp_path / "out").exists()
    assert program(*merge, tmp_path / "other", "--any-base", "--out", tmp_path / "out") == 0


def test_two_adapters_that_differ_by_their_place_in_the_model_are_told_what_differs(
    program: Terminal, folders: list[Path], tmp_path: Path
) -> None:
    elsewhere = TINY.model_copy(update={"prefix": "base_model.model.encoder.layers"})
    save_adapter(tmp_path / "other", elsewhere, delta(1, elsewhere), "hub/base")
    assert program("adapter", "diff", folders[0], tmp_path / "other") == 1
    wanted, got = program.err.split("wanted")[1].split("got")
    assert TINY.prefix in wanted
    assert elsewhere.prefix in got


def test_adapters_of_two_shapes_are_not_merged(program: Terminal, folders: list[Path], tmp_path: Path) -> None:
    wide = TINY.model_copy(update={"rank": 4})
    save_adapter(tmp_path / "wide", wide, delta(1, wide), "hub/base")
    assert program("adapter", "merge", folders[0], tmp_path / "wide", "--out", tmp_path / "out") == 1
    assert "wanted rank 2, alpha 4, 2 layers" in program.err
    (tmp_path / "delta").write_bytes(write_delta(delta(1, TINY), TINY))
    assert program("adapter", "merge", folders[0], tmp_path / "delta", "--out", tmp_path / "out") == 1
    assert "wanted an adapter, got a delta (int32)" in program.err
    assert program("adapter", "merge", tmp_path / "nothing", "--out", tmp_path / "out") == 2
    assert "nothing: wanted an adapter's file, got no such file" in program.err


# -- recompute


def test_recompute_makes_the_logged_bytes_again(program: Terminal, tmp_path: Path) -> None:
    federation = two_rounds()
    public = federation.publish(tmp_path)
    for number, r in enumerate(federation.state.rounds, 1):
        assert r.release
        report = answer(program, "recompute", public, "--round", str(number), "--out", tmp_path / "out")
        assert report["holds"]
        assert report["recomputed_sha256"] == r.release.release.adapter.sha256
        assert digest_of((tmp_path / "out" / WEIGHTS).read_bytes()) == report["recomputed_sha256"]
        figures = r.release.release.figures
        assert (report["error_micros"], report["diversity_micros"]) == (figures.error_micros, figures.diversity_micros)
    assert program("adapter", "recompute", public) == 0
    assert "clinic, coop, school\n" in program.out


def test_recompute_without_a_member_says_what_that_moves(program: Terminal, tmp_path: Path) -> None:
    federation = two_rounds()
    public = federation.publish(tmp_path)
    logged = federation.state.rounds[0].release
    assert logged
    release = logged.release
    left = [i for i in release.inputs if i.institution != "coop"]
    wanted = merge_release(TINY, release.start, release.rule, left, (), federation.blobs.__getitem__).adapter
    report = answer(program, "recompute", public, "--round", "1", "--without", "coop", "--out", tmp_path / "without")
    assert report["without_sha256"] == digest_of(wanted) == digest_of((tmp_path / "without" / WEIGHTS).read_bytes())
    merged, other = (read_adapter(d, TINY) for d in (federation.blobs[release.adapter.sha256], wanted))
    assert report["moved_micros"] == distance_micros(merged, other, TINY.grid_bits) > 0
    assert program("adapter", "recompute", public, "--without", "coop") == 0
    assert "leaving it out moves it by" in program.out


def test_a_published_adapter_that_is_not_the_merge_exits_1(program: Terminal, tmp_path: Path) -> None:
    federation = two_rounds()
    federation.open_round()
    for name in NAMES:
        federation.say(name, federation.update(name))
    other = federation.keep(write_adapter(delta(5, TINY), TINY))
    federation.say("hub", federation.release().model_copy(update={"adapter": other}))
    public = federation.publish(tmp_path)
    assert not answer(program, "recompute", public, code=1)["holds"]
    assert program("adapter", "recompute", public) == 1
    assert program.out.endswith("no\n"), "that is: it does not hold"


def test_recompute_refuses_what_the_log_does_not_have(program: Terminal, tmp_path: Path) -> None:
    public = two_rounds().publish(tmp_path)
    for args, message in (
        ((public, "--round", "3"), "--round: wanted one with a release (1, 2), got 3"),
        ((public, "--without", "hub"), "--without: wanted one of clinic, coop, school, got hub"),
        ((), "Missing argument 'PLACE'"),
        ((tmp_path / "nowhere",), "wanted a folder of public records"),
    ):
        assert program("adapter", "recompute", *args) == 2
        assert message in program.err


# -- compress


def test_compress_and_back_gives_the_integers_that_were_left(
    program: Terminal, folders: list[Path], tmp_path: Path
) -> None:
    encoded, plain = tmp_path / "encoded", tmp_path / "plain"
    args = ("--start", folders[0], "--bits", "4", "--keep-millis", "400", "--out", encoded)
    report = answer(program, "compress", folders[1], *args)
    before = {n: q - delta(1, TINY)[n] for n, q in delta(2, TINY).items()}
    left = quantise(GridTensors(before), Encoding(bits=4, keep_millis=400))
    data = encoded.read_bytes()
    assert equal(read_encoded(data, SORTED, Encoding(bits=4, keep_millis=400)), left)
    assert (report["sha256"], report["size_bytes"]) == (digest_of(data), len(data))
    off = math.sqrt(sum(float(np.sum((left[n] - q).astype(float) ** 2)) for n, q in before.items()))
    assert report["relative_error"] == pytest.approx(
        off / math.sqrt(sum(float(np.sum(q.astype(float) ** 2)) for q in before.values()))
    )
    assert report["largest_error_steps"] == max(int(np.abs(left[n] - q).max()) for n, q in before.items())
    back = answer(program, "compress", encoded, "--decode", "--like", folders[0], "--out", plain)
    assert equal(read_delta(plain.read_bytes(), SORTED), left)
    assert (back["bits"], back["keep_millis"], back["relative_error"]) == (4, 400, None)
    assert program("adapter", "compress", plain, "--bits", "32", "--out", encoded) == 0
    assert "relative error             0\nlargest error, grid steps  0\n" in program.out


def test_compress_refuses_what_is_no_delta_or_no_encoding(
    program: Terminal, folders: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert program("adapter", "compress", folders[0], "--bits", "5", "--out", out) == 2
    assert "--bits: wanted 4, 8 or 32, got 5" in program.err
    assert program("adapter", "compress", folders[0], "--decode", "--out", out) == 2
    assert "wanted --like with --decode" in program.err
    assert program("adapter", "compress", folders[0] / WEIGHTS, "--decode", "--like", folders[0], "--out", out) == 1
    assert f"{WEIGHTS}: encoded delta: wanted a header that begins with its encoding" in program.err
    assert program("adapter", "compress", folders[0] / "x", "--decode", "--like", folders[0], "--out", out) == 2
    assert not out.exists()
    with pytest.raises(BlobError):
        load_adapter(folders[0] / CONFIG)


def test_without_numpy_the_group_says_what_to_install() -> None:
    done = run_blocked("from commonweal_protocols.cli import run; sys.exit(run(['adapter', 'inspect', 'x']))")
    assert done.returncode == 3
    assert "pip install 'commonweal[recompute]'" in done.stderr
