"""Synthetic rows: the local model criticises an answer by one of the charter's principles, and revises it.

The procedure is the supervised phase of Constitutional AI (arXiv 2212.08073, section 3.1), with one round for each row.
The model is a :class:`Reviser`; this module only chooses rows and asks. Pure but for what the reviser does.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

from commonweal_node.charter.data_policy import Revise
from commonweal_node.rows.row import Example, Message, Row, format_row


class Reviser(Protocol):
    """A model that answers. The same messages get the same answer, or a run could not be done again."""

    @property
    def name(self) -> str:
        """What it is, by digest: another model writes other rows."""

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> str:
        """Return the assistant's next turn; empty where it has nothing to say, or no room for it."""


def wants_revision(row: Row, policy: Revise) -> bool:
    """Whether a row is drawn: a training conversation, so many of a thousand of them by its own hash and the seed."""
    if not isinstance(row.body, Example) or row.split != "train" or row.synthetic:
        return False
    return _draw(row, policy) % 1000 < policy.share_millis


def principle_for(row: Row, policy: Revise) -> int:
    """Return the number of the principle that a drawn row is revised by."""
    return policy.principles[_draw(row, policy) // 1000 % len(policy.principles)]


def revise(example: Example, principle: str, reviser: Reviser, max_new_tokens: int) -> str:
    """Return a conversation's last answer as the model revises it by a principle; empty where it has nothing to say."""
    asked = [
        *example.messages,
        Message(
            "user",
            f"Our community holds: {principle}\nName what in your last answer does not live up to this, in one or two "
            "sentences.",
        ),
    ]
    critique = reviser.answer(asked, max_new_tokens)
    if not critique.strip():
        return ""
    asked += [
        Message("assistant", critique),
        Message(
            "user",
            "Write your last answer to the question anew, so that it lives up to this. Give the answer alone, no "
            "word about the change.",
        ),
    ]
    return reviser.answer(asked, max_new_tokens).strip()


def revised_row(row: Row, example: Example, answer: str, principle: int) -> Row:
    """Return the synthetic row that stands beside ``row``: same question, same group, the revised answer."""
    messages = (*example.messages[:-1], Message("assistant", answer))
    return Row(Example(messages, example.group), row.split, row.license, (f"principle {principle}",))


def question_key(row: Row, principle: int, reviser: Reviser) -> bytes:
    """Name one revision, so that an answer that is kept is found again."""
    return hashlib.sha256(f"{reviser.name}\0{principle}\0".encode() + format_row(row)).digest()


def _draw(row: Row, policy: Revise) -> int:
    return int.from_bytes(hashlib.sha256(f"revise\0{policy.seed}\0".encode() + format_row(row)).digest()[:8], "big")
