"""The page that checks a log in the reader's browser: a real Chromium, a real server, one lie at a time.

The browser is driven over its DevTools pipe, so the tests need it and nothing else.
"""

import base64
import contextlib
import fcntl
import http.client
import json
import os
import random
import re
import select
import shutil
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.hashes import SHA256, Hash

import commonweal_coordinator
from commonweal_coordinator.log.log import Log
from commonweal_coordinator.serving.tls import TlsFiles
from commonweal_coordinator.serving.web import RecordsServer
from commonweal_protocols.base import canonical
from commonweal_protocols.base.canonical import Json
from commonweal_protocols.base.errors import PeerError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.source import DirectorySource, read_entries
from commonweal_protocols.statements import envelope
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.registry import PREDICATES
from commonweal_protocols.statements.statement import Header, Statement, parse_statement
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from commonweal_protocols.tlog.cosignature import cosign, make_cosignature_verifier
from commonweal_protocols.tlog.merkle import Tree, leaf_hash, verify_consistency
from commonweal_protocols.tlog.note import encode_vkey, format_vkey, open_note, parse_vkey, sign_note
from commonweal_protocols.tlog.proof import format_proof, open_proof, parse_proof
from commonweal_protocols.tlog.tiles import encode_bundle
from tests.kit.every_kind import leave_and_rotate, masked_log, nearly_every_kind
from tests.kit.federation import NAMES, ORIGIN, Federation, key_of

PAGE = Path(commonweal_coordinator.__file__).parent / "pages/verify.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

SIZE = 300
"""More than one bundle, so that there is a tile above the first level."""
HOSTILE = (
    "</td><script>document.title='owned'</script><img src=x onerror=\"document.title='owned'\">\u202egnp.exe\u0007"
)


# -- the browser


class Browser:
    """One Chromium, spoken to over a pipe: JSON messages that end in a zero byte."""

    def __init__(self, home: Path, trusted: x509.Certificate) -> None:
        assert CHROMIUM is not None
        spki = trusted.public_key().public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest = Hash(SHA256())
        digest.update(spki)
        flags = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-dev-shm-usage",
            f"--user-data-dir={home}",
            f"--ignore-certificate-errors-spki-list={base64.b64encode(digest.finalize()).decode()}",
            "--remote-debugging-pipe",
            "about:blank",
        ]
        ours_in, theirs_out = os.pipe()
        theirs_in, ours_out = os.pipe()
        # Chromium reads from 3 and writes to 4. Above 10, our ends cannot be in the way.
        ends = [fcntl.fcntl(fd, fcntl.F_DUPFD, 10) for fd in (theirs_in, theirs_out)]
        self._process = subprocess.Popen(
            ["bash", "-c", f'exec "$@" 3<&{ends[0]} 4>&{ends[1]}', "bash", CHROMIUM, *flags],
            pass_fds=ends,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, *ends):
            os.close(fd)
        self._in, self._out = ours_in, ours_out
        self._buffer = b""
        self._last = 0
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **params: object) -> dict[str, Any]:
        self._last += 1
        message: dict[str, object] = {"id": self._last, "method": method, "params": params}
        if session:
            message["sessionId"] = session
        data = memoryview(json.dumps(message).encode() + b"\0")
        while data:
            data = data[os.write(self._out, data) :]
        deadline = time.monotonic() + 60
        while True:
            while b"\0" not in self._buffer:
                assert select.select([self._in], [], [], max(0, deadline - time.monotonic()))[0], f"{method}: no answer"
                part = os.read(self._in, 1 << 20)
                assert part, "Chromium has ended"
                self._buffer += part
            line, _, self._buffer = self._buffer.partition(b"\0")
            answer: dict[str, Any] = json.loads(line)
            if answer.get("id") == self._last:
                assert "error" not in answer, (method, answer["error"])
                result: dict[str, Any] = answer["result"]
                return result
            self.events.append(answer)

    def close(self) -> None:
        with contextlib.suppress(OSError, AssertionError):
            self.call("Browser.close")
        os.close(self._in)
        os.close(self._out)
        self._process.wait(20)


@dataclass
class Tab:
    """One tab. ``open`` returns once the page has done all that it was asked to."""

    browser: Browser
    target: str
    session: str

    def call(self, method: str, **params: object) -> dict[str, Any]:
        return self.browser.call(method, self.session, **params)

    def run(self, expression: str) -> Any:  # noqa: ANN401 - whatever the script returns
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, condition: str) -> None:
        deadline = time.monotonic() + 20
        while not self.run(f"Boolean({condition})"):
            assert time.monotonic() < deadline, f"waited in vain for {condition}"
            time.sleep(0.02)

    def settle(self) -> None:
        self.until("document.querySelector('main[aria-busy=false]')")

    def open(self, url: str, *, script_first: str = "") -> "Tab":
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        # Tiles may be kept for ever, but here they change from test to test.
        self.call("Network.setCacheDisabled", cacheDisabled=True)
        if script_first:
            self.call("Page.addScriptToEvaluateOnNewDocument", source=script_first)
        self.call("Page.navigate", url=url)
        self.settle()
        return self

    def give_files(self, selector: str, *files: Path) -> None:
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(f) for f in files])

    def steps(self, part: str) -> "Steps":
        found = self.run(
            f"""[...document.querySelectorAll("#{part}-steps > li")].map(li => [li.dataset.step, li.dataset.state,
                li.querySelector(".said").textContent])"""
        )
        verdict = self.run(
            f"""(v => [v.dataset.state ?? "", v.textContent])(document.getElementById("{part}-verdict"))"""
        )
        return Steps([(step, state, said) for step, state, said in found], verdict[0], verdict[1])

    def text(self, selector: str) -> str:
        found = self.run(f"document.querySelector({json.dumps(selector)}).textContent")
        assert isinstance(found, str)
        return found

    def faults(self) -> list[str]:
        """What the browser's console complains of, and errors that nothing caught."""
        mine = [e for e in self.browser.events if e.get("sessionId") == self.session]
        return [
            json.dumps(e["params"])
            for e in mine
            if e["method"] == "Runtime.exceptionThrown"
            or (e["method"] == "Log.entryAdded" and e["params"]["entry"]["level"] == "error")
        ]


@dataclass
class Steps:
    """What the page says of one thing: each step's name, state and sentence, and the verdict."""

    all: list[tuple[str, str, str]]
    state: str
    verdict: str

    def states(self, *wanted: str) -> set[str]:
        return {step for step, state, _ in self.all if state in wanted}

    def said(self, step: str) -> str:
        return next(said for name, state, said in self.all if name == step and state != "holds")


@dataclass
class Site:
    """One server for all tests; ``show`` changes what lies in its folder, at once."""

    folder: Path
    tls: TlsFiles
    url: str

    def show(self, public: Path) -> str:
        new = self.folder.with_name("new")
        new.symlink_to(public)
        new.replace(self.folder)
        return self.url


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tls: TlsFiles, records: "Records") -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site") / "public"
    folder.symlink_to(records.public)
    server = RecordsServer(folder, "127.0.0.1", 0, tls.chain, tls.key)
    server.start()
    yield Site(folder, tls, f"https://127.0.0.1:{server.port}/")
    server.stop()


# It ends before the server, which would wait for its idle connections.
@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory, tls: TlsFiles, site: Site) -> Iterator[Browser]:
    certificate = x509.load_pem_x509_certificate(tls.chain.read_bytes())
    browser = Browser(tmp_path_factory.mktemp("chromium"), certificate)
    yield browser
    browser.close()


@pytest.fixture
def tab(browser: Browser) -> Iterator[Tab]:
    target = browser.call("Target.createTarget", url="about:blank")["targetId"]
    session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
    yield Tab(browser, target, session)
    browser.call("Target.closeTarget", targetId=target)
    browser.events.clear()


# -- the records


@dataclass
class Records:
    """A log of every kind of entry in which nothing is wrong, and the receipts that its authors got."""

    federation: Federation
    public: Path
    receipts: list[bytes] = field(default_factory=list)

    @property
    def vkey(self) -> str:
        return self.federation.compact.coordinator.log

    def copy(self, home: Path) -> Path:
        """A copy to lie in: files may be written."""
        public = Path(shutil.copytree(self.public, home / "public", ignore=shutil.ignore_patterns("blob", "staging")))
        for path in public.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        return public


def publish(home: Path, entries: list[bytes], federation: Federation) -> tuple[Path, list[bytes]]:
    """A log that takes any entry, as one would be whose operator lies; and its receipts."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "public").mkdir()
    log = Log.create(home / "public", home / "lock.db", ORIGIN, federation.log_key)
    receipts = [s.proof for s in log.append(entries)]
    log.close()
    return home / "public", receipts


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    f = nearly_every_kind(HOSTILE)
    # The last of all, or every later entry under the new key would be undecided when it is looked at by itself.
    while len(f.entries) < SIZE - 2:
        name = NAMES[len(f.entries) % 3]
        f.say(name, Identity(institution=name, transport_key=f"{len(f.entries):044d}"))
    leave_and_rotate(f)
    public, receipts = publish(tmp_path_factory.mktemp("records"), f.entries, f)
    return Records(f, public, receipts)


def fragment(**values: object) -> str:
    return "#" + "&".join(f"{k.replace('_', '-')}={quote(str(v), safe='')}" for k, v in values.items())


def url64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


# -- the server's side


def test_the_page_is_served_under_a_policy_that_fits_its_bytes_and_lets_nothing_else_run(
    records: Records, site: Site
) -> None:
    page = PAGE.read_bytes()
    url = site.show(records.public)
    host = url.removeprefix("https://").rstrip("/")

    def ask(path: str, method: str = "GET") -> tuple[http.client.HTTPResponse, bytes]:
        context = ssl.create_default_context(cafile=str(site.tls.ca))
        connection = http.client.HTTPSConnection(host, context=context, timeout=10)
        connection.request(method, path)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response, body

    for path in ("/", "/verify.html"):
        for method in ("GET", "HEAD"):
            response, body = ask(path, method)
            assert (response.status, body) == (200, page if method == "GET" else b"")
            assert response.headers["content-type"] == "text/html; charset=utf-8"
            assert response.headers["x-content-type-options"] == "nosniff"
            assert response.headers["referrer-policy"] == "no-referrer"
            policy = dict(d.split(" ", 1) for d in response.headers["content-security-policy"].split("; "))
            assert policy["default-src"] == "'none'"
            assert policy["connect-src"] == "'self' https:"
            for tag, directive in ((b"script", "script-src"), (b"style", "style-src")):
                (inline,) = re.findall(rb"<%b\b[^>]*>(.*?)</%b>" % (tag, tag), page, re.DOTALL)
                digest = Hash(SHA256())
                digest.update(inline)
                assert policy[directive] == f"'sha256-{base64.b64encode(digest.finalize()).decode()}'"
    for path in ("/checkpoint", "/tile/0/000", "/tile/entries/000"):
        response, _ = ask(path)
        assert response.headers["access-control-allow-origin"] == "*", "a copy from elsewhere reads it"
        assert response.headers["x-content-type-options"] == "nosniff"
    assert ask("/pages/verify.html")[0].status == 404


def test_the_page_is_one_file_that_asks_for_no_other() -> None:
    text = PAGE.read_text()
    assert "\r" not in text, "the browser would hash other bytes than we do"
    assert not re.search(r"""\b(src|srcset|action)=|@import|url\(|<link|innerHTML|outerHTML|insertAdjacent""", text)
    assert set(re.findall(r"https?://[\w.-]+", text)) == {"https://log.example.org", "https://in-toto.io"}


# -- an honest log


@needs_chromium
def test_an_honest_log_holds_in_every_entry_of_every_kind(records: Records, site: Site, tab: Tab) -> None:
    consortium = records.federation.state.consortium
    url = site.show(records.public)
    tab.open(url + fragment(vkey=records.vkey, consortium=consortium, entry=280, all=1))
    for part, wanted in (
        ("log", {"read", "key", "note", "checkpoint", "founding"}),
        ("entry", {"key", "note", "checkpoint", "founding", "bundle", "leaf", "inclusion", "envelope"}),
        ("all", {"tree", "root", "envelope", "signature", "statement", "author", "chains", "seen"}),
    ):
        steps = tab.steps(part)
        assert steps.states("fails", "open", "skipped") == set(), steps
        assert wanted <= steps.states("holds")
        assert steps.state == "open", "a key that came with a link has not been compared by anybody yet"
    assert f"All {SIZE} entries hold" in tab.steps("all").verdict
    assert tab.text("#entry-says") == "school announces itself as school."
    tab.run("document.querySelector('#vkey-note input').click()")
    assert tab.steps("log").state == "holds"
    assert tab.steps("log").verdict == "This log is signed under the key that you compared."
    # Page by page, until every kind has been met.
    rows, kinds = told(tab)
    assert rows == SIZE
    every = {uri.split(":")[2] for uri in PREDICATES}
    assert set(kinds) == every - MASKED, "the page has words for every kind there is"
    assert "found the consortium “three”" in kinds["compact"]
    assert kinds["rejection"] == "hub (coordinator) sets the update of coop in round 3 aside: “the blob is missing”"
    assert kinds["ratification"].startswith("clinic ratifies the release of round 1: adapter ")
    assert kinds["ballot"].endswith(": “too early”")
    assert (
        "publishes version 1 of its charter: 1 public principle, a safety floor of 0 items, and 5" in kinds["charter"]
    )
    assert (
        kinds["data-manifest"] == "school states what its rows went through: 8 train and 2 are held out after 1 stage"
    )
    assert kinds["foreign-adoption"].startswith("coop decides on another consortium’s release of round 1, ")
    assert kinds["foreign-adoption"].endswith("for itself: blend: “it helps us”")
    assert kinds["closing"].endswith(", since everybody has voted")
    assert kinds["exit"] == "school leaves: “it has closed”"
    assert kinds["adoption"].endswith("for itself: blend: “better on our rows”")
    assert tab.faults() == []
    asked = [e["params"]["request"]["url"] for e in tab.browser.events if e["method"] == "Network.requestWillBeSent"]
    assert asked
    assert all(u.startswith(url) for u in asked), "nothing but the records is fetched"


MASKED = {"advertisement", "sealed-shares", "stage-end", "confirmation", "reveal"}


@needs_chromium
def test_the_entries_of_a_masked_round_hold_and_are_told(
    site: Site, tab: Tab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    f = masked_log()
    public, _ = publish(tmp_path_factory.mktemp("masked"), f.entries, f)
    tab.open(site.show(public) + fragment(vkey=f.compact.coordinator.log, consortium=f.state.consortium, all=1))
    assert tab.steps("all").states("fails", "open", "skipped") == set()
    rows, kinds = told(tab)
    assert rows == len(f.entries)
    assert set(kinds) >= MASKED
    assert kinds["advertisement"] == "clinic takes part in the masked round 1"
    assert kinds["sealed-shares"] == "clinic leaves sealed shares of its secrets of round 1 with 3 holders"
    assert kinds["stage-end"].endswith(" of round 1; clinic, coop, school go on")
    assert kinds["confirmation"].endswith("clinic, coop, school have given masked contributions to round 1")
    assert kinds["reveal"].endswith("reveals 3 shares, so that the masks of round 1 come off the sum")


def told(tab: Tab) -> tuple[int, dict[str, str]]:
    """How many entries the page lists, all of which hold, and its words for one of each kind."""
    kinds: dict[str, str] = {}
    rows = 0
    tab.run("document.getElementById('first').click()")
    while True:
        tab.settle()
        found = tab.run(
            """[...document.querySelectorAll("#rows tr")].map(r => [r.dataset.kind, r.dataset.state,
                r.cells[1].textContent + " " + r.cells[2].textContent])"""
        )
        assert {state for _, state, _ in found} == {"holds"}
        kinds |= {kind: text for kind, _, text in reversed(found) if kind not in kinds}
        rows += len(found)
        if tab.run("document.getElementById('forth').disabled"):
            return rows, kinds
        tab.run("document.getElementById('forth').click()")


@needs_chromium
def test_a_key_that_the_log_itself_names_is_never_said_to_be_trusted(records: Records, site: Site, tab: Tab) -> None:
    url = site.show(records.public)
    tab.open(url)
    assert tab.run("document.getElementById('vkey').value") == records.vkey
    assert "Taken from the log itself" in tab.text("#vkey-note")
    steps = tab.steps("log")
    assert (steps.state, steps.states("holds")) == ("open", {"read", "key", "note", "checkpoint", "founding"})
    assert "agrees with itself" in steps.verdict
    assert "vkey=" not in tab.run("document.querySelector('#rows a').hash"), "a link would launder it"
    tab.run("document.querySelector('#rows a').click()")
    tab.until("document.querySelector('#entry:not([hidden]) li')")
    tab.settle()
    assert tab.steps("entry").state == "open"
    assert tab.steps("entry").states("fails", "open", "skipped") == set()
    # Typed by the reader, the same key is the reader's; but only of what is checked from then on.
    tab.run("document.getElementById('vkey').dispatchEvent(new Event('input'))")
    tab.run("document.querySelectorAll('#rows a')[1].click()")
    tab.until("document.querySelector('#entry-title').textContent === 'Entry 1'")
    tab.settle()
    assert tab.steps("entry").state == "open"
    tab.run("document.querySelector('#form').requestSubmit()")
    tab.settle()
    assert tab.steps("log").state == "holds"
    assert "vkey=" in tab.run("document.querySelector('#rows a').hash")


@needs_chromium
def test_a_consortium_that_the_reader_types_stands_for_the_key_that_its_compact_names(
    records: Records, site: Site, tab: Tab
) -> None:
    tab.open(site.show(records.public) + fragment(consortium=records.federation.state.consortium))
    assert tab.steps("log").state == "open", "from a link it stands for nothing"
    tab.run("document.getElementById('consortium').dispatchEvent(new Event('input'))")
    tab.run("document.querySelector('#form').requestSubmit()")
    tab.until("document.querySelector('#log-verdict').dataset.state === 'holds'")
    tab.settle()
    assert tab.steps("log").verdict == "This log is signed under the key that your consortium’s compact names."


@needs_chromium
def test_every_step_opens_to_its_bytes(records: Records, site: Site, tab: Tab) -> None:
    entry = records.federation.entries[130]
    url = site.show(records.public)
    tab.open(url + fragment(vkey=records.vkey, entry=130))
    tab.run("for (const d of document.querySelectorAll('#entry-steps details')) d.open = true")
    tab.until("[...document.querySelectorAll('#entry-steps .evidence')].every(e => e.childElementCount)")
    shown = tab.text("#entry-steps")
    for text in (
        entry.hex(),
        entry.decode(),
        leaf_hash(entry).hex(),
        records.federation.replica.checkpoint().root.hex(),
        envelope.parse_envelope(entry).signatures[0].value.hex(),
        "tile/entries/000",
        "DSSEv1 28 application/vnd.in-toto+json",
        *(h.hex() for h in parse_proof(records.receipts[130]).path),
    ):
        assert text in shown


@needs_chromium
def test_hostile_text_in_an_entry_is_shown_as_text(records: Records, site: Site, tab: Tab, tmp_path: Path) -> None:
    f = records.federation
    strange = canonical.encode(
        {
            "_type": "https://in-toto.io/Statement/v1",
            "subject": [{"name": HOSTILE, "digest": {"sha256": "ab" * 32}}],
            "predicateType": HOSTILE,
            "predicate": {
                "header": {"consortium": f.state.consortium, "seq": 0, "prev": None, "seen": []},
                "body": {HOSTILE: HOSTILE, "__proto__": {"round": HOSTILE}},
            },
        }
    )
    public, _ = publish(tmp_path, [*f.entries[:44], envelope.sign_envelope(strange, f.keys["clinic"])], f)
    url = site.show(public)
    refusal = next(i for i, e in enumerate(f.entries) if HOSTILE[:20] in payload_text(e))
    for index in (refusal, 44):
        tab.open(f"{url}?{index}{fragment(vkey=records.vkey, entry=index)}")
        tab.run("for (const d of document.querySelectorAll('details')) d.open = true")
        tab.until("[...document.querySelectorAll('#entry-steps .evidence')].every(e => e.childElementCount)")
        assert tab.run("document.title") == "Check this log yourself"
        assert tab.run("document.querySelectorAll('img, main script').length") == 0
        assert "<script>document.title='owned'</script>" in tab.text("#entry-says")
        assert "⟨U+202E⟩gnp.exe" in tab.text("#entry-says")
        assert "\u202e" not in tab.text("body")
        assert tab.steps("entry").states("fails", "open", "skipped") == set()
    # What would be needed for more is refused by the policy, whatever a later change to the script does.
    sink = (
        "(() => { try { document.createElement('p').innerHTML = '<b>x'; return 'ok' } catch (e) { return e.name } })()"
    )
    assert tab.run(sink) == "TypeError"


def payload_text(entry: bytes) -> str:
    return envelope.parse_envelope(entry).payload.decode()


# -- lies. Each is one edit of the honest log's files, or a log that was honest about dishonest entries.


def edit(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def flip(at: int) -> Callable[[bytes], bytes]:
    return lambda data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def signed_text(change: Callable[[str], str]) -> Callable[[bytes], bytes]:
    """The operator signs another text than an honest log would."""
    return lambda note: sign_note(change(note.decode().rpartition("\n\n")[0] + "\n"), ORIGIN, key_of("log"))


def in_entry(index: int, at: int) -> Callable[[bytes], bytes]:
    def change(bundle: bytes) -> bytes:
        start = 0
        for _ in range(index):
            start += 2 + int.from_bytes(bundle[start : start + 2])
        return flip(start + 2 + at)(bundle)

    return change


def loose_bits(text: str) -> str:
    """Another base64 encoding of the same bytes: the last character has bits that count for nothing."""
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    at = len(text.rstrip("=")) - 1
    loose = f"{text[:at]}{alphabet[alphabet.index(text[at]) | 1]}{text[at + 1 :]}"
    assert loose != text
    assert base64.b64decode(loose) == base64.b64decode(text)
    return loose


def loose_root(text: str) -> str:
    origin, size, root, _ = text.split("\n")
    return f"{origin}\n{size}\n{loose_bits(root)}\n"


def loose_signature_line(note: bytes) -> bytes:
    head, line = note.decode().rstrip("\n").rsplit(" ", 1)
    return f"{head} {loose_bits(line)}\n".encode()


def first_line_bad(note: bytes) -> bytes:
    head, line = note.decode().rstrip("\n").rsplit(" ", 1)
    bad = base64.b64encode(flip(40)(base64.b64decode(line))).decode()
    return f"{head} {bad}\n— {ORIGIN} {line}\n".encode()


OTHER_VKEY = format_vkey(ORIGIN, key_of("x").public_key().public_bytes_raw())
ROOT_CHARACTER = len(f"{ORIGIN}\n{SIZE}\n") + 5

FILE_LIES: list[tuple[str, str, Callable[[bytes], bytes], int, str, str]] = [
    (
        "a byte of the entry",
        "tile/entries/000",
        in_entry(130, 300),
        130,
        "leaf",
        "leaf hash: wanted [0-9a-f]{64} as in",
    ),
    ("a byte of a sibling's hash", "tile/0/000", flip(131 * 32), 130, "inclusion", "wanted the signed root"),
    ("a byte of its own hash", "tile/0/000", flip(130 * 32), 130, "leaf", "leaf hash: wanted"),
    ("a byte of a tile above", "tile/1/000.p/1", flip(9), 280, "inclusion", "wanted the signed root"),
    ("a byte of the root", "checkpoint", flip(ROOT_CHARACTER), 130, "note", "one that holds under the key you gave"),
    ("a byte of the size", "checkpoint", flip(len(ORIGIN) + 1), 130, "note", "one that holds under the key you gave"),
    ("a byte of the signature", "checkpoint", lambda d: d[:-12] + b"A" + d[-11:], 130, "note", "one that does not"),
    ("a signature line in loose base64", "checkpoint", loose_signature_line, 130, "note", "the canonical encoding"),
    ("a false line before the true one", "checkpoint", first_line_bad, 130, "note", "one that does not"),
    ("no signature", "checkpoint", lambda d: d.partition(b"\n\n")[0] + b"\n", 130, "note", "no empty line"),
    ("another origin", "checkpoint", signed_text(lambda t: "log.test/four" + t[13:]), 130, "checkpoint", "origin"),
    ("a root in loose base64", "checkpoint", signed_text(loose_root), 130, "checkpoint", "the canonical encoding"),
    ("a size with a zero", "checkpoint", signed_text(lambda t: t.replace("\n3", "\n03")), 130, "checkpoint", "decimal"),
    ("a fourth line", "checkpoint", signed_text(lambda t: t + "more\n"), 130, "checkpoint", "wanted 3 lines"),
    ("a cut bundle", "tile/entries/000", lambda d: d[:-1], 130, "bundle", "entry 255 of it cut off"),
    (
        "a bundle with one more",
        "tile/entries/000",
        lambda d: d + b"\0\1x",
        130,
        "bundle",
        "wanted 256 entries, got more",
    ),
    ("a bundle beyond all bounds", "tile/entries/000", lambda d: bytes(256 * 65537 + 1), 130, "bundle", "got more"),
    ("a short tile", "tile/0/000", lambda d: d[:-1], 130, "leaf", "wanted 8192 bytes, got 8191"),
    ("a huge checkpoint", "checkpoint", lambda d: bytes(1_000_001), 130, "read", "wanted at most 1000000 bytes"),
]


@needs_chromium
@pytest.mark.parametrize(
    ("path", "change", "index", "step", "message"), [f[1:] for f in FILE_LIES], ids=[f[0] for f in FILE_LIES]
)
def test_a_lie_in_one_file_is_found_by_the_step_that_it_breaks(
    records: Records,
    site: Site,
    tab: Tab,
    tmp_path: Path,
    path: str,
    change: Callable[[bytes], bytes],
    index: int,
    step: str,
    message: str,
) -> None:
    public = records.copy(tmp_path)
    edit(public / path, change)
    url = site.show(public)
    tab.open(url + fragment(vkey=records.vkey, entry=index, all=1))
    about_log = step in ("read", "note", "checkpoint")
    steps = tab.steps("log" if about_log else "entry")
    assert steps.state == "fails"
    bad = [name for name, state, _ in steps.all if state == "fails" and name != "founding"]
    assert bad[0] == step, steps
    assert re.search(message, steps.said(step)), steps.said(step)
    assert steps.said(step) in steps.verdict or steps.said("founding") in steps.verdict
    if about_log:
        assert tab.run("document.getElementById('entries').hidden"), "nothing is listed under a bad checkpoint"
    elif path != "tile/0/000" and not path.startswith("tile/1"):
        # Whole-log checking rests on entries alone, so a bad tile is no concern of it.
        assert tab.steps("all").state == "fails"
    assert tab.text("#entry-says") == "", "what is not proved is not repeated as if it were said"


@needs_chromium
def test_a_file_that_is_missing_is_named(records: Records, site: Site, tab: Tab, tmp_path: Path) -> None:
    public = records.copy(tmp_path)
    (public / "tile/entries/001.p/44").unlink()
    (public / "tile/1/000.p/1").unlink()
    url = site.show(public)
    tab.open(url + fragment(vkey=records.vkey, entry=280))
    assert tab.steps("entry").said("bundle") == "tile/entries/001.p/44: wanted a file, got no such file"
    tab.open(f"{url}?again{fragment(vkey=records.vkey, entry=3)}")
    assert tab.steps("entry").states("fails") == set(), "the first 256 need nothing from there"


@needs_chromium
def test_a_tile_and_a_bundle_that_were_swapped_together_do_not_lead_to_the_signed_root(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    f = records.federation
    forged = [*f.entries]
    forged[130] = f.signed("clinic", Identity(institution="clinic", transport_key="B" * 44))
    other, _ = publish(tmp_path / "other", forged, f)
    public = records.copy(tmp_path)
    for path in ("tile/0/000", "tile/entries/000", "tile/1/000.p/1"):
        (public / path).write_bytes((other / path).read_bytes())
    url = site.show(public)
    tab.open(url + fragment(vkey=records.vkey, entry=130, all=1))
    steps = tab.steps("entry")
    assert {"leaf", "envelope", "signature", "statement"} <= steps.states("holds"), "all but the log is in order"
    assert {"inclusion", "founding"} == steps.states("fails")
    assert "inclusion proof: wanted the signed root" in steps.said("inclusion")
    assert tab.steps("all").said("root").startswith("root: wanted ")
    assert tab.text("#entry-says") == ""


@needs_chromium
@pytest.mark.parametrize(
    ("vkey", "step", "message"),
    [
        (
            OTHER_VKEY,
            "note",
            r"note: wanted a signature of log.test/three \([0-9a-f]{8}\), got signatures of log.test/",
        ),
        ("OTHER ID", "key", "wanted key ID [0-9a-f]{8}, got “00000000”"),
        ("log.test/three", "key", r"wanted name\+keyid\+base64"),
        ("LOOSE", "key", "base64: wanted padded base64"),
        ("COSIGNER", "key", r"wanted a log’s key \(01 and 32 bytes\), got 04 and 32"),
        ("TYPE", "key", r"wanted a log’s key \(01 and 32 bytes\), got 02 and 32"),
        ("OTHER NAME", "note", "got signatures of log.test/three"),
    ],
)
def test_a_wrong_key_is_refused(records: Records, site: Site, tab: Tab, vkey: str, step: str, message: str) -> None:
    name, key_id, key = records.vkey.split("+", 2)
    raw = base64.b64decode(key)
    if vkey == "OTHER ID":
        vkey = f"{name}+00000000+{key}"
    elif vkey == "LOOSE":
        # 33 bytes leave no unused bits; so the padding is what is loose.
        vkey = f"{name}+{key_id}+{key}===="
    elif vkey == "TYPE":
        vkey = encode_vkey(name, bytes([2]) + raw[1:])
    elif vkey == "COSIGNER":
        vkey = make_cosignature_verifier(name, key_of("log").public_key()).vkey
    elif vkey == "OTHER NAME":
        vkey = format_vkey("log.test/four", key_of("log").public_key().public_bytes_raw())
    url = site.show(records.public)
    tab.open(url + fragment(vkey=vkey))
    steps = tab.steps("log")
    assert steps.states("fails") == {step}
    assert re.search(message, steps.said(step)), steps.said(step)
    assert tab.run("document.getElementById('entries').hidden")


def other_encoding(f: Federation) -> bytes:
    return json.dumps(json.loads(f.signed("clinic", Identity(institution="clinic", transport_key="C" * 44)))).encode()


def false_signature(f: Federation) -> bytes:
    payload = envelope.parse_envelope(
        f.signed("clinic", Identity(institution="clinic", transport_key="C" * 44))
    ).payload
    forged = envelope.sign(payload, f.keys["school"])
    return envelope.format_envelope(payload, [envelope.Signature(public_hex(f.keys["clinic"]), forged.value)])


def raw(f: Federation, **changes: Json) -> bytes:
    value = canonical.parse(
        envelope.parse_envelope(f.signed("clinic", Identity(institution="clinic", transport_key="C" * 44))).payload,
        max_bytes=65535,
    )
    assert isinstance(value, dict)
    return envelope.sign_envelope(canonical.encode({**value, **changes}), f.keys["clinic"])


def of(f: Federation, consortium: str, who: str = "clinic") -> bytes:
    header = Header(consortium=consortium, seq=0, prev=None, seen=())
    payload = Statement(header, Identity(institution="clinic", transport_key="C" * 44)).payload()
    return envelope.sign_envelope(payload, key_of(f"key of {who}") if who == "stranger" else f.keys[who])


def two_authors(f: Federation) -> bytes:
    payload = envelope.parse_envelope(of(f, f.state.consortium)).payload
    return envelope.format_envelope(payload, [envelope.sign(payload, f.keys[n]) for n in ("clinic", "school")])


def loose_payload(f: Federation) -> bytes:
    payload = envelope.parse_envelope(of(f, f.state.consortium)).payload + b" "
    return envelope.sign_envelope(payload, f.keys["clinic"])


ENTRY_LIES: list[tuple[str, Callable[[Federation], bytes], str, str, str]] = [
    ("another encoding of the envelope", other_encoding, "envelope", "fails", "the RFC 8785 encoding"),
    ("not even JSON", lambda f: b"\xff\x00", "envelope", "fails", "wanted UTF-8"),
    ("empty", lambda f: b"", "envelope", "fails", "wanted JSON"),
    ("a signature of somebody else", false_signature, "signature", "fails", "wanted one that holds"),
    ("another encoding of the payload", loose_payload, "statement", "fails", "the RFC 8785 encoding"),
    ("another type", lambda f: raw(f, _type="x"), "statement", "fails", "wanted type https://in-toto.io"),
    ("a field too many", lambda f: raw(f, more=1), "statement", "fails", "wanted exactly _type, subject"),
    ("another consortium", lambda f: of(f, "ab" * 32), "statement", "fails", "consortium: wanted .*, got abab"),
    ("two authors", two_authors, "author", "fails", "author: wanted one, got 2 signatures"),
    ("a stranger", lambda f: of(f, f.state.consortium, "stranger"), "author", "open", "does not name this key"),
]  # fmt: skip


@needs_chromium
@pytest.mark.parametrize(
    ("make", "step", "state", "message"), [e[1:] for e in ENTRY_LIES], ids=[e[0] for e in ENTRY_LIES]
)
def test_a_log_that_takes_a_bad_entry_does_not_make_it_good(
    records: Records,
    site: Site,
    tab: Tab,
    tmp_path: Path,
    make: Callable[[Federation], bytes],
    step: str,
    state: str,
    message: str,
) -> None:
    f = records.federation
    public, _ = publish(tmp_path, [*f.entries[:9], make(f)], f)
    url = site.show(public)
    tab.open(url + fragment(vkey=records.vkey, entry=9, all=1))
    steps = tab.steps("entry")
    assert {"note", "checkpoint", "founding", "bundle", "leaf", "inclusion"} <= steps.states("holds")
    assert steps.states(state) == {step}, steps
    assert re.search(message, steps.said(step)), steps.said(step)
    assert steps.state == tab.steps("all").state == state
    assert step in tab.steps("all").states(state)
    row = "document.querySelector('#rows tr[data-index=\"9\"]').dataset.state"
    assert tab.run(row) == state


def said_anew(f: Federation, index: int) -> bytes:
    """What the author of this entry, or anyone who has its key, could have signed in its place."""
    header = parse_statement(envelope.parse_envelope(f.entries[index]).payload).header
    assert header is not None
    signer = envelope.parse_envelope(f.entries[index]).signatures[0].key
    key = next(k for k in (f.coordinator, *f.keys.values()) if public_hex(k) == signer)
    return envelope.sign_envelope(
        Statement(header, Identity(institution="clinic", transport_key="D" * 44)).payload(), key
    )


@needs_chromium
@pytest.mark.parametrize(
    ("rewrite", "chain", "seen"),
    [
        (lambda f: f.entries[:20] + f.entries[21:60], r"wanted number \d+, got \d+", "before it, [0-9]+ were seen"),
        (lambda f: [*f.entries[:20], said_anew(f, 20), *f.entries[21:60]], "before it, got", "forked at size 21: root"),
    ],
    ids=["left out", "said anew"],
)
def test_a_past_that_was_changed_is_a_gap_and_a_fork_for_whoever_reads_the_whole_log(
    records: Records,
    site: Site,
    tab: Tab,
    tmp_path: Path,
    rewrite: Callable[[Federation], list[bytes]],
    chain: str,
    seen: str,
) -> None:
    public, _ = publish(tmp_path, rewrite(records.federation), records.federation)
    tab.open(site.show(public) + fragment(vkey=records.vkey, all=1))
    steps = tab.steps("all")
    assert steps.states("fails") == {"chains", "seen"}
    assert {"tree", "root", "envelope", "signature", "statement", "author"} == steps.states("holds")
    assert re.search(rf"chain of \w+( \(coordinator\))?: .*{chain}", steps.said("chains")), steps
    assert re.search(seen, steps.said("seen")), steps


@needs_chromium
def test_a_log_under_a_key_that_the_compact_does_not_name_or_of_another_consortium_is_refused(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    f = records.federation
    (tmp_path / "public").mkdir()
    log = Log.create(tmp_path / "public", tmp_path / "lock.db", ORIGIN, key_of("x"))
    log.append(f.entries[:5])
    log.close()
    url = site.show(tmp_path / "public")
    tab.open(url + fragment(vkey=OTHER_VKEY))
    steps = tab.steps("log")
    assert steps.states("fails") == {"founding"}
    assert f"founding compact: wanted the log’s key {OTHER_VKEY}, got “{records.vkey}”" in steps.said("founding")
    tab.open(f"{url}?self")
    assert tab.steps("log").states("fails") == {"note"}, "the key that the compact names did not sign this"
    url = site.show(records.public)
    tab.open(url + fragment(vkey=records.vkey, consortium="cd" * 32))
    assert "consortium: wanted cdcd" in tab.steps("log").said("founding")
    tab.open(f"{url}?form{fragment(vkey=records.vkey, consortium='CD' * 32)}")
    assert "64 lower-case hex digits" in tab.steps("log").said("founding")


@needs_chromium
def test_a_founding_compact_that_one_member_did_not_sign_is_refused(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    f = records.federation
    public, _ = publish(tmp_path, [f.founding(("clinic", "school"))], f)
    url = site.show(public)
    tab.open(url + fragment(vkey=records.vkey))
    assert "wanted the signature of every member and no other, got 2 signatures" in tab.steps("log").said("founding")


@needs_chromium
def test_lines_of_witnesses_that_the_reader_does_not_know_are_ignored(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    public = records.copy(tmp_path)
    line = f"— witness.test/w {base64.b64encode(b'abcd' + bytes(72)).decode()}\n".encode()
    edit(public / "checkpoint", lambda note: note + line)
    url = site.show(public)
    tab.open(url + fragment(vkey=records.vkey, entry=1))
    assert tab.steps("log").states("fails", "open", "skipped") == set()


WITNESSES = ("one", "two", "three")


@needs_chromium
def test_witnesses_that_the_compact_names_count_as_its_quorum_says(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    f = Federation()
    keys = {name: key_of(f"witness {name}") for name in WITNESSES}
    verifiers = {n: make_cosignature_verifier(f"witness.test/{n}", k.public_key()) for n, k in keys.items()}
    named = [{"name": n, "vkey": v.vkey, "url": f"https://{n}.test/"} for n, v in verifiers.items()]
    body = f.compact.model_dump(mode="json")
    body["quorum"]["witnesses"] = 2
    f.compact = Compact.model_validate_json(json.dumps({**body, "witnesses": named}))
    public, _ = publish(tmp_path, [f.founding()], f)
    note = (public / "checkpoint").read_bytes()
    checkpoint = open_checkpoint(note, parse_vkey(records.vkey))
    lines = {n: cosign(checkpoint, f"witness.test/{n}", keys[n], at=1_800_000_000 + i) for i, n in enumerate(WITNESSES)}
    other = cosign(Checkpoint(ORIGIN, 1, bytes(32)), "witness.test/two", keys["two"], at=1_800_000_000)
    stranger = cosign(checkpoint, "witness.test/four", key_of("x"), at=1_800_000_000)
    for cosigned, state, said in (
        (
            [lines["one"], lines["three"]],
            "holds",
            "Cosigned by one, three; wanted 2 of 3 witnesses that the compact nam",
        ),
        ([lines["one"], lines["two"], lines["three"]], "holds", "says 2027-01-15 08:00 UTC."),
        ([lines["two"]], "fails", "cosignatures: wanted 2 of 3 witnesses that the compact names, got two"),
        ([lines["two"], lines["two"]], "fails", "names, got two"),
        ([lines["two"], stranger], "fails", "names, got two"),
        ([], "fails", "names, got none"),
        (
            [lines["one"], other, lines["three"]],
            "fails",
            "cosignature of two: wanted one that holds, got one that does",
        ),
    ):
        (public / "checkpoint").unlink()
        (public / "checkpoint").write_bytes(note + "".join(cosigned).encode())
        tab.open(f"{site.show(public)}?{len(tab.browser.events)}{fragment(vkey=records.vkey)}")
        steps = tab.steps("log")
        assert [(s, text) for step, s, text in steps.all if step == "witnesses" and said in text], steps
        assert ("witnesses" in steps.states("holds")) == (state == "holds")
        assert steps.state == ("open" if state == "holds" else state)


# -- a browser that cannot, a line that is broken


@needs_chromium
def test_a_browser_without_ed25519_says_so_and_says_of_nothing_that_it_holds(
    records: Records, site: Site, tab: Tab
) -> None:
    without = """SubtleCrypto.prototype.importKey = async () => {
        throw new DOMException("Unrecognized name", "NotSupportedError") }"""
    url = site.show(records.public)
    tab.open(url + fragment(vkey=records.vkey, entry=3), script_first=without)
    steps = tab.steps("log")
    assert steps.state == "open"
    assert steps.said("note") == (
        "this browser cannot check Ed25519 signatures; a newer Chromium, Firefox or Safari can"
    )
    assert steps.states("holds") == {"read", "key"}
    assert tab.run("document.getElementById('entries').hidden")


@needs_chromium
def test_a_server_that_is_gone_is_no_evidence_of_anything(records: Records, site: Site, tab: Tab) -> None:
    url = site.show(records.public)
    tab.open(url + fragment(vkey=records.vkey))
    tab.call("Network.emulateNetworkConditions", offline=True, latency=0, downloadThroughput=-1, uploadThroughput=-1)
    tab.run("document.querySelector('#form').requestSubmit()")
    tab.until("document.querySelector('#log-verdict').textContent.includes('cannot be fetched')")
    tab.settle()
    steps = tab.steps("log")
    assert steps.state == "open"
    assert steps.said("read").startswith("checkpoint: cannot be fetched")
    assert steps.states("fails") == set()


# -- receipts


@needs_chromium
def test_a_receipt_and_its_entry_are_checked_without_the_log(records: Records, tab: Tab, tmp_path: Path) -> None:
    (tmp_path / "mine.tlog-proof").write_bytes(records.receipts[7])
    (tmp_path / "mine.json").write_bytes(records.federation.entries[7])
    page = tmp_path / "copy.html"
    page.write_bytes(PAGE.read_bytes())
    # A copy of the page on the reader's disk: no server at all.
    tab.open(f"{page.as_uri()}{fragment(vkey=records.vkey)}")
    for order in (("mine.tlog-proof", "mine.json"), ("mine.json", "mine.tlog-proof")):
        tab.give_files("#files", *(tmp_path / name for name in order))
        tab.until("document.querySelector('#receipt:not([hidden]) li')")
        tab.settle()
        steps = tab.steps("receipt")
        tab.run("document.getElementById('receipt').hidden = true")
        assert steps.states("fails", "skipped") == set()
        assert steps.states("open") == {"author"}, "offline, the key has no name; that is no doubt about the receipt"
        assert {"key", "receipt", "note", "checkpoint", "leaf", "inclusion", "envelope", "signature", "statement"} == (
            steps.states("holds")
        )
        assert steps.verdict.startswith(f"The log {ORIGIN} has this entry as number 7, under a key that came with")
    (tmp_path / "mine.json").write_bytes(records.federation.entries[8])
    tab.give_files("#files", tmp_path / "mine.json", tmp_path / "mine.tlog-proof")
    tab.until("document.querySelector('#receipt-verdict').dataset.state === 'fails'")
    assert tab.steps("receipt").states("fails") == {"inclusion"}
    assert tab.faults() == []


def first_hash(change: Callable[[bytes], bytes]) -> Callable[[bytes], bytes]:
    """Change the first hash's line, with its newline."""
    return lambda receipt: re.sub(rb"(?<=index 7\n)[^\n]*\n", lambda line: change(line[0]), receipt)


def index_line(new: bytes) -> Callable[[bytes], bytes]:
    return lambda receipt: receipt.replace(b"index 7", new)


RECEIPT_LIES: list[tuple[str, Callable[[bytes], bytes], str, str]] = [
    ("a changed hash", first_hash(lambda h: (b"B" if h[:1] == b"A" else b"A") + h[1:]), "inclusion", "the signed root"),
    ("another index", index_line(b"index 6"), "inclusion", "wanted the signed root"),
    ("an index beyond", index_line(b"index 300"), "inclusion", "wanted an index below 300"),
    ("an index with a zero", index_line(b"index 07"), "receipt", "decimal: wanted"),
    ("a hash too few", first_hash(lambda h: b""), "inclusion", "wanted 9 hashes for 7 in 300, got 8"),
    ("a hash too many", first_hash(lambda h: h + h), "inclusion", "wanted 9 hashes for 7 in 300, got 10"),
    ("a loose hash", first_hash(lambda h: loose_bits(h.decode()[:-1]).encode() + b"\n"), "receipt", "the canonical"),
    ("another header", lambda r: r.replace(b"@v1", b"@v2", 1), "receipt", "wanted c2sp.org/tlog-proof@v1"),
    ("a changed checkpoint", lambda r: r.replace(b"\n300\n", b"\n301\n"), "note", "one that does not"),
]


@needs_chromium
def test_a_receipt_that_is_wrong_anywhere_is_refused_by_the_step_that_it_breaks(
    records: Records, site: Site, tab: Tab
) -> None:
    entry = url64(records.federation.entries[7])
    url = site.show(records.public)
    tab.open(url + fragment(vkey=records.vkey, receipt=url64(records.receipts[7]), receipt_entry=entry))
    steps = tab.steps("receipt")
    assert steps.states("fails", "open", "skipped") == set(), "with the log at hand, the author has a name"
    assert re.match(r"\w+ announces|\w+ sends|hub", tab.text("#receipt-says"))
    for why, change, step, message in RECEIPT_LIES:
        lie = change(records.receipts[7])
        assert lie != records.receipts[7], why
        tab.run(f"location.hash = {json.dumps(fragment(vkey=records.vkey, receipt=url64(lie), receipt_entry=entry))}")
        tab.until(f"document.querySelector('#receipt-steps li[data-step={step}][data-state=fails]')")
        tab.settle()
        steps = tab.steps("receipt")
        assert steps.states("fails") == {step}, why
        assert re.search(message, steps.said(step)), (why, steps.said(step))
        assert tab.text("#receipt-says") == ""
        # Back to the true one, so that the next lie is not mistaken for this.
        good = fragment(vkey=records.vkey, receipt=url64(records.receipts[7]), receipt_entry=entry)
        tab.run(f"location.hash = {json.dumps(good)}")
        tab.until("document.querySelector('#receipt-verdict').dataset.state === 'open'")
        tab.settle()


@needs_chromium
def test_the_files_that_the_page_saves_are_checked_by_our_own_verifier(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    tab.browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    verifier = parse_vkey(records.vkey)
    url = site.show(records.public)
    for index in (0, 130, 299):
        tab.open(f"{url}?{index}{fragment(vkey=records.vkey, entry=index)}")
        tab.run("for (const b of document.querySelectorAll('#entry-files button')) b.click()")
        wanted = [tmp_path / f"entry-{index}.json", tmp_path / f"entry-{index}.tlog-proof"]
        deadline = time.monotonic() + 10
        while not all(p.is_file() and p.stat().st_size for p in wanted):
            assert time.monotonic() < deadline, "the files did not arrive"
            time.sleep(0.02)
        entry, proof = (p.read_bytes() for p in wanted)
        assert entry == records.federation.entries[index]
        assert proof == records.receipts[index], "the same bytes as the coordinator's own receipt"
        assert open_proof(proof, entry, verifier)[0] == index


# -- keys that change


@needs_chromium
def test_keys_are_followed_through_their_rotations_and_a_later_compact_stays_undecided(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    f = Federation()
    f.announce()
    old = f.key("clinic")
    f.rotate("clinic", "clinic's next key")
    f.rotate("hub", "hub's next key")
    f.run_round()
    public, _ = publish(tmp_path / "rotated", f.entries, f)
    url = site.show(public)
    tab.open(url + fragment(vkey=records.vkey, entry=len(f.entries) - 1, all=1))
    steps = tab.steps("all")
    assert steps.states("fails", "open", "skipped") == set(), steps
    assert "rotations of their keys" in tab.text("#all-steps")
    tab.open(f"{url}?rotation{fragment(vkey=records.vkey, entry=4)}")
    assert "puts a new key in the place of its own" in tab.text("#entry-says")
    assert tab.steps("entry").states("fails", "open", "skipped") == set()
    # After its rotation, the old key is nobody's.
    chain = f.state.chain(public_hex(f.key("clinic")))
    header = Header(consortium=f.state.consortium, seq=chain.seq + 1, prev=chain.leaf, seen=())
    payload = Statement(header, Identity(institution="clinic", transport_key="A" * 44)).payload()
    stolen = envelope.sign_envelope(payload, old)
    public, _ = publish(tmp_path / "stolen", [*f.entries, stolen], f)
    tab.open(f"{site.show(public)}?stolen{fragment(vkey=records.vkey, all=1)}")
    assert "author" in tab.steps("all").states("open")
    assert "chains" in tab.steps("all").states("fails")
    amended = Statement(None, f.compact.model_copy(update={"version": 2, "previous": f.state.compact_sha256})).payload()
    signed_by_two = envelope.format_envelope(
        amended, [envelope.sign(amended, f.key(name)) for name in ("school", "coop")]
    )
    public, _ = publish(tmp_path / "amended", [*f.entries, signed_by_two], f)
    tab.open(f"{site.show(public)}?amended{fragment(vkey=records.vkey, entry=len(f.entries))}")
    steps = tab.steps("entry")
    assert (steps.states("fails", "skipped"), steps.states("open")) == (set(), {"author"})
    assert "agree on version 2 of the compact" in tab.text("#entry-says")


# -- what somebody has seen


def signed(f: Federation, entries: list[bytes], size: int) -> bytes:
    """The checkpoint of the first ``size`` of these entries, under the log's own key."""
    tree = Tree()
    for data in entries[:size]:
        tree.append(leaf_hash(data))
    return sign_note(Checkpoint(ORIGIN, size, tree.root(size)).text(), ORIGIN, f.log_key)


def other_history(entries: list[bytes], at: int) -> list[bytes]:
    return [*entries[:at], b"what this log does not have", *entries[at + 1 :]]


@needs_chromium
def test_the_log_is_held_against_an_older_checkpoint_and_a_receipt(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    f, url = records.federation, site.show(records.public)
    for size in (0, 1, 2, 7, 128, 255, 256, 257, 299, 300):
        tab.open(f"{url}?{size}{fragment(vkey=records.vkey, seen=url64(signed(f, f.entries, size)))}")
        steps = tab.steps("seen")
        assert steps.states("holds") == {"seen", "note", "checkpoint", "consistency"}, size
        assert steps.state == "open", "a key from a link stands for nothing"
    (tmp_path / "mine.tlog-proof").write_bytes(records.receipts[7])
    tab.run("document.getElementById('seen-verdict').dataset.state = ''")
    tab.give_files("#seen-file", tmp_path / "mine.tlog-proof")
    tab.until("document.querySelector('#seen-steps').textContent.includes('a receipt for entry 7')")
    tab.settle()
    assert tab.steps("seen").states("fails", "open", "skipped") == set()
    tab.run("for (const d of document.querySelectorAll('#seen-steps details')) d.open = true")
    tab.until("[...document.querySelectorAll('#seen-steps .evidence')].every(e => e.childElementCount)")
    assert f.replica.checkpoint().root.hex() in tab.text("#seen-steps")
    assert tab.faults() == []


@needs_chromium
def test_another_history_a_longer_one_and_another_logs_are_refused_by_the_step_that_they_break(
    records: Records, site: Site, tab: Tab
) -> None:
    f, url = records.federation, site.show(records.public)
    longer = [*f.entries, b"one more"]
    other_log = sign_note(Checkpoint(ORIGIN, 0, leaf_hash(b"")).text(), ORIGIN, key_of("x"))
    cases = [
        ("forked inside", signed(f, other_history(f.entries, 3), 200), "consistency", "forked"),
        ("forked at its last entry", signed(f, other_history(f.entries, 255), 256), "consistency", "forked"),
        ("forked at one size", signed(f, other_history(f.entries, 299), 300), "consistency", "forked"),
        ("rolled back", signed(f, longer, 301), "consistency", "at least the 301 entries that were seen, got 300"),
        ("its whole history", signed(f, [b"x"], 1), "consistency", "forked"),
        ("another log's", other_log, "note", "wanted"),
        ("no checkpoint", b"something else", "note", "wanted"),
        ("no receipt", b"c2sp.org/tlog-proof@v1\n", "seen", "wanted"),
    ]
    for n, (why, data, step, words) in enumerate(cases):
        tab.open(f"{url}?{n}{fragment(vkey=records.vkey, seen=url64(data))}")
        steps = tab.steps("seen")
        assert steps.states("fails") == {step}, why
        assert words in steps.said(step), why
        assert steps.state == "fails"


@needs_chromium
def test_a_bad_tile_is_no_second_history(records: Records, site: Site, tab: Tab, tmp_path: Path) -> None:
    f, public = records.federation, records.copy(tmp_path)
    tile = public / "tile/0/000"
    data = bytearray(tile.read_bytes())
    data[128 * 32] ^= 1
    tile.write_bytes(data)
    tab.open(site.show(public) + fragment(vkey=records.vkey, seen=url64(signed(f, f.entries, 130))))
    steps = tab.steps("seen")
    assert steps.states("fails") == {"consistency"}
    assert "consistency proof 130 to 300: wanted the signed root" in steps.said("consistency")
    assert "forked" not in steps.said("consistency")


@needs_chromium
def test_the_pages_consistency_proofs_are_ours_and_it_refuses_what_we_refuse(
    records: Records, site: Site, tab: Tab
) -> None:
    tab.open(site.show(records.public))
    tree = Tree()
    for i in range(40):
        tree.append(leaf_hash(b"%d" % i))
    levels = [[tree.node(level, i).hex() for i in range(40 >> level)] for level in range(6)]
    pairs = [(old, new) for new in range(1, 41) for old in range(new + 1)]
    made = tab.run(
        f"""(async () => {{
        const levels = {json.dumps(levels)}, bytes = h => Uint8Array.from(h.match(/../g) ?? [], x => parseInt(x, 16));
        const node = async (level, i) => bytes(levels[level][Number(i)]), made = [];
        for (const [old, size] of {json.dumps(pairs)})
          made.push((await commonweal.consistencyPath(node, BigInt(old), BigInt(size))).map(commonweal.hex));
        return made; }})()"""
    )
    assert made == [[h.hex() for h in tree.consistency_path(old, new)] for old, new in pairs]
    proofs: list[tuple[int, bytes, int, bytes, list[bytes]]] = []
    for old, new in ((1, 2), (3, 7), (4, 8), (6, 40), (8, 13), (31, 40), (0, 5), (5, 5)):
        roots, path = (tree.root(old), tree.root(new)), tree.consistency_path(old, new)
        proofs.append((old, roots[0], new, roots[1], path))
        proofs.append((old, leaf_hash(roots[0]), new, roots[1], path))
        proofs.append((old, roots[0], new, leaf_hash(roots[1]), path))
        proofs.append((old, roots[0], new, roots[1], [*path, roots[0]]))
        proofs += [(old, roots[0], new, roots[1], path[:i] + path[i + 1 :]) for i in range(len(path))]
        proofs += [
            (old, roots[0], new, roots[1], [*path[:i], leaf_hash(path[i]), *path[i + 1 :]]) for i in range(len(path))
        ]
        proofs.append((new, roots[1], old, roots[0], path))
    ours = [accepts(lambda p=p: verify_consistency(*p)) for p in proofs]  # type: ignore[misc]
    asked = [[o, a.hex(), n, b.hex(), [h.hex() for h in path]] for o, a, n, b, path in proofs]
    theirs = tab.run(
        f"""(async () => {{
        const bytes = h => Uint8Array.from(h.match(/../g) ?? [], x => parseInt(x, 16)), found = [];
        for (const [old, a, size, b, path] of {json.dumps(asked)})
          found.push(await commonweal.verifyConsistency(BigInt(old), bytes(a), BigInt(size), bytes(b), path.map(bytes))
            .then(() => true, () => false));
        return found; }})()"""
    )
    assert theirs == ours
    assert ours.count(True) >= 8


# -- other places to read from


@needs_chromium
def test_a_copy_of_the_page_from_elsewhere_reads_a_log_by_its_address_and_from_a_folder(
    records: Records, site: Site, tab: Tab, tmp_path: Path
) -> None:
    page = tmp_path / "copy.html"
    page.write_bytes(PAGE.read_bytes())
    url = site.show(records.public)
    tab.open(f"{page.as_uri()}{fragment(vkey=records.vkey, url=url, entry=280)}")
    assert tab.steps("entry").states("fails", "open", "skipped") == set()
    public = records.copy(tmp_path)
    tab.open(f"{page.as_uri()}?folder{fragment(vkey=records.vkey)}")
    tab.give_files("#folder", public)
    tab.until("document.getElementById('folder').files.length > 4")
    tab.run("document.querySelector('#form').requestSubmit()")
    tab.until("document.querySelector('#log:not([hidden]) li')")
    tab.settle()
    assert tab.steps("log").states("fails", "open", "skipped") == set()
    assert tab.run("document.querySelectorAll('#rows tr[data-state=holds]').length") == 25
    for bad in ("ftp://127.0.0.1/", "https://me:secret@127.0.0.1/", "nothing"):
        tab.run(f"location.hash = {json.dumps(fragment(vkey=records.vkey, url=bad))}")
        tab.until("document.getElementById('busy').textContent.startsWith('Address: wanted https://')")


# -- the page's parsers and ours: one encoding, on both sides


def accepts(parse: Callable[[], object]) -> bool:
    try:
        parse()
    except PeerError:
        return False
    return True


def mutations(data: bytes, rng: random.Random, count: int) -> Iterator[bytes]:
    yield data
    for _ in range(count):
        at = rng.randrange(len(data))
        new = bytes(
            [rng.choice(b'\n\n 0A=+-/."{}[],:\t\r\0\x7f\xc2\xff') if rng.random() < 0.6 else rng.randrange(256)]
        )
        yield rng.choice(
            [
                data[:at] + new + data[at + 1 :],
                data[:at] + data[at + 1 :],
                data[:at] + new + data[at:],
                data[:at] + data[at:][: rng.randrange(9)] + data[at:],
                data[:at],
            ]
        )


DECIMALS = "0|1|01|+1|-0|1_0|９|9223372036854775807|9223372036854775808|99999999999999999999|1.0|1e2|\n|1\n|| 1|1 "
BASE64S = "|AAAA|AA==|AB==|AAA=|AAB=|AAAA====|AA=|A|AA|AA\n==|AA ==|-_-_|+/+/|é"
JSONS = [
    *rb"""{"a":1,"b":[true,false,null]} {"b":1,"a":2} {"a":1,"a":1} {"a":1.0} {"a":1e2} {"a":-0} -1 {"a":0.5} [NaN] +1
    {"a":9007199254740991} {"a":9007199254740992} {"a":9007199254740993} [Infinity] "\u0041" "\u001f" "\u001F" "\n" 01
    "\u000a" "\/" "/" "\ud800" "\ud83d\ude00" [ {"\u00e9":1} {"__proto__":1} {"1":1,"10":2,"9":3} [1,] nul "\"\\" [[[]]]
    {"10":2,"9":3,"1":1} "\b\f\r\t" "\u0008" "\u007f" true {} [] "" {"":0} """.split(),
    *'"\U0001f600" {"é":1} {"\U0001f600":1,"\ufb01":2} {"\ufb01":2,"\U0001f600":1} "\x7f" "\u2028"'.encode().split(
        b" "
    ),
    *(b'"\xed\xa0\x80"', b"\xef\xbb\xbf1", b" 1", b"1 ", b"", b'"a\tb"', b'{"a": 1}', b"[1,\n2]", b'"\xc0\xaf"'),
]


@needs_chromium
def test_the_page_accepts_exactly_the_bytes_that_our_own_parsers_accept(records: Records, site: Site, tab: Tab) -> None:
    rng = random.Random(7)
    f = records.federation
    verifier = parse_vkey(records.vkey)
    checkpoint = f.replica.checkpoint()
    note = sign_note(checkpoint.text(), ORIGIN, f.log_key)
    tree = Tree()
    for e in f.entries:
        tree.append(leaf_hash(e))
    proof = format_proof(7, tree.inclusion_path(7, SIZE), note)
    payload = envelope.parse_envelope(f.entries[7]).payload
    cases: list[tuple[str, bytes, bool]] = []
    for text in DECIMALS.split("|"):
        cases.append(("decimal", text.encode(), accepts(lambda t=text: canonical.parse_decimal(t))))  # type: ignore[misc]
    for text in BASE64S.split("|"):
        cases.append(("base64", text.encode(), accepts(lambda t=text: canonical.parse_base64(t))))  # type: ignore[misc]
    parsers: dict[str, tuple[bytes, int, Callable[[bytes], object]]] = {
        "note": (note, 500, lambda d: open_note(d, [verifier])),
        "checkpoint": (checkpoint.text().encode(), 300, lambda d: parse_checkpoint(d.decode())),
        "vkey": (records.vkey.encode(), 200, lambda d: parse_vkey(d.decode())),
        "proof": (proof, 400, lambda d: parse_proof(d)),
        "envelope": (f.entries[7], 300, lambda d: envelope.parse_envelope(d)),
        "json": (payload, 300, lambda d: canonical.parse(d, max_bytes=65535)),
    }
    for kind, (data, count, parse) in parsers.items():
        for mutation in mutations(data, rng, count):
            if kind in ("checkpoint", "vkey"):
                try:
                    mutation.decode()
                except UnicodeDecodeError:
                    continue
            cases.append((kind, mutation, accepts(lambda p=parse, m=mutation: p(m))))  # type: ignore[misc]
    cases += [("json", data, accepts(lambda d=data: canonical.parse(d, max_bytes=65535))) for data in JSONS]  # type: ignore[misc]
    for name in ("a b", "a\u00a0b", "a\u0085b", "a\u3000b", "a\ufeffb", "a\u200bb", "a\u2028b", "é", "a\u001cb", ""):
        text = f"{name}\n1\n{base64.b64encode(bytes(32)).decode()}\n"
        cases.append(("checkpoint", text.encode(), accepts(lambda t=text: parse_checkpoint(t))))  # type: ignore[misc]
    compact = canonical.parse(f.entries[0], max_bytes=65535)
    assert isinstance(compact, dict)
    signatures = compact["signatures"]
    assert isinstance(signatures, list)
    for other in (signatures, signatures[::-1], signatures[:1] * 2, signatures[:1], []):
        data = canonical.encode({**compact, "signatures": other})
        cases.append(("envelope", data, accepts(lambda d=data: envelope.parse_envelope(d))))  # type: ignore[misc]
    kinds = {kind for kind, _, _ in cases}
    assert {kind for kind, _, ok in cases if ok} == {kind for kind, _, ok in cases if not ok} == kinds, "good and bad"
    url = site.show(records.public)
    tab.open(url + fragment(vkey=records.vkey))
    tab.run(f"globalThis.cases = {json.dumps([[k, base64.b64encode(d).decode()] for k, d, _ in cases])}")
    answers = tab.run(
        """(async () => {
          const c = commonweal, verifier = await c.parseVkey(document.getElementById("vkey").value);
          const text = d => new TextDecoder("utf-8", { ignoreBOM: true }).decode(d);
          const parse = {
            decimal: d => c.parseDecimal(text(d)), base64: d => c.parseBase64(text(d)), json: d => c.parseCanonical(d),
            note: d => c.openNote(d, verifier), checkpoint: d => c.parseCheckpoint(text(d)),
            vkey: d => c.parseVkey(text(d)), proof: d => c.parseProof(d), envelope: d => c.parseEnvelope(d),
          };
          const answers = [];
          for (const [kind, data] of cases) {
            const bytes = Uint8Array.from(atob(data), x => x.charCodeAt(0));
            try { await parse[kind](bytes); answers.push("ok"); }
            catch (e) { answers.push(e.constructor.name + " " + e.message); }
          }
          return answers;
        })()"""
    )
    for (kind, data, ok), answer in zip(cases, answers, strict=True):
        assert answer == "ok" or answer.startswith("Refused "), (kind, data, answer)
        assert (answer == "ok") == ok, (kind, data, answer)


@needs_chromium
def test_every_place_in_every_tree_is_proved_and_no_other(records: Records, site: Site, tab: Tab) -> None:
    tree = Tree()
    cases: list[list[object]] = []
    for size in range(1, 20):
        tree.append(leaf_hash(b"%d" % (size - 1)))
        root = tree.root(size).hex()
        for index in range(size):
            path = [h.hex() for h in tree.inclusion_path(index, size)]
            leaf = leaf_hash(b"%d" % index).hex()
            cases.append([leaf, index, size, path, root, True])
            cases += [
                [leaf, index + 1, size, path, root, False],
                [leaf_hash(b"x").hex(), index, size, path, root, False],
                [leaf, index, size, [*path, root], root, False],
                [leaf, index, size, path, leaf_hash(b"y").hex(), False],
            ]
            if path:
                cases.append([leaf, index, size, path[:-1], root, False])
                cases.append([leaf, index, size, [*path[:-1], leaf], root, False])
    url = site.show(records.public)
    tab.open(url + fragment(vkey=records.vkey))
    wrong = tab.run(
        f"""(async () => {{
          const un = t => Uint8Array.from(t.match(/../g) ?? [], x => parseInt(x, 16)), wrong = [];
          for (const [leaf, index, size, path, root, good] of {json.dumps(cases)}) {{
            let ok = true;
            try {{ await commonweal.verifyInclusion(un(leaf), BigInt(index), BigInt(size), path.map(un), un(root)); }}
            catch {{ ok = false; }}
            if (ok !== good) wrong.push([index, size, good]);
          }}
          return wrong;
        }})()"""
    )
    assert wrong == []


def test_the_records_of_these_tests_are_what_our_own_verifier_takes(records: Records) -> None:
    checkpoint = open_checkpoint((records.public / "checkpoint").read_bytes(), parse_vkey(records.vkey))
    assert checkpoint == Checkpoint(ORIGIN, SIZE, records.federation.replica.checkpoint().root)
    assert list(read_entries(DirectorySource(records.public), 0, SIZE)) == records.federation.entries
    assert len(encode_bundle(records.federation.entries[:256])) == (records.public / "tile/entries/000").stat().st_size
    assert parse_statement(envelope.parse_envelope(records.federation.entries[7]).payload).header is not None
