"""The charter's data policy: what it may say, and what each mistake is answered with."""

import re
from pathlib import Path

import pytest

from commonweal_node.charter.charter import NO_CHARTER, load_charter
from commonweal_node.rows.curate import plan
from commonweal_protocols.base.errors import ConfigError

HEAD = 'community = "Valley"\nversion = 2\nprinciples = ["ask first", "be brief"]\ndata_policy = "by consent"\n'
GOOD = """\
[[data.stages]]
stage = "length"
min_characters = 10
max_characters = 20
[[data.stages]]
stage = "split"
heldout_millis = 100
[[data.stages]]
stage = "traits"
[[data.stages.traits]]
name = "asks"
patterns = ['\\?$']
[[data.stages]]
stage = "revise"
principles = [2]
max_rows = 9
"""


def test_the_stages_are_those_of_the_charter_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "charter.toml"
    path.write_text(HEAD + GOOD[: GOOD.rindex("[[data.stages]]")])
    assert [s.stage.stage for s in plan(load_charter(path), None)] == ["length", "split", "traits"]


def test_a_charter_without_a_data_policy_curates_nothing() -> None:
    with pytest.raises(ConfigError, match=r"charter: wanted a table \[data\]"):
        plan(NO_CHARTER, None)


def test_a_charters_digest_is_of_what_it_says_and_not_of_how(tmp_path: Path) -> None:
    one, other, another = (tmp_path / f"{i}.toml" for i in range(3))
    one.write_text(HEAD + GOOD)
    other.write_text(
        f"# the same\n{HEAD}{GOOD}".replace(
            "min_characters = 10\nmax_characters = 20", "max_characters = 20 \nmin_characters = 10"
        )
    )
    another.write_text(HEAD + GOOD.replace("max_rows = 9", "max_rows = 8"))
    assert load_charter(one).digest() == load_charter(other).digest() != load_charter(another).digest()


BAD: list[tuple[str, str, str, str]] = [
    ("an unknown stage", '"length"', '"magic"', "data.stages.0: .*'magic'"),
    ("an unknown key", "min_characters", "min_chars", "min_chars: Extra inputs are not permitted"),
    (
        "bounds the wrong way round",
        "min_characters = 10",
        "min_characters = 21",
        "max_characters: wanted at least 21, got 20",
    ),
    ("nothing held out", "heldout_millis = 100", "heldout_millis = 0", "greater than or equal to 1"),
    ("more than half held out", "heldout_millis = 100", "heldout_millis = 501", "less than or equal to 500"),
    ("no such principle", "principles = [2]", "principles = [3]", r"revise.principles: wanted at most 2 .*, got 3"),
    ("no bound on what is made", "max_rows = 9\n", "", "max_rows: Field required"),
    ("no regular expression", "'\\?$'", "'('", r"wanted a regular expression, got '\('"),
    ("a pattern that is found everywhere", "'\\?$'", "'x*'", "wanted a pattern that needs a character, got 'x\\*'"),
    ("a trait without a sign", "patterns = ['\\?$']\n", "", "trait asks: wanted phrases or patterns, got neither"),
    ("a blank phrase", "patterns = ['\\?$']", 'phrases = [" "]', "phrases.0: String should match pattern"),
]


@pytest.mark.parametrize(("why", "old", "new", "message"), BAD, ids=[b[0] for b in BAD])
def test_a_bad_data_policy_is_refused_by_file_and_key(
    tmp_path: Path, why: str, old: str, new: str, message: str
) -> None:
    assert GOOD.count(old) == 1
    path = tmp_path / "charter.toml"
    path.write_text(HEAD + GOOD.replace(old, new))
    with pytest.raises(ConfigError, match=rf"^{re.escape(str(path))}: .*({message})"):
        load_charter(path)


STAGE = {
    "length": '[[data.stages]]\nstage = "length"\n',
    "split": '[[data.stages]]\nstage = "split"\n',
    "traits": '[[data.stages]]\nstage = "traits"\n[[data.stages.traits]]\nname = "t"\nphrases = ["p"]\n',
    "revise": '[[data.stages]]\nstage = "revise"\nprinciples = [1]\nmax_rows = 1\n',
}


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (("length",), "wanted a stage 'split', or nothing would be held out"),
        (("split", "length"), "got length on the other side"),
        (("traits", "split"), "got traits on the other side"),
        (("revise", "split"), "got revise on the other side"),
        (("split", "traits", "traits"), "a stage is repeated"),
    ],
)
def test_what_would_train_on_held_out_rows_is_no_policy(tmp_path: Path, order: tuple[str, ...], message: str) -> None:
    path = tmp_path / "charter.toml"
    path.write_text(HEAD + "".join(STAGE[s] for s in order))
    with pytest.raises(ConfigError, match=message):
        load_charter(path)
