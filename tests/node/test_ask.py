"""``commonweal node ask``, as an operator types it: what serves answers, and the base beside it."""

import json
from pathlib import Path

import pytest

from commonweal_node.home import NodeHome
from commonweal_node.institution.answer_store import Answers, Kept
from commonweal_node.institution.choice import CandidateKey
from commonweal_node.model.base_model import folder_digest
from commonweal_node.model.blend import export_peft
from commonweal_node.rows.row import Message
from commonweal_node.training.local_model import LocalModel
from commonweal_protocols.statements.adoption import Serving
from commonweal_protocols.statements.compact import BaseModelRef
from commonweal_protocols.statements.statement import Statement
from tests.kit.federation import Federation
from tests.kit.learner import SPEC
from tests.kit.processes import write_rows
from tests.kit.terminal import Terminal
from tests.kit.tiny_model import random_adapter, save_tiny_base

QUESTION = "what of 3?"


@pytest.fixture
def home(program: Terminal, tmp_path: Path) -> Path:
    """A node that has joined a consortium with the tiny base."""
    home, base = tmp_path / "home", tmp_path / "tiny"
    save_tiny_base(base)
    rows = write_rows(tmp_path / "clinic.jsonl", "clinic")
    assert program("node", "init", "--institution", "clinic", "--data", rows, "--home", home, "--threads", "1") == 0
    ref = BaseModelRef(reference=f"path:{base}", sha256=folder_digest(base))
    compact = Federation().compact.model_copy(update={"base": ref, "adapter": SPEC})
    NodeHome(home).compact.write_bytes(Statement(None, compact).payload())
    return home


def serve(home: Path) -> None:
    export_peft(NodeHome(home).adopted, SPEC, random_adapter(SPEC, 5, b_size=0.4), "tiny")
    key = CandidateKey(serving=Serving(kind="release", round=2), shared_millis=1000)
    Answers(home, SPEC).save_serving(Kept(key=key, release_leaf="", best_own=1, over_alone_micros=(-1, -2, 0)))


def asked(program: Terminal, home: Path, *options: str) -> list[dict[str, str]]:
    assert program("node", "ask", QUESTION, "--home", home, "--max-new-tokens", "12", "--json", *options) == 0
    found: list[dict[str, str]] = json.loads(program.out)
    return found


def of(base: Path, adapter: Path | None) -> str:
    return LocalModel(base, adapter, 1).answer([Message("user", QUESTION)], 12)


def test_what_serves_answers_and_the_base_beside_it_where_that_is_asked(program: Terminal, home: Path) -> None:
    serve(home)
    base, adopted = home.parent / "tiny", NodeHome(home).adopted
    served = {"serves": "the release of round 2", "answer": of(base, adopted)}
    alone = {"serves": "the base alone", "answer": of(base, None)}
    assert served["answer"] != alone["answer"]
    assert asked(program, home) == [served]
    assert asked(program, home, "--beside-base") == [served, alone]


def test_before_the_first_release_the_base_answers_and_it_is_said_that_it_does(program: Terminal, home: Path) -> None:
    assert asked(program, home) == [{"serves": "the base alone", "answer": of(home.parent / "tiny", None)}]
    assert program("node", "ask", QUESTION, "--home", home, "--max-new-tokens", "4") == 0
    assert program.out.startswith("-- the base alone\n")


def test_no_question_is_told_how_to_ask(program: Terminal, home: Path) -> None:
    assert program("node", "ask", "  ", "--home", home) == 2
    assert "ask: wanted a question, got none" in program.err
