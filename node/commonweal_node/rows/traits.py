"""Traits: what a community wants more of, known by words that its charter lists, so that everybody can see why.

A trait is measured where the community speaks: in the assistant's turns, in the preferred answer, in a text. Each is
measured by itself and told by itself. Pure; copies that are not whole numbers are drawn by the row's own hash.
"""

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from itertools import islice

from commonweal_node.charter.data_policy import Trait, Traits
from commonweal_node.rows.row import Body, Example, Pair, Row, format_row

Measure = Callable[[Body], Mapping[str, int]]
"""How far a body expresses each trait, by name, in thousandths."""


def make_measure(policy: Traits) -> Measure:
    """Return the function that measures a body by each of a policy's traits."""
    compiled = [(t, _patterns(t)) for t in policy.traits]

    def measure(body: Body) -> dict[str, int]:
        text = _spoken(body)
        return {
            t.name: sum(1 for _ in islice(_occurrences(patterns, text), t.enough)) * 1000 // t.enough
            for t, patterns in compiled
        }

    return measure


def _patterns(trait: Trait) -> list[re.Pattern[str]]:
    # A phrase is whole words, with any white space between them.
    phrases = [r"(?<!\w)" + r"\s+".join(map(re.escape, p.split())) + r"(?!\w)" for p in trait.phrases]
    return [re.compile(p, re.IGNORECASE) for p in (*phrases, *trait.patterns)]


def _occurrences(patterns: list[re.Pattern[str]], text: str) -> Iterator[re.Match[str]]:
    for pattern in patterns:
        yield from pattern.finditer(text)


def _spoken(body: Body) -> str:
    if isinstance(body, Example):
        return "\n\n".join(m.content for m in body.messages if m.role == "assistant" and m.is_learnt)
    return body.chosen if isinstance(body, Pair) else body.content


def copies(row: Row, expressed: Mapping[str, int], policy: Traits) -> int:
    """Return how often a row is to be seen: once, and more for each trait that it expresses, up to the policy's bound.

    The extra copies of all traits add up to thousandths; what is over a whole number is one more copy with that
    chance, drawn from the SHA-256 of the row: the same for the same row, whatever stands beside it.
    """
    extra = sum(t.extra_copies_millis * expressed[t.name] for t in policy.traits) // 1000
    draw = int.from_bytes(hashlib.sha256(b"copies\0" + format_row(row)).digest()[:8], "big") % 1000
    return min(policy.max_copies, 1 + (extra + draw) // 1000)
