"""Made-up deliberations with groups that are known, written as exports are: the same bytes for the same seed.

``python -m tests.kit.voices`` writes the small ones that are committed in ``vectors/voices``.
"""

import csv
import hashlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parents[1] / "vectors" / "voices"


def draws(seed: str) -> Iterator[float]:
    """Numbers from 0 up to 1, from SHA-256 of the seed and a counter."""
    n = 0
    while True:
        block = hashlib.sha256(f"{seed} {n}".encode()).digest()
        yield from (int.from_bytes(block[at : at + 8]) / 2**64 for at in range(0, 32, 8))
        n += 1


@dataclass(frozen=True)
class Planted:
    """``sizes`` people in each group; group g agrees with a statement with the chance ``agree[g][statement]``."""

    sizes: tuple[int, ...]
    agree: tuple[tuple[float, ...], ...]
    silent: float = 0.3
    seed: str = "voices"

    @property
    def statements(self) -> int:
        return len(self.agree[0])

    def rows(self) -> list[tuple[int, list[str]]]:
        """Each participant's group, and a vote as the table has it on every statement."""
        random = draws(self.seed)
        found = []
        for group, size in enumerate(self.sizes):
            for _ in range(size):
                votes = []
                for chance in self.agree[group]:
                    spoken, side, passed = next(random) >= self.silent, next(random), next(random)
                    votes.append("" if not spoken else "0" if passed < 0.05 else "1" if side < chance else "-1")
                found.append((group, votes))
        return found

    def moderated(self, statement: int) -> int:
        """The last statement was rejected by the moderators."""
        return -1 if statement == self.statements - 1 else 1


def opposed(groups: int, sizes: tuple[int, ...], each: int = 8, common: int = 4, seed: str = "voices") -> Planted:
    """Groups that agree on ``common`` statements, and each of which has ``each`` of its own that the others reject."""
    own = [[0.92 if s // each == g else 0.08 for s in range(groups * each)] for g in range(groups)]
    return Planted(sizes, tuple((*row, *(0.9 for _ in range(common)), 0.5) for row in own), seed=seed)


def crossed(sizes: tuple[int, ...], each: int = 10, seed: str = "voices") -> Planted:
    """Four groups that are for or against each of two things, and a fifth that is divided about both."""
    sides = ((0.95, 0.95), (0.95, 0.05), (0.05, 0.95), (0.05, 0.05), (0.5, 0.5))
    agree = tuple((*([a] * each), *([b] * each), 0.5) for a, b in sides[: len(sizes)])
    return Planted(sizes, agree, silent=0.1, seed=seed)


def counts(rows: list[tuple[int, list[str]]], statement: int) -> tuple[int, int]:
    """How many agree with a statement, and how many disagree."""
    cast = [votes[statement] for _, votes in rows]
    return cast.count("1"), cast.count("-1")


def _csv(rows: list[list[object]]) -> bytes:
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows(rows)
    return out.getvalue().encode()


def comments(planted: Planted) -> bytes:
    rows = planted.rows()
    table: list[list[object]] = [
        ["timestamp", "datetime", "comment-id", "author-id", "agrees", "disagrees", "moderated", "comment-body"]
    ]
    for s in range(planted.statements):
        agree, disagree = counts(rows, s)
        table.append([1, "then", s, 0, agree, disagree, planted.moderated(s), f'Statement {s}, "so to say".\nTruly.'])
    return _csv(table)


def participants_votes(planted: Planted) -> bytes:
    head = ["participant", "group-id", "n-comments", "n-votes", "n-agree", "n-disagree"]
    table: list[list[object]] = [[*head, *range(planted.statements)]]
    for n, (group, votes) in enumerate(planted.rows()):
        table.append([n, group, 0, len(votes) - votes.count(""), votes.count("1"), votes.count("-1"), *votes])
    return _csv(table)


def history(planted: Planted) -> bytes:
    """The other form: one line for each vote, the newest first; every first vote is a pass that was thought over."""
    table: list[list[object]] = []
    for n, (_, votes) in enumerate(planted.rows()):
        for s, vote in enumerate(votes):
            if vote:
                table += [[10 + s, "then", s, n, 0], [1000 + s, "later", s, n, vote]]
    table.sort(key=lambda row: -int(str(row[0])))
    return _csv([["timestamp", "datetime", "comment-id", "voter-id", "vote"], *table])


def write_export(folder: Path, planted: Planted, *, as_history: bool = False) -> Path:
    """Write an export as Polis does."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comments.csv").write_bytes(comments(planted))
    if as_history:
        (folder / "votes.csv").write_bytes(history(planted))
    else:
        (folder / "participants-votes.csv").write_bytes(participants_votes(planted))
    return folder


def write_pair(folder: Path, planted: Planted) -> Path:
    """Write the same as one file of votes beside one of statements."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = planted.rows()
    table: list[list[object]] = [["participant", "group", "statement", "vote"]]
    for n, (group, votes) in enumerate(rows):
        table += [[n, group, s, vote] for s, vote in enumerate(votes) if vote]
    path = folder / "planted.votes.csv"
    path.write_bytes(_csv(table))
    with (folder / "planted.statements.jsonl").open("w") as f:
        for s in range(planted.statements):
            agree, disagree = counts(rows, s)
            said = {"statement": s, "text": f'Statement {s}, "so to say".\nTruly.', "moderated": planted.moderated(s)}
            f.write(json.dumps({**said, "agree": agree, "disagree": disagree, "place": "nowhere"}) + "\n")
    return path


THREE = opposed(3, (30, 20, 12))


if __name__ == "__main__":
    write_export(HERE, THREE)
