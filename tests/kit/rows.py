"""Rows of data: one to train on, and every kind that there is, drawn."""

from hypothesis import strategies as st

from commonweal_node.rows.row import (
    Body,
    Example,
    Message,
    Pair,
    Row,
    Text,
)

WORDS = st.text(min_size=1, max_size=12).filter(
    lambda t: t.strip() and "\0" not in t and t.encode(errors="ignore").decode() == t
)
TURNS = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=3)


def conversation(turns: list[tuple[str, str]], system: str | None, group: str | None) -> Example:
    said = [Message("system", system)] if system else []
    for user, assistant in turns:
        said += [Message("user", user), Message("assistant", assistant)]
    return Example(tuple(said), group or turns[0][0])


BODIES: st.SearchStrategy[Body] = st.one_of(
    st.builds(conversation, TURNS, st.none() | WORDS, st.none() | WORDS),
    st.builds(Text, WORDS, WORDS),
    st.builds(Pair, WORDS, WORDS, WORDS, WORDS).filter(lambda p: p.chosen != p.rejected),
)
ROWS = st.builds(
    Row,
    BODIES,
    st.sampled_from([None, "train", "heldout"]),
    st.just("") | WORDS,
    st.lists(WORDS, max_size=2).map(tuple),
)
ROW = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
