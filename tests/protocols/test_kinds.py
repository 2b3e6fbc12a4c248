"""Every kind of fact has a title, an author, a rule, and words in the story and on the page that checks a log."""

import re
from functools import cache
from importlib import resources
from typing import Literal, get_args, get_origin

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import BaseModel

from commonweal_protocols.audit.report import ForeignReport, MotionReport
from commonweal_protocols.audit.story import tell
from commonweal_protocols.audit.vocabulary import RESULTS, STAGES, WEIGHTS, describe_deed
from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.fold.fold import fold
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.adoption import Decision
from commonweal_protocols.statements.envelope import sign_envelope
from commonweal_protocols.statements.fact import Fact
from commonweal_protocols.statements.registry import PREDICATES, TITLES
from commonweal_protocols.statements.rules import Weights
from commonweal_protocols.statements.statement import Entry, Header, Statement, open_entry
from tests.kit.every_kind import leave_and_rotate, masked_log, nearly_every_kind
from tests.kit.federation import key_of

KINDS = sorted(TITLES)
BY_THE_COORDINATOR = {"round", "rejection", "incident", "release", "stageend"}
BY_SEVERAL = {"compact", "rotation"}
HISTORY = tuple[tuple[Entry, State], ...]


@cache
def histories() -> tuple[HISTORY, ...]:
    """Two logs with the state after each entry; every kind of fact is in one of them."""
    unmasked = nearly_every_kind()
    leave_and_rotate(unmasked)
    found = []
    for f in (unmasked, masked_log()):
        history: list[tuple[Entry, State]] = []
        for entry in map(open_entry, f.entries):
            history.append((entry, fold(history[-1][1] if history else None, entry)))
        found.append(tuple(history))
    return tuple(found)


def first(kind: str) -> tuple[State | None, Entry]:
    """The first entry of a kind, and the state before it."""
    for history in histories():
        for index, (entry, _) in enumerate(history):
            if entry.statement.predicate.kind() == kind:
                return history[index - 1][1] if index else None, entry
    raise AssertionError(f"no log has a {kind}")


def said_by(key: Ed25519PrivateKey, state: State | None, entry: Entry) -> Entry:
    """The same fact, stated by another, in its own place."""
    header = None
    if state is not None and entry.statement.header is not None:
        chain = state.chain(key.public_key().public_bytes_raw().hex())
        header = Header(consortium=state.consortium, seq=chain.seq + 1, prev=chain.leaf or None, seen=())
    return open_entry(sign_envelope(Statement(header, entry.statement.predicate).payload(), key))


@pytest.mark.parametrize("model", PREDICATES.values(), ids=lambda m: m.__name__)
def test_a_kind_says_for_itself_what_it_is_and_who_signs_it(model: type[Fact]) -> None:
    assert {"URI", "TITLE", "AUTHOR"} <= vars(model).keys(), "inherited, it would be another kind's"


def test_no_two_kinds_have_one_word_or_one_title() -> None:
    assert len(TITLES) == len(set(TITLES.values())) == len(PREDICATES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_fold_takes_a_kind_from_those_alone_who_may_sign_it(kind: str) -> None:
    state, entry = first(kind)
    may = {
        "clinic": kind not in BY_THE_COORDINATOR | BY_SEVERAL,
        "coordinator": kind in BY_THE_COORDINATOR | {"closing"},
        "stranger": False,
    }
    for who, allowed in may.items():
        try:
            fold(state, said_by(key_of(who), state, entry))
            refused = ""
        except RuleError as e:
            refused = str(e)
        if kind in BY_SEVERAL:
            assert refused, f"{who} alone"
        else:
            assert ("as the author" in refused) != allowed, (who, refused)


@pytest.mark.parametrize("kind", KINDS)
def test_the_story_has_a_sentence_for_every_entry_of_every_kind(kind: str) -> None:
    for history in histories():
        told = {claim.index for claim in tell(history)}
        stated = {i for i, (entry, _) in enumerate(history) if entry.statement.predicate.kind() == kind}
        assert stated <= told


def test_the_page_that_checks_a_log_has_a_sentence_for_every_kind_out_of_its_own_fields() -> None:
    page = resources.files("commonweal_coordinator").joinpath("pages/verify.html").read_text("utf-8")
    table = re.search(r"^const SENTENCES = \{$(.*?)^\};$", page, re.DOTALL | re.MULTILINE)
    assert table is not None
    sentences = dict(
        re.findall(r'^  "?([a-z-]+)"?: (b => .*?),$(?=\n  "?[a-z-]+"?: b =>|\n\Z)', table[1], re.DOTALL | re.M)
    )
    assert set(sentences) == {uri.split(":")[2] for uri in PREDICATES}
    for uri, model in PREDICATES.items():
        sentence = sentences[uri.split(":")[2]]
        named = {*re.findall(r"\bb\.([a-z0-9_]+)", sentence), *(["reason"] if "reason(b)" in sentence else [])}
        assert named <= set(model.model_fields), uri


def words(said: object) -> set[str]:
    """Every word that a type allows: of literals, of unions, and of models that have a name."""
    if get_origin(said) is Literal:
        return set(get_args(said))
    if isinstance(said, type) and issubclass(said, BaseModel):
        return words(said.model_fields["name"].annotation)
    return set().union(*map(words, get_args(said)))


def test_the_vocabulary_has_words_for_all_that_a_report_may_say() -> None:
    motion = MotionReport.model_fields
    assert set(RESULTS) == words(motion["result"].annotation)
    assert set(STAGES) == words(motion["stage"].annotation)
    assert set(WEIGHTS) == words(Weights)
    deeds = words(ForeignReport.model_fields["what"].annotation)
    assert deeds > words(Decision.model_fields["decision"].annotation)
    assert len({describe_deed(did) for did in deeds}) == len(deeds)
