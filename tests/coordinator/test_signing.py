"""Terms become a draft; it founds a consortium once every member has signed, or amends it under both thresholds."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from commonweal_coordinator.succession.compact_draft import amend_compact, draft_compact, load_terms, parse_revocation
from commonweal_coordinator.succession.draft_signatures import Draft
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import (
    ConfigError,
    MalformedError,
    PeerError,
    RuleError,
    SignatureError,
    StorageError,
)
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.amendment import describe_changes
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.envelope import format_envelope, sign, sign_envelope
from commonweal_protocols.statements.invite import Card
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.statements.statement import Header, Statement
from tests.kit.federation import NAMES, TINY, Federation, key_of
from tests.kit.succession import signed


@pytest.fixture
def f() -> Federation:
    return Federation()


@pytest.fixture
def founding(f: Federation, tmp_path: Path) -> Draft:
    consortium = Draft.store(tmp_path / "founding", f.compact)
    made = Draft(tmp_path / "founding")
    assert consortium == made.digest == digest_of(made.payload) == f.state.consortium
    return made


# -- signatures


def test_a_consortium_is_founded_by_the_signatures_of_all_its_members(founding: Draft, tmp_path: Path) -> None:
    left = sorted(NAMES)
    for n, name in enumerate(NAMES, 1):
        assert founding.missing() == tuple(left)
        with pytest.raises(RuleError, match="every member and no other; missing: " + re.escape(str(left))):
            founding.envelope()
        assert founding.sign(signed(founding, name)) == (n, len(NAMES))
        left.remove(name)
    assert founding.missing() == ()
    assert founding.envelope() == signed(founding, *NAMES)
    replica = Replica()
    replica.add(founding.envelope())
    assert replica.state.consortium == founding.digest


def test_a_restart_loses_no_signature(founding: Draft, tmp_path: Path) -> None:
    founding.sign(signed(founding, "coop"))
    again = Draft(tmp_path / "founding")
    assert again.payload == founding.payload
    assert again.missing() == ("clinic", "school")


def test_the_same_signature_again_is_harmless(founding: Draft) -> None:
    for _ in range(3):
        assert founding.sign(signed(founding, "coop")) == (1, 3)
    assert founding.missing() == ("clinic", "school")


def another_compact(founding: Draft) -> bytes:
    other = founding.compact.model_copy(update={"max_update_bytes": 4096})
    return sign_envelope(Statement(None, other).payload(), key_of("coop"))


def a_flipped_signature(founding: Draft) -> bytes:
    s = sign(founding.payload, key_of("coop"))
    return format_envelope(founding.payload, [type(s)(s.key, bytes([s.value[0] ^ 1]) + s.value[1:])])


def a_signature_under_another_members_key(founding: Draft) -> bytes:
    s = sign(founding.payload, key_of("coop"))
    return format_envelope(founding.payload, [type(s)(public_hex(key_of("school")), s.value)])


REFUSED: list[tuple[Callable[[Draft], bytes], type[PeerError], str]] = [
    (lambda _: b"", MalformedError, "canonical JSON"),
    (another_compact, RuleError, "wanted a signature on the compact [0-9a-f]{64}, got one on another"),
    (a_flipped_signature, SignatureError, f"does not hold under key {public_hex(key_of('coop'))}"),
    (a_signature_under_another_members_key, SignatureError, f"does not hold under key {public_hex(key_of('school'))}"),
    (lambda x: signed(x, "stranger"), RuleError, f"one member's signature, got .'{public_hex(key_of('stranger'))}'"),
    (lambda x: signed(x, "coordinator"), RuleError, "wanted one member's signature, got"),
    (lambda x: signed(x, "coop", "school"), RuleError, "wanted one member's signature, got"),
    (lambda x: signed(x, "coop", "stranger"), RuleError, "wanted one member's signature, got"),
]


@pytest.mark.parametrize(("make", "kind", "message"), REFUSED)
def test_what_is_not_one_members_signature_on_this_draft_leaves_no_trace(
    founding: Draft, tmp_path: Path, make: Callable[[Draft], bytes], kind: type[PeerError], message: str
) -> None:
    before = sorted(p.name for p in (tmp_path / "founding").iterdir())
    with pytest.raises(kind, match=message):
        founding.sign(make(founding))
    assert sorted(p.name for p in (tmp_path / "founding").iterdir()) == before
    assert founding.missing() == tuple(sorted(NAMES))


def test_signatures_on_an_earlier_draft_do_not_count(founding: Draft, tmp_path: Path) -> None:
    for name in NAMES:
        founding.sign(signed(founding, name))
    Draft.store(tmp_path / "founding", founding.compact.model_copy(update={"max_update_bytes": 4096}))
    again = Draft(tmp_path / "founding")
    assert again.digest != founding.digest
    assert again.missing() == tuple(sorted(NAMES))
    assert again.sign(signed(again, "coop")) == (1, 3)


def test_a_draft_that_is_not_there_or_not_a_compact_is_our_own_trouble(f: Federation, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"compact\.json: wanted a compact's draft, got no such file"):
        Draft(tmp_path)
    header = Header(consortium=f.state.consortium, seq=0, prev=None, seen=())
    identity = Statement(header, Identity(institution="coop", transport_key="A" * 44))
    (tmp_path / "compact.json").write_bytes(identity.payload())
    with pytest.raises(StorageError, match=r"compact\.json: wanted a compact, got Identity"):
        Draft(tmp_path)


# -- the next version


def amending(f: Federation, tmp_path: Path, **changes: object) -> Draft:
    Draft.store(tmp_path / "amendment", f.amended(**changes))
    draft = Draft.open_amendment(tmp_path / "amendment", f.state)
    assert draft is not None
    return draft


def test_a_next_version_enters_the_log_once_both_thresholds_have_signed(f: Federation, tmp_path: Path) -> None:
    members = f.members(school=None, library="library")
    draft = amending(f, tmp_path, members=members)
    assert draft.missing() == ("clinic", "coop", "library", "school")
    for n, (name, wanted) in enumerate(
        [("clinic", "every key that joins"), ("library", "members of version 1, got 1"), ("coop", "")], 1
    ):
        assert draft.sign(signed(draft, name)) == (n, 4)
        if wanted:
            with pytest.raises(RuleError, match=wanted):
                draft.envelope()
    f.add(draft.envelope())
    assert [m.institution for m in f.state.compact.members] == ["clinic", "coop", "library"]


def test_a_key_that_the_draft_revokes_does_not_sign_it(f: Federation, tmp_path: Path) -> None:
    f.announce()
    revoked = [{"key": public_hex(key_of("clinic")), "from_index": 2, "reason": "stolen"}]
    draft = amending(f, tmp_path, members=f.members(clinic="clinic-2"), revocations=revoked)
    with pytest.raises(RuleError, match="wanted one member's signature, got"):
        draft.sign(signed(draft, "clinic"))
    for name in ("clinic-2", "coop", "school"):
        draft.sign(signed(draft, name))
    f.add(draft.envelope())
    assert f.state.compact.version == 2


def test_a_draft_that_is_in_force_is_removed_and_no_other(f: Federation, tmp_path: Path) -> None:
    directory = tmp_path / "amendment"
    assert Draft.open_amendment(directory, f.state) is None
    draft = amending(f, tmp_path, round_deadline_seconds=60)
    draft.sign(signed(draft, "clinic"))
    draft.sign(signed(draft, "coop"))
    f.add(draft.envelope())
    assert Draft.open_amendment(directory, f.state) is None
    assert not directory.exists()


def test_a_draft_that_the_log_has_overtaken_is_not_handed_out(f: Federation, tmp_path: Path) -> None:
    amending(f, tmp_path, round_deadline_seconds=60)
    f.add(f.amendment(f.amended(round_deadline_seconds=90), *NAMES))
    with pytest.raises(RuleError, match="wanted version 3, got 2"):
        Draft.open_amendment(tmp_path / "amendment", f.state)


def test_cards_removals_and_revocations_make_the_next_version(f: Federation, tmp_path: Path) -> None:
    f.announce()
    revocation = parse_revocation("school@3: lost", f.state)
    renewed = cards("clinic")[0].model_copy(update={"key": public_hex(key_of("clinic-2"))})
    made = amend_compact(f.state, None, [*cards("library"), renewed], ["school"], [revocation])
    assert [m.institution for m in made.members] == ["clinic", "coop", "library"]
    assert made.members[0].key == renewed.key
    assert made.revocations[0].key == public_hex(key_of("school"))
    assert (made.version, made.previous) == (2, f.state.compact_sha256)
    path = tmp_path / "compact.toml"
    path.write_text(TERMS.replace("round_deadline_seconds = 600", "round_deadline_seconds = 60"))
    other = amend_compact(f.state, load_terms(path), (), (), ())
    assert other == f.amended(round_deadline_seconds=60)
    assert describe_changes(f.state.compact, other) == ["round_deadline_seconds: 600 -> 60", "version: 1 -> 2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clinic", "wanted INSTITUTION@INDEX:REASON"),
        ("clinic@3", "wanted INSTITUTION@INDEX:REASON"),
        ("clinic@03:x", "wanted INSTITUTION@INDEX:REASON"),
        ("clinic@-1:x", "wanted INSTITUTION@INDEX:REASON"),
        ("clinic@3:", "reason"),
        ("nobody@3:x", "wanted a member's name or a public key in hex, got 'nobody'"),
        ("z" * 64 + "@3:x", "key: String should match"),
    ],
)
def test_a_revocation_that_is_none_is_refused(f: Federation, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_revocation(text, f.state)


def test_who_is_no_member_cannot_be_removed_and_quorums_still_hold(f: Federation) -> None:
    with pytest.raises(ConfigError, match="wanted a member to remove, got library"):
        amend_compact(f.state, None, (), ["library"], ())
    with pytest.raises(ConfigError, match=r"quorum\.updates: wanted at most 1"):
        amend_compact(f.state, None, (), ["clinic", "coop"], ())


# -- terms


TERMS = """\
consortium = "three"
round_deadline_seconds = 600
max_update_bytes = 1048576

[base]
reference = "path:/models/tiny"
sha256 = "abababababababababababababababababababababababababababababababab"

[adapter]
rank = 2
alpha = 4
prefix = "base_model.model.model.layers"
layers = 2
grid_bits = 20
seed = 7

[[adapter.modules]]
name = "self_attn.q_proj"
in_features = 6
out_features = 4

[[adapter.modules]]
name = "mlp.up_proj"
in_features = 4
out_features = 5

[recipe]
steps = 10
batch_size = 4
learning_rate_micros = 1000
max_tokens = 64

[rule]
name = "factor-mean"
weights = "equal"

[quorum]
amendments = 2
updates = 2
ratifications = 2
"""


def cards(*names: str) -> list[Card]:
    return [Card(institution=n, key=public_hex(key_of(n))) for n in names]


def test_terms_and_cards_give_the_compact_whatever_order_the_cards_come_in(f: Federation, tmp_path: Path) -> None:
    path = tmp_path / "compact.toml"
    path.write_text(TERMS)
    terms = load_terms(path)
    assert terms.adapter == TINY
    for names in (NAMES, NAMES[::-1]):
        compact, start = draft_compact(terms, cards(*names), f.compact.coordinator)
        assert compact == f.compact
        assert digest_of(start) == compact.start.sha256
        assert len(start) == compact.start.size_bytes


BAD_TERMS: list[tuple[str, str, str, str]] = [
    # what is replaced, by what, the sentence, why
    ("[quorum]", "[quorum]\nadoptions = 1", r"quorum\.adoptions: Extra inputs are not permitted, got '1'", "unknown"),
    ("rank = 2", "rnak = 2", r"adapter\.rank: Field required", "a key that is missing"),
    ("rank = 2", "rank = 1025", r"adapter\.rank: Input should be less than or equal to 1024, got '1025'", "too large"),
    ("rank = 2", 'rank = "2"', r"adapter\.rank: Input should be a valid integer, got '2'", "text for a number"),
    ("rank = 2", "rank = 2.0", r"adapter\.rank: Input should be a valid integer, got '2\.0'", "a float for a number"),
    ("rank = 2", "rank = true", r"adapter\.rank: Input should be a valid integer, got 'True'", "a truth for a number"),
    (
        '"equal"',
        '"loudest"',
        r"rule\.factor-mean\.weights: Input should be 'equal' or 'examples', got 'loudest'",
        "no such choice",
    ),
    ('"three"', '"Three!"', r"consortium: String should match pattern .*, got 'Three!'", "not a name"),
    ('"mlp.up_proj"', '"self_attn.q_proj"', "adapter: modules: a name is repeated", "a contradiction"),
    ("rank = 2", "rank = ", "wanted TOML, got: Invalid value", "not TOML"),
    ("rank = 2", "rank = 2020-01-01", r"adapter\.rank: .*integer", "a date"),
]


@pytest.mark.parametrize(("old", "new", "message", "why"), BAD_TERMS, ids=[row[-1] for row in BAD_TERMS])
def test_bad_terms_are_refused_by_the_key_the_wanted_and_the_got(
    tmp_path: Path, old: str, new: str, message: str, why: str
) -> None:
    path = tmp_path / "compact.toml"
    path.write_text(TERMS.replace(old, new))
    with pytest.raises(ConfigError, match=rf"compact\.toml: ({message})"):
        load_terms(path)


def test_terms_that_are_not_there_are_refused_by_their_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: wanted a TOML file, got no such file"):
        load_terms(tmp_path / "none.toml")


BAD_DRAFTS: list[tuple[str, str, tuple[str, ...], str]] = [
    ("", "", ("clinic", "clinic", "coop"), "members: a public key is repeated"),
    ("", "", ("clinic", "coordinator"), "members: a public key is repeated"),
    ("updates = 2", "updates = 4", NAMES, r"quorum\.updates: wanted at most 3 \(the members\), got 4"),
    (
        "ratifications = 2",
        "ratifications = 4",
        NAMES,
        r"quorum\.ratifications: wanted at most 3 \(the members\), got 4",
    ),
    ("ratifications = 2", "ratifications = 1", NAMES, r"quorum\.ratifications: wanted more than half of 3.*, got 1"),
    ("_seconds = 600", "_seconds = 9", NAMES, "round_deadline_seconds: Input should be greater than or .* 10, got '9'"),
    ("_bytes = 1048576", "_bytes = 1", NAMES, "max_update_bytes: Input should be greater than or .* 1024, got '1'"),
    ("", "", (), "members: Tuple should have at least 1 item"),
]


@pytest.mark.parametrize(("old", "new", "names", "message"), BAD_DRAFTS)
def test_terms_that_these_members_cannot_found_on_are_refused(
    f: Federation, tmp_path: Path, old: str, new: str, names: tuple[str, ...], message: str
) -> None:
    path = tmp_path / "compact.toml"
    path.write_text(TERMS.replace(old, new))
    with pytest.raises(ConfigError, match=f"^compact: {message}"):
        draft_compact(load_terms(path), cards(*names), f.compact.coordinator)


def test_two_keys_of_one_institution_are_refused(f: Federation, tmp_path: Path) -> None:
    path = tmp_path / "compact.toml"
    path.write_text(TERMS)
    twice = [*cards(*NAMES), Card(institution="coop", key=public_hex(key_of("another coop")))]
    with pytest.raises(ConfigError, match=r"^compact: members: an institution is repeated"):
        draft_compact(load_terms(path), twice, f.compact.coordinator)
