"""Portable evidence: a small file that convicts a log's key by signatures alone, offline, no matter who hands it over.

Two kinds, each accusing exactly one key, the log's::

    commonweal/fork-evidence@v1 | LF            two histories were signed
    prefix <base64 root> | LF                   only between two sizes: what the larger tree has at the smaller size
    <base64 hash> | LF                          the consistency proof from there to the larger root
    LF
    signed checkpoint, the smaller first | LF | signed checkpoint

    commonweal/entry-evidence@v1 | LF           what no log may sequence was sequenced
    entry <base64> | LF | tlog-proof of it      one: it is not a signed statement
    [LF | entry <base64> | LF | tlog-proof]     two: one author's one number stands in two places

A root binds all that is below it, so a prefix that leads to the larger root and is not the smaller root shows that the
two checkpoints are of two histories (soundness is RFC 6962's). A witness whose lines stand in both notes is convicted
by them too: it said of each tree that it went on from all that it had cosigned before.

What is no evidence, and why: an older checkpoint shown as new (no signature says that it is the newest); an author's
``seen`` that a log contradicts (one's word against the other's); two statements of one author with one number outside
a log (a refused statement may honestly be signed anew). No I/O, no clock.
"""

import base64
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from commonweal_protocols.base.canonical import parse_base64
from commonweal_protocols.base.errors import LogError, MalformedError, PeerError, SignatureError
from commonweal_protocols.statements.envelope import parse_envelope, verify_envelope
from commonweal_protocols.statements.statement import Entry, open_entry
from commonweal_protocols.statements.values import PublicKey
from commonweal_protocols.tlog.checkpoint import open_checkpoint, parse_checkpoint
from commonweal_protocols.tlog.cosignature import CosignatureVerifier
from commonweal_protocols.tlog.merkle import HASH_BYTES, MAX_PATH, Tree, verify_consistency
from commonweal_protocols.tlog.note import MAX_NOTE_BYTES, Verifier, open_note
from commonweal_protocols.tlog.proof import format_proof, open_proof, parse_proof
from commonweal_protocols.tlog.tiles import MAX_ENTRY_BYTES

_FORK = b"commonweal/fork-evidence@v1"
_ENTRY = b"commonweal/entry-evidence@v1"
MAX_EVIDENCE_BYTES = 2 * (MAX_NOTE_BYTES + 2 * MAX_ENTRY_BYTES + 8192)
"""Two notes of the largest size, two entries in base64, and two proofs of 63 hashes."""
MAX_CONSISTENCY_PATH = MAX_PATH + 1


@dataclass(frozen=True, slots=True)
class ForkEvidence:
    """Two signed checkpoints of one log. ``old`` is the smaller; ``prefix`` is None between two of one size."""

    old: bytes
    new: bytes
    prefix: bytes | None = None
    path: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class LoggedEntry:
    """An entry's bytes, and the tlog-proof that the log has it."""

    entry: bytes
    proof: bytes


@dataclass(frozen=True, slots=True)
class EntryEvidence:
    """One entry that is not signed, or two that share one author's one number."""

    entries: tuple[LoggedEntry, ...]


Evidence = ForkEvidence | EntryEvidence


@dataclass(frozen=True, slots=True)
class Conviction:
    """Whose key is convicted, and of what, in one sentence.

    A key that is longer than 32 bytes (ML-DSA-44) stands here by its SHA-256.
    """

    name: str
    key: PublicKey
    sentence: str


def prove_fork(old: bytes, new: bytes, tree: Tree, log: Verifier) -> ForkEvidence | None:
    """Return the evidence that two signed checkpoints are of two histories; None if they are of one.

    Args:
        old: A signed checkpoint, not larger than ``new``.
        new: A signed checkpoint.
        tree: The tree of ``new``; it may have grown since.
        log: The key that both must be signed with.

    Raises:
        MalformedError, SignatureError: Not two checkpoints of this log.
        LogError: The tree is smaller than ``old``.
    """
    small, large = open_checkpoint(old, log), open_checkpoint(new, log)
    prefix = tree.root(small.size)
    if prefix == small.root:
        return None
    if small.size == large.size:
        # One fork has one file, no matter who saw which side first.
        first, second = (old, new) if small.root < large.root else (new, old)
        return ForkEvidence(first, second)
    return ForkEvidence(old, new, prefix, tuple(tree.consistency_path(small.size, large.size)))


def prove_entry(entry: bytes, index: int, tree: Tree, size: int, note: bytes) -> LoggedEntry:
    """Return an entry with the proof that it is number ``index`` in the tree of ``size`` that ``note`` signs.

    Raises:
        LogError: There is no such entry or size.
    """
    return LoggedEntry(entry, format_proof(index, tree.inclusion_path(index, size), note))


def _encode(data: bytes) -> bytes:
    return base64.b64encode(data)


def format_evidence(evidence: Evidence) -> bytes:
    """Return the file's bytes."""
    match evidence:
        case ForkEvidence(old, new, prefix, path):
            head = [_FORK]
            if prefix is not None:
                head += [b"prefix " + _encode(prefix), *map(_encode, path)]
            return b"\n".join(head) + b"\n\n" + old + b"\n" + new
        case EntryEvidence(entries):
            sections = [b"entry " + _encode(e.entry) + b"\n" + e.proof for e in entries]
            return _ENTRY + b"\n" + b"\n".join(sections)


def parse_evidence(data: bytes) -> Evidence:
    """Parse evidence that nobody has verified.

    Raises:
        MalformedError: Another format, another encoding, or above a bound.
    """
    if len(data) > MAX_EVIDENCE_BYTES:
        raise MalformedError(f"evidence: wanted at most {MAX_EVIDENCE_BYTES} bytes, got {len(data)}")
    kind = data.partition(b"\n")[0]
    evidence: Evidence
    if kind == _FORK:
        evidence = _parse_fork(data)
    elif kind == _ENTRY:
        evidence = _parse_entries(data)
    else:
        raise MalformedError(f"evidence: wanted {_FORK.decode()} or {_ENTRY.decode()}, got {kind[:80]!r}")
    if format_evidence(evidence) != data:
        raise MalformedError("evidence: these bytes are another encoding of it")
    return evidence


def _ascii_lines(data: bytes) -> list[str]:
    try:
        return data.decode("ascii").split("\n")
    except UnicodeDecodeError as e:
        raise MalformedError("evidence: wanted ASCII up to the checkpoint") from e


def _parse_fork(data: bytes) -> ForkEvidence:
    # A checkpoint has no empty line but the one before its signatures, so the parts of the file are countable.
    head, *parts = data.split(b"\n\n")
    if len(parts) != 4:
        raise MalformedError(f"fork evidence: wanted two signed checkpoints, got {len(parts)} parts of such")
    old, new = parts[0] + b"\n\n" + parts[1] + b"\n", parts[2] + b"\n\n" + parts[3]
    lines = _ascii_lines(head)[1:]
    if not lines:
        return ForkEvidence(old, new)
    if not lines[0].startswith("prefix ") or len(lines) - 1 > MAX_CONSISTENCY_PATH:
        raise MalformedError(f"fork evidence: wanted a prefix line and at most {MAX_CONSISTENCY_PATH} hashes")
    prefix = parse_base64(lines[0].removeprefix("prefix "), size=HASH_BYTES)
    return ForkEvidence(old, new, prefix, tuple(parse_base64(line, size=HASH_BYTES) for line in lines[1:]))


def _parse_entries(data: bytes) -> EntryEvidence:
    parts = data.partition(b"\n")[2].split(b"\n\n")
    if len(parts) not in (3, 6):
        raise MalformedError(f"entry evidence: wanted one or two entries with their proofs, got {len(parts)} parts")
    entries = []
    for i in range(0, len(parts), 3):
        head, *note = parts[i : i + 3]
        line, _, proof_head = head.partition(b"\n")
        (text,) = _ascii_lines(line)
        if not text.startswith("entry "):
            raise MalformedError(f"entry evidence: wanted an entry line, got {text[:80]!r}")
        end = b"" if i + 3 == len(parts) else b"\n"
        parsed = parse_proof(b"\n\n".join([proof_head, *note]) + end)
        # Without the unauthenticated line that a proof may carry: evidence has one encoding.
        proof = format_proof(parsed.index, parsed.path, parsed.checkpoint_note)
        entries.append(LoggedEntry(parse_base64(text.removeprefix("entry ")), proof))
    return EntryEvidence(tuple(entries))


def verify_evidence(evidence: Evidence, log: Verifier) -> Conviction:
    """Check evidence against a log's key.

    Raises:
        MalformedError: A checkpoint, a proof or an entry in it is not of the form.
        SignatureError: A checkpoint is not this log's.
        LogError: It contradicts nothing, or a proof does not hold: it convicts nobody.
    """
    what = _verify_fork(evidence, log) if isinstance(evidence, ForkEvidence) else _verify_entries(evidence.entries, log)
    key = log.public_key.public_bytes_raw().hex()
    return Conviction(log.name, key, f"log {log.name} (key {key}) {what}")


def convict_witnesses(
    evidence: ForkEvidence, log: Verifier, witnesses: Iterable[CosignatureVerifier]
) -> tuple[Conviction, ...]:
    """Return the witnesses that have cosigned both sides of a fork, each key once.

    Args:
        evidence: Two checkpoints; checked here against ``log``.
        log: The log that forked.
        witnesses: Whose lines to look for. What others have written into the notes convicts nobody.

    Raises:
        PeerError: See :func:`verify_evidence`; where there is no fork, nobody has lied.
    """
    verify_evidence(evidence, log)
    found: dict[bytes, Conviction] = {}
    for witness in witnesses:
        try:
            old, new = (parse_checkpoint(open_note(note, [witness]).text) for note in (evidence.old, evidence.new))
        except SignatureError:
            continue  # no line of it in one of them, or one that it did not make
        raw = witness.public_key.public_bytes_raw()
        key = raw.hex() if len(raw) == 32 else hashlib.sha256(raw).hexdigest()
        sentence = (
            f"lying witness {witness.name} (key {key}) cosigned both sides of a fork of log {log.name}: "
            f"root {old.root.hex()} at {old.size} entries, and root {new.root.hex()} at {new.size}"
        )
        found[witness.key] = Conviction(witness.name, key, sentence)
    return tuple(found.values())


def _verify_fork(evidence: ForkEvidence, log: Verifier) -> str:
    old, new = open_checkpoint(evidence.old, log), open_checkpoint(evidence.new, log)
    if old.size == new.size:
        if evidence.prefix is not None or evidence.path:
            raise MalformedError("fork evidence: wanted no prefix between checkpoints of one size")
        if old.root == new.root:
            raise LogError(f"fork evidence: both checkpoints are of {old.size} entries and one root: no fork")
        return f"signed two histories of {old.size} entries: root {old.root.hex()} and root {new.root.hex()}"
    if evidence.prefix is None:
        raise MalformedError("fork evidence: wanted a prefix between checkpoints of two sizes")
    verify_consistency(old.size, evidence.prefix, new.size, new.root, evidence.path)
    if evidence.prefix == old.root:
        raise LogError(f"fork evidence: the tree of {new.size} entries begins with that of {old.size}: no fork")
    return (
        f"signed two histories: at {old.size} entries root {old.root.hex()}, and at {new.size} entries root "
        f"{new.root.hex()}, whose first {old.size} entries have root {evidence.prefix.hex()}"
    )


def _verify_entries(entries: Sequence[LoggedEntry], log: Verifier) -> str:
    places = [open_proof(e.proof, e.entry, log) for e in entries]
    if len(entries) == 1:
        index, checkpoint = places[0]
        try:
            verify_envelope(parse_envelope(entries[0].entry))
        except PeerError as e:
            return f"signed a tree of {checkpoint.size} entries whose entry {index} is not a signed statement: {e}"
        raise LogError(f"entry evidence: entry {index} is a signed statement: that alone convicts nobody")
    if len(entries) != 2:
        raise MalformedError(f"entry evidence: wanted one or two entries, got {len(entries)}")
    one, two = (open_entry(e.entry) for e in entries)
    author, consortium, seq = _number(one)
    if (author, consortium, seq) != _number(two):
        raise LogError("entry evidence: the entries do not share an author, a consortium and a number")
    if (places[0][0], one.leaf) == (places[1][0], two.leaf):
        raise LogError("entry evidence: it is one entry in one place, twice")
    return (
        f"sequenced two entries number {seq} of author {author} in consortium {consortium}: "
        f"entry {places[0][0]} (leaf {one.leaf}) and entry {places[1][0]} (leaf {two.leaf})"
    )


def _number(entry: Entry) -> tuple[str, str, int]:
    header = entry.statement.header
    if header is None or len(entry.signers) != 1:
        raise LogError("entry evidence: an entry has no single author and no number")
    return entry.signers[0], header.consortium, header.seq
