"""The stages of a curation: each takes rows one by one and says what becomes of each, and why.

A decision is one of: the row as it was, the row changed, the row several times, nothing. Its reasons are words of this
module or of the charter, never of the row. A stage is pure but for what it remembers (:class:`memory.Memory`), so what
it makes of the same rows in the same order is the same, on every run.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from commonweal_node.charter.data_policy import (
    ExactDuplicates,
    LanguageFilter,
    Length,
    License,
    NearDuplicates,
    Personal,
    Revise,
    Scrub,
    SplitByGroup,
    Stage,
    Traits,
)
from commonweal_node.rows import similarity
from commonweal_node.rows.language import UNDETERMINED, Identify, load_identifier
from commonweal_node.rows.memory import Memory
from commonweal_node.rows.revise import Reviser, principle_for, revise, revised_row, wants_revision
from commonweal_node.rows.row import Body, Example, Pair, Row, Split, Text, fits, format_row, implied_group
from commonweal_node.rows.scrub import make_scrubber
from commonweal_node.rows.traits import copies, make_measure


@dataclass(frozen=True, slots=True)
class Decision:
    """What becomes of one row. No rows: it is dropped. ``reasons`` is empty only where it stays as it was."""

    rows: tuple[Row, ...]
    reasons: tuple[str, ...] = ()


Apply = Callable[[Iterator[Row]], Iterator[Decision]]
"""One decision for each row, in their order."""


def make_stage(stage: Stage, memory: Memory, principles: tuple[str, ...], reviser: Reviser | None) -> Apply:
    """Return the function of a stage.

    Args:
        stage: Its parameters.
        memory: Of this stage alone.
        principles: The charter's, for ``revise``.
        reviser: The model, for ``revise``.

    Raises:
        ModuleNotFoundError: The stage needs the extra ``data``, which is not installed.
    """
    match stage:
        case License():
            return _one_by_one(lambda row: by_license(row, stage))
        case Length():
            return _one_by_one(lambda row: by_length(row, stage))
        case LanguageFilter():
            identify = load_identifier()
            return _one_by_one(lambda row: by_language(row, stage, identify))
        case ExactDuplicates():
            return _one_by_one(lambda row: by_exact_copy(row, memory))
        case NearDuplicates():
            return _one_by_one(lambda row: by_near_copy(row, stage, memory))
        case Scrub():
            return scrubbed(stage)
        case SplitByGroup():
            return _one_by_one(lambda row: split_by_group(row, stage))
        case Traits():
            return up_sampled(stage)
        case Revise():
            if reviser is None:
                raise ValueError("stage revise: wanted a reviser, got none")
            return lambda rows: with_revisions(rows, stage, memory, principles, reviser)


def _one_by_one(decide: Callable[[Row], Decision]) -> Apply:
    return lambda rows: map(decide, rows)


def whole_text(body: Body) -> str:
    """Return all texts of a body, in order, a blank line between them."""
    if isinstance(body, Example):
        return "\n\n".join(m.content for m in body.messages)
    return body.content if isinstance(body, Text) else f"{body.prompt}\n\n{body.chosen}\n\n{body.rejected}"


def by_license(row: Row, policy: License) -> Decision:
    """Keep a row under a licence of the list."""
    if row.license in policy.licenses:
        return Decision((row,))
    return Decision((), ("another license" if row.license else "no license",))


def by_length(row: Row, policy: Length) -> Decision:
    """Keep a row within the bounds."""
    length = len(whole_text(row.body))
    if length < policy.min_characters:
        return Decision((), ("too short",))
    return Decision((row,)) if length <= policy.max_characters else Decision((), ("too long",))


def by_language(row: Row, policy: LanguageFilter, identify: Identify) -> Decision:
    """Keep a row in one of the languages."""
    language, confidence = identify(whole_text(row.body))
    if confidence * 1000 < policy.min_confidence_millis:
        return Decision((row,) if policy.keep_undetermined else (), (f"language {UNDETERMINED}",))
    return Decision((row,)) if language in policy.languages else Decision((), (f"language {language}",))


def by_exact_copy(row: Row, memory: Memory) -> Decision:
    """Keep the first of rows with the same words. Which texts are left depends on no order; which copy of them does."""
    key = hashlib.sha256("\0".join(similarity.words(whole_text(row.body)) or [whole_text(row.body)]).encode()).digest()
    return Decision((row,)) if memory.add(key) else Decision((), ("the same as an earlier row",))


def by_near_copy(row: Row, policy: NearDuplicates, memory: Memory) -> Decision:
    """Keep a row that is not too similar to one that was kept; so the order counts, which curation fixes."""
    signature = similarity.signature(whole_text(row.body), policy.words)
    threshold = policy.threshold_millis / 1000
    bands = list(similarity.bands(signature, similarity.rows_per_band(threshold)))
    if any(similarity.similarity(signature, other) >= threshold for other in memory.signatures(bands)):
        return Decision((), ("nearly the same as an earlier row",))
    memory.add_signature(signature, bands)
    return Decision((row,))


def scrubbed(policy: Scrub) -> Apply:
    """Put placeholders in the place of personal data, in every text of a row and in the name of its group."""
    scrub = make_scrubber(policy)

    def decide(row: Row) -> Decision:
        found: list[Personal] = []

        def clean(text: str) -> str:
            text, counts = scrub(text)
            found.extend(counts.elements())
            return text

        changed = replace(row, body=_rewritten(row.body, clean))
        if not found:
            return Decision((row,))
        if isinstance(changed.body, Pair) and changed.body.chosen == changed.body.rejected:
            return Decision((), ("no preference is left without personal data",))
        # A placeholder may be longer than what it stands for.
        return Decision((changed,), tuple(found)) if fits(changed) else Decision((), ("too long",))

    return _one_by_one(decide)


def _rewritten(body: Body, clean: Callable[[str], str]) -> Body:
    """A body with every text rewritten; a group that follows from the texts follows from the new ones."""
    new: Body
    if isinstance(body, Example):
        new = Example(tuple(replace(m, content=clean(m.content)) for m in body.messages), "")
    elif isinstance(body, Pair):
        new = Pair(clean(body.prompt), clean(body.chosen), clean(body.rejected), "")
    else:
        new = Text(clean(body.content), "")
    follows = body.group == implied_group(body)
    return replace(new, group=implied_group(new) if follows else clean(body.group))


def split_by_group(row: Row, policy: SplitByGroup) -> Decision:
    """Put a row on its group's side. A group stays on its side for ever, whatever rows come or go."""
    if policy.keep_given and row.split is not None:
        return Decision((row,), (f"{row.split}, as given",))
    draw = int.from_bytes(hashlib.sha256(b"split\0" + row.body.group.encode()).digest()[:8], "big") % 1000
    split: Split = "heldout" if draw < policy.heldout_millis else "train"
    return Decision((replace(row, split=split),), (f"{split}, by its group",))


def up_sampled(policy: Traits) -> Apply:
    """Repeat training rows that express the community's traits. Held-out rows are what is measured, and seen once."""
    measure = make_measure(policy)

    def decide(row: Row) -> Decision:
        if row.split != "train":
            return Decision((row,))
        expressed = measure(row.body)
        n = copies(row, expressed, policy)
        reasons = (*_shown(expressed), *(() if n == 1 else (f"seen {n} times",)))
        return Decision((row,) * n, reasons)

    return _one_by_one(decide)


def _shown(expressed: Mapping[str, int]) -> Iterator[str]:
    """Each expressed trait, in halves: enough to see what a curation is made of."""
    for name, millis in expressed.items():
        if millis:
            yield f"{name}: {'in full' if millis == 1000 else 'half or more' if millis >= 500 else 'less than half'}"


def with_revisions(
    rows: Iterator[Row], policy: Revise, memory: Memory, principles: tuple[str, ...], reviser: Reviser
) -> Iterator[Decision]:
    """Put a synthetic row beside each of the drawn ones, up to the policy's bound; copies of one row are one."""
    asked = 0
    for row in rows:
        drawn = wants_revision(row, policy) and memory.add(hashlib.sha256(format_row(row)).digest())
        if not drawn or not isinstance(row.body, Example):
            yield Decision((row,))
        elif asked == policy.max_rows:
            yield Decision((row,), ("not revised: the bound is reached",))
        else:
            asked += 1
            number = principle_for(row, policy)
            answer = revise(row.body, principles[number - 1], reviser, policy.max_new_tokens)
            yield _revised(row, row.body, answer, number)


def _revised(row: Row, example: Example, answer: str, number: int) -> Decision:
    if not answer:
        return Decision((row,), ("not revised: an empty answer",))
    if answer == example.messages[-1].content:
        return Decision((row,), ("not revised: the same answer",))
    new = revised_row(row, example, answer, number)
    return Decision((row, new), (f"principle {number}",)) if fits(new) else Decision((row,), ("not revised: too long",))
