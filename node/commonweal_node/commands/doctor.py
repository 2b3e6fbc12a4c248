"""``commonweal node doctor``: is this host fit to be a node, and if not, what fixes it.

Each check looks at one thing and never changes anything.
"""

import email.utils
import http.client
import shutil
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from commonweal_node.charter.charter import Charter, load_charter
from commonweal_node.config import NodeConfig
from commonweal_node.home import NodeHome
from commonweal_node.institution.delegate import check_speaks_for
from commonweal_node.model.base_model import verify_cached_base
from commonweal_node.model.chat import load_tokenizer
from commonweal_node.model.tokens import tokenise
from commonweal_node.probes.probe import load_probes
from commonweal_node.rows.row import read_examples
from commonweal_node.training.flower_trainer import check_trainer
from commonweal_protocols.base.errors import CommonwealError, ConfigError, UnavailableError
from commonweal_protocols.base.keys import load_key_file
from commonweal_protocols.records.source import open_source, read_checkpoint, unverified_size
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.invite import Invite
from commonweal_protocols.statements.values import Name

MIN_FREE_BYTES = 2 << 30
MIN_MEMORY_BYTES = 2 << 30
MAX_SKEW_SECONDS = 60.0
_TIMEOUT_SECONDS = 5


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at. ``fix`` says what to do where ``ok`` is false."""

    name: str
    ok: bool
    found: str
    fix: str = ""


def _guard(name: str, fix: str, look: Callable[[], str]) -> Check:
    try:
        return Check(name, True, look())
    except (CommonwealError, OSError, http.client.HTTPException) as e:
        return Check(name, False, str(e), fix)


def _key(path: Path, passphrase: bytes | None) -> str:
    load_key_file(path, passphrase)
    return f"{path}, mode 0600"


def _rows(config: NodeConfig) -> str:
    train, heldout = (len(read_examples(config.data, split)) for split in ("train", "heldout"))
    return f"{train} training and {heldout} held-out rows"


def _tokens(config: NodeConfig, compact: Compact) -> str:
    tokenizer = load_tokenizer(config.cache / compact.base.sha256)
    lost = 0
    for split in ("train", "heldout"):
        found = tokenise(read_examples(config.data, split), tokenizer, compact.recipe.max_tokens)
        lost += found.dropped
    return f"the base's chat template writes every conversation; {lost} have no answer within the recipe's max_tokens"


def _trainer(config: NodeConfig) -> str:
    check_trainer(config)
    return f"{config.trainer} can be imported"


def _probe(home: Path, charter: Charter, name: Name) -> str:
    (probe,) = load_probes(home, charter, [name])
    count = len(probe.items)
    return f"{count} question{'s' * (count > 1)}, measured by {probe.measure}"


def _charter(home: Path, config: NodeConfig) -> Iterator[Check]:
    """The charter, if there is one, and each probe that it names."""
    if config.charter is None:
        return
    try:
        charter = load_charter(config.charter)
    except ConfigError as e:
        yield Check("charter", False, str(e), "correct what is named, or `charter` in node.toml")
        return
    yield Check("charter", True, f"version {charter.version}, {len(tuple(charter.clauses()))} clauses")
    barred = {b.probe for b in charter.bars.probes}
    for name, clauses in charter.probed_by().items():
        why = "the charter has a bar on it: without it the node does not start"
        if name not in barred:
            why = f"without it nobody sees whether {', '.join(clauses)} is kept"
        yield _guard(
            f"probe {name}",
            f"correct the named line, or copy the file to {NodeHome(home).probes}; {why}",
            lambda name=name: _probe(home, charter, name),  # type: ignore[misc]
        )


def _speaks_for(config: NodeConfig, compact: Compact) -> str:
    check_speaks_for(config, compact)
    if config.speaks_for is None:
        return "no consortium"
    source = open_source(config.speaks_for.records, config.speaks_for.ca)
    size = unverified_size(read_checkpoint(source))
    return f"{config.speaks_for.consortium}, whose records have {size} entries; a round verifies them"


def _reach(address: str) -> str:
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), timeout=_TIMEOUT_SECONDS):
            return f"{address} answers"
    except OSError as e:
        raise UnavailableError(f"{address}: does not answer: {e}") from e


def _skew(invite: Invite) -> float:
    """Return this clock minus the coordinator's, in seconds, from its HTTP date (resolution 1 s)."""
    context = ssl.create_default_context(cadata=invite.ca_pem)
    request = urllib.request.Request(f"{invite.records}/checkpoint", method="HEAD")  # noqa: S310 - https by schema
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS, context=context) as response:  # noqa: S310
            date = response.headers["date"]
    except urllib.error.HTTPError as e:
        with e:
            date = e.headers["date"]
    try:
        return time.time() - email.utils.parsedate_to_datetime(date).timestamp()
    except (TypeError, ValueError) as e:
        raise UnavailableError(f"{invite.records}: wanted an HTTP date, got {date!r}") from e


def _clock(invite: Invite) -> str:
    skew = _skew(invite)
    if abs(skew) > MAX_SKEW_SECONDS:
        raise OSError(f"this clock is {skew:+.0f} s from the coordinator's; wanted at most {MAX_SKEW_SECONDS:.0f}")
    return f"{skew:+.0f} s from the coordinator's"


# Long because it is one table: a check a line.
def examine(
    home: Path,
    config: NodeConfig,
    invite: Invite | None,
    compact: Compact | None,
    passphrase: bytes | None = None,
) -> Iterator[Check]:
    """Yield one check after the other.

    Args:
        home: The node's folder.
        config: Its settings.
        invite: The consortium that it has joined, if it has.
        compact: The compact in force there, if it is known.
        passphrase: The identity key's, if it has one.
    """
    key = NodeHome(home).key
    yield _guard(
        "identity key",
        f"chmod 600 {key}; give --passphrase-file if it has one; or restore it from your backup",
        lambda: _key(key, passphrase),
    )
    yield _guard("community rows", "correct the named line, or `data` in node.toml", lambda: _rows(config))
    yield from _charter(home, config)
    if config.trainer:
        yield _guard(
            "trainer", "correct `trainer` in node.toml, or install the app's package", lambda: _trainer(config)
        )
    free = shutil.disk_usage(home).free
    yield Check(
        "disk", free >= MIN_FREE_BYTES, f"{free / 2**30:.1f} GiB free", f"wanted {MIN_FREE_BYTES >> 30} GiB: make room"
    )
    memory = psutil.virtual_memory().available
    yield Check(
        "memory",
        memory >= MIN_MEMORY_BYTES,
        f"{memory / 2**30:.1f} GiB available",
        f"wanted {MIN_MEMORY_BYTES >> 30} GiB: stop other programs, or take a smaller base model",
    )
    if invite is None:
        yield Check("consortium", False, "not joined yet", f"commonweal node join --home {home} INVITE.json")
        return
    yield _guard(
        "coordinator: exchange",
        "is the coordinator running, and does the firewall let you out?",
        lambda: _reach(invite.exchange),
    )
    yield _guard("clock", "set this host's clock (NTP)", lambda: _clock(invite))
    if compact is not None:
        yield _guard(
            "base model",
            f"commonweal node fetch-base --home {home}",
            lambda: verify_cached_base(compact.base, config.cache),
        )
        if (config.cache / compact.base.sha256).is_dir():
            yield _guard(
                "rows as tokens",
                "change the named row, or leave it out; without that the node trains on none",
                lambda: _tokens(config, compact),
            )
        yield _guard(
            "speaks for",
            "correct [speaks_for] in node.toml, or ask that consortium's coordinator",
            lambda: _speaks_for(config, compact),
        )
