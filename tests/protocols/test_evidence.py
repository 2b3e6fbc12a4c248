"""Evidence: it convicts a log that signed two histories, and nothing else convicts anybody.

The oracle for "is there a fork" is the records themselves: two lists of entries fork where neither begins with the
other.
"""

import base64
import itertools
from base64 import b64decode, b64encode
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA44PrivateKey

from commonweal_protocols.audit.evidence import (
    MAX_CONSISTENCY_PATH,
    MAX_EVIDENCE_BYTES,
    EntryEvidence,
    Evidence,
    ForkEvidence,
    LoggedEntry,
    convict_witnesses,
    format_evidence,
    parse_evidence,
    prove_entry,
    prove_fork,
    verify_evidence,
)
from commonweal_protocols.base.canonical import encode
from commonweal_protocols.base.errors import LogError, MalformedError, PeerError, SignatureError
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.cli import run
from commonweal_protocols.statements.envelope import Signature, format_envelope, parse_envelope, sign_envelope
from commonweal_protocols.statements.members import Identity
from commonweal_protocols.tlog.checkpoint import Checkpoint, open_checkpoint
from commonweal_protocols.tlog.cosignature import cosign, make_cosignature_verifier
from commonweal_protocols.tlog.merkle import EMPTY_ROOT, Tree, leaf_hash
from commonweal_protocols.tlog.note import format_vkey, parse_vkey, sign_note
from commonweal_protocols.tlog.proof import format_proof, parse_proof
from tests.kit.author import Author
from tests.kit.federation import ORIGIN, key_of

KEY, OTHER_KEY = key_of("log"), key_of("another log")
VKEY = format_vkey(ORIGIN, KEY.public_key().public_bytes_raw())
LOG = parse_vkey(VKEY)


def tree_of(entries: list[bytes]) -> Tree:
    tree = Tree()
    for data in entries:
        tree.append(leaf_hash(data))
    return tree


def note_of(tree: Tree, size: int | None = None, *, key: object = KEY, origin: str = ORIGIN) -> bytes:
    n = tree.size if size is None else size
    return sign_note(Checkpoint(origin, n, tree.root(n)).text(), origin, key)  # type: ignore[arg-type]


def history(name: str, size: int, *, common: int) -> list[bytes]:
    """A history whose first ``common`` entries every other one has too."""
    return [b"common %d" % i if i < common else f"{name} {i}".encode() for i in range(size)]


def fork(old: int = 5, new: int = 9, common: int = 3) -> ForkEvidence:
    tree = tree_of(history("b", new, common=common))
    evidence = prove_fork(note_of(tree_of(history("a", old, common=common))), note_of(tree), tree, LOG)
    assert evidence is not None
    return evidence


def test_every_fork_is_proved_and_only_forks_are() -> None:
    for old, new in itertools.combinations_with_replacement(range(14), 2):
        for common in range(old + 1):
            a, b = history("a", old, common=common), history("b", new, common=common)
            evidence = prove_fork(note_of(tree_of(a)), note_of(tree_of(b)), tree_of(b), LOG)
            assert (evidence is not None) == (b[:old] != a), (old, new, common)
            if evidence is not None:
                assert parse_evidence(format_evidence(evidence)) == evidence
                conviction = verify_evidence(evidence, LOG)
                assert conviction.key == public_hex(KEY)
                assert conviction.key in conviction.sentence
                assert conviction.sentence.startswith(f"log {ORIGIN}")


def test_the_file_is_the_one_that_the_format_describes() -> None:
    evidence = fork()
    assert evidence.prefix is not None
    lines = [b"commonweal/fork-evidence@v1", b"prefix " + base64.b64encode(evidence.prefix)]
    lines += [base64.b64encode(h) for h in evidence.path]
    assert format_evidence(evidence) == b"\n".join(lines) + b"\n\n" + evidence.old + b"\n" + evidence.new
    # 1.9 of the formats: a fork proof is at most 2.5 KB.
    assert len(format_evidence(evidence)) < 2500


def test_one_fork_of_one_size_has_one_file_whoever_saw_which_side_first() -> None:
    a, b = tree_of(history("a", 4, common=2)), tree_of(history("b", 4, common=2))
    assert prove_fork(note_of(a), note_of(b), b, LOG) == prove_fork(note_of(b), note_of(a), a, LOG)


def test_a_tree_that_has_grown_since_proves_the_same_fork() -> None:
    grown = tree_of(history("b", 20, common=3))
    note = note_of(tree_of(history("a", 5, common=3)))
    assert prove_fork(note, note_of(grown, 9), grown, LOG) == fork()


def other(h: bytes) -> bytes:
    return bytes([h[0] ^ 1]) + h[1:]


HONEST = tree_of(history("b", 9, common=3))
WRONG_FORKS: list[tuple[str, ForkEvidence, type[PeerError], str]] = [
    ("old is another log's", replace(fork(), old=note_of(tree_of(history("a", 5, common=3)), key=OTHER_KEY)),
     SignatureError, "wanted a signature of"),
    ("new is another log's", replace(fork(), new=note_of(HONEST, key=OTHER_KEY)), SignatureError, "wanted a signature"),
    ("old is of another origin", replace(fork(), old=note_of(HONEST, 5, origin="other.test/log")),
     SignatureError, "wanted a signature of"),
    ("a changed byte in old", replace(fork(), old=fork().old.replace(b"\n5\n", b"\n4\n")), SignatureError, "not hold"),
    ("a changed byte in new", replace(fork(), new=fork().new.replace(b"\n9\n", b"\n8\n")), SignatureError, "not hold"),
    ("the prefix is old's root", replace(fork(), old=note_of(HONEST, 5)), LogError, "no fork"),
    ("another prefix", replace(fork(), prefix=other(fork().prefix or b"")), LogError, "lead to the old root"),
    ("no prefix", replace(fork(), prefix=None, path=()), MalformedError, "wanted a prefix"),
    ("another hash in the path", replace(fork(), path=(other(fork().path[0]), *fork().path[1:])), LogError, "lead to"),
    ("a hash too few", replace(fork(), path=fork().path[1:]), LogError, r"wanted \d hashes"),
    ("a hash too many", replace(fork(), path=(*fork().path, b"\0" * 32)), LogError, r"wanted \d hashes"),
    ("the larger first", ForkEvidence(fork().new, fork().old, fork().prefix, fork().path), LogError, "old size first"),
    ("one checkpoint twice", ForkEvidence(fork().new, fork().new), LogError, "no fork"),
    ("a prefix between equal sizes", replace(fork(4, 4), prefix=b"\0" * 32), MalformedError, "wanted no prefix"),
    ("a path between equal sizes", replace(fork(4, 4), path=(b"\0" * 32,)), MalformedError, "wanted no prefix"),
    ("an empty tree is the beginning of all", ForkEvidence(note_of(HONEST, 0), note_of(HONEST), EMPTY_ROOT),
     LogError, "no fork"),
    ("a prefix of an empty tree", ForkEvidence(note_of(HONEST, 0), note_of(HONEST), b"\1" * 32),
     LogError, "not the empty tree's"),
]  # fmt: skip


@pytest.mark.parametrize(("why", "evidence", "error", "message"), WRONG_FORKS, ids=[w[0] for w in WRONG_FORKS])
def test_anything_less_than_a_fork_convicts_nobody(
    why: str, evidence: ForkEvidence, error: type[PeerError], message: str
) -> None:
    with pytest.raises(error, match=message):
        verify_evidence(evidence, LOG)


# -- entries that no log may sequence

AUTHOR = key_of("clinic")
CONSORTIUM = "c" * 64


def entry(seq: int = 0, who: str = "clinic", key: object = AUTHOR, consortium: str = CONSORTIUM) -> bytes:
    author = Author(key, consortium)  # type: ignore[arg-type]
    said = Identity(institution=who, transport_key="A" * 44)
    return author.sign(said, seq=seq, prev="d" * 64 if seq else None, seen=())


def forged() -> bytes:
    envelope = parse_envelope(entry())
    (signature,) = envelope.signatures
    return format_envelope(envelope.payload, [Signature(signature.key, other(signature.value))])


def logged(entries: list[bytes], *indices: int) -> EntryEvidence:
    tree = tree_of(entries)
    return EntryEvidence(tuple(prove_entry(entries[i], i, tree, tree.size, note_of(tree)) for i in indices))


@pytest.mark.parametrize(
    "bad", [b"not JSON", encode({}), forged(), entry() + b"\n"], ids=["junk", "{}", "forged", "LF"]
)
def test_an_entry_that_is_not_a_signed_statement_convicts_the_log(bad: bytes) -> None:
    evidence = logged([entry(), bad, entry(1)], 1)
    assert parse_evidence(format_evidence(evidence)) == evidence
    conviction = verify_evidence(evidence, LOG)
    assert "signed a tree of 3 entries whose entry 1 is not a signed statement" in conviction.sentence
    assert conviction.key == public_hex(KEY)


def test_a_statement_of_an_unknown_kind_convicts_nobody_since_it_may_be_newer_than_this_program() -> None:
    evidence = logged([sign_envelope(encode({"newer": 1}), AUTHOR)], 0)
    with pytest.raises(LogError, match="is a signed statement: that alone convicts nobody"):
        verify_evidence(evidence, LOG)


def test_two_entries_of_one_number_convict_the_log() -> None:
    evidence = logged([entry(0), entry(1), entry(1, "school")], 1, 2)
    assert parse_evidence(format_evidence(evidence)) == evidence
    sentence = verify_evidence(evidence, LOG).sentence
    assert f"sequenced two entries number 1 of author {public_hex(AUTHOR)}" in sentence


def test_two_receipts_of_two_histories_convict_the_log_without_a_consistency_path() -> None:
    one, two = logged([entry(0), entry(1)], 1), logged([entry(0), entry(1, "school"), entry(2)], 1)
    assert verify_evidence(EntryEvidence(one.entries + two.entries), LOG).key == public_hex(KEY)


def test_one_entry_in_two_trees_of_one_history_convicts_nobody() -> None:
    one, two = logged([entry(0), entry(1)], 1), logged([entry(0), entry(1), entry(2)], 1)
    with pytest.raises(LogError, match="one entry in one place, twice"):
        verify_evidence(EntryEvidence(one.entries + two.entries), LOG)


BOTH = logged([entry(0), entry(1), entry(1, "school")], 1, 2)
FIRST, SECOND = BOTH.entries
ELSEWHERE = tree_of([entry(0), entry(1), entry(1, "school")])


def proof(**change: object) -> LoggedEntry:
    """The second entry with one thing in its proof changed."""
    p = parse_proof(SECOND.proof)
    values: dict[str, object] = {"index": p.index, "path": p.path, "note": p.checkpoint_note, **change}
    return LoggedEntry(SECOND.entry, format_proof(values["index"], values["path"], values["note"]))  # type: ignore[arg-type]


WRONG_ENTRIES: list[tuple[str, EntryEvidence, type[PeerError], str]] = [
    ("no entry", EntryEvidence(()), MalformedError, "wanted one or two entries, got 0"),
    ("three entries", EntryEvidence((FIRST, SECOND, SECOND)), MalformedError, "wanted one or two entries, got 3"),
    ("another entry than proved", EntryEvidence((FIRST, replace(SECOND, entry=entry(1)))), LogError, "not lead to"),
    ("another index", EntryEvidence((FIRST, proof(index=0))), LogError, "wanted 2 hashes|not lead to"),
    ("another path", EntryEvidence((FIRST, proof(path=(b"\0" * 32,)))), LogError, "not lead to"),
    (
        "another log's proof",
        EntryEvidence((FIRST, proof(note=note_of(ELSEWHERE, key=OTHER_KEY)))),
        SignatureError,
        "wanted a signature of",
    ),
    ("another number", logged([entry(0), entry(1)], 0, 1), LogError, "do not share"),
    ("another author", logged([entry(1), entry(1, key=key_of("school"))], 0, 1), LogError, "do not share"),
    ("another consortium", logged([entry(1), entry(1, consortium="e" * 64)], 0, 1), LogError, "do not share"),
    ("one signed entry", EntryEvidence((FIRST,)), LogError, "convicts nobody"),
]


@pytest.mark.parametrize(("why", "evidence", "error", "message"), WRONG_ENTRIES, ids=[w[0] for w in WRONG_ENTRIES])
def test_anything_less_than_a_forbidden_entry_convicts_nobody(
    why: str, evidence: EntryEvidence, error: type[PeerError], message: str
) -> None:
    with pytest.raises(error, match=message):
        verify_evidence(evidence, LOG)


# -- witnesses of a fork


W = {name: key_of(f"witness {name}") for name in ("one", "two", "three")}
ML = MLDSA44PrivateKey.from_seed_bytes(b"w" * 32)
WITNESSES = [
    *(make_cosignature_verifier(f"{name}.example", key.public_key()) for name, key in W.items()),
    make_cosignature_verifier("one.example", ML.public_key()),
]


def cosigned(note: bytes, *names: str) -> bytes:
    """The note with these witnesses' lines; "pq" is the first one's other key."""
    checkpoint = open_checkpoint(note, LOG)
    lines = [
        cosign(checkpoint, "one.example", ML, at=7) if n == "pq" else cosign(checkpoint, f"{n}.example", W[n], at=7)
        for n in names
    ]
    return note + "".join(lines).encode()


LIARS: list[tuple[tuple[str, ...], tuple[str, ...], list[str], str]] = [
    ((), (), [], "nobody has cosigned"),
    (("one", "two"), ("three",), [], "each has seen one side"),
    (("one", "two"), ("two", "three"), ["two.example"], "the one in both"),
    (("one", "pq"), ("pq", "one"), ["one.example", "one.example"], "both of its keys"),
    (("one",), ("pq",), [], "two keys are two witnesses: neither has signed both"),
]


@pytest.mark.parametrize(("old", "new", "liars", "why"), LIARS, ids=[row[3] for row in LIARS])
@pytest.mark.parametrize("sizes", [(5, 9), (4, 4)], ids=["two sizes", "one size"])
def test_a_witness_is_a_liar_exactly_if_its_lines_stand_in_both(
    sizes: tuple[int, int], old: tuple[str, ...], new: tuple[str, ...], liars: list[str], why: str
) -> None:
    evidence = fork(*sizes)
    evidence = replace(evidence, old=cosigned(evidence.old, *old), new=cosigned(evidence.new, *new))
    found = convict_witnesses(parse_evidence_of(evidence), LOG, [*WITNESSES, WITNESSES[0]])
    assert [c.name for c in found] == liars
    for c in found:
        assert c.key in c.sentence
        assert "cosigned both sides of a fork" in c.sentence
    keys = {public_hex(key) for key in W.values()} | {sha256(ML.public_key().public_bytes_raw()).hexdigest()}
    assert {c.key for c in found} <= keys


def parse_evidence_of(evidence: ForkEvidence) -> ForkEvidence:
    """The same through its file: the lines are in it."""
    parsed = parse_evidence(format_evidence(evidence))
    assert isinstance(parsed, ForkEvidence)
    return parsed


def test_a_line_that_the_witness_did_not_make_accuses_nobody() -> None:
    evidence = fork()
    forged = cosign(open_checkpoint(evidence.new, LOG), "one.example", W["two"], at=7)
    right = make_cosignature_verifier("one.example", W["one"].public_key())
    blob = b64decode(forged.split(" ")[2])
    line = f"\u2014 one.example {b64encode(right.key_id + blob[4:]).decode()}\n".encode()
    evidence = replace(evidence, old=cosigned(evidence.old, "one"), new=evidence.new + line)
    assert convict_witnesses(evidence, LOG, WITNESSES) == ()


def test_without_a_fork_no_witness_has_lied() -> None:
    tree = tree_of(history("a", 9, common=9))
    honest = ForkEvidence(
        cosigned(note_of(tree, 5), "one"),
        cosigned(note_of(tree), "one"),
        tree.root(5),
        tuple(tree.consistency_path(5, 9)),
    )
    with pytest.raises(LogError, match="no fork"):
        convict_witnesses(honest, LOG, WITNESSES)


def test_the_command_names_the_witnesses_that_lied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evidence = fork()
    path = tmp_path / "evidence"
    path.write_bytes(
        format_evidence(
            replace(evidence, old=cosigned(evidence.old, "one", "two"), new=cosigned(evidence.new, "two", "three"))
        )
    )
    options = [x for w in WITNESSES for x in ("--witness", w.vkey)]
    assert run(["audit", "evidence", str(path), "--log", VKEY, *options]) == 1
    out = capsys.readouterr().out
    assert f"convicted: lying witness two.example (key {public_hex(W['two'])}) cosigned both sides" in out
    assert out.count("convicted: ") == 2
    assert run(["audit", "evidence", str(path), "--log", VKEY, "--witness", VKEY]) == 2


# -- one encoding

FORK, ENTRIES = format_evidence(fork()), format_evidence(BOTH)
HEAD = FORK.partition(b"\n\n")[0]
SPELLINGS: list[tuple[str, bytes, str]] = [
    ("empty", b"", "wanted commonweal/fork-evidence@v1"),
    ("another version", FORK.replace(b"@v1", b"@v2", 1), "wanted commonweal/fork-evidence@v1"),
    ("CRLF", FORK.replace(b"\n", b"\r\n"), "wanted commonweal"),
    ("a byte too many", FORK + b"\n", "another encoding|not a note|parts"),
    ("one checkpoint", FORK[: FORK.rindex(b"\nlog.test")], "wanted two signed checkpoints"),
    ("a third checkpoint", FORK + b"\n" + fork().new, "wanted two signed checkpoints"),
    ("hashes without a prefix", FORK.replace(HEAD, b"\n".join(HEAD.split(b"\n")[::2]), 1), "wanted a prefix line"),
    ("another base64", FORK.replace(b"prefix ", b"prefix  ", 1), "base64"),
    ("a short prefix", FORK.replace(HEAD.split(b"\n")[1], b"prefix AAAA", 1), "wanted 32 bytes, got 3"),
    ("too many hashes", FORK.replace(HEAD, HEAD + (b"\n" + b"A" * 43 + b"=") * MAX_CONSISTENCY_PATH, 1), "at most 64"),
    ("not ASCII", FORK.replace(b"prefix ", b"pr\xc3\xa9fix ", 1), "wanted ASCII"),
    ("too large", FORK + b"x" * MAX_EVIDENCE_BYTES, "wanted at most"),
    ("no entry line", ENTRIES.replace(b"entry ", b"entrx ", 1), "wanted an entry line"),
    ("half an entry", ENTRIES[: ENTRIES.index(b"\n\n")], "wanted one or two entries"),
    ("an unauthenticated line", ENTRIES.replace(b"\nindex", b"\nextra AAAA\nindex", 1), "another encoding"),
    ("an entry in another base64", ENTRIES.replace(b"entry ", b"entry =", 1), "base64"),
]


@pytest.mark.parametrize(("why", "data", "message"), SPELLINGS, ids=[s[0] for s in SPELLINGS])
def test_any_other_encoding_is_refused(why: str, data: bytes, message: str) -> None:
    with pytest.raises(MalformedError, match=message):
        parse_evidence(data)


@pytest.mark.parametrize("evidence", [fork(), fork(4, 4), BOTH, logged([b"junk"], 0)])
def test_no_changed_byte_goes_unnoticed(evidence: Evidence) -> None:
    data = format_evidence(evidence)
    for at in range(0, len(data), 7):
        changed = data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
        try:
            bent = verify_evidence(parse_evidence(changed), LOG)
        except PeerError:
            continue
        # A line of an unknown key is ignored by the rules of notes; there is none here, so nothing may convict.
        pytest.fail(f"byte {at} changed, and it still says: {bent.sentence}")


# -- the command


def test_the_command_convicts_exits_1_and_says_whom(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(FORK)
    assert run(["audit", "evidence", str(path), "--log", VKEY]) == 1
    assert f"convicted: log {ORIGIN} (key {public_hex(KEY)}) signed two histories" in capsys.readouterr().out


def test_evidence_that_convicts_nobody_exits_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(FORK)
    another = format_vkey(ORIGIN, OTHER_KEY.public_key().public_bytes_raw())
    assert run(["audit", "evidence", str(path), "--log", another]) == 0
    assert "convicts nobody" in capsys.readouterr().out


USAGE = [
    ("no evidence", b"junk", ["--log", VKEY], "wanted commonweal/fork-evidence@v1"),
    ("no key", FORK, [], "wanted --log VKEY"),
    ("a bad key", FORK, ["--log", "x"], "vkey: wanted"),
]


@pytest.mark.parametrize(("why", "data", "options", "message"), USAGE, ids=[u[0] for u in USAGE])
def test_what_cannot_be_judged_exits_2(
    why: str, data: bytes, options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "evidence"
    path.write_bytes(data)
    assert run(["audit", "evidence", str(path), *options]) == 2
    assert message in capsys.readouterr().err
