"""A compact's terms in plain words for those who are to sign it, and what follows from them for a member. Pure."""

from collections.abc import Iterator

from commonweal_protocols.base.text import printable
from commonweal_protocols.statements.compact import MIN_STEPS, Compact
from commonweal_protocols.statements.privacy_budget import MICRO, cost_micro_rho, epsilon
from commonweal_protocols.statements.rules import weights_name

_DELTA = 1e-6
"""The δ at which a budget is told as an ε."""


def describe_terms(compact: Compact) -> Iterator[tuple[str, str]]:
    """Yield each term's name and what it says, a line each. A line without a name continues with the term before it."""
    adapter, quorum = compact.adapter, compact.quorum
    yield "base", f"{printable(compact.base.reference)}, sha256 {compact.base.sha256[:16]}…"
    yield "adapter", f"rank {adapter.rank}, alpha {adapter.alpha}, scaling {adapter.scaling}"
    yield from _rounds(compact)
    yield "rule", f"{compact.rule.name}, weights {weights_name(compact.rule)}"
    yield from _deltas(compact)
    yield from _privacy(compact)
    yield from _masking(compact)
    yield "quorum", f"{quorum.updates} updates, {quorum.ratifications} ratifications"
    yield "", f"{quorum.amendments} signatures change this compact"
    yield "witnesses", f"{quorum.witnesses} of {', '.join(w.name for w in compact.witnesses) or 'none'}"
    yield "members", ", ".join(m.institution for m in compact.members)
    for m in compact.members:
        if m.consortium is not None:
            yield "", f"{m.institution} is a consortium, {m.consortium}: it gives that one's releases, as one voice"
    yield "coordinator", compact.coordinator.name
    if (fork := compact.forked_from) is not None:
        yield "forked from", f"{fork.consortium} after {fork.at.size} entries of {printable(fork.at.origin)}"


def _rounds(compact: Compact) -> Iterator[tuple[str, str]]:
    """How long a round is, and when rounds stop."""
    recipe = compact.recipe
    if recipe.passes_millis is None:
        length = f"{recipe.steps} steps"
    else:
        least = min(MIN_STEPS, recipe.steps)
        length = f"{recipe.passes_millis / 1000:g} passes over your rows, in {least} to {recipe.steps} steps"
    yield "recipe", f"a round is {length}, each of {recipe.batch_size} rows"
    yield "", f"learning rate {recipe.learning_rate_micros / MICRO:g}, rows of at most {recipe.max_tokens} tokens"
    if compact.stop_after is not None:
        yield "", f"rounds stop after {compact.stop_after} whose start most members find no better than those before"
    yield "limits", f"{compact.round_deadline_seconds} s for an answer, of at most {compact.max_update_bytes:,} bytes"


def _deltas(compact: Compact) -> Iterator[tuple[str, str]]:
    """How a delta is encoded."""
    encoding, grid = compact.encoding, f"whole steps of 2^-{compact.adapter.grid_bits}"
    if encoding is None:
        yield "deltas", f"every element, in {grid}"
        return
    few = encoding.keep_millis < 1000
    kept = f"the largest {encoding.keep_millis} of each 1000 elements, the others as 0" if few else "every element"
    if encoding.bits == 32:
        yield "deltas", f"{kept}; in {grid}"
    else:
        yield "deltas", f"{kept}; {encoding.bits} bits each, about 64 sharing one scale, which rounds them"
    if few or encoding.bits < 32:
        yield "", "what that loses of yours is kept on your host, and added to your next delta"


def _privacy(compact: Compact) -> Iterator[tuple[str, str]]:
    """What is put on a delta before anybody sees it, and for how many rounds the budget lasts."""
    terms, steps = compact.privacy, 1 << compact.adapter.grid_bits
    if terms is None:
        yield "privacy", "none: no delta is clipped, and none has noise"
        return
    cost = cost_micro_rho(terms)
    rounds = terms.budget_micro_rho // cost
    yield "privacy", f"clip: your delta is scaled down to an L2 norm of at most {terms.clip_steps / steps:.6g}"
    yield "", f"noise: discrete Gaussian with sigma {terms.sigma_steps / steps:.6g} on each of its elements"
    budget = f"{terms.budget_micro_rho / MICRO:g} of zCDP's rho, of which an update costs {cost / MICRO:g}"
    yield "", f"budget: {budget}: {rounds} updates"
    if rounds:
        yield "", f"all of them: epsilon {epsilon(rounds * cost, _DELTA):.2f} at delta {_DELTA:g}"
        yield "", "after that no round may invite you under these terms"
    else:
        yield "", "not enough for one: no round may invite you under these terms"
    yield "", "that a member adds its noise, nobody else can see"


def _masking(compact: Compact) -> Iterator[tuple[str, str]]:
    """Who can see a single delta, and what an audit can say of one."""
    terms = compact.secure
    if terms is None:
        yield "masking", "none: everybody can read each delta, and audits say what each did to a release"
        return
    holders = min(terms.neighbours + 1, len(compact.members))
    need = f"{terms.threshold(holders)} of the {holders} who hold shares of your secrets"
    yield "masking", f"all deltas are masked: only their sum is known, but to {need}, if they work together"
    yield "", "audits still prove whose deltas are in a release, and that it is made of exactly these"
    yield "", "audits cannot see whether one was in range, within a norm, or trained at all"
    yield "", "no single update can be set aside, recalled, or told in its influence"
