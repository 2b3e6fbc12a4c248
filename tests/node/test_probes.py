"""Probes: what their files may say, what is measured of a model, and what the command tells of it."""

import json
import math
import re
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from commonweal_adapters.files.delta import to_grid
from commonweal_node.charter.charter import NO_CHARTER, Bars, Charter
from commonweal_node.charter.objective_weights import SUPERVISED
from commonweal_node.commands.evaluate import evaluate
from commonweal_node.commands.train import Terms
from commonweal_node.config import load_config
from commonweal_node.daemon import Node
from commonweal_node.institution.answer_store import Answers
from commonweal_node.institution.choice import BASE, OWN, SHARED
from commonweal_node.model.base_model import detect_adapter_spec, folder_digest
from commonweal_node.model.blend import BlendWeights, blend, export_peft
from commonweal_node.model.lora import AdaptedModel
from commonweal_node.probes.probe import MAX_ITEMS, Probe, load_probe, load_probes
from commonweal_node.probes.score import MAX_ITEM_TOKENS, measure_probe, pack_probe, result
from commonweal_node.training.learner import Learner
from commonweal_protocols.base.errors import ConfigError, LocalError, UnavailableError
from commonweal_protocols.base.settings import load_toml
from commonweal_protocols.statements.charter import Clause, ProbeBar
from commonweal_protocols.statements.compact import AdapterSpec
from tests.kit.federation import key_of, save_key
from tests.kit.tiny_model import peft_model, random_adapter, save_tiny_base, tiny_base, tiny_tokenizer

SPEC: AdapterSpec = detect_adapter_spec(tiny_base(), rank=2, alpha=4)
GOLD: list[dict[str, object]] = [
    {"prompt": "a neighbour asks for seed", "options": ["share it", "sell it", "say no"], "gold": 0, "id": "any key"},
    {"prompt": "the well is low", "options": ["say so at once", "wait"], "gold": 0},
    {
        "messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": "may I?"},
            {"role": "assistant", "content": "what would you like?"},
            {"role": "user", "content": "advice"},
        ],
        "options": ["first tell me more", "do as I say"],
        "gold": 1,
    },
]
DIST: list[dict[str, object]] = [
    {"prompt": "tea or milk?", "options": ["tea", "milk"], "dist": [0.75, 0.25], "gold": 1},
    {"prompt": "who begins?", "options": ["the eldest", "a guest", "nobody"], "dist": [0.3333, 0.3333, 0.3333]},
]


def written(home: Path, name: str, rows: list[dict[str, object]] | str) -> Path:
    """A probe's file in a node's home."""
    path = home / "probes" / f"{name}.jsonl"
    path.parent.mkdir(exist_ok=True)
    path.write_text(rows if isinstance(rows, str) else "\n".join(map(json.dumps, rows)) + "\n\n")
    return path


def probe_of(home: Path, rows: list[dict[str, object]]) -> Probe:
    written(home, "p", rows)
    return load_probe(home / "probes", "p")


# -- files


def test_a_probe_is_read_as_it_is_written(tmp_path: Path) -> None:
    gold, dist = probe_of(tmp_path, GOLD), probe_of(tmp_path, DIST)
    assert (gold.measure, dist.measure) == ("accuracy", "distance")
    assert [i.wanted for i in gold.items] == [(1, 0, 0), (1, 0), (0, 1)]
    assert [m.role for m in gold.items[2].messages] == ["system", "user", "assistant", "user"]
    assert dist.items[0].wanted == (0.75, 0.25), "where people's answers are known, one right option has no say"
    assert dist.items[1].wanted == pytest.approx([1 / 3] * 3, abs=1e-9), "rounded shares are made whole"


def but(**changes: object) -> str:
    row = {**GOLD[1], **changes}
    return json.dumps({k: v for k, v in row.items() if v is not None})


BAD: list[tuple[str, str, str]] = [
    ("not JSON", "{'prompt': 1}", "line 1: wanted one JSON object"),
    ("no object", "[1]", "line 1: wanted one JSON object, got a list"),
    ("nothing at all", "\n\n", "wanted at least one question, got none"),
    ("no prompt", but(prompt=None), "line 1: wanted either prompt or messages, got neither"),
    ("both", but(messages=[]), "line 1: wanted either prompt or messages, got both"),
    ("a blank prompt", but(prompt=" "), "line 1: prompt: wanted some text, got blank text"),
    ("messages of another kind", but(prompt=None, messages="hi"), "line 1: messages: wanted a list that ends with the"),
    (
        "an answered question",
        but(prompt=None, messages=[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]),
        "line 1: messages: wanted an optional system message, then user and assistant in turn",
    ),
    ("one option", but(options=["a"]), "line 1: options: wanted a list of 2 to 26 texts, got 1"),
    ("too many", but(options=[str(i) for i in range(27)]), "line 1: options: wanted a list of 2 to 26 texts, got 27"),
    ("no list", but(options="ab"), "line 1: options: wanted a list of 2 to 26 texts, got text of 2 characters"),
    ("a number", but(options=["a", 3]), r"line 1: options\[1\]: wanted some text, got a number"),
    ("half a surrogate", but(options=["a", "\ud800"]), r"line 1: options\[1\]: wanted valid Unicode"),
    ("twice the same", but(options=["a", "a"]), "line 1: options: wanted texts of which no two are equal"),
    ("no gold", but(gold=None), "line 1: gold: wanted the place of an option, 0 to 1, got nothing"),
    ("gold beyond", but(gold=2), "line 1: gold: wanted the place of an option, 0 to 1, got 2"),
    ("negative gold", but(gold=-1), "line 1: gold: wanted the place of an option, 0 to 1, got -1"),
    ("a yes for gold", but(gold=True), "line 1: gold: wanted the place of an option, 0 to 1, got a yes or no"),
    ("the text for gold", but(gold="wait"), "line 1: gold: wanted the place of an option, 0 to 1, got text of"),
    ("too few shares", but(dist=[1]), "line 1: dist: wanted 2 numbers from 0 to 1"),
    ("a negative share", but(dist=[1.5, -0.5]), "line 1: dist: wanted 2 numbers from 0 to 1"),
    ("no number", but(dist=[math.nan, 1]), "line 1: wanted one JSON object, got NaN, which JSON does not have"),
    ("a yes for a share", but(dist=[True, 0]), "line 1: dist: wanted 2 numbers from 0 to 1"),
    ("shares of less", but(dist=[0.5, 0.4]), "line 1: dist: wanted numbers that sum to 1, got 0.9"),
    ("two measures", f"{but()}\n{but(dist=[1, 0])}", "line 2: wanted dist on every line or on none"),
    ("too many rows", f"{but()}\n" * (MAX_ITEMS + 1), f"line {MAX_ITEMS + 1}: wanted at most {MAX_ITEMS} questions"),
]


@pytest.mark.parametrize(("why", "text", "message"), BAD, ids=[b[0] for b in BAD])
def test_a_bad_line_is_refused_by_file_and_line_and_not_repeated(
    tmp_path: Path, why: str, text: str, message: str
) -> None:
    path = written(tmp_path, "p", text)
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}(, |: ){message}") as e:
        load_probe(tmp_path / "probes", "p")
    assert "the well" not in str(e.value)


def test_a_probe_without_a_file_is_told_where_it_goes_and_how_a_line_looks(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as e:
        load_probe(tmp_path / "probes", "seed")
    told = str(e.value)
    assert told.startswith(f"{tmp_path}/probes/seed.jsonl: wanted the questions of probe seed, got no file; ")
    assert json.loads(told[told.index("{") : told.index("}") + 1]).keys() == {"prompt", "options", "gold"}


def charter(*bars: ProbeBar) -> Charter:
    """Clauses first and second, of which the second names two probes."""
    clauses = (
        Clause(id="first", text="Share what you have.", probes=("seed",)),
        Clause(id="second", text="Ask before you advise.", probes=("seed", "tea")),
    )
    return Charter(**{**NO_CHARTER.__dict__, "principles": clauses, "bars": Bars(probes=bars)})


@pytest.mark.parametrize(
    ("name", "bar", "measure"),
    [
        ("seed", ProbeBar(probe="seed", max_distance_millis=1), "accuracy, got max_distance_millis"),
        ("tea", ProbeBar(probe="tea", min_accuracy_millis=1), "distance, got min_accuracy_millis"),
    ],
)
def test_a_bar_on_the_measure_that_a_probe_has_not_is_found_before_any_model_is_loaded(
    tmp_path: Path, name: str, bar: ProbeBar, measure: str
) -> None:
    written(tmp_path, "seed", GOLD)
    written(tmp_path, "tea", DIST)
    with pytest.raises(ConfigError, match=rf"charter: bars\.probes {name}: wanted a bar on its {measure}"):
        load_probes(tmp_path, charter(bar), ("seed", "tea"))
    relative = ProbeBar(probe=name, max_worse_than_base_millis=0)
    assert [p.name for p in load_probes(tmp_path, charter(relative), ("seed", "tea"))] == ["seed", "tea"]


# -- measuring


def scores_one_by_one(model: torch.nn.Module, rows: list[dict[str, object]]) -> list[list[float]]:
    """The second implementation: each option by itself, with every logit, through transformers (and PEFT) alone."""
    tokenizer, found = tiny_tokenizer(), []
    for row in rows:
        asked = row.get("messages", [{"role": "user", "content": row.get("prompt")}])
        before = tokenizer.apply_chat_template(asked, add_generation_prompt=True)["input_ids"]
        scores = []
        for option in row["options"]:  # type: ignore[attr-defined]
            answer = tokenizer(option, add_special_tokens=False)["input_ids"]
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([before + answer])).logits[0].double()
            logp = torch.log_softmax(logits, -1)
            each = [logp[len(before) - 1 + k, t].item() for k, t in enumerate(answer)]
            scores.append(sum(each) / len(each))
        found.append(scores)
    return found


def entropy(p: np.ndarray) -> float:
    """In bits. JS is that of the mean less the mean of both: another formula for the same."""
    return -math.fsum(x * math.log2(x) for x in p.tolist() if x > 0)


def measured(model: AdaptedModel, probe: Probe, adapter: dict[str, np.ndarray] | None) -> float:
    return measure_probe(model, adapter, pack_probe(probe, model.tokenizer), lambda: None)


def flipped(rows: list[dict[str, object]], scores: list[list[float]]) -> list[dict[str, object]]:
    """The same rows with the likeliest option as the right one, but for the last."""
    best = [int(np.argmax(s)) for s in scores]
    return [
        {**r, "gold": b if i < len(rows) - 1 else (b + 1) % 2} for i, (r, b) in enumerate(zip(rows, best, strict=True))
    ]


@pytest.mark.parametrize("seed", [None, 5])
def test_accuracy_and_distance_are_those_of_each_option_scored_by_itself(tmp_path: Path, seed: int | None) -> None:
    model = AdaptedModel(tiny_base(), SPEC, threads=1)
    adapter = None if seed is None else random_adapter(SPEC, seed, b_size=0.4)
    plain: torch.nn.Module = tiny_base().model if adapter is None else peft_model(SPEC, adapter)
    rows = flipped(GOLD, scores_one_by_one(plain, GOLD))
    assert measured(model, probe_of(tmp_path, rows), adapter) == pytest.approx(2 / 3)
    wanted = []
    for item, s in zip(probe_of(tmp_path, DIST).items, scores_one_by_one(plain, DIST), strict=True):
        p = np.exp(s) / np.exp(s).sum()
        q = np.array(item.wanted)
        wanted.append(math.sqrt(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2))
    assert measured(model, probe_of(tmp_path, DIST), adapter) == pytest.approx(np.mean(wanted), abs=1e-5)


def test_an_adapter_moves_what_a_probe_measures(tmp_path: Path) -> None:
    model, probe = AdaptedModel(tiny_base(), SPEC, threads=1), probe_of(tmp_path, DIST)
    base, adapted = (measured(model, probe, a) for a in (None, random_adapter(SPEC, 5, b_size=0.4)))
    assert abs(base - adapted) > 1e-3
    assert measured(model, probe, None) == base, "and only while it is in"


def test_a_tie_is_not_right_and_the_place_of_an_option_earns_nothing() -> None:
    tie, won, lost = [-1.0, -1.0], [-1.0, -2.0], [-2.0, -1.0]
    assert result("accuracy", [(1, 0)] * 3, np.array(tie + won + lost)) == pytest.approx(1 / 3)
    assert result("accuracy", [(0, 1)] * 3, np.array(tie + won + lost)) == pytest.approx(1 / 3)


def test_the_distance_is_that_of_the_formula() -> None:
    # p = q: 0. p = (1/2, 1/2), q = (1, 0): m = (3/4, 1/4), JS = (log2(4/3) + (log2(2/3) + log2(2)) / 2) / 2.
    half = math.log(0.5)
    assert result("distance", [(0.5, 0.5)], np.array([half, half])) == 0
    js = (math.log2(4 / 3) + (math.log2(2 / 3) + math.log2(2)) / 2) / 2
    assert result("distance", [(1.0, 0.0)], np.array([half, half])) == pytest.approx(math.sqrt(js), abs=1e-12)
    assert result("distance", [(1.0, 0.0)], np.array([-1e9, 0.0])) == pytest.approx(1), "the farthest"


def test_a_question_that_is_too_long_is_named_before_anything_is_computed(tmp_path: Path) -> None:
    half = "x" * (MAX_ITEM_TOKENS // 2)
    probe = probe_of(tmp_path, [GOLD[0], {"prompt": half, "options": ["a", "b"], "gold": 0}])
    with pytest.raises(ConfigError, match=rf"p\.jsonl, line 2: wanted at most {MAX_ITEM_TOKENS} tokens .*, got \d+$"):
        pack_probe(probe, tiny_tokenizer())


def test_an_adapter_without_finite_values_measures_nothing(tmp_path: Path) -> None:
    adapter = {n: np.full_like(x, np.nan) for n, x in random_adapter(SPEC, 1).items()}
    with pytest.raises(LocalError, match="probe: wanted finite log-probabilities"):
        measured(AdaptedModel(tiny_base(), SPEC, threads=1), probe_of(tmp_path, GOLD), adapter)


# -- the command


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A node that has joined nothing yet: terms, a charter with two clauses and a bar, and its two probes."""
    save_tiny_base(tmp_path / "base")
    modules = ", ".join(
        f'{{name = "{m.name}", in_features = {m.in_features}, out_features = {m.out_features}}}' for m in SPEC.modules
    )
    (tmp_path / "terms.toml").write_text(
        f'[base]\nreference = "path:{tmp_path / "base"}"\nsha256 = "{folder_digest(tmp_path / "base")}"\n'
        f'[adapter]\nrank = 2\nalpha = 4\nprefix = "{SPEC.prefix}"\nlayers = {SPEC.layers}\nmodules = [{modules}]\n'
        "[recipe]\nsteps = 3\nbatch_size = 2\nlearning_rate_micros = 5000\nmax_tokens = 160\n"
    )
    (tmp_path / "charter.toml").write_text(
        'community = "three wells"\nversion = 1\ndata_policy = "ours"\n'
        '[[principles]]\nid = "share"\ntext = "Share what you have."\nprobes = ["seed"]\n'
        '[[principles]]\nid = "ask"\ntext = "Ask first."\nprobes = ["seed", "tea"]\n'
        '[[bars.probes]]\nprobe = "tea"\nmax_distance_millis = 0\n'
    )
    (tmp_path / "node.toml").write_text(
        f'institution = "clinic"\ndata = "rows.jsonl"\ncharter = "charter.toml"\nthreads = {torch.get_num_threads()}\n'
    )
    written(tmp_path, "seed", GOLD)
    written(tmp_path, "tea", DIST)
    return tmp_path


def told(home: Path, capsys: pytest.CaptureFixture[str], *probes: str) -> list[dict[str, object]]:
    """The command in this process, where torch is loaded already."""
    evaluate(home, list(probes) or None, home / "terms.toml", as_json=True)
    found: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return found


def test_every_adapter_of_a_home_is_measured_and_the_one_that_serves_is_held_to_the_bar(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seed, tea = told(home, capsys)
    assert [(r["probe"], r["measure"], r["items"]) for r in (seed, tea)] == [
        ("seed", "accuracy", 3),
        ("tea", "distance", 2),
    ]
    assert seed["clauses"] == ["share", "ask"]
    assert (list(tea["micros"]), tea["shortfall"]) == (["base"], None)  # type: ignore[call-overload]
    own, shared = random_adapter(SPEC, 1, b_size=0.4), random_adapter(SPEC, 2, b_size=0.4)
    bits, answers = SPEC.grid_bits, Answers(home, SPEC)
    answers.save_own(2, to_grid(random_adapter(SPEC, 9), bits))
    answers.save_own(10, to_grid(own, bits))
    answers.save_shared(to_grid(shared, bits))
    export_peft(home / "adopted", SPEC, blend(SPEC, shared, own, BlendWeights(700, 500)), "any")
    _, tea = told(home, capsys)
    model = AdaptedModel(tiny_base(), SPEC)
    probe = load_probe(home / "probes", "tea")
    mixed = blend(SPEC, shared, own, BlendWeights(700, 500))
    each = {"base": None, "own": own, "shared": shared, "blend": mixed}
    wanted = {what: round(1e6 * measured(model, probe, adapter)) for what, adapter in each.items()}
    # The grid rounds own and shared to 2^-20; bfloat16 is taken where the machine has it.
    assert tea["micros"] == pytest.approx(wanted, abs=20_000)
    assert len(set(tea["micros"].values())) == 4  # type: ignore[attr-defined]
    assert str(tea["shortfall"]).startswith("wanted a distance of at most 0 thousandths, got ")
    (only,) = told(home, capsys, "seed")
    assert only["probe"] == "seed"


def test_what_is_told_stands_below_its_clause(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    written(home, "spare", DIST)
    evaluate(home, ["seed", "tea", "spare"], home / "terms.toml", as_json=False)
    lines = capsys.readouterr().out.splitlines()
    heads = [line for line in lines if not line.startswith(" ")]
    assert heads == ["share: Share what you have.", "ask: Ask first.", "of no clause:"]
    below = lines[lines.index("ask: Ask first.") + 1 : lines.index("of no clause:")]
    assert re.fullmatch(r"  seed: accuracy of 3 items \(more is better\): base [01]\.\d{3}", below[0])
    assert re.fullmatch(r"  tea: distance of 2 items \(less is better\): base 0\.\d{3}", below[2])
    assert [below[1], below[3]] == ["    no bar", "    bar: distance at most 0.000: nothing serves yet"]


def test_a_charter_without_probes_and_a_home_without_terms_are_told_what_is_missing(home: Path) -> None:
    with pytest.raises(
        LocalError, match=r"compact\.json: wanted the compact that was signed, got no such file; join again"
    ):
        evaluate(home, None, None, as_json=False)
    (home / "charter.toml").write_text('community = "a"\nversion = 1\ndata_policy = "ours"\nprinciples = ["none"]\n')
    with pytest.raises(ConfigError, match="evaluate: wanted a charter whose clauses name probes"):
        evaluate(home, None, home / "terms.toml", as_json=False)
    with pytest.raises(ConfigError, match=r"probes/well\.jsonl: wanted the questions of probe well, got no file"):
        evaluate(home, ["well"], home / "terms.toml", as_json=False)


def test_a_daemon_does_not_begin_without_the_questions_of_a_bar(home: Path) -> None:
    (home / "keys").mkdir()
    save_key(home / "keys/institution.pem", key_of("clinic"))
    config = load_config(home / "node.toml")
    (home / "probes/seed.jsonl").unlink()
    # Of a probe without a bar it needs none: what stops it now is that it has joined nothing.
    with pytest.raises(LocalError, match=r"invite\.json"):
        Node(home, config, None)
    (home / "probes/tea.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"probes/tea\.jsonl: wanted the questions of probe tea, got no file"):
        Node(home, config, None)


class Silent:
    """A board that nobody reads."""

    def set(self, **fields: object) -> None:
        pass


def test_what_a_decision_rests_on_is_what_the_command_measures(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    turns = [{"role": "user", "content": "what now?"}, {"role": "assistant", "content": "ask"}]
    splits = ["train"] * 2 + ["heldout"] * 8
    rows = [{"messages": turns, "split": s, "meta": {"qid": str(i)}} for i, s in enumerate(splits)]
    (home / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    terms = load_toml(home / "terms.toml", Terms)
    stopping = threading.Event()
    learner = Learner(terms, load_config(home / "node.toml"), SUPERVISED, home, Silent(), stopping)
    own, shared = (to_grid(random_adapter(SPEC, seed, b_size=0.4), SPEC.grid_bits) for seed in (1, 2))
    answers = Answers(home, SPEC)
    answers.save_own(1, own)
    answers.save_shared(shared)
    learner.export(shared, own, BlendWeights(700, 500), home / "adopted")
    choices = {"base": BASE, "own": OWN, "shared": SHARED, "blend": BlendWeights(700, 500)}
    for report in told(home, capsys):
        probe = load_probe(home / "probes", str(report["probe"]))
        found = {what: learner.probe(probe, shared, own, b, what) for what, b in choices.items()}
        assert report["micros"] == found
    stopping.set()
    with pytest.raises(UnavailableError, match="evaluation: the node is stopping"):
        learner.probe(load_probe(home / "probes", "tea"), shared, own, BlendWeights(1, 1), "another")
