"""Trust policies (C2SP tlog-policy): which logs, which witnesses, and how many of them make a checkpoint believed.

::

    log <vkey> [url]
    witness <name> <vkey> [url]
    group <name> all|any|<k> <name>...
    quorum <name>|none                   exactly one

Names come from earlier lines only, and each is a member of at most one group, once: a witness counts in one way.
Public keys are compared, not names: a key that stands twice is refused whatever it calls itself. A witness with a log's
own key or name is refused too, since a log that cosigns itself proves nothing. Two things are narrower here than in the
specification: the text is UTF-8, and a ``#`` stands only in a comment line (other programs cut a line at any ``#``, so
one file would be two policies). No clock; no I/O but :func:`load_policy`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from commonweal_protocols.base.errors import ConfigError, MalformedError, SignatureError
from commonweal_protocols.base.files import read_bounded
from commonweal_protocols.tlog.checkpoint import Checkpoint, check_origin, parse_checkpoint
from commonweal_protocols.tlog.cosignature import ML_DSA_44_COSIGNATURE, CosignatureVerifier, parse_cosigner_vkey
from commonweal_protocols.tlog.note import NoteVerifier, Verifier, open_note, parse_vkey

MAX_POLICY_BYTES = 256 << 10
"""64 witnesses with ML-DSA keys (1.8 KB each), and as much again for comments and names."""
MAX_ITEMS = 64
"""The most logs, witnesses and groups, of each: the specification asks for 32, and a note holds 100 signatures."""
NO_QUORUM = "none"

# DEL is the one refused octet above space; everything from 0x80 on is opaque.
_ALLOWED = re.compile("[\t\n -~\x80-\U0010ffff]*")
_SPACE = re.compile("[ \t]+")
_THRESHOLD = re.compile("[1-9][0-9]{0,3}")


@dataclass(frozen=True, slots=True)
class PolicyLog:
    """A log that is believed. ``url`` is for those who talk to it.

    Where a post-quantum key is named, the log must have signed with both. A policy's text has no word for that, so only
    a compact makes such a policy.
    """

    verifier: Verifier
    url: str | None = None
    post_quantum: CosignatureVerifier | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True)
class PolicyWitness:
    """A witness, by its name in this policy. ``url`` is its submission prefix."""

    name: str
    verifier: CosignatureVerifier
    url: str | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """Witnesses or earlier groups, of which ``threshold`` make the group a witness itself."""

    name: str
    threshold: int
    members: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class WitnessedBy:
    """One witness's cosignature: when (seconds since the epoch), and its verified line with the newline."""

    witness: PolicyWitness
    at: int
    line: str


@dataclass(frozen=True, slots=True)
class Cosigned:
    """A checkpoint that a policy believes.

    ``quorum_at`` is the newest time, in seconds since the epoch, as of which a quorum says that this was the largest
    tree: hold it against a greatest age. None if the policy asks for no witness.
    """

    checkpoint: Checkpoint
    log: Verifier
    witnesses: tuple[WitnessedBy, ...]
    quorum_at: int | None


@dataclass(frozen=True, slots=True)
class Policy:
    """A checked policy: what stands here is consistent, however it was made.

    Raises:
        MalformedError: On construction: a name that is taken, unknown or not allowed; a public key that stands twice; a
            threshold that no group of this size has; more than 64 of a kind.
    """

    logs: tuple[PolicyLog, ...]
    witnesses: tuple[PolicyWitness, ...]
    groups: tuple[Group, ...]
    quorum: str

    def __post_init__(self) -> None:
        for kind, count in (
            ("logs", len(self.logs)), ("witnesses", len(self.witnesses)), ("groups", len(self.groups)),
        ):  # fmt: skip
            if count > MAX_ITEMS:
                raise MalformedError(f"policy: wanted at most {MAX_ITEMS} {kind}, got {count}")
        self._check_keys()
        defined: set[str] = set()
        members: set[str] = set()
        for witness in self.witnesses:
            _define(witness.name, defined)
        for group in self.groups:
            _check_group(group, defined, members)
            _define(group.name, defined)
        if self.quorum != NO_QUORUM and self.quorum not in defined:
            raise MalformedError(f"policy: quorum {self.quorum!r}: wanted 'none' or a name from a line above")

    def _check_keys(self) -> None:
        owners: dict[bytes, str] = {}

        def own(public_key: bytes, what: str) -> None:
            if public_key in owners:
                raise MalformedError(f"policy: {what} has the public key of {owners[public_key]}; wanted each key once")
            owners[public_key] = what

        # Keys without their type's byte: a log's Ed25519 key is the same key when it cosigns.
        for log in self.logs:
            check_origin(log.verifier.name)
            own(log.verifier.key[1:], f"log {log.verifier.name}")
            second = log.post_quantum
            if second is not None:
                own(second.key[1:], f"log {log.verifier.name} (post-quantum)")
                if second.name != log.verifier.name or second.key[0] != ML_DSA_44_COSIGNATURE:
                    raise MalformedError(
                        f"policy: log {log.verifier.name}: wanted an ML-DSA-44 key of its own name, "
                        f"got {second.vkey[:80]}"
                    )
        origins = {log.verifier.name for log in self.logs}
        for witness in self.witnesses:
            own(witness.verifier.key[1:], f"witness {witness.name}")
            if witness.verifier.name in origins:
                raise MalformedError(f"policy: witness {witness.name} is the log {witness.verifier.name} itself")
        for url in (*(log.url for log in self.logs), *(witness.url for witness in self.witnesses)):
            if url is not None:
                _check_word("url", url)

    def quorum_time(self, times: Mapping[str, int]) -> int | None:
        """Return the newest time at which a quorum stands, given each witness's time in seconds; None if it does not.

        Args:
            times: Witness name in this policy to the time of its cosignature.
        """
        by_name: dict[str, int | None] = {w.name: times.get(w.name) for w in self.witnesses}
        for group in self.groups:
            # The k-th newest: at that time at least k members say so, and at no later time do as many.
            known = sorted((t for m in group.members if (t := by_name[m]) is not None), reverse=True)
            by_name[group.name] = known[group.threshold - 1] if len(known) >= group.threshold else None
        return by_name.get(self.quorum)

    def is_met(self, names: Iterable[str]) -> bool:
        """Whether these witnesses, by their names in this policy, make a quorum."""
        return self.quorum == NO_QUORUM or self.quorum_time(dict.fromkeys(names, 1)) is not None

    def open(self, note: bytes) -> Cosigned:
        """Verify a signed checkpoint: by a log of this policy for its own origin, and by a quorum of witnesses.

        Raises:
            MalformedError: Not a note with a checkpoint in it.
            SignatureError: No log of this policy has signed it for its origin, a known key's line does not hold, or the
                quorum is not met: then it says who is missing.
        """
        verifiers: list[NoteVerifier] = [log.verifier for log in self.logs]
        verifiers += [log.post_quantum for log in self.logs if log.post_quantum]
        verifiers += [witness.verifier for witness in self.witnesses]
        opened = open_note(note, verifiers)
        checkpoint = parse_checkpoint(opened.text)
        # No two keys here are equal, so a key stands for its owner.
        lines = {line.signer.key: line for line in opened.lines}
        signed = (x for x in self.logs if x.verifier.key in lines)
        log = next((x for x in signed if x.verifier.name == checkpoint.origin), None)
        if log is None:
            wanted = ", ".join(x.verifier.name for x in self.logs) or "no log at all"
            raise SignatureError(f"checkpoint {checkpoint.origin}: wanted the signature of a log of {wanted}, got none")
        if log.post_quantum is not None and log.post_quantum.key not in lines:
            raise SignatureError(f"checkpoint {checkpoint.origin}: wanted the log's ML-DSA-44 signature too, got none")
        witnesses = tuple(
            WitnessedBy(w, line.at, line.line)
            for w in self.witnesses
            if (line := lines.get(w.verifier.key)) is not None and line.at is not None
        )
        times = {w.witness.name: w.at for w in witnesses}
        if not self.is_met(times):
            missing = ", ".join(w.name for w in self.witnesses if w.name not in times)
            raise SignatureError(
                f"checkpoint {checkpoint.origin} of {checkpoint.size} entries: wanted the quorum {self._describe()}, "
                f"got {', '.join(times) or 'no witness'}; missing: {missing}"
            )
        return Cosigned(checkpoint, log.verifier, witnesses, self.quorum_time(times))

    def _describe(self) -> str:
        group = next((g for g in self.groups if g.name == self.quorum), None)
        return f"{group.name} ({group.threshold} of {', '.join(group.members)})" if group else self.quorum


def _check_word(what: str, word: str) -> None:
    if not word or not _ALLOWED.fullmatch(word) or _SPACE.search(word) or "\n" in word or "#" in word:
        raise MalformedError(f"policy: {what}: wanted text without spaces, controls and '#', got {word[:80]!r}")


def _define(name: str, defined: set[str]) -> None:
    _check_word("name", name)
    if name == NO_QUORUM or name in defined:
        raise MalformedError(f"policy: name {name!r}: wanted one that is not taken yet")
    defined.add(name)


def _check_group(group: Group, defined: set[str], members: set[str]) -> None:
    if not 1 <= group.threshold <= len(group.members):
        raise MalformedError(
            f"policy: group {group.name}: wanted 1 to {len(group.members)} of its members, got {group.threshold}"
        )
    for member in group.members:
        if member not in defined:
            raise MalformedError(f"policy: group {group.name}: wanted a name from a line above, got {member!r}")
        if member in members:
            raise MalformedError(f"policy: group {group.name}: {member} is a member already; wanted each name once")
        members.add(member)


def _parse_group(words: list[str]) -> Group:
    if len(words) < 3:
        raise MalformedError("wanted: group <name> all|any|<k> <name>...")
    name, rule, members = words[0], words[1], tuple(words[2:])
    if rule in ("all", "any"):
        return Group(name, len(members) if rule == "all" else 1, members)
    if not _THRESHOLD.fullmatch(rule):
        raise MalformedError(f"group {name}: wanted all, any or a number from 1 on, got {rule[:40]!r}")
    return Group(name, int(rule), members)


def parse_policy(text: str) -> Policy:
    """Parse a policy file's text.

    Raises:
        MalformedError: A line that is not of the form, with its number; a name that no earlier line defines; no quorum
            or two; a public key twice; above a bound.
    """
    if len(text) > MAX_POLICY_BYTES or len(text.encode("utf-8", "replace")) > MAX_POLICY_BYTES:
        raise MalformedError(f"policy: wanted at most {MAX_POLICY_BYTES} bytes, got more")
    if not _ALLOWED.fullmatch(text) or any("\ud800" <= c <= "\udfff" for c in text) or not text.endswith("\n"):
        raise MalformedError("policy: wanted lines that end in a newline, and no control character but tabs")
    logs: list[PolicyLog] = []
    witnesses: list[PolicyWitness] = []
    groups: list[Group] = []
    quorum: str | None = None
    above: set[str] = {NO_QUORUM}
    for number, line in enumerate(text[:-1].split("\n"), 1):
        words = _SPACE.split(line.strip(" \t"))
        if words == [""] or words[0].startswith("#"):
            continue
        try:
            match words:
                case ["log", vkey, *url] if len(url) < 2:
                    logs.append(PolicyLog(parse_vkey(vkey), *url))
                case ["witness", name, vkey, *url] if len(url) < 2:
                    witnesses.append(PolicyWitness(name, parse_cosigner_vkey(vkey), *url))
                    above.add(name)
                case ["group", *rest]:
                    groups.append(_parse_group(rest))
                    _check_above(groups[-1].members, above - {NO_QUORUM})
                    above.add(groups[-1].name)
                case ["quorum", name] if quorum is None:
                    _check_above([name], above)
                    quorum = name
                case ["quorum", *_]:
                    raise MalformedError("wanted exactly one line: quorum <name>|none")
                case _:
                    raise MalformedError(f"wanted a log, witness, group or quorum line, got {line[:80]!r}")
        except MalformedError as e:
            raise MalformedError(f"policy: line {number}: {e}") from e
    if quorum is None:
        raise MalformedError("policy: wanted exactly one quorum line, got none")
    return Policy(tuple(logs), tuple(witnesses), tuple(groups), quorum)


def _check_above(names: Iterable[str], above: set[str]) -> None:
    for name in names:
        if name not in above:
            raise MalformedError(f"wanted a name from a line above, got {name[:80]!r}")


def load_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        ConfigError: It cannot be read, or is not a policy.
    """
    data = read_bounded(path, MAX_POLICY_BYTES, "a policy", error=ConfigError)
    try:
        return parse_policy(data.decode("utf-8"))
    except (UnicodeDecodeError, MalformedError) as e:
        raise ConfigError(f"{path}: {e}") from e
