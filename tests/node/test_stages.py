"""The stages of a curation: what each keeps, changes, repeats and drops, and why; and what holds for any rows."""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_node.charter.data_policy import (
    ExactDuplicates,
    LanguageFilter,
    Length,
    License,
    NearDuplicates,
    Revise,
    Scrub,
    SplitByGroup,
    Stage,
    Trait,
    Traits,
)
from commonweal_node.rows.language import load_identifier
from commonweal_node.rows.memory import open_memory
from commonweal_node.rows.revise import Reviser, keeping_answers
from commonweal_node.rows.row import Example, Message, Pair, Row, Text, format_row, implied_group
from commonweal_node.rows.stages import by_language, make_stage
from commonweal_node.rows.traits import copies, make_measure
from tests.kit.rows import ROWS

PRINCIPLES = ("ask before advising", "say what others do, too")


def text(content: str, group: str = "", split: str | None = None) -> Row:
    body = Text(content, group)
    return Row(body if group else replace(body, group=implied_group(body)), split)  # type: ignore[arg-type]


def chat(question: str, answer: str, group: str = "") -> Row:
    return Row(Example((Message("user", question), Message("assistant", answer)), group or question), "train")


def run(stage: Stage, rows: Iterable[Row], reviser: Reviser | None = None) -> tuple[list[Row], Counter[str]]:
    """What a stage makes of rows, and its reasons; every row gets exactly one decision."""
    taken: list[Row] = []

    def counted() -> Iterator[Row]:
        for row in rows:
            taken.append(row)
            yield row

    with open_memory() as memory:
        decisions = list(make_stage(stage, memory, PRINCIPLES, reviser)(counted()))
    assert len(decisions) == len(taken)
    assert all(d.reasons for d, row in zip(decisions, taken, strict=True) if d.rows != (row,))
    return [r for d in decisions for r in d.rows], Counter(reason for d in decisions for reason in d.reasons)


# -- filters


def test_rows_are_kept_by_their_license() -> None:
    rows = [replace(text(x), license=x) for x in ("CC0-1.0", "secret")] + [text("none")]
    kept, reasons = run(License(stage="license", licenses=("CC0-1.0",)), rows)
    assert kept == rows[:1]
    assert reasons == {"another license": 1, "no license": 1}


@pytest.mark.parametrize(("length", "reason"), [(2, "too short"), (3, ""), (5, ""), (6, "too long")])
def test_length_is_counted_over_all_texts_and_its_bounds_are_inside(length: int, reason: str) -> None:
    kept, reasons = run(Length(stage="length", min_characters=3, max_characters=5), [text("x" * length)])
    assert (len(kept), dict(reasons)) == ((0, {reason: 1}) if reason else (1, {}))
    # Two turns and the blank line between them.
    assert run(Length(stage="length", max_characters=4), [chat("q", "a")])[0]


SENTENCES = {
    "en": "The meeting is on Tuesday, and everybody may bring something to eat.",
    "de": "Die Versammlung ist am Dienstag, und alle dürfen etwas zu essen mitbringen.",
    "es": "La reunión es el martes y todos pueden traer algo de comer.",
    "fr": "La réunion a lieu mardi et tout le monde peut apporter quelque chose à manger.",
    "hi": "बैठक मंगलवार को है और सभी कुछ खाने के लिए ला सकते हैं।",
    "sw": "Mkutano ni siku ya Jumanne, na kila mtu anaweza kuleta chakula.",
}


def test_languages_are_told_apart_and_the_others_named() -> None:
    kept, reasons = run(LanguageFilter(stage="language", languages=("de", "hi")), [text(t) for t in SENTENCES.values()])
    assert [r.body for r in kept] == [text(SENTENCES[x]).body for x in ("de", "hi")]
    assert reasons == {f"language {x}": 1 for x in ("en", "es", "fr", "sw")}


def test_a_row_whose_language_cannot_be_told_is_kept_or_dropped_as_the_charter_says() -> None:
    # The second implementation of the bound: by what the identifier itself says.
    identify = load_identifier()
    row = text("ok")
    _, confidence = identify("ok")
    above = LanguageFilter(stage="language", languages=("en",), min_confidence_millis=int(confidence * 1000) + 1)
    assert by_language(row, above, identify).rows == (row,)
    assert by_language(row, above.model_copy(update={"keep_undetermined": False}), identify).rows == ()
    assert by_language(row, above, identify).reasons == ("language und",)


# -- copies


def test_of_rows_with_the_same_words_the_first_is_kept() -> None:
    rows = [text("Tea, please!"), text("tea   PLEASE"), text("tea please?", "elsewhere"), text("please tea")]
    kept, reasons = run(ExactDuplicates(stage="exact-duplicates"), rows)
    assert kept == [rows[0], rows[3]]
    assert reasons == {"the same as an earlier row": 2}


def test_rows_of_signs_alone_are_not_all_the_same() -> None:
    rows = [text("?!"), text("…"), text("?!", "g")]
    assert run(ExactDuplicates(stage="exact-duplicates"), rows)[0] == rows[:2]


SAYINGS = [" ".join(f"{a}{i}" for i in range(40)) for a in "abc"]


def test_of_rows_that_are_nearly_the_same_the_first_is_kept() -> None:
    near = SAYINGS[0].replace("a39", "z")
    far = " ".join(SAYINGS[0].split()[:20] + SAYINGS[1].split()[:20])
    rows = [text(t) for t in (*SAYINGS, near, far)]
    kept, reasons = run(NearDuplicates(stage="near-duplicates"), rows)
    # 36 5-grams of which 35 are shared: 35 / 37 = 0.95. The last shares 16 of 56.
    assert kept == [*rows[:3], rows[4]]
    assert reasons == {"nearly the same as an earlier row": 1}


def test_what_is_near_to_a_dropped_row_alone_is_kept() -> None:
    words = [f"w{i}" for i in range(120)]
    a, b, c = (" ".join(words[i : i + 100]) for i in (0, 6, 12))
    stage = NearDuplicates(stage="near-duplicates", threshold_millis=850, words=1)
    # a and b share 94 of 106 words (0.89), a and c 88 of 112 (0.79): c is near to b, which is not there any more.
    assert [r.body for r in run(stage, [text(a), text(b), text(c)])[0]] == [text(a).body, text(c).body]


COPIES: list[Stage] = [ExactDuplicates(stage="exact-duplicates"), NearDuplicates(stage="near-duplicates")]


@pytest.mark.parametrize("stage", COPIES, ids=lambda s: s.stage)
@given(rows=st.lists(ROWS, max_size=12))
@settings(max_examples=25)
def test_removing_copies_again_removes_nothing(stage: Stage, rows: list[Row]) -> None:
    kept, _ = run(stage, rows)
    assert run(stage, kept) == (kept, Counter())


def test_which_words_are_left_depends_on_no_order() -> None:
    rows = [text(t) for t in ("a b", "A, b", "b a", "c", "C!")]
    left = {
        frozenset(r.body.content.casefold().strip("!").replace(",", "") for r in run(COPIES[0], order)[0])  # type: ignore[union-attr]
        for order in itertools.permutations(rows)
    }
    assert left == {frozenset({"a b", "b a", "c"})}


# -- scrubbing


def test_every_text_of_a_row_is_scrubbed_and_its_group_too() -> None:
    mail, gone = "ada@example.org", "[EMAIL]"
    rows = [
        Row(Example((Message("system", mail), Message("user", mail), Message("assistant", mail)), mail)),
        Row(Example((Message("user", "q"), Message("assistant", "a")), f"thread of {mail}")),
        Row(Pair(mail, f"{mail} 1", f"{mail} 2", "g")),
        text(mail),
    ]
    kept, reasons = run(Scrub(stage="scrub"), rows)
    assert reasons == {"email": 8}
    assert all(mail.encode() not in format_row(r) for r in kept)
    assert kept[0].body.group == gone
    assert kept[1].body.group == f"thread of {gone}"
    assert kept[3] == text(gone), "a group that follows from the text follows from the new one"


def test_a_preference_between_two_numbers_is_none_without_them() -> None:
    rows = [Row(Pair("whom?", "ada@example.org", "bob@example.org", "g"))]
    assert run(Scrub(stage="scrub"), rows) == ([], Counter(["no preference is left without personal data"]))


@given(rows=st.lists(ROWS, max_size=6))
@settings(max_examples=50)
def test_scrubbing_again_changes_no_row(rows: list[Row]) -> None:
    once, _ = run(Scrub(stage="scrub", phone_regions=("US",)), rows)
    assert run(Scrub(stage="scrub", phone_regions=("US",)), once) == (once, Counter())


# -- split


def test_a_group_is_on_one_side_and_stays_there_whatever_comes_or_goes() -> None:
    rows = [text(f"{g} {i}", f"group {g}") for g in range(300) for i in range(2)]
    stage = SplitByGroup(stage="split", heldout_millis=300)
    sides = {r.body.group: r.split for r in run(stage, rows)[0]}
    assert all(sides[r.body.group] == r.split for r in run(stage, rows)[0])
    assert all(sides[r.body.group] == r.split for r in run(stage, rows[100:350][::-1])[0])
    # 300 draws with a chance of 0.3: four standard deviations.
    assert abs(list(sides.values()).count("heldout") - 90) <= 4 * (300 * 0.3 * 0.7) ** 0.5


def test_more_groups_held_out_are_the_same_ones_and_more() -> None:
    rows = [text(str(i), f"g{i}") for i in range(200)]

    def held(millis: int) -> set[str]:
        kept, _ = run(SplitByGroup(stage="split", heldout_millis=millis), rows)
        return {r.body.group for r in kept if r.split == "heldout"}

    assert held(100) < held(300)


def test_what_the_source_says_of_the_split_holds_where_the_charter_keeps_it() -> None:
    rows = [text(str(i), f"g{i}", split="heldout") for i in range(30)]
    given_side, reasons = run(SplitByGroup(stage="split", keep_given=True), rows)
    assert given_side == rows
    assert reasons == {"heldout, as given": 30}
    drawn, _ = run(SplitByGroup(stage="split"), rows)
    assert {r.split for r in drawn} == {"train", "heldout"}


# -- traits


ASKS = Trait(name="asks", enough=2, extra_copies_millis=1000, phrases=("what do you think",), patterns=(r"\?\s*$",))
OTHERS = Trait(name="others", enough=1, extra_copies_millis=500, phrases=("other people",))
TRAITS = Traits(stage="traits", traits=(ASKS, OTHERS), max_copies=3)


@pytest.mark.parametrize(
    ("answer", "asks", "others"),
    [
        ("No.", 0, 0),
        ("What  do\nyou THINK", 500, 0),
        ("What do you think? Or why?", 1000, 0),
        ("What do you think, what do you think, what do you think?", 1000, 0),
        ("whatever what do you thinks", 0, 0),
        ("Other people differ", 0, 1000),
    ],
)
def test_a_trait_is_measured_by_its_words_up_to_enough_of_them(answer: str, asks: int, others: int) -> None:
    assert make_measure(TRAITS)(chat("other people? what do you think", answer).body) == {
        "asks": asks,
        "others": others,
    }


def test_a_trait_is_measured_where_the_community_speaks() -> None:
    measure = make_measure(TRAITS)
    assert measure(Pair("other people", "other people", "no", "g"))["others"] == 1000
    assert measure(Pair("other people", "no", "other people", "g"))["others"] == 0
    assert measure(Text("other people", "g"))["others"] == 1000


def test_rows_are_seen_more_often_by_what_they_express_and_never_beyond_the_bound() -> None:
    rows = [chat(f"q{i}", "Other people. What do you think? Or?") for i in range(400)]
    kept, reasons = run(TRAITS, rows)
    seen = Counter(kept)
    # 1 + 1 in full, and half a copy more by chance: 2 or 3, each about half of the time.
    assert set(seen.values()) == {2, 3}
    assert abs(list(seen.values()).count(3) - 200) <= 4 * 10
    assert reasons["asks: in full"] == reasons["others: in full"] == 400
    assert reasons["seen 2 times"] + reasons["seen 3 times"] == 400
    bounded = TRAITS.model_copy(update={"max_copies": 2})
    assert set(Counter(run(bounded, rows)[0]).values()) == {2}


def test_how_often_a_row_is_seen_depends_on_that_row_alone() -> None:
    rows = [chat(f"q{i}", "Other people") for i in range(40)]
    apart = [n for row in rows for n in [copies(row, make_measure(TRAITS)(row.body), TRAITS)]]
    assert Counter(run(TRAITS, rows[::-1])[0]) == Counter(dict(zip(rows, apart, strict=True)))


def test_a_held_out_row_is_seen_once() -> None:
    row = replace(chat("q", "What do you think? Why?"), split="heldout")
    assert run(TRAITS, [row]) == ([row], Counter())


# -- revisions


@dataclass
class Echo:
    """A reviser that answers from a table of its own, and counts what it was asked."""

    answers: Sequence[str] = ("it advises unasked", "Would you like advice?")
    asked: list[tuple[Message, ...]] = field(default_factory=list)
    name: str = "echo"

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> str:
        self.asked.append(tuple(messages))
        return self.answers[(len(self.asked) - 1) % len(self.answers)]


REVISE = Revise(stage="revise", principles=(1,), max_rows=5, share_millis=1000)


def test_a_revised_row_stands_beside_its_own_and_says_by_which_principle() -> None:
    row, echo = chat("I am tired", "Sleep."), Echo()
    kept, reasons = run(REVISE, [row], echo)
    said = row.body.messages if isinstance(row.body, Example) else ()
    new = Example((said[0], Message("assistant", "Would you like advice?")), "I am tired")
    assert kept == [row, Row(new, "train", "", ("principle 1",))]
    assert reasons == {"principle 1": 1}
    critique, revision = echo.asked
    assert critique[:-1] == said
    assert PRINCIPLES[0] in critique[-1].content
    assert revision[-2] == Message("assistant", "it advises unasked")


@pytest.mark.parametrize(
    ("answers", "reason"),
    [(("",), "an empty answer"), (("critique", ""), "an empty answer"), (("critique", "Sleep."), "the same answer")],
)
def test_an_answer_that_says_nothing_new_makes_no_row(answers: tuple[str, ...], reason: str) -> None:
    row = chat("I am tired", "Sleep.")
    assert run(REVISE, [row], Echo(answers)) == ([row], Counter([f"not revised: {reason}"]))


def test_only_training_conversations_by_people_are_revised_and_each_once() -> None:
    made = replace(chat("q", "a"), synthetic=("principle 2",))
    heldout = replace(chat("q", "a"), split="heldout")
    row = chat("q", "a")
    kept, reasons = run(REVISE, [made, heldout, text("t", split="train"), row, row], Echo())
    assert [r.synthetic for r in kept] == [("principle 2",), (), (), (), ("principle 1",), ()]
    assert reasons == {"principle 1": 1}


def test_a_turn_that_is_not_to_be_learnt_stays_so_expresses_no_trait_and_is_not_revised() -> None:
    given = Message("assistant", "Other people, mail ada@example.org", is_learnt=False)
    turns = (Message("user", "q"), given, Message("user", "and?"), Message("assistant", "no"))
    (kept,), _ = run(Scrub(stage="scrub"), [Row(Example(turns, "g"))])
    assert isinstance(kept.body, Example)
    assert kept.body.messages[1] == Message("assistant", "Other people, mail [EMAIL]", is_learnt=False)
    assert make_measure(TRAITS)(kept.body)["others"] == 0
    last = Row(Example((*turns[:1], turns[3], *turns[2:3], given), "g"), "train")
    assert run(REVISE, [last], Echo()) == ([last], Counter())


def test_revisions_are_bounded_and_drawn_by_the_seed() -> None:
    rows = [chat(f"q{i}", "a") for i in range(200)]
    some = REVISE.model_copy(update={"share_millis": 250, "max_rows": 1000})
    first = [r.body.group for r in run(some, rows, Echo())[0] if r.synthetic]
    assert abs(len(first) - 50) <= 4 * (200 * 0.25 * 0.75) ** 0.5
    assert [r.body.group for r in run(some, rows, Echo())[0] if r.synthetic] == first
    other = some.model_copy(update={"seed": 1})
    assert [r.body.group for r in run(other, rows, Echo())[0] if r.synthetic] != first
    kept, reasons = run(REVISE, rows, Echo())
    assert sum(1 for r in kept if r.synthetic) == 5
    assert reasons == {"principle 1": 5, "not revised: the bound is reached": 195}


def test_each_principle_is_used() -> None:
    both = REVISE.model_copy(update={"principles": (1, 2), "max_rows": 1000})
    _, reasons = run(both, [chat(f"q{i}", "a") for i in range(100)], Echo())
    assert reasons.total() == 100
    assert min(reasons.values()) > 20


def test_answers_are_kept_at_once_by_model_and_prompt_so_that_a_crash_costs_none(tmp_path: Path) -> None:
    rows = [chat(f"q{i}", "a") for i in range(4)]
    asked, kept = Echo(), tmp_path / "answers.sqlite"

    def interrupted() -> Iterator[Row]:
        yield from rows[:3]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), keeping_answers(kept, asked) as reviser:
        run(REVISE, interrupted(), reviser)
    assert len(asked.asked) == 6
    with keeping_answers(kept, asked) as reviser:
        assert run(REVISE, rows, reviser) == run(REVISE, rows, Echo())
    assert len(asked.asked) == 8


@pytest.mark.parametrize(
    ("name", "change", "asks"),
    [
        ("echo", {"share_millis": 999, "max_rows": 4, "seed": 0}, 0),
        ("another", {}, 2),
        ("echo", {"max_new_tokens": 7}, 2),
        ("echo", {"principles": (2,)}, 2),
    ],
)
def test_what_another_model_or_prompt_would_be_asked_is_asked(
    tmp_path: Path, name: str, change: dict[str, object], asks: int
) -> None:
    row, kept = chat("q", "a"), tmp_path / "answers.sqlite"
    with keeping_answers(kept, Echo()) as reviser:
        run(REVISE, [row], reviser)
    with keeping_answers(kept, echo := Echo(name=name)) as reviser:
        run(REVISE.model_copy(update=change), [row], reviser)
    assert len(echo.asked) == asks


def test_an_answer_that_nothing_asks_for_any_more_is_gone_from_the_file(tmp_path: Path) -> None:
    rows, kept = [chat(f"q{i}", "a") for i in range(2)], tmp_path / "answers.sqlite"
    with keeping_answers(kept, Echo(("wanting", "first answer", "wanting", "second answer"))) as reviser:
        run(REVISE, rows, reviser)
    assert b"second answer" in kept.read_bytes()
    with keeping_answers(kept, Echo()) as reviser:
        run(REVISE, rows[:1], reviser)
    assert b"first answer" in kept.read_bytes()
    assert b"second answer" not in kept.read_bytes()
    with keeping_answers(kept, None):
        pass
    assert not kept.exists()
