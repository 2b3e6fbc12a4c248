"""What commands print: one model, for people and for programs."""

import json
import math

import pytest
from pydantic import Field

from commonweal_protocols.base.report import Report, print_report


class Line(Report):
    module: str
    weight: int
    cosine: float | None = Field(None, title="cos")


class Answer(Report):
    name: str
    error_micros: int | None = Field(title="error against the exact merge")
    size_bytes: int
    is_delta: bool
    lines: tuple[Line, ...] = ()
    problems: tuple[str, ...] = ()
    counts: dict[str, int] = Field({})


ANSWER = Answer(name="x\x1b[2J", error_micros=1_500_000, size_bytes=1234, is_delta=False)


def shown(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    print_report(*args)  # type: ignore[arg-type]
    return capsys.readouterr().out


def test_a_field_is_a_line_in_its_unit_and_nothing_moves_the_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    assert shown(capsys, ANSWER, False).splitlines() == [
        "name                           x?[2J",
        "error against the exact merge  1.500000",
        "size                           1,234 bytes",
        "is delta                       no",
    ]


def test_what_is_unknown_or_empty_is_in_the_json_alone(capsys: pytest.CaptureFixture[str]) -> None:
    unknown = ANSWER.model_copy(update={"error_micros": None})
    assert "error" not in shown(capsys, unknown, False)
    said = json.loads(shown(capsys, unknown, True))
    assert list(said) == list(Answer.model_fields)
    assert (said["error_micros"], said["lines"], said["is_delta"]) == (None, [], False)


def test_models_in_a_field_are_a_table_without_its_empty_columns(capsys: pytest.CaptureFixture[str]) -> None:
    lines = (Line(module="up", weight=3), Line(module="down_proj", weight=10))
    assert shown(capsys, lines, False).splitlines() == ["module     weight", "up              3", "down_proj      10"]
    out = shown(capsys, ANSWER.model_copy(update={"lines": lines}), False).splitlines()
    assert out[-3:] == ["  module     weight", "  up              3", "  down_proj      10"]


def test_sentences_have_a_line_each_and_counts_share_one(capsys: pytest.CaptureFixture[str]) -> None:
    many = ANSWER.model_copy(update={"problems": ("it is bad", "worse"), "counts": {"chat": 2, "pair": 1}})
    out = [line.split(maxsplit=1) for line in shown(capsys, many, False).splitlines()]
    assert out[-3:] == [["problems", "it is bad"], ["problems", "worse"], ["counts", "chat 2, pair 1"]]


def test_json_has_null_for_what_is_no_number(capsys: pytest.CaptureFixture[str]) -> None:
    lines = [Line(module="up", weight=1, cosine=math.nan)]
    assert json.loads(shown(capsys, lines, True)) == [{"module": "up", "weight": 1, "cosine": None}]


def test_nothing_is_an_empty_table_and_an_empty_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert (shown(capsys, [], False), json.loads(shown(capsys, [], True))) == ("", [])
