"""``commonweal charter``: files that people edit, differences by clause, imports, and publishing to a real log."""

import json
import stat
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from commonweal_coordinator.serving.blobs import BlobStore
from commonweal_coordinator.serving.service import Admission, LogService
from commonweal_coordinator.serving.tls import load_or_create_tls
from commonweal_coordinator.serving.web import RecordsServer
from commonweal_node.charter.charter import Charter, load_charter
from commonweal_node.charter.edit import add_clause, clause_toml, new_charter, next_version, parse_charter
from commonweal_node.institution.opened_home import OpenedHome
from commonweal_protocols.base.errors import ConfigError, RuleError
from commonweal_protocols.fold.state import State
from commonweal_protocols.statements.charter import (
    Addendum,
    Authored,
    Change,
    Clause,
    Deliberated,
    Dissent,
    GroupCount,
    Imported,
    Voted,
    describe,
    diff,
)
from commonweal_protocols.statements.governance import Charter as PublishedCharter
from commonweal_protocols.statements.invite import Invite
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.wire import commonweal_pb2_grpc as rpc
from tests.kit.federation import key_of, save_key
from tests.kit.grpc_server import serving
from tests.kit.hub import Hub, founded
from tests.kit.terminal import Terminal
from tests.kit.voices import HERE

VALLEY = """\
# The valley's charter; this line stays.
community = "Valley"
version = 1
data_policy = "by consent"
public = ["ask-first", "objectives", "humility-first"]

[bars]
min_cohort = 2

[objectives]
supervised_millis = 1000   # in thousandths

[[principles]]
id = "ask-first"
text = "Ask before advising."
probes = ["autonomy"]

[[principles.provenance]]
kind = "vote"
what = "the assembly of May"
yes = 40
no = 9

[[principles.dissent]]
who = "nine members"
reason = "it takes long"

[[principles]]
id = "be-brief"
text = "Be brief."

[[safety]]
id = "no-harm"
text = "Nobody is harmed."
probes = ["safety-floor", "autonomy"]

[[addenda]]
id = "humility-first"
role = "tutor"
text = "Say what you do not know."
"""


def charter(text: str = VALLEY) -> Charter:
    return parse_charter(text, "valley")


# -- what a charter is


def test_clauses_have_ids_probes_provenance_and_dissent() -> None:
    c = charter()
    assert c.principles[0] == Clause(
        id="ask-first",
        text="Ask before advising.",
        probes=("autonomy",),
        provenance=(Voted(kind="vote", what="the assembly of May", yes=40, no=9),),
        dissent=(Dissent(who="nine members", reason="it takes long"),),
    )
    assert c.addenda[0].role == "tutor"
    assert c.probed_by() == {"autonomy": ("ask-first", "no-harm"), "safety-floor": ("no-harm",)}


BAD: list[tuple[str, str, str, str]] = [
    ("an id twice", 'id = "be-brief"', 'id = "ask-first"', "clauses: wanted ids .* got ask-first again"),
    ("an id of two kinds", 'id = "no-harm"', 'id = "ask-first"', "clauses: wanted ids .* got ask-first again"),
    ("a term's name", 'id = "no-harm"', 'id = "bars"', "clauses: wanted ids .* got bars again"),
    ("public, and not there", '"objectives", ', '"mood", ', "public: wanted ids of clauses, or .*; got mood"),
    ("public twice", '"objectives", ', '"ask-first", ', "public: a part is named twice"),
    ("an id with a space", 'id = "be-brief"', 'id = "be brief"', "principles.1.id: .*pattern"),
    ("a misspelt key", 'probes = ["autonomy"]', 'probe = ["autonomy"]', "principles.0.probe: Extra inputs"),
    ("probes of numbers", 'probes = ["autonomy"]', "probes = [1]", "principles.0.probes.0: .*valid string"),
    ("an unknown provenance", 'kind = "vote"', 'kind = "rumour"', "principles.0.provenance.0: .*'rumour'"),
    ("a vote without a count", "no = 9\n", "", "principles.0.provenance.0.vote.no: Field required"),
    ("a dissent without a reason", 'reason = "it takes long"', "", "principles.0.dissent.0.reason: Field required"),
    ("an addendum without a role", 'role = "tutor"\n', "", "addenda.0.role: Field required"),
]


@pytest.mark.parametrize(("why", "old", "new", "message"), BAD, ids=[b[0] for b in BAD])
def test_a_bad_clause_is_refused_by_its_place(why: str, old: str, new: str, message: str) -> None:
    assert VALLEY.count(old) == 1
    with pytest.raises(ConfigError, match=f"^valley: {message}"):
        charter(VALLEY.replace(old, new))


def test_a_safety_floor_is_small() -> None:
    more = [f'[[safety]]\nid = "s{n}"\ntext = "x"\n' for n in range(20)]
    assert len(charter(VALLEY + "".join(more[1:])).safety) == 20
    with pytest.raises(ConfigError, match=r"safety: .*at most 20 items"):
        charter(VALLEY + "".join(more))


def test_a_text_alone_is_a_principle_with_its_place_as_the_id() -> None:
    text = 'community = "x"\nversion = 1\ndata_policy = "x"\nprinciples = ["one", "two"]\n'
    assert [(c.id, c.text) for c in charter(text).principles] == [("principle-1", "one"), ("principle-2", "two")]
    tables = text.replace(
        '["one", "two"]', '[{ id = "principle-1", text = "one" }, { id = "principle-2", text = "two" }]'
    )
    assert charter(tables).digest() == charter(text).digest(), "one charter, two encodings"


# -- how two differ


def changed(old: str, new: str) -> tuple[Change, ...]:
    assert VALLEY.count(old) == 1
    return diff(charter().record().parts(), charter(VALLEY.replace(old, new)).record().parts())


DIFFERENCES: list[tuple[str, str, str, list[str]]] = [
    ("a comment", "# The valley's", "# Our", []),
    ("a text", "Be brief.", "Be long.", ["~ be-brief: text: Be brief. -> Be long."]),
    ("a weight", "_millis = 1000 ", "_millis = 500 ", ["~ objectives: supervised_millis: 1000 -> 500"]),
    ("a bar", "min_cohort = 2", "min_cohort = 3", ["~ bars: min_cohort: 2 -> 3"]),
    ("a clause gone", '[[principles]]\nid = "be-brief"\ntext = "Be brief."\n', "", ["- be-brief: Be brief."]),
    ("a community", '"Valley"', '"Hill"', ["~ community: Valley -> Hill"]),
    ("a kind", "[[safety]]\nid", "[[principles]]\nid", ["~ no-harm: kind: safety -> principle"]),
    (
        "a dissent",
        'reason = "it takes long"',
        'reason = "too long"',
        [
            '~ ask-first: dissent: [{"reason":"it takes long","who":"nine members"}] -> '
            '[{"reason":"too long","who":"nine members"}]'
        ],
    ),
]


@pytest.mark.parametrize(("why", "old", "new", "lines"), DIFFERENCES, ids=[d[0] for d in DIFFERENCES])
def test_a_difference_is_told_by_part_and_by_what_of_it(why: str, old: str, new: str, lines: list[str]) -> None:
    assert [line for change in changed(old, new) for line in describe(change)] == lines


def test_another_order_of_the_same_clauses_is_a_difference() -> None:
    one, two = (f'[[principles]]\nid = "{n}"\ntext = "x"\n' for n in ("one", "two"))
    head = 'community = "x"\nversion = 1\ndata_policy = "x"\n'
    (change,) = diff(charter(head + one + two).record().parts(), charter(head + two + one).record().parts())
    assert change.part == "order"


parts = st.dictionaries(st.text(max_size=3), st.integers(0, 3) | st.text(max_size=3), max_size=5)


@given(parts, parts)
def test_a_diff_applied_to_the_old_is_the_new(before: dict[str, int | str], after: dict[str, int | str]) -> None:
    made = dict(before)
    for part, old, new in diff({**before}, {**after}):
        if part == "order" and part not in before and part not in after:
            continue
        assert made.get(part) == old
        if new is None:
            del made[part]
        else:
            made[part] = new  # type: ignore[assignment]  # of the values above
    assert made == after


# -- the file


texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30)
names = st.from_regex(r"[a-z0-9][a-z0-9-]{0,20}", fullmatch=True)
naturals = st.integers(0, 2**53 - 1)
digests = st.from_regex(r"[0-9a-f]{64}", fullmatch=True)
group_counts = st.builds(GroupCount, group=st.sampled_from("ABCDE"), agree=naturals, disagree=naturals, passed=naturals)
provenances = st.one_of(
    st.builds(Authored, kind=st.just("author"), who=texts),
    st.builds(Voted, kind=st.just("vote"), what=texts, yes=naturals, no=naturals, motion=st.none() | digests),
    st.builds(
        Deliberated,
        kind=st.just("deliberation"),
        what=texts,
        export=digests,
        statement=naturals,
        groups=st.lists(group_counts, max_size=3).map(tuple),
    ),
    st.builds(
        Imported,
        kind=st.just("import"),
        charter=digests,
        clause=names,
        consortium=st.none() | digests,
        institution=st.none() | names,
    ),
)
shared = {
    "id": names.filter(lambda n: n not in ("first", "people-first", "community", "bars", "objectives", "dissent")),
    "text": texts,
    "probes": st.lists(names, max_size=3).map(tuple),
    "provenance": st.lists(provenances, max_size=3).map(tuple),
    "dissent": st.lists(st.builds(Dissent, who=texts, reason=texts), max_size=2).map(tuple),
}


@given(st.builds(Clause, **shared))
def test_every_clause_is_read_as_it_was_written(clause: Clause) -> None:
    assert parse_charter(add_clause(new_charter("x"), "principles", clause, "x"), "x").principles[1] == clause


@given(st.builds(Addendum, role=texts, **shared))
def test_every_addendum_is_read_as_it_was_written(clause: Addendum) -> None:
    assert parse_charter(add_clause(new_charter("x"), "addenda", clause, "x"), "x").addenda == (clause,)


@given(texts)
def test_every_communitys_name_makes_a_charter(name: str) -> None:
    assert parse_charter(new_charter(name), "x").community == name


def test_what_is_added_leaves_every_line_that_was_there() -> None:
    clause = Clause(id="share", text="Share what you can.")
    assert add_clause(VALLEY, "safety", clause, "x") == VALLEY + "\n" + clause_toml("safety", clause)


def test_a_clause_whose_id_is_taken_is_not_added() -> None:
    with pytest.raises(ConfigError, match="wanted an id that the charter does not have, got be-brief again; give --as"):
        add_clause(VALLEY, "safety", Clause(id="be-brief", text="x"), "x")


def test_a_clause_is_not_added_to_a_list_of_texts() -> None:
    text = 'community = "x"\nversion = 1\ndata_policy = "x"\nprinciples = ["one"]\n'
    with pytest.raises(ConfigError, match=r"wanted clauses as tables, \[\[principles\]\] with id and text"):
        add_clause(text, "principles", Clause(id="b", text="x"), "x")


def test_the_next_version_names_the_one_before_by_its_digest_and_changes_nothing_else() -> None:
    second = next_version(VALLEY, "x")
    assert (charter(second).version, charter(second).previous) == (2, charter().digest())
    assert diff(charter().record().parts(), charter(second).record().parts()) == ()
    assert second.startswith("# The valley's charter; this line stays.\n")
    third = charter(next_version(second, "x"))
    assert (third.version, third.previous) == (3, charter(second).digest())


def test_a_version_that_does_not_stand_on_a_line_of_its_own_is_not_guessed_at() -> None:
    with pytest.raises(ConfigError, match="wanted version on a line of its own"):
        next_version(VALLEY.replace("version = 1", '"version" = 1'), "x")


# -- the commands


@pytest.fixture
def valley(tmp_path: Path) -> Path:
    path = tmp_path / "valley.toml"
    path.write_text(VALLEY)
    return path


def test_new_begins_a_charter_and_overwrites_none(program: Terminal, tmp_path: Path) -> None:
    first, second = tmp_path / "1.toml", tmp_path / "2.toml"
    assert program("charter", "new", first, "--community", "Valley") == 0
    assert program("charter", "new", first, "--community", "Valley") == 2
    assert program("charter", "new", second, "--after", first) == 0
    assert load_charter(second).previous == load_charter(first).digest()
    assert program("charter", "new", tmp_path / "3.toml") == 2
    assert "wanted one of --community and --after" in program.err


def test_check_says_what_is_in_a_charter_and_what_is_missing(program: Terminal, valley: Path) -> None:
    assert program("charter", "check", valley, "--json") == 0
    assert json.loads(program.out) == {
        "digest": charter().digest(),
        "community": "Valley",
        "version": 1,
        "clauses": 4,
        "safety_items": 1,
        "public": ["ask-first", "objectives", "humility-first"],
        "without_provenance": ["be-brief", "no-harm", "humility-first"],
        "without_probe": ["be-brief", "humility-first"],
        "probes": {"autonomy": ["ask-first", "no-harm"], "safety-floor": ["no-harm"]},
    }
    assert program("charter", "check", valley) == 0
    assert "autonomy: ask-first, no-harm; safety-floor: no-harm" in program.out


def test_diff_prints_a_line_for_what_differs(program: Terminal, valley: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.toml"
    other.write_text(VALLEY.replace("Be brief.", "Be\\u001b[2J long."))
    assert program("charter", "diff", valley, other) == 0
    assert program.out == "~ be-brief: text: Be brief. -> Be?[2J long.\n", "and nothing moves the reader's cursor"
    assert program("charter", "diff", valley, other, "--json") == 0
    assert [c["part"] for c in json.loads(program.out)] == ["be-brief"]


def test_an_imported_clause_keeps_its_provenance_and_dissent_and_says_where_it_is_from(
    program: Terminal, valley: Path, tmp_path: Path
) -> None:
    ours = tmp_path / "ours.toml"
    ours.write_text(new_charter("Harbour"))
    assert program("charter", "import", ours, valley, "--clause", "ask-first", "--as", "asking") == 0
    source = charter().principles[0]
    assert load_charter(ours).principles[1] == source.model_copy(
        update={
            "id": "asking",
            "provenance": (
                *source.provenance,
                Imported(kind="import", charter=charter().digest(), clause="ask-first"),
            ),
        }
    )
    assert program("charter", "import", ours, valley, "--clause", "humility-first") == 0
    assert load_charter(ours).addenda[0].role == "tutor", "it stays an addendum"
    assert program("charter", "import", ours, valley, "--clause", "humour") == 2
    assert "--clause: wanted one of ask-first, be-brief, no-harm, humility-first, got humour" in program.err


# -- publishing


@dataclass
class Place:
    """A founded coordinator on real ports, and the home of the clinic's node."""

    hub: Hub
    home: Path

    @property
    def charter(self) -> Path:
        return self.home / "charter.toml"

    def published(self) -> list[PublishedCharter]:
        self.hub.catch_up()
        return [c.charter for c in self.hub.f.state.charters.get("clinic", ())]


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    tls = load_or_create_tls(tmp_path / "tls", ["127.0.0.1"])
    with founded(tmp_path / "hub") as hub, ExitStack() as stack:
        blobs = BlobStore(hub.public)

        def register(server: grpc.Server) -> None:
            service = LogService(lambda: Admission(hub.sequencer, blobs), lambda: hub.sequencer)
            rpc.add_LogServicer_to_server(service, server)  # type: ignore[no-untyped-call]

        address = stack.enter_context(serving(tls, register))
        web = RecordsServer(hub.public, "127.0.0.1", 0, tls.chain, tls.key)
        web.start()
        stack.callback(web.stop)
        home = tmp_path / "clinic"
        save_key(home / "keys/institution.pem", key_of("clinic"))
        (home / "node.toml").write_text('institution = "clinic"\ndata = "rows.jsonl"\ncharter = "charter.toml"\n')
        Invite(
            consortium=hub.f.state.consortium,
            name="three",
            exchange=address,
            records=f"https://127.0.0.1:{web.port}",
            ca_pem=tls.ca.read_text(),
        ).save(home / "invite.json")
        (home / "charter.toml").write_text(VALLEY)
        yield Place(hub, home)


def test_publishing_logs_what_is_public_and_keeps_the_receipt(place: Place, program: Terminal) -> None:
    assert program("charter", "publish", "--home", place.home) == 0
    (first,) = place.published()
    assert [c.id for c in first.principles] == ["ask-first"]
    assert first.objectives is not None
    assert first.objectives["supervised_millis"] == 1000
    for data in place.hub.f.entries:
        assert b"Be brief" not in data, "what is not public does not leave"
    leaf = program.out.split()[-1]
    assert (place.home / "receipts" / f"{leaf}.tlog-proof").exists()
    assert stat.S_IMODE((place.home / "keys/charter.secret").stat().st_mode) == 0o600


def test_a_weight_that_changes_between_rounds_is_an_entry(place: Place, program: Terminal) -> None:
    assert program("charter", "publish", "--home", place.home) == 0
    second = next_version(VALLEY, "x").replace("supervised_millis = 1000", "supervised_millis = 500")
    place.charter.write_text(second)
    assert program("charter", "publish", "--home", place.home) == 0
    one, two = place.published()
    assert two.previous == one.digest()
    assert two.objectives is not None
    assert two.objectives["supervised_millis"] == 500
    assert one.sealed == two.sealed, "and nothing else has changed"
    assert program("charter", "show", place.hub.public, "--institution", "clinic") == 0
    assert program.out.splitlines()[-1].strip() == "~ objectives: supervised_millis: 1000 -> 500"


def test_a_charter_of_which_more_is_public_than_an_entry_holds_is_not_published(
    place: Place, program: Terminal
) -> None:
    many = [f"long-{n}" for n in range(40)]
    public = ", ".join(f'"{n}"' for n in many)
    clauses = "".join(f'[[principles]]\nid = "{n}"\ntext = "{"x" * 2000}"\n' for n in many)
    place.charter.write_text(VALLEY.replace('public = ["ask-first"', f'public = [{public}, "ask-first"') + clauses)
    assert program("charter", "publish", "--home", place.home) == 1
    assert "envelope: wanted at most 65535 bytes, got" in program.err
    assert place.published() == []


def test_a_charter_that_is_not_there_is_named(program: Terminal, tmp_path: Path) -> None:
    for command in (("draft", HERE, "--into"), ("new", tmp_path / "new.toml", "--after"), ("check",)):
        assert program("charter", *command, tmp_path / "none.toml") == 2
        assert f"{tmp_path / 'none.toml'}: wanted a" in program.err


def test_the_same_version_is_not_published_twice(place: Place, program: Terminal) -> None:
    assert program("charter", "publish", "--home", place.home) == 0
    assert program("charter", "publish", "--home", place.home) == 1
    assert "charter: wanted a version above 1, got 1" in program.err


def test_a_sealed_part_is_opened_to_whom_the_community_likes(place: Place, program: Terminal, tmp_path: Path) -> None:
    assert program("charter", "publish", "--home", place.home) == 0
    assert program("charter", "reveal", "be-brief", "--home", place.home) == 0
    opening = tmp_path / "opening.json"
    opening.write_text(program.out)
    records = (place.hub.public, "--institution", "clinic")
    assert program("charter", "verify", opening, *records) == 0
    assert "Be brief." in program.out
    assert "in version 1 (entry 1)" in program.out
    opening.write_text(opening.read_text().replace("Be brief.", "Be kind.."))
    assert program("charter", "verify", opening, *records) == 1
    assert "got one that none has" in program.err


def test_a_clause_is_imported_from_a_log_with_its_consortium(place: Place, program: Terminal, tmp_path: Path) -> None:
    assert program("charter", "publish", "--home", place.home) == 0
    ours = tmp_path / "ours.toml"
    ours.write_text(new_charter("Harbour"))
    records = (place.hub.public, "--institution", "clinic")
    assert program("charter", "import", ours, "--clause", "be-brief", *records) == 2, "it is not public"
    assert program("charter", "import", ours, "--clause", "ask-first", *records) == 0
    assert load_charter(ours).principles[1].provenance[-1] == Imported(
        kind="import",
        charter=place.published()[0].digest(),
        clause="ask-first",
        consortium=place.hub.f.state.consortium,
        institution="clinic",
    )


def test_whoever_has_published_nothing_is_told_who_has(place: Place, program: Terminal) -> None:
    assert program("charter", "publish", "--home", place.home) == 0
    assert program("charter", "show", place.hub.public, "--institution", "school") == 2
    assert "wanted one that has published a charter (clinic), got school" in program.err


def test_a_statement_that_the_daemon_was_faster_with_is_made_anew_for_its_next_place(place: Place) -> None:
    seen = []

    def make(state: State) -> Predicate:
        seen.append(state.size)
        if len(seen) == 1:
            place.hub.say("clinic", Identity(institution="clinic", transport_key="A" * 44))
        return Identity(institution="clinic", transport_key="B" * 44)

    OpenedHome(place.home).submit(make)
    place.hub.catch_up()
    assert seen == [1, 2]
    assert place.hub.f.state.identities["clinic"].transport_key == "B" * 44


def test_what_the_log_does_not_take_is_not_tried_again(place: Place) -> None:
    seen = []

    def make(state: State) -> Predicate:
        seen.append(state.size)
        return Identity(institution="school", transport_key="A" * 44)

    with pytest.raises(RuleError, match="identity: wanted institution clinic"):
        OpenedHome(place.home).submit(make)
    assert len(seen) == 1


def test_only_the_class_of_a_refusal_asks_for_another_try(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def make(state: State) -> Predicate:
        seen.append(state.size)
        return Identity(institution="clinic", transport_key="A" * 44)

    def refuse(*_: object) -> None:
        raise RuleError("identity: wanted number 1 in the chain of clinic, got 2")

    monkeypatch.setattr(Admission, "check", refuse)
    with pytest.raises(RuleError, match="wanted number"):
        OpenedHome(place.home).submit(make)
    assert len(seen) == 1
