"""Policies: the specification's example, every line wrong once, and what a quorum believes."""

import itertools
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from commonweal_protocols.base.errors import ConfigError, LogError, MalformedError, PeerError, SignatureError
from commonweal_protocols.tlog.checkpoint import Checkpoint
from commonweal_protocols.tlog.cosignature import CosignerKey, cosign, make_cosignature_verifier
from commonweal_protocols.tlog.note import make_verifier, sign_note
from commonweal_protocols.tlog.policy import (
    Group,
    Policy,
    PolicyLog,
    PolicyWitness,
    load_policy,
    parse_policy,
)
from commonweal_protocols.tlog.proof import format_proof, open_cosigned_proof
from tests.kit.witnesses import ORIGIN, T0, TestLog, ed25519, policy_text

LOG = TestLog()
NAMES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")
KEYS = {name: ed25519(name) for name in NAMES}
VERIFIERS = {name: make_cosignature_verifier(f"{name}.example", key.public_key()) for name, key in KEYS.items()}
WITNESS = {name: f"witness {name} {VERIFIERS[name].vkey}" for name in NAMES}
# C2SP tlog-policy, section "Example policy", with keys.
EXAMPLE = f"""\
log {LOG.vkey}

{WITNESS["X1"]}
{WITNESS["X2"]}
{WITNESS["X3"]}
group X-witnesses 2 X1 X2 X3

{WITNESS["Y1"]}
{WITNESS["Y2"]}
{WITNESS["Y3"]}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""
POLICY = parse_policy(EXAMPLE)
CHECKPOINT = LOG.checkpoint(11)
NOTE = LOG.note(11)


def line(name: str, at: int = 100, checkpoint: Checkpoint = CHECKPOINT) -> bytes:
    return cosign(checkpoint, f"{name}.example", KEYS[name], at=at).encode()


def note(*names: str) -> bytes:
    return NOTE + b"".join(line(n) for n in names)


def test_the_example_of_the_specification_is_read() -> None:
    assert [x.verifier for x in POLICY.logs] == [LOG.verifier]
    assert [w.name for w in POLICY.witnesses] == list(NAMES)
    assert POLICY.groups == (
        Group("X-witnesses", 2, ("X1", "X2", "X3")),
        Group("Y-witnesses", 1, ("Y1", "Y2", "Y3")),
        Group("X-and-Y", 2, ("X-witnesses", "Y-witnesses")),
    )
    assert POLICY.quorum == "X-and-Y"


def test_every_set_of_witnesses_is_judged_as_the_example_says() -> None:
    for chosen in itertools.chain.from_iterable(itertools.combinations(NAMES, n) for n in range(7)):
        xs, ys = [n for n in chosen if n[0] == "X"], [n for n in chosen if n[0] == "Y"]
        assert POLICY.is_met(chosen) == (len(xs) >= 2 and len(ys) >= 1), chosen


def test_a_cosigned_checkpoint_says_who_and_when() -> None:
    data = NOTE + line("X1", 50) + line("Y2", 90) + line("X3", 70)
    cosigned = POLICY.open(data)
    assert cosigned.checkpoint == CHECKPOINT
    assert cosigned.log == LOG.verifier
    assert [(w.witness.name, w.at, w.line.encode()) for w in cosigned.witnesses] == [
        ("X1", 50, line("X1", 50)), ("X3", 70, line("X3", 70)), ("Y2", 90, line("Y2", 90)),
    ]  # fmt: skip
    # Two of X say so at 50 at the latest, one of Y at 90, and all is the older of the two.
    assert cosigned.quorum_at == 50


def test_the_quorums_time_is_the_kth_newest_and_others_cannot_make_it_newer() -> None:
    times = {"X1": 10, "X2": 30, "X3": 20, "Y1": 15, "Y2": 40}
    assert POLICY.quorum_time(times) == 20
    assert POLICY.quorum_time(times | {"Y3": 9_999}) == 20
    assert POLICY.quorum_time({"X1": 10, "Y1": 15}) is None


def test_a_missing_quorum_names_who_is_missing() -> None:
    with pytest.raises(
        SignatureError,
        match=r"11 entries: wanted the quorum X-and-Y \(2 of X-witnesses, Y-witnesses\), got X1, Y1; "
        r"missing: X2, X3, Y2, Y3",
    ):
        POLICY.open(note("X1", "Y1"))


def test_an_optional_witness_adds_its_line_and_counts_for_nothing() -> None:
    text = f"log {LOG.vkey}\n{WITNESS['X1']}\n{WITNESS['X2']}\nquorum X1\n"
    policy = parse_policy(text)
    assert [w.witness.name for w in policy.open(note("X2", "X1")).witnesses] == ["X1", "X2"]
    with pytest.raises(SignatureError, match="wanted the quorum X1, got X2; missing: X1"):
        policy.open(note("X2"))


def test_no_quorum_asks_for_the_logs_signature_alone() -> None:
    cosigned = parse_policy(f"log {LOG.vkey}\nquorum none\n").open(NOTE)
    assert (cosigned.witnesses, cosigned.quorum_at) == ((), None)
    with pytest.raises(SignatureError):
        parse_policy("quorum none\n").open(NOTE)


OTHER = CHECKPOINT.__class__(ORIGIN, 11, bytes(32))
GOOD = note("X1", "X2", "Y1")


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"%s\n" % CHECKPOINT.text().encode() + GOOD.split(b"\n\n")[1].split(b"\n", 1)[1], "the log did not sign"),
        (sign_note(CHECKPOINT.text(), ORIGIN, ed25519("other")) + line("X1") + line("X2") + line("Y1"), "another log"),
        (NOTE + line("X1") + line("X1") + line("Y1"), "one witness twice"),
        (NOTE + line("X1") + line("X2", checkpoint=OTHER) + line("Y1"), "a line of another root"),
        (GOOD + line("Y3", checkpoint=OTHER), "a bad line of one that is not even needed"),
        (
            sign_note(OTHER.text(), ORIGIN, LOG.key) + line("X1") + line("X2") + line("Y1"),
            "the log signed something else",
        ),
    ],
)
def test_a_checkpoint_that_is_not_believed_is_refused(data: bytes, why: str) -> None:
    assert POLICY.open(GOOD).checkpoint == CHECKPOINT
    with pytest.raises(SignatureError):
        POLICY.open(data)


def test_a_log_of_the_policy_cannot_sign_for_another_ones_origin() -> None:
    two = TestLog(origin="log.example/two", key=ed25519("two"))
    policy = parse_policy(f"log {LOG.vkey}\nlog {two.vkey}\nquorum none\n")
    assert policy.open(two.note(3)).log == two.verifier
    forged = sign_note(CHECKPOINT.text(), two.origin, two.key)
    with pytest.raises(SignatureError, match=r"checkpoint log\.example/one: wanted the signature of a log of"):
        policy.open(forged)


def test_two_keys_of_one_origin_are_both_believed_while_they_change() -> None:
    new = TestLog(key=ed25519("new"), tree=LOG.tree)
    policy = parse_policy(f"log {LOG.vkey}\nlog {new.vkey}\nquorum none\n")
    assert policy.open(NOTE).log == LOG.verifier
    assert policy.open(new.note(11)).log == new.verifier


X1_AGAIN = make_cosignature_verifier("alias.example", KEYS["X1"].public_key()).vkey
LOG_AS_WITNESS = make_cosignature_verifier("alias.example", LOG.key.public_key()).vkey
LOG_BY_NAME = make_cosignature_verifier(ORIGIN, ed25519("another").public_key()).vkey
X1 = WITNESS["X1"] + "\n"
LOG_LINE = f"log {LOG.vkey}\n"


@pytest.mark.parametrize(
    ("text", "message", "why"),
    [
        ("", "lines that end in a newline", "nothing"),
        (X1, "exactly one quorum line, got none", "no quorum"),
        (X1 + "quorum X1", "end in a newline", "the last line is cut off"),
        (X1 + "quorum X1\nquorum X1\n", "line 3: wanted exactly one line: quorum", "two quorums"),
        ("quorum X1\n" + X1, "line 1: wanted a name from a line above", "the quorum stands above its name"),
        (X1 + "quorum X2\n", "line 2: wanted a name from a line above", "an unknown quorum"),
        (X1 + "quorum\n", "line 2: wanted exactly one line: quorum", "a quorum of nothing"),
        (X1 + "group g any X1 g\nquorum g\n", "line 2: wanted a name from a line above, got 'g'", "a group in itself"),
        (X1 + "group g any X2\n" + WITNESS["X2"] + "\nquorum g\n", "from a line above, got 'X2'", "defined below"),
        (X1 + "group g any none\nquorum g\n", "from a line above, got 'none'", "none as a member"),
        (X1 + "group g any X1 X1\nquorum g\n", "X1 is a member already", "one member twice"),
        (X1 + "group g any X1\ngroup h any X1\nquorum h\n", "X1 is a member already", "a member of two groups"),
        (X1 + "group g any\nquorum g\n", "line 2: wanted: group", "no members"),
        (X1 + "group g 0 X1\nquorum g\n", "all, any or a number from 1 on, got '0'", "a threshold of 0"),
        (X1 + "group g 2 X1\nquorum g\n", "wanted 1 to 1 of its members, got 2", "a threshold above n"),
        (X1 + "group g 01 X1\nquorum g\n", "got '01'", "a zero in front"),
        (X1 + "group g +1 X1\nquorum g\n", "got '\\+1'", "a sign"),
        (X1 + "group g \uff11 X1\nquorum g\n", "a number from 1 on", "a full-width digit"),
        (X1 + "group g most X1\nquorum g\n", "got 'most'", "another word"),
        (X1 + "group X1 any X1\nquorum X1\n", "name 'X1': wanted one that is not taken", "a group with a taken name"),
        (X1 + f"witness X1 {VERIFIERS['X2'].vkey}\nquorum X1\n", "not taken", "a witness with a taken name"),
        (f"witness none {VERIFIERS['X1'].vkey}\nquorum none\n", "name 'none'", "a witness called none"),
        (
            X1 + f"witness X9 {X1_AGAIN}\nquorum X9\n",
            "witness X9 has the public key of witness X1",
            "one key, two names",
        ),
        (LOG_LINE + LOG_LINE + "quorum none\n", "wanted each key once", "one log twice"),
        (LOG_LINE + f"witness w {LOG_AS_WITNESS}\nquorum w\n", f"the public key of log {ORIGIN}", "the log's own key"),
        (f"witness w {LOG_AS_WITNESS}\n{LOG_LINE}quorum w\n", f"the public key of log {ORIGIN}", "in any order"),
        (LOG_LINE + f"witness w {LOG_BY_NAME}\nquorum w\n", "witness w is the log .* itself", "the log's own name"),
        (f"log {VERIFIERS['X1'].vkey}\nquorum none\n", "line 1: vkey .* wanted a log's key", "a cosigner as a log"),
        (f"witness w {LOG.vkey}\nquorum w\n", "line 1: vkey .* wanted a witness's key", "a log as a witness"),
        ("witness w abc\nquorum w\n", "line 1: vkey: wanted name", "no vkey"),
        ("witness w\nquorum w\n", "line 1: wanted a log, witness, group or quorum line", "too few words"),
        (f"{WITNESS['X1']} https://w.example x\nquorum X1\n", "line 1: wanted a log, witness", "too many words"),
        (f"{LOG_LINE[:-1]} https://l.example x\nquorum none\n", "line 1: wanted a log, witness", "too many words"),
        ("Quorum none\n", "line 1: wanted a log, witness, group or quorum line", "another case"),
        (X1 + "quorum X1 # comment\n", "exactly one line: quorum", "a comment behind a line"),
        (f"{WITNESS['X1']} https://w.example/#1\nquorum X1\n", "url: wanted text without", "a # inside a line"),
        (f"witness #1 {VERIFIERS['X1'].vkey}\nquorum #1\n", "name: wanted text without", "a # in a name"),
        (X1 + "quorum X1\r\n", "no control character", "a carriage return"),
        (X1 + "quorum X1\n\0", "no control character", "a NUL"),
        (X1 + "quorum X1\n#\x7f\n", "no control character", "DEL, even in a comment"),
        (X1 + "quorum X1\n#\ud800\n", "no control character", "a lone surrogate"),
        (X1 + "quorum\u00a0X1\n", "wanted a log, witness, group or quorum", "a no-break space divides nothing"),
        ("#" * (256 << 10) + "\nquorum none\n", "at most 262144 bytes", "above the bound"),
        ("#" + "é" * (130 << 10) + "\nquorum none\n", "at most 262144 bytes", "above the bound in bytes"),
        (LOG_LINE.replace(ORIGIN, "é" * 128) + "quorum none\n", "wanted key ID", "a name that is not the vkey's"),
    ],
)
def test_any_other_policy_is_refused(text: str, message: str, why: str) -> None:
    with pytest.raises(MalformedError, match=message):
        parse_policy(text)


def test_spaces_tabs_comments_and_empty_lines_mean_nothing() -> None:
    text = f"# c\n \t# c\n\n \t \n\tlog \t{LOG.vkey}  https://l.example \n{X1}  quorum\tX1\t\n"
    assert parse_policy(text) == parse_policy(f"log {LOG.vkey} https://l.example\n{X1}quorum X1\n")


def test_names_are_opaque_and_the_kelvin_sign_is_not_k() -> None:
    text = f"witness K {VERIFIERS['X1'].vkey}\nwitness \u212a {VERIFIERS['X2'].vkey}\nquorum \u212a\n"
    policy = parse_policy(text)
    assert policy.is_met(["\u212a"])
    assert not policy.is_met(["K"])


@pytest.mark.parametrize("kind", ["logs", "witnesses", "groups"])
def test_more_than_64_of_a_kind_are_refused(kind: str) -> None:
    logs = [PolicyLog(make_verifier(f"l{i}", ed25519(f"l{i}").public_key())) for i in range(65)]
    witnesses = [
        PolicyWitness(f"w{i}", make_cosignature_verifier(f"w{i}", ed25519(f"w{i}").public_key())) for i in range(65)
    ]
    groups = [Group(f"g{i}", 1, (f"w{i}",)) for i in range(65)]
    counts = {"logs": 64, "witnesses": 64, "groups": 64}
    for n, fine in ((64, True), (65, False)):
        counts[kind] = n
        made = (
            tuple(logs[: counts["logs"]]),
            tuple(witnesses[: counts["witnesses"]]),
            tuple(groups[: counts["groups"]]),
        )
        if fine:
            assert Policy(*made, "none").quorum == "none"
        else:
            with pytest.raises(MalformedError, match=f"at most 64 {kind}"):
                Policy(*made, "none")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_policy_comes_back_and_more_witnesses_never_unmeet_it(data: st.DataObject) -> None:
    free = [f"w{i}" for i in range(data.draw(st.integers(0, 6)))]
    urls = st.none() | st.sampled_from(["https://w.example", "http://[::1]:7/é"])
    witnesses = tuple(
        PolicyWitness(n, make_cosignature_verifier(f"{n}.example", ed25519(n).public_key()), data.draw(urls))
        for n in free
    )
    groups: list[Group] = []
    defined = ["none", *free]
    for _ in range(data.draw(st.integers(0, 6))):
        if not free:
            break
        members = data.draw(st.lists(st.sampled_from(free), min_size=1, max_size=len(free), unique=True))
        group = Group(f"g{len(groups)}", data.draw(st.integers(1, len(members))), tuple(members))
        groups.append(group)
        free = [n for n in free if n not in members] + [group.name]
        defined.append(group.name)
    policy = Policy((PolicyLog(LOG.verifier),), witnesses, tuple(groups), data.draw(st.sampled_from(defined)))
    assert parse_policy(policy_text(policy)) == policy
    times = data.draw(st.dictionaries(st.sampled_from([w.name for w in witnesses] or ["-"]), st.integers(1, 9)))
    before = policy.quorum_time(times)
    assert policy.is_met(times) == (policy.quorum == "none" or before is not None)
    for w in witnesses:
        after = policy.quorum_time({w.name: 9, **times})
        assert before is None or (after is not None and after >= before)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.integers(1, 255))
def test_no_changed_byte_of_a_cosigned_checkpoint_goes_unnoticed(at: int, change: int) -> None:
    data = bytearray(GOOD)
    data[at] ^= change
    with pytest.raises(PeerError):
        POLICY.open(bytes(data))


def test_a_policy_file_is_read_and_a_bad_one_names_itself(tmp_path: Path) -> None:
    path = tmp_path / "policy"
    path.write_text(EXAMPLE)
    assert load_policy(path) == POLICY
    path.write_bytes(b"quorum \xff\n")
    with pytest.raises(ConfigError, match="policy"):
        load_policy(path)
    path.write_text("quorum x\n")
    with pytest.raises(ConfigError, match="line 1"):
        load_policy(path)
    with pytest.raises(ConfigError, match="wanted a policy, got no such file"):
        load_policy(tmp_path / "none")


def test_a_receipt_holds_if_the_quorum_has_seen_its_tree() -> None:
    entry = b"entry 5"
    path = LOG.tree.inclusion_path(5, 11)
    index, cosigned = open_cosigned_proof(format_proof(5, path, GOOD), entry, POLICY)
    assert (index, cosigned.checkpoint) == (5, CHECKPOINT)


@pytest.mark.parametrize(
    ("index", "entry", "data", "error", "why"),
    [
        (5, b"entry 4", GOOD, LogError, "another entry"),
        (4, b"entry 5", GOOD, LogError, "another index"),
        (5, b"entry 5", note("X1", "Y1"), SignatureError, "no quorum"),
        (5, b"entry 5", NOTE, SignatureError, "no witness at all"),
        (5, b"entry 5", GOOD + line("Y3", checkpoint=OTHER), SignatureError, "a bad line"),
    ],
)
def test_a_receipt_of_something_else_is_refused(
    index: int, entry: bytes, data: bytes, error: type[PeerError], why: str
) -> None:
    with pytest.raises(error):
        open_cosigned_proof(format_proof(index, LOG.tree.inclusion_path(5, 11), data), entry, POLICY)


# -- a log's own post-quantum key


ML = MLDSA44PrivateKey.from_seed_bytes(b"l" * 32)


def hybrid(name: str = LOG.origin, key: CosignerKey = ML) -> Policy:
    second = make_cosignature_verifier(name, key.public_key())
    return Policy((PolicyLog(LOG.verifier, post_quantum=second),), (), (), "none")


def test_a_log_whose_post_quantum_key_is_named_must_have_signed_with_both() -> None:
    note, checkpoint = LOG.note(5), LOG.checkpoint(5)
    second = cosign(checkpoint, LOG.origin, ML, at=T0)
    opened = hybrid().open(note + second.encode())
    assert (opened.checkpoint, opened.log, opened.witnesses) == (checkpoint, LOG.verifier, ())
    with pytest.raises(SignatureError, match="wanted the log's ML-DSA-44 signature too, got none"):
        hybrid().open(note)
    with pytest.raises(SignatureError, match="wanted the signature of a log"):
        hybrid().open(f"{checkpoint.text()}\n{second}".encode())
    other = cosign(LOG.checkpoint(4), LOG.origin, ML, at=T0)
    with pytest.raises(SignatureError, match="does not hold"):
        hybrid().open(note + other.encode())
    plain = parse_policy(f"log {LOG.vkey}\nquorum none\n")
    assert plain.open(note + second.encode()).checkpoint == checkpoint, "who does not name it ignores it"


@pytest.mark.parametrize(
    ("name", "key", "why"),
    [
        ("log.example/other", ML, "another log's"),
        (LOG.origin, ed25519("second"), "a second Ed25519 key"),
    ],
)
def test_a_second_key_that_is_not_the_logs_own_ml_dsa_key_is_refused(name: str, key: CosignerKey, why: str) -> None:
    with pytest.raises(MalformedError, match="wanted an ML-DSA-44 key of its own name"):
        hybrid(name, key)


def test_the_logs_second_key_is_no_witness() -> None:
    second = make_cosignature_verifier(LOG.origin, ML.public_key())
    witness = PolicyWitness("w", make_cosignature_verifier("w.example", ML.public_key()))
    with pytest.raises(MalformedError, match=r"has the public key of log .* \(post-quantum\)"):
        Policy((PolicyLog(LOG.verifier, post_quantum=second),), (witness,), (), "w")
