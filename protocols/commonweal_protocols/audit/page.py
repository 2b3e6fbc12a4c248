"""An audit as one page for people who are not engineers: each claim in plain words opens to its proof.

The page is self-contained: no script, no request, no font. It is a pure function of the audit's outcome. Every value
that somebody else wrote goes through ``html_page``, which escapes it.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from commonweal_protocols.audit.audit import Outcome
from commonweal_protocols.audit.evidence import format_evidence, verify_evidence
from commonweal_protocols.audit.memory import Line
from commonweal_protocols.audit.page_decisions import render_decisions
from commonweal_protocols.audit.page_style import STYLE
from commonweal_protocols.audit.report import Finding, Report, RoundReport
from commonweal_protocols.audit.vocabulary import WEIGHTS, describe_deed, describe_probe
from commonweal_protocols.base.html import Html, el, facts, foreign, join, page, table
from commonweal_protocols.fold.state import RoundState, State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.adoption import Adoption
from commonweal_protocols.statements.registry import TITLES
from commonweal_protocols.statements.rounds import Input
from commonweal_protocols.statements.rules import weights_name
from commonweal_protocols.statements.values import Blob, Name

MAX_ROUNDS = 100
"""Rounds on the page, the newest first; the JSON report has all."""
MAX_LEDGER = 2000
"""Entries that the ledger lists one by one."""

_CHECKS = {
    "recomputed": "We made this adapter again from the contributions below, and got exactly the published bytes.",
    "digests only": "Its files are exactly those that were signed. The merge itself was not recomputed in this audit.",
    "failed": "It does NOT hold: see the findings.",
}


@dataclass(frozen=True, slots=True)
class _Record:
    """The verified history, and where in it each fact stands."""

    replica: Replica
    journal: tuple[Line, ...]
    places: Mapping[Line, list[int]] = field(default_factory=dict)

    @property
    def state(self) -> State:
        return self.replica.state

    def who(self, key: str) -> str:
        if not key:
            return "every founding member"
        coordinator = self.state.compact.coordinator
        return f"{coordinator.name} (the coordinator)" if key == coordinator.key else self.state.institution(key) or key

    def find(self, kind: str, number: int, key: str, *more: tuple[str, str], nth: int = -1) -> Html:
        """The proof of a fact: the newest such entry, or the ``nth``."""
        found = self.places.get(Line(kind, number, key), [])
        return self.proof(found[nth], *more) if -len(found) <= nth < len(found) else Html("")

    def proof(self, index: int, *more: tuple[str, str]) -> Html:
        """What an entry is bound to the signed root by, folded away."""
        tree, size = self.replica.tree, self.replica.size
        if index >= size or index >= len(self.journal):
            return Html("")
        line = self.journal[index]
        path = [el("li", el("code", h.hex())) for h in tree.inclusion_path(index, size)]
        signer = join((foreign(self.who(line.key)), " ", el("code", line.key)))
        return el(
            "details",
            el("summary", f"Proof: entry {index}"),
            facts(
                ("Entry", f"number {index} of 0 to {size - 1}: {TITLES.get(line.kind, line.kind)}"),
                ("Signed by", signer),
                ("Leaf hash", el("code", tree.node(0, index).hex())),
                ("Path to the root", el("ol", *path) if path else "none: it is the only entry"),
                ("Root", el("code", tree.root(size).hex())),
                *more,
            ),
        )


def _record(outcome: Outcome) -> _Record:
    places: dict[Line, list[int]] = {}
    for i, line in enumerate(outcome.journal):
        places.setdefault(line, []).append(i)
    return _Record(outcome.replica, outcome.journal, places)


def _nats(micronats: int) -> str:
    return f"{micronats / 1e6:.3f}"


def _blob(blob: Blob) -> Html:
    return join((el("code", blob.sha256), f" ({blob.size_bytes:,} bytes)"))


def render_html(outcome: Outcome) -> bytes:
    """Return the page, UTF-8."""
    report = outcome.report
    name = report.name or "(unknown)"
    body = [_head(report, name)]
    if report.findings or outcome.evidence:
        body.append(_findings(report.findings, outcome))
    if outcome.journal:
        record = _record(outcome)
        body += [
            _founders(record),
            *render_decisions(report, record.proof),
            _rounds(record, report.rounds),
            _history(record, outcome),
        ]
    body.append(_how())
    return page(f"Audit of {name}", STYLE, el("main", *body))


def _head(report: Report, name: str) -> Html:
    made = sum(r.release is not None and r.release.check == "recomputed" for r in report.rounds)
    count = sum(r.release is not None for r in report.rounds)
    if report.verdict == "pass":
        title = "The records hold"
        text = f"All {report.size:,} signed entries of this consortium's history were replayed, first to last. "
        if count and made == count:
            text += f"Each of its {count} published adapters was recomputed from what it names: to the same bytes."
        elif count:
            text += f"The files of its {count} published adapters are those that were signed; {made} were recomputed."
        else:
            text += "No adapter has been published yet."
    else:
        title = "The records do not hold"
        n = len(report.findings)
        text = f"{n} finding{'s' * (n != 1)} below: what is wrong, where it shows, and whose key answers for it."
    limits = (
        "It proves who said what, under which rules, and that what was published follows from it. It does not prove "
        "that anybody trained honestly, or that what was agreed is wise."
        if report.verdict == "pass"
        else "Somebody who holds the named key, or the place that served these records, has to explain it. Until then "
        "rely on nothing that came after."
    )
    about = "What this does and does not prove. " if report.verdict == "pass" else "What this means. "
    return join(
        (
            el(
                "header",
                el("p", "Commonweal audit", class_="kicker"),
                el("h1", "Audit of the consortium ", foreign(name)),
            ),
            el(
                "section",
                el("h2", title, id="verdict"),
                el("p", text),
                el("p", el("strong", about), limits),
                class_=f"verdict {report.verdict}",
                aria_labelledby="verdict",
            ),
        )
    )


def _findings(findings: tuple[Finding, ...], outcome: Outcome) -> Html:
    items = [
        el(
            "li",
            el("p", foreign(f.sentence)),
            facts(
                ("Shows at", "the whole" if f.index is None else f"entry {f.index}"),
                ("Answerable", foreign(f.culprit)),
                ("Key", el("code", f.key)),
            ),
        )
        for f in findings
    ]
    proofs = []
    for evidence in outcome.evidence:
        verdict = verify_evidence(evidence, outcome.log) if outcome.log else None
        proofs += [
            el("p", el("strong", "Proved by its own signatures: "), foreign(verdict.sentence if verdict else "")),
            el(
                "details",
                el("summary", "The evidence itself: it can be checked by anybody, offline"),
                el("pre", format_evidence(evidence).decode("utf-8", "replace"), tabindex="0"),
            ),
        ]
    heading = el("h2", "What is wrong", id="findings")
    return el("section", heading, el("ol", *items), *proofs, aria_labelledby="findings")


def _founders(record: _Record) -> Html:
    compact = record.state.compact
    rows = [(foreign(m.institution), el("code", m.key)) for m in compact.members]
    rule = WEIGHTS[weights_name(compact.rule)]
    are = "founded this consortium, and each of them signed the same rules"
    if compact.version > 1 or record.state.retired:
        are = f"are its members now, under version {compact.version} of the rules"
    return el(
        "section",
        el("h2", "Who decides", id="founders"),
        el(
            "p",
            f"{len(compact.members)} institutions {are}. ",
            f"A merge needs {compact.quorum.updates} contributions; a release is valid once "
            f"{compact.quorum.ratifications} members stand by it. Contributions {rule}. The coordinator ",
            foreign(compact.coordinator.name),
            " puts entries in order and has no vote. ",
            f"Witnesses that must cosign its history: {compact.quorum.witnesses}.",
        ),
        table("The institutions and the keys that speak for them", ("Institution", "Public key"), rows),
        record.proof(
            0,
            ("Consortium", el("code", record.state.consortium)),
            ("Base model", join((foreign(compact.base.reference), " ", el("code", compact.base.sha256)))),
            ("Start of the first round", _blob(compact.start)),
            ("Key of the log", el("code", foreign(compact.coordinator.log))),
        ),
        aria_labelledby="founders",
    )


def _rounds(record: _Record, reports: tuple[RoundReport, ...]) -> Html:
    newest = list(zip(reports, record.state.rounds, strict=False))[::-1]
    parts = [_round(record, report, r) for report, r in newest[:MAX_ROUNDS]] or [el("p", "No round has been checked.")]
    if (left := len(newest) - MAX_ROUNDS) > 0:
        parts.append(el("p", f"The {left} rounds before are in the JSON report."))
    return el("section", el("h2", "Round by round", id="rounds"), *parts, aria_labelledby="rounds")


def _round(record: _Record, report: RoundReport, r: RoundState) -> Html:
    key = record.state.compact.coordinator.key
    number = report.round
    ratified = r.release is not None and r.release.is_ratified
    end = "ratified" if ratified else "released, not ratified" if r.release else "ended without a release"
    if r.release is not None and r.release.recalled_by is not None:
        end = "released, and recalled by the members"
    if r.is_open:
        end = "still open"
    told = f"{len(report.updates)} of {len(report.cohort)} invited institutions contributed."
    parts = [
        el("h3", f"Round {number}: {end}"),
        el("p", told, " They all began from one adapter, under one recipe."),
        record.find("round", number, key),
    ]
    if report.updates:
        parts.append(_contributions(record, r))
    parts += _absences(record, r)
    if report.incident is not None:
        without = "a release" if r.release is None else "a valid release"
        parts += [el("p", f"It was closed without {without}: ", foreign(report.incident))]
        parts.append(record.find("incident", number, key))
    if report.release is not None and r.release is not None:
        parts += _release(record, report, r)
    return el("article", *parts)


def _contributions(record: _Record, r: RoundState) -> Html:
    inputs: dict[Name, Input] = {i.institution: i for i in r.release.release.inputs} if r.release else {}
    total = sum(i.weight for i in inputs.values())
    rows = []
    for name, logged in sorted(r.updates.items()):
        u = logged.update
        weight = inputs[name].weight if name in inputs else 0
        share = f"{weight:,} ({100 * weight / total:.1f} %)" if weight else "not in the release"
        key = record.state.key(name) or ""
        rows.append(
            (
                foreign(name),
                f"{u.num_examples:,}",
                share,
                f"{_nats(u.heldout_before_micronats)} → {_nats(u.heldout_after_micronats)}",
                "not stated" if u.membership_auc_micros is None else f"{u.membership_auc_micros / 1e6:.3f}",
                el("code", f"{u.data_leaf[:16]}…") if u.data_leaf else "not stated",
                record.find("update", r.round.round, key, ("Contribution", _blob(u.delta))),
            )
        )
    losses = "Loss before → after"
    heads = ("Institution", "Examples, as it states", "Weight in the release", losses, "Membership", "Data", "Proof")
    note = el(
        "p",
        "Loss: how surprised the model is by texts it was not shown, in nats per token. Lower is better. Membership: "
        "how well an attack tells from the adapter which rows it was trained on; 0.5 is chance, 1 is certainty. Data: "
        "the entry that counts what the rows went through.",
    )
    return join((table(f"Contributions to round {r.round.round}", heads, rows), note))


def _absences(record: _Record, r: RoundState) -> Iterator[Html]:
    number, coordinator = r.round.round, record.state.compact.coordinator.key
    items = []
    for name, reason in r.refusals.items():
        proof = record.find("refusal", number, record.state.key(name) or "")
        items.append(el("li", foreign(name), " declined: ", foreign(reason), proof))
    # The fold keeps what was set aside in the order of the log.
    for nth, (name, rejection) in enumerate(r.rejected.items()):
        proof = record.find("rejection", number, coordinator, nth=nth)
        items.append(el("li", foreign(name), " was set aside: ", foreign(rejection.reason), proof))
    if items:
        yield el("p", "Not in the merge, and why:")
        yield el("ul", *items)


def _release(record: _Record, report: RoundReport, r: RoundState) -> Iterator[Html]:
    if r.release is None or report.release is None:
        return
    release, number = r.release.release, report.round
    yield el("p", el("strong", "The release. "), _CHECKS[report.release.check])
    weights = [
        join((foreign(i.institution), f": weight {i.weight:,}, contribution ", _blob(i.delta))) for i in release.inputs
    ]
    yield record.proof(
        report.release.index,
        ("Adapter", _blob(release.adapter)),
        ("Start", _blob(release.start)),
        ("Rule", f"{release.rule.name}, weights: {weights_name(release.rule)}"),
        ("Made from", el("ul", *(el("li", w) for w in weights))),
    )
    if report.masked:
        yield el("p", "The contributions were masked: only their sum is known to anybody. Of this release it is")
        yield el("ul", *(el("li", line) for line in report.masked))
    who = report.release.ratified_by
    yield el("p", f"{len(who)} members made it again for themselves and stand by it", ":" if who else ".")
    key = record.state.key
    yield el("ul", *(el("li", foreign(n), record.find("ratification", number, key(n) or "")) for n in who))
    if r.release.adoptions:
        rows = [
            _adoption(name, a, record.find("adoption", number, key(name) or ""))
            for name, a in sorted(r.release.adoptions.items())
        ]
        losses = "Loss: base / own / shared / blend"
        heads = ("Institution", "Decision", losses, "Probes with a bar", "In its own words", "Proof")
        yield table(f"What each institution decided for itself after round {number}", heads, rows)


def _adoption(name: Name, a: Adoption, proof: Html) -> tuple[str, ...]:
    mix = f"{describe_deed(a.decision)} (shared × {a.shared_millis / 1000:g}, own × {a.own_millis / 1000:g})"
    h = a.heldout
    losses = (h.base_micronats, h.local_micronats, h.shared_micronats, h.blend_micronats)
    probes = foreign("; ".join(map(describe_probe, a.probes)) or "none")
    return (foreign(name), mix, " / ".join(map(_nats, losses)), probes, foreign(a.reason), proof)


def _history(record: _Record, outcome: Outcome) -> Html:
    report, size = outcome.report, len(outcome.journal)
    counts = [(TITLES.get(kind, kind), f"{n:,}") for kind, n in report.entries.items()]
    parts = [
        el("h2", "The history", id="history"),
        el(
            "p",
            "Entries can only be added. Each one is bound to the root below: change, drop or swap one, and the root is "
            "another. The log has signed this root, and anyone who keeps it can tell if another history is ever shown.",
        ),
        table("Entries by kind", ("What it says", "How many"), counts),
    ]  # fmt: skip
    if outcome.note is not None:
        note = el("pre", outcome.note.decode("utf-8", "replace"), tabindex="0")
        witnesses = record.replica.policy.open(outcome.note).witnesses
        before = [
            ("Carried over from", foreign(f"log {origin}: all of its {n:,} entries"))
            for origin, n in report.carried_over.items()
        ]
        if (fork := report.forked_from) is not None:
            taken = f"consortium {fork.consortium}, log {fork.at.origin}, after {fork.at.size:,} entries"
            before.append(("Start taken over from", foreign(taken)))
        proof = facts(
            *before,
            ("Size", f"{size:,}"),
            ("Root", el("code", report.root or "")),
            ("Witnesses that cosigned it", foreign(", ".join(w.witness.name for w in witnesses) or "none")),
            ("Signed checkpoint", note),
        )
        parts.append(el("details", el("summary", "Proof: the signed checkpoint"), proof))
    if size <= MAX_LEDGER:
        tree = record.replica.tree
        rows = [
            (str(i), f"{TITLES.get(x.kind, x.kind)}{f', round {x.round}' * bool(x.round)}", foreign(record.who(x.key)),
             el("code", tree.node(0, i).hex()))
            for i, x in enumerate(outcome.journal)
        ]  # fmt: skip
        ledger = table("Every entry", ("Entry", "What it says", "Signed by", "Leaf hash"), rows)
        parts.append(el("details", el("summary", f"Every entry, 0 to {size - 1}"), ledger))
    return el("section", *parts, aria_labelledby="history")


def _how() -> Html:
    steps = (
        "Hash the entry: SHA-256 of a zero byte and the entry's bytes gives the leaf hash.",
        "Walk the path: join with each hash in turn, and hash a one byte and the two (RFC 6962). The end is the root.",
        "Look at the signed checkpoint: the root in it is that root, and the signature is the log's.",
    )
    return el(
        "section",
        el("h2", "How to check this yourself", id="how"),
        el("p", "Nothing here has to be believed. Every proof on this page works the same way:"),
        el("ol", *(el("li", s) for s in steps)),
        el(
            "p",
            "Or let a program of your own choice do all of it: ",
            el("code", "commonweal audit run --url ADDRESS"),
            ".",
        ),
        aria_labelledby="how",
    )
