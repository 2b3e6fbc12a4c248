"""A compact's choke points: where one party could stop a consortium, or decide for it, with the numbers.

A compact with warnings is valid: a small consortium has few to choose from. Anyone who signs should have read them.
Pure.
"""

from collections.abc import Iterator
from urllib.parse import urlsplit

from commonweal_protocols.fold.amendment import spare_keys
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.rules import Capped, MinimaxFair, Weighted
from commonweal_protocols.tlog.note import parse_vkey


def choke_points(compact: Compact) -> Iterator[str]:
    """Yield a sentence for each."""
    if not compact.successors:
        yield (
            "successors: none: should the coordinator fail, there is nobody whom the members have agreed on before; "
            "name one with --successor CARD"
        )
    if spare_keys(compact) == 0:
        k = compact.quorum.amendments
        yield f"amendments: {k} of {k} members: one lost key, or one no, ends every later amendment"
    yield from _witnesses(compact)
    yield from _weights(compact)


def _witnesses(compact: Compact) -> Iterator[str]:
    n, k = len(compact.witnesses), compact.quorum.witnesses
    if k == 0:
        yield "witnesses: none are wanted: the coordinator alone can show two readers two histories"
        return
    if 2 * k - n - 1 < 1:
        # Two quorums of k share at least 2k - n witnesses; with f liars among them, one honest one must be left.
        yield (
            f"witnesses: {k} of {n} survive no dishonest one: two quorums may share only {max(0, 2 * k - n)}; "
            "wanted k + k > n + f, such as 3 of 4 for one and 5 of 7 for two"
        )
    if k == n:
        yield f"witnesses: {k} of {n}: any one of them stops the log by not answering"
    hosts: dict[str, list[str]] = {}
    for w in compact.witnesses:
        hosts.setdefault(urlsplit(w.url).hostname or w.url, []).append(w.name)
    for host, names in sorted(hosts.items()):
        if len(names) >= k:
            yield f"witnesses: {', '.join(sorted(names))} are all at {host}: one operator has the quorum of {k}"
    coordinator = parse_vkey(compact.coordinator.log).name.split("/")[0].rsplit(":", 1)[0]
    for w in compact.witnesses:
        if urlsplit(w.url).hostname == coordinator or w.name == compact.coordinator.name:
            yield f"witnesses: {w.name} is at the coordinator's own host {coordinator}: it would watch itself"


def _weights(compact: Compact) -> Iterator[str]:
    n = len(compact.members)
    weights = compact.rule.weights if isinstance(compact.rule, Weighted) else "equal"
    if weights == "examples":
        yield "weights: by examples: no bound; an institution weighs as much as the number it states"
        return
    # Of the whole, with all n members in the round.
    if isinstance(weights, Capped):
        share = max(weights.cap_millis / 1000, 1 / n)
    elif isinstance(weights, MinimaxFair):
        share = weights.most_millis / (weights.most_millis + 1000 * (n - 1))
    else:
        share = 1 / n
    if share > 1 / 3:
        yield f"weights: one institution of {n} can have {share:.0%} of a release, more than a third"
