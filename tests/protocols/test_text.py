"""Another's text on our terminal."""

import pytest

from commonweal_protocols.base.text import printable

TEXTS: list[tuple[str, str, str]] = [
    ("plain – nur Wörter, 中文", "plain – nur Wörter, 中文", "words of any script stay"),
    ("two\nlines\r\nhere\tand\u2028there", "two lines  here and there", "white space keeps to one line"),
    ("\x1b[2Jgone\x07", "?[2Jgone?", "control sequences lose what makes them one"),
    ("a\u202eb\u200bc", "a?b?c", "direction marks and invisible characters show"),
    ("\ud800", "?", "half of a surrogate pair, which no terminal could encode"),
]


@pytest.mark.parametrize(("text", "wanted", "why"), TEXTS, ids=[t[-1] for t in TEXTS])
def test_another_s_text_is_one_line_that_moves_no_cursor(text: str, wanted: str, why: str) -> None:
    assert printable(text) == wanted
