"""Leaving a consortium with everything that is one's own: the folder that ``protocols.departure`` describes and checks.

It is written into a folder beside it and put in its place in one step, once it has been checked there as anybody would.
"""

import hashlib
import os
import shutil
from pathlib import Path

from commonweal_node.institution.opened_home import OpenedHome
from commonweal_protocols.base.canonical import digest_of
from commonweal_protocols.base.errors import ConfigError, RuleError, StorageError
from commonweal_protocols.base.files import sync_directory, write_atomic
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.fold.membership import LEFT
from commonweal_protocols.fold.state import State
from commonweal_protocols.records.departure import COMPACT, MANIFEST, Checked, Departure, check_departure, entry_path
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.records.source import Source, read_checkpoint, read_entries, unverified_size
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.governance import Exit
from commonweal_protocols.statements.members import Rotation
from commonweal_protocols.statements.statement import Entry, open_entry
from commonweal_protocols.statements.values import Digest, Name
from commonweal_protocols.tlog.proof import format_proof

_OWN_FOLDERS = ("own", "adopted")
_README = """\
# {institution}: what it has said in {consortium}

{institution} has left the consortium {consortium} ({digest}).
Its reason: {reason}

This folder is everything that it has said there, from its first entry to its exit: {count} entries, each with a proof
that it is in the log `{origin}`, whose root at {size} entries was

    {root}

Nothing in here has to be believed. Offline, with the auditor's program and no more than this folder:

    pip install commonweal
    commonweal audit departure FOLDER

It checks every file's digest, every signature, every proof, and that the numbers in the entries' headers have no gap:
each entry names its author's own number and the hash of the author's entry before. Whom to believe for the log and its
witnesses, `compact.json` says; anyone who knows that from elsewhere gives it: `--policy FILE` (C2SP tlog-policy).

By hand: SHA-256 of a zero byte and the bytes of `entries/N.dsse` is the leaf hash; the hashes in `entries/N.tlog-proof`
lead from it to the root of the signed checkpoint at that file's end (RFC 6962, C2SP tlog-proof).

`own/` are the adapters that were trained on the community's own rows alone, `adopted/` is what it used last, and
`charter.toml` its charter, as far as they were there. The rows themselves are not in here.
"""


def leave(home: OpenedHome, reason: str) -> Digest | None:
    """Have the exit logged; returns its entry, or None where this institution has left already.

    Raises:
        PeerError, LocalError: It is not logged.
    """
    known = home.state().retired.get(public_hex(home.keys.present))
    if known is not None and known.reason == LEFT:
        return None
    return home.submit(lambda _: Exit(institution=home.config.institution, reason=reason))


def write_departure(home: OpenedHome, directory: Path) -> Checked:
    """Write the folder, from the log as it is verified here, and check it.

    Raises:
        PeerError: The log does not hold, or this institution has not left.
        ConfigError: There is something at ``directory``.
        LocalError: The log cannot be read, or the folder cannot be written.
    """
    if directory.exists():
        raise ConfigError(f"{directory}: exists already; give another --out")
    home.state()  # so that the log is checked against what was seen of it before
    institution = home.config.institution
    replica, note, said = _said(home.source, institution)
    replica.check_seen(home.follower.seen[0])
    partial = directory.with_name(f".{directory.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        files = _copy_own(home, partial)
    except OSError as e:
        raise StorageError(f"{partial}: cannot be written: {e.strerror}") from e
    for index, data in said.items():
        proof = format_proof(index, replica.tree.inclusion_path(index, replica.size), note)
        write_atomic(partial / entry_path(index, "dsse"), data, durable=False)
        write_atomic(partial / entry_path(index, "tlog-proof"), proof, durable=False)
    files[COMPACT] = _put(partial / COMPACT, replica.state.compact.model_dump_json(indent=1).encode())
    files["README.md"] = _put(partial / "README.md", _readme(institution, replica, said).encode())
    departure = Departure(
        consortium=replica.state.consortium, institution=institution, entries=tuple(said), files=files
    )
    _put(partial / MANIFEST, departure.to_bytes())
    checked = check_departure(partial, replica.policy)
    try:
        os.replace(partial, directory)
        sync_directory(directory.parent)
    except OSError as e:
        raise StorageError(f"{directory}: cannot be written: {e.strerror}") from e
    return checked


def _said(source: Source, institution: Name) -> tuple[Replica, bytes, dict[int, bytes]]:
    """Replay the log; returns it with its signed checkpoint, and with the institution's entries by index."""
    note, replica, said = read_checkpoint(source), Replica(), {}
    for index, data in enumerate(read_entries(source, 0, unverified_size(note))):
        before = replica.state if replica.size else None
        entry = replica.add(data)
        if before is not None and _is_of(entry, before, institution):
            said[index] = data
    replica.check_checkpoint(replica.policy.open(note).checkpoint)
    return replica, note, said


def _is_of(entry: Entry, before: State, institution: Name) -> bool:
    predicate = entry.statement.predicate
    if isinstance(predicate, Compact):
        return False  # it has many authors, and a place in nobody's chain
    if isinstance(predicate, Rotation):
        return predicate.name == institution
    return before.institution(entry.signers[0]) == institution


def _readme(institution: Name, replica: Replica, said: dict[int, bytes]) -> str:
    tree, state = replica.checkpoint(), replica.state
    last = open_entry(said[max(said)]).statement.predicate if said else None
    if not isinstance(last, Exit):
        raise RuleError(f"departure: wanted an institution that has left, got {institution}, which is still a member")
    return _README.format(
        institution=institution,
        consortium=state.compact.consortium,
        digest=state.consortium,
        reason=last.reason,
        count=len(said),
        origin=tree.origin,
        size=tree.size,
        root=tree.root.hex(),
    )


def _copy_own(home: OpenedHome, partial: Path) -> dict[str, Digest]:
    """Copy the charter and the own adapters; returns each file's digest, by its path below the folder."""
    files: dict[str, Digest] = {}
    sources = [
        (path, f"{name}/{path.name}") for name in _OWN_FOLDERS for path in sorted((home.files.root / name).glob("*"))
    ]
    charter = home.config.charter
    if charter is not None and charter.is_file():
        sources.append((charter, "charter.toml"))
    for path, name in sources:
        if path.is_file() and not path.name.startswith("."):
            (partial / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, partial / name)
            with path.open("rb") as f:
                files[name] = hashlib.file_digest(f, "sha256").hexdigest()
    return files


def _put(path: Path, data: bytes) -> Digest:
    write_atomic(path, data)
    return digest_of(data)
