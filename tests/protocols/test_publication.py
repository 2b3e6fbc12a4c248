"""A charter in the log: what of it is told, what opens the rest, and which version may follow which."""

import hashlib
import hmac
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweal_protocols.base import canonical
from commonweal_protocols.base.errors import MalformedError, RuleError
from commonweal_protocols.fold.charters import Opening, open_part, parse_opening, publish
from commonweal_protocols.statements.charter import CharterRecord, Clause, DataTerms, Dissent
from commonweal_protocols.statements.governance import Charter
from commonweal_protocols.statements.statement import open_entry
from tests.kit.federation import Federation

SECRET = bytes(range(32))
RECORD = CharterRecord(
    community="Valley",
    version=1,
    principles=(
        Clause(id="ask-first", text="Ask before advising.", dissent=(Dissent(who="some", reason="it takes long"),)),
        Clause(id="be-brief", text="Be brief: nobody has time for a wall of words."),
    ),
    safety=(Clause(id="no-weapons", text="No help with weapons."),),
    public=("ask-first", "objectives"),
    objectives={"supervised_millis": 1000},
    data_policy=DataTerms(text="by consent", stages_sha256=None),
)


def published(record: CharterRecord = RECORD, previous: str | None = None) -> Charter:
    return publish(record, "clinic", previous, SECRET)


# -- what is told


def test_public_parts_stand_in_clear_with_their_dissent_and_no_other_word_of_the_charter_does() -> None:
    said = published().model_dump_json()
    assert published().principles == RECORD.principles[:1]
    assert published().objectives == {"supervised_millis": 1000}
    assert "it takes long" in said
    for private in ("Valley", "brief", "weapons", "consent", "be-brief", "min_cohort"):
        assert private not in said


def test_the_number_of_safety_items_is_told_though_the_items_are_not() -> None:
    assert published().safety_items == 1
    assert published().safety == ()


def test_every_other_part_is_there_as_a_digest() -> None:
    private = ["be-brief", "no-weapons", "community", "bars", "data-policy", "dissent"]
    assert published().sealed == tuple(sorted(open_part(RECORD, p, SECRET).seal() for p in private))


def test_a_seal_is_the_hash_of_the_part_with_an_hmac_of_it_as_the_salt() -> None:
    salt = hmac.digest(SECRET, b'["community","Valley"]', "sha256").hex()
    said = f'{{"part":"community","salt":"{salt}","type":"urn:commonweal:sealed-part:v1","value":"Valley"}}'
    assert hashlib.sha256(said.encode()).hexdigest() in published().sealed


def test_an_opening_that_was_handed_over_opens_its_part_and_no_other_word_does() -> None:
    opening = parse_opening(open_part(RECORD, "be-brief", SECRET).to_bytes())
    assert opening.seal() in published().sealed
    assert opening._replace(part="brief").seal() not in published().sealed
    assert opening._replace(value={"text": "Be long."}).seal() not in published().sealed
    assert opening._replace(salt="00" * 32).seal() not in published().sealed


def test_what_stays_as_it_was_keeps_its_seal_and_what_changes_gets_another() -> None:
    longer = RECORD.model_copy(update={"version": 2, "community": "Valley and hills"})
    before, after = set(published().sealed), set(published(longer).sealed)
    assert len(before - after) == len(after - before) == 1


def test_another_secret_seals_the_same_charter_otherwise() -> None:
    other = publish(RECORD, "clinic", None, bytes(32))
    assert not set(other.sealed) & set(published().sealed)


BAD_OPENINGS: list[tuple[str, canonical.Json]] = [
    ("no salt", {"part": "x", "value": 1}),
    ("another key", {"part": "x", "value": 1, "salt": "a", "who": "me"}),
    ("a number for a name", {"part": 1, "value": 1, "salt": "a"}),
    ("a list", ["x", 1, "a"]),
]


@pytest.mark.parametrize(("why", "said"), BAD_OPENINGS, ids=[b[0] for b in BAD_OPENINGS])
def test_what_is_no_opening_is_refused(why: str, said: canonical.Json) -> None:
    with pytest.raises(MalformedError, match="opening: wanted a part, a value and a salt"):
        parse_opening(canonical.encode(said))


json_values: st.SearchStrategy[canonical.Json] = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(st.text(st.characters(codec="utf-8")), json_values, st.text(st.characters(codec="utf-8")))
def test_every_opening_is_read_as_it_was_written(part: str, value: canonical.Json, salt: str) -> None:
    opening = Opening(part, value, salt)
    assert parse_opening(opening.to_bytes()) == opening


# -- which may follow which


def test_versions_are_in_the_state_one_after_the_other() -> None:
    f = Federation()
    first = published()
    f.say("clinic", first)
    second = published(
        RECORD.model_copy(update={"version": 3, "objectives": {"supervised_millis": 500}}), first.digest()
    )
    f.say("clinic", second)
    f.say("school", publish(RECORD, "school", None, SECRET))
    assert [(c.index, c.charter) for c in f.state.charters["clinic"]] == [(1, first), (2, second)]
    assert f.state.charters["clinic"][1].charter.objectives == {"supervised_millis": 500}
    assert [c.leaf for c in f.state.charters["school"]] == [open_entry(f.entries[3]).leaf]


REFUSED: list[tuple[str, str, dict[str, object], str]] = [
    ("another's", "school", {}, "charter: wanted institution school (the author), got clinic"),
    ("by the coordinator", "hub", {}, "charter: wanted a member as the author"),
    ("after nothing", "clinic", {"previous": None}, "as the version of clinic before, got None"),
    ("after another version", "clinic", {"previous": "ab" * 32}, f"as the version of clinic before, got {'ab' * 32}"),
    ("the same number", "clinic", {"version": 1}, "charter: wanted a version above 1, got 1"),
]


@pytest.mark.parametrize(("why", "who", "changes", "message"), REFUSED, ids=[r[0] for r in REFUSED])
def test_a_version_that_does_not_follow_is_refused(
    why: str, who: str, changes: dict[str, object], message: str
) -> None:
    f = Federation()
    f.say("clinic", published())
    follows = published(RECORD.model_copy(update={"version": 2}), published().digest())
    bad = follows.model_copy(update=changes)
    before = f.state
    with pytest.raises(RuleError) as e:
        f.say(who, bad)
    assert message in str(e.value)
    assert f.state == before
    f.say("clinic", follows)


def test_a_first_version_in_a_log_has_none_before_it() -> None:
    f = Federation()
    with pytest.raises(RuleError, match="wanted None as the version of clinic before"):
        f.say("clinic", published(previous="ab" * 32))


SHAPES: list[tuple[str, dict[str, object], str]] = [
    ("an id twice", {"principles": [{"id": "a", "text": "x"}, {"id": "a", "text": "y"}]}, "an id is repeated"),
    ("unsorted seals", {"sealed": ["bb" * 32, "aa" * 32]}, "wanted digests sorted"),
    ("a seal twice", {"sealed": ["aa" * 32, "aa" * 32]}, "without repeats"),
    ("more safety than it counts", {"safety": [{"id": "a", "text": "x"}], "safety_items": 0}, "at most the 0 items"),
    ("a weight with a fraction", {"objectives": {"x_millis": 0.5}}, "valid integer"),
    ("a weight's name in capitals", {"objectives": {"X": 1}}, "should match pattern"),
    ("an unknown provenance", {"principles": [{"id": "a", "text": "x", "provenance": [{"kind": "god"}]}]}, "kind"),
    ("a floor without end", {"safety_items": 21}, "less than or equal to 20"),
]


@pytest.mark.parametrize(("why", "changes", "message"), SHAPES, ids=[s[0] for s in SHAPES])
def test_a_published_charter_of_another_shape_is_refused(why: str, changes: dict[str, object], message: str) -> None:
    body = {**json.loads(published().model_dump_json()), **changes}
    with pytest.raises(ValueError, match=message):
        Charter.model_validate_json(json.dumps(body))
