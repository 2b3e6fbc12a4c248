"""The page: every claim has its proof, nothing that somebody signed is markup, and nothing is loaded from anywhere."""

import io
import re
from html.parser import HTMLParser

import pytest
from rich.console import Console

from commonweal_adapters import recompute
from commonweal_protocols.audit import page as report_html
from commonweal_protocols.audit.audit import Outcome, examine
from commonweal_protocols.audit.page import render_html
from commonweal_protocols.audit.page_style import STYLE
from commonweal_protocols.audit.story import tell
from commonweal_protocols.audit.text import print_audit
from commonweal_protocols.base.html import Html, el, escape, foreign, join
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.fold import fold
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.adoption import ProbeResult
from commonweal_protocols.statements.governance import Exit
from commonweal_protocols.statements.rounds import Incident, Refusal, Rejection
from commonweal_protocols.statements.rules import FactorMean
from commonweal_protocols.statements.statement import Entry, open_entry
from commonweal_protocols.tlog.merkle import leaf_hash, verify_inclusion
from tests.kit.federation import NAMES, Federation, two_rounds
from tests.kit.shelf import beginning, shelf

HOSTILE = (
    "</bdi></li><script>alert(1)</script><img src=x onerror=alert(2)> \"' & \u202eevil",
    "<style>*{display:none}</style><a href='javascript:alert(3)'>x</a>",
    "&lt;script&gt; <!-- --> ]]> </style></head><meta http-equiv=refresh content='0;url=//evil.example'>",
)
VOID = {"meta"}


class Page(HTMLParser):
    """A second reading of the page: its elements, and that each is closed where it should be."""

    def __init__(self, data: bytes) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.headings: list[int] = []
        self.feed(data.decode("utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def examined(f: Federation, entries: list[bytes] | None = None) -> Outcome:
    return examine(shelf(f, entries), recompute=recompute)


def page_of(f: Federation, entries: list[bytes] | None = None) -> Page:
    return Page(render_html(examined(f, entries)))


def folded(f: Federation) -> list[tuple[Entry, State]]:
    history: list[tuple[Entry, State]] = []
    for entry in map(open_entry, f.entries):
        history.append((entry, fold(history[-1][1] if history else None, entry)))
    return history


def eventful() -> Federation:
    """A round with everybody, one with a refusal, and one that ends without a release; hostile words in each."""
    f = Federation(rule=FactorMean(weights="examples"))
    f.announce()
    f.run_round()
    f.open_round()
    leaf = f.state.rounds[-1].leaf
    for name in ("clinic", "school"):
        f.say(name, f.update(name))
    f.say("coop", Refusal(round=2, round_leaf=leaf, reason=HOSTILE[0]))
    f.say("hub", f.release())
    for name in ("clinic", "school"):
        f.say(name, f.ratification())
    for name in NAMES:
        f.say(name, f.adoption().model_copy(update={"reason": HOSTILE[1]}))
    f.open_round()
    leaf = f.state.rounds[-1].leaf
    for name in NAMES[:2]:
        f.say(name, f.update(name))
    for name in NAMES[:2]:
        update = f.state.rounds[-1].updates[name].leaf
        f.say("hub", Rejection(round=3, institution=name, leaf=update, reason=f"reason for {name} {HOSTILE[2]}"))
    f.say("hub", Incident(round=3, round_leaf=leaf, reason=HOSTILE[0]))
    return f


EVENTFUL = eventful()


def test_what_an_institution_writes_is_shown_and_is_never_markup() -> None:
    page = page_of(EVENTFUL)
    for reason in HOSTILE:
        assert reason in page.text
    names = {name for name, _ in page.elements}
    assert names.isdisjoint({"script", "img", "a", "link", "iframe", "object", "form", "base"})
    assert [name for name, _ in page.elements].count("style") == 1
    allowed = {"class", "id", "lang", "scope", "role", "tabindex", "aria-label", "aria-labelledby"}
    assert {a for name, attrs in page.elements if name != "meta" for a in attrs} <= allowed


def test_hostile_words_in_a_finding_are_text_too() -> None:
    f = eventful()
    # The sentence of a rule that is broken quotes what was signed.
    bad = f.signed("school", Refusal(round=9, round_leaf="0" * 64, reason=HOSTILE[0]))
    data = render_html(examined(f, [*f.entries, bad]))
    assert b"<script" not in data
    assert "The records do not hold" in Page(data).text


def test_a_release_that_too_few_were_left_to_ratify_is_told_as_void() -> None:
    f = Federation()
    f.announce()
    f.open_round()
    for name in NAMES:
        f.say(name, f.update(name))
    f.say("hub", f.release())
    for name in NAMES[:2]:
        f.say(name, Exit(institution=name, reason="no funds"))
    f.say("hub", Incident(round=1, round_leaf=f.state.rounds[0].leaf, reason="only coop is left"))
    outcome, out = examined(f), io.StringIO()
    print_audit(outcome.report, Console(file=out, width=200))
    assert "its release is void: only coop is left" in out.getvalue()
    page = Page(render_html(outcome)).text
    assert "Round 1: released, not ratified" in page
    assert "It was closed without a valid release: only coop is left" in page
    assert "a round ends without a valid release" in page
    told = [c.sentence for c in tell(folded(f)) if c.kind == "incident"]
    assert told == [
        "hub closes round 1 without a valid release: only coop is left. Contributed had: clinic, coop, school."
    ]


def test_the_page_loads_nothing() -> None:
    data = render_html(examined(EVENTFUL))
    assert "url(" not in STYLE
    assert "@import" not in STYLE
    loading = {"src", "href", "srcset", "action", "background", "data", "poster", "ping"}
    assert not loading & {a for _, attrs in Page(data).elements for a in attrs}
    policy = next(a["content"] for n, a in Page(data).elements if a.get("http-equiv"))
    assert policy is not None
    assert "default-src 'none'" in policy


def test_headings_go_down_one_at_a_time_and_tables_have_captions_and_scopes() -> None:
    page = page_of(EVENTFUL)
    assert page.headings[0] == 1
    assert page.headings.count(1) == 1
    assert all(b <= a + 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    names = [name for name, _ in page.elements]
    assert names.count("table") == names.count("caption") > 0
    assert all(attrs.get("scope") in ("col", "row") for name, attrs in page.elements if name == "th")
    assert ("html", {"lang": "en"}) in page.elements
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids))
    assert {a["aria-labelledby"] for _, a in page.elements if "aria-labelledby" in a} <= set(ids)


def proofs(data: bytes) -> dict[int, tuple[str, str, list[str], str]]:
    """Each proof on the page, read from its text: index to signer's key, leaf hash, path, and root."""
    found = {}
    for block in re.findall(r"<details><summary>Proof: entry (\d+)</summary>(.*?)</dl>", data.decode(), re.DOTALL):
        index, body = block
        values = dict(re.findall(r"<dt>(.*?)</dt><dd>(.*?)</dd>", body, re.DOTALL))
        hashes = {k: re.findall(r"\b[0-9a-f]{64}\b", v) for k, v in values.items()}
        signer = hashes["Signed by"][0] if hashes["Signed by"] else ""
        (leaf,), (root,) = hashes["Leaf hash"], hashes["Root"]
        found[int(index)] = (signer, leaf, hashes["Path to the root"], root)
    return found


def test_every_proof_on_the_page_proves_the_entry_that_it_names() -> None:
    outcome = examined(EVENTFUL)
    shown = proofs(render_html(outcome))
    size = len(EVENTFUL.entries)
    announcements = {i for i, line in enumerate(outcome.journal) if line.kind == "identity"}
    assert set(shown) == set(range(size)) - announcements
    for index, (signer, leaf, path, root) in shown.items():
        assert leaf == leaf_hash(EVENTFUL.entries[index]).hex()
        assert root == outcome.report.root
        hashes = [bytes.fromhex(h) for h in path]
        verify_inclusion(bytes.fromhex(leaf), index, size, hashes, bytes.fromhex(root))
        assert signer == outcome.journal[index].key


def test_what_was_set_aside_is_proved_by_its_own_entry() -> None:
    text = page_of(EVENTFUL).text
    journal = examined(EVENTFUL).journal
    first, second = (i for i, line in enumerate(journal) if line.kind == "rejection")
    assert re.search(f"clinic was set aside: reason for clinic .*?Proof: entry {first}", text, re.DOTALL)
    assert re.search(f"school was set aside: reason for school .*?Proof: entry {second}", text, re.DOTALL)


def test_the_weights_of_a_release_are_those_of_its_inputs() -> None:
    # Examples are 10 plus the length of the name: clinic 16, coop 14, school 16.
    data = render_html(examined(EVENTFUL)).decode()
    assert "16 (34.8 %)" in data
    assert "14 (30.4 %)" in data
    assert "16 (50.0 %)" in data
    r = EVENTFUL.state.rounds[0].release
    assert r is not None
    for i in r.release.inputs:
        assert f"weight {i.weight}" in data
        assert i.delta.sha256 in data
    assert r.release.adapter.sha256 in data


def test_the_page_is_a_function_of_the_outcome() -> None:
    assert render_html(examined(EVENTFUL)) == render_html(examined(EVENTFUL))


def test_the_page_of_an_incremental_audit_is_that_of_a_full_one() -> None:
    f = two_rounds()
    memory = examine(shelf(f, f.entries[:12]), recompute=recompute).memory
    outcome = examine(shelf(f), memory=memory, recompute=recompute)
    assert render_html(outcome) == render_html(examined(f))


def test_a_fork_is_shown_with_its_evidence() -> None:
    f = two_rounds()
    g = beginning(f, 14)
    g.run_round()
    outcome = examine(shelf(g), memory=examined(f).memory, recompute=recompute)
    page = Page(render_html(outcome))
    assert "signed two histories" in page.text
    assert "commonweal/fork-evidence@v1" in page.text
    assert public_hex(f.log_key) in page.text


@pytest.mark.parametrize("entries", [[], [b"junk"]], ids=["empty", "junk"])
def test_records_without_a_consortium_still_give_a_page(entries: list[bytes]) -> None:
    assert "The records do not hold" in page_of(two_rounds(), entries).text


def test_a_page_has_a_bound_and_says_what_it_leaves_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report_html, "MAX_ROUNDS", 1)
    monkeypatch.setattr(report_html, "MAX_LEDGER", 3)
    page = page_of(two_rounds())
    assert "Round 2: ratified" in page.text
    assert "Round 1" not in page.text
    assert "The 1 rounds before are in the JSON report." in page.text
    assert "Every entry," not in page.text


def test_only_markup_passes_unescaped() -> None:
    assert escape("<b>") == "&lt;b&gt;"
    assert el("p", "<b>", el("i", "&"), title='"x"') == '<p title="&quot;x&quot;">&lt;b&gt;<i>&amp;</i></p>'
    assert join(("<", Html("<br>"))) == "&lt;<br>"
    assert foreign("<") == "<bdi>&lt;</bdi>"
    # Joining markup and text with + gives text: anyone who forgets join() gets it escaped, not trusted.
    assert escape(Html("<b>") + "<i>") == "&lt;b&gt;&lt;i&gt;"


def luminance(color: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2.2)."""
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    r, g, b = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


PAIRS = [("fg", "bg"), ("soft", "bg"), ("link", "bg"), ("fg", "box"), ("soft", "box"), ("pass", "pass-bg"),
         ("fg", "pass-bg"), ("fail", "fail-bg"), ("fg", "fail-bg")]  # fmt: skip


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("ink", "paper"), PAIRS)
def test_text_can_be_read_in_both_themes(theme: int, ink: str, paper: str) -> None:
    roots = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
    colors = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]{6})", roots[theme]))
    a, b = sorted((luminance(colors[ink]), luminance(colors[paper])))
    assert (b + 0.05) / (a + 0.05) >= 4.5


def test_what_a_refusal_rests_on_stands_in_the_page_the_report_and_the_story() -> None:
    f = two_rounds()
    measured = ProbeResult(
        probe="seed",
        measure="accuracy",
        items=40,
        base_micros=750_000,
        local_micros=125_000,
        shared_micros=250_000,
        blend_micros=500_000,
    )
    refused = f.adoption().model_copy(update={"decision": "refuse", "probes": (measured,), "reason": "below our bar"})
    f.say("clinic", refused)
    words = "seed (accuracy of 40 items: base 0.750, own 0.125, shared 0.250, blend 0.500)"
    outcome = examined(f)
    last = outcome.report.rounds[-1].release
    assert last is not None
    assert (last.adoptions["clinic"], last.probes) == ("refuse", {"clinic": (measured,)})
    assert words in page_of(f).text
    said = io.StringIO()
    print_audit(outcome.report, Console(file=said, width=200))
    assert f"probes of clinic: {words}" in said.getvalue()
    told = list(tell(folded(f)))[-1].sentence
    assert told == f"clinic does not use the release of round 2: below our bar; checked against {words}"
