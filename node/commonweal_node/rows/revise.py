"""Synthetic rows: the local model criticises an answer by one of the charter's principles, and revises it.

The procedure is the supervised phase of Constitutional AI (arXiv 2212.08073, section 3.1), with one round for each row.
The model is a :class:`Reviser`; this module chooses rows, asks, and keeps the answers, which take long: a curation that
is killed, or whose charter or sources change, asks the same model the same thing once.
"""

import hashlib
import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from commonweal_node.charter.data_policy import Revise
from commonweal_node.rows.memory import open_database
from commonweal_node.rows.row import Example, Message, Row, format_row
from commonweal_protocols.base.errors import StorageError

_ANSWERS = "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, answer TEXT NOT NULL) WITHOUT ROWID;"


class Reviser(Protocol):
    """A model that answers. The same messages get the same answer, or a run could not be done again."""

    @property
    def name(self) -> str:
        """What it is, by digest: another model writes other rows."""

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> str:
        """Return the assistant's next turn; empty where it has nothing to say, or no room for it."""


def wants_revision(row: Row, policy: Revise) -> bool:
    """Whether a row is drawn: a training conversation, so many of a thousand of them by its own hash and the seed.

    None whose last answer is not to be learnt.
    """
    if (
        not isinstance(row.body, Example)
        or row.split != "train"
        or row.synthetic
        or not row.body.messages[-1].is_learnt
    ):
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


def _draw(row: Row, policy: Revise) -> int:
    return int.from_bytes(hashlib.sha256(f"revise\0{policy.seed}\0".encode() + format_row(row)).digest()[:8], "big")


@contextmanager
def keeping_answers(path: Path, reviser: Reviser | None) -> Iterator[Reviser | None]:
    """Give the reviser a file of answers, each kept at once, by model and prompt.

    When all went well, answers that nothing asked for are removed from it: their rows are withdrawn, or say otherwise.

    Raises:
        StorageError: The file cannot be read or written, or the disk is full.
    """
    if reviser is None:
        yield None
        try:
            path.unlink(missing_ok=True)
        except OSError as e:
            raise StorageError(f"{path}: cannot be removed: {e.strerror}") from e
        return
    with open_database(path, _ANSWERS) as db:
        # What is removed is overwritten, and not only forgotten.
        db.execute("PRAGMA secure_delete = ON")
        yield (kept := _Kept(reviser, db))
        gone = [key for key in db.execute("SELECT key FROM answers") if key[0] not in kept.used]
        db.executemany("DELETE FROM answers WHERE key = ?", gone)


class _Kept:
    """A reviser that asks another one what is not kept."""

    def __init__(self, reviser: Reviser, db: sqlite3.Connection) -> None:
        self._reviser = reviser
        self._db = db
        self.used: set[bytes] = set()

    @property
    def name(self) -> str:
        return self._reviser.name

    def answer(self, messages: Sequence[Message], max_new_tokens: int) -> str:
        prompt = [self.name, max_new_tokens, *([m.role, m.content] for m in messages)]
        key = hashlib.sha256(json.dumps(prompt).encode()).digest()
        self.used.add(key)
        if found := self._db.execute("SELECT answer FROM answers WHERE key = ?", (key,)).fetchone():
            return str(found[0])
        answer = self._reviser.answer(messages, max_new_tokens)
        self._db.execute("INSERT INTO answers VALUES (?, ?)", (key, answer))
        return answer
