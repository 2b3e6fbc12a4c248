"""Two consortia: one with a release, and one of which it is a member."""

from commonweal_adapters.files.delta import make_delta, read_adapter, write_delta
from commonweal_protocols.base.keys import public_hex
from commonweal_protocols.records.provenance import name_release
from commonweal_protocols.statements.rules import Svd
from tests.kit.federation import TINY, Federation, key_of

RING = "log.test/ring"


def ring(rounds: int = 1) -> Federation:
    """Another consortium with other keys and another rule; one of its two members has a name of the first."""
    f = Federation(names=("clinic", "library"), origin=RING, realm="ring ", rule=Svd(weights="examples"))
    f.announce()
    for _ in range(rounds):
        f.run_round()
    return f


def union(of: str, **terms: object) -> Federation:
    """A consortium of which one member, ``delta``, is a consortium."""
    names = ("coop", "delta", "school")
    members = [{"institution": n, "key": public_hex(key_of(f"union {n}"))} for n in names]
    members[1]["consortium"] = of
    return Federation(names=names, origin="log.test/union", realm="union ", terms={"members": members, **terms})


def contributed(inner: Federation, delta: bytes | None = None, **other: object) -> Federation:
    """A round to which a consortium contributes its newest release."""
    outer = union(inner.state.consortium)
    outer.announce()
    outer.open_round()
    named = name_release(inner.replica)
    start = read_adapter(outer.blobs[outer.state.next_start().sha256], TINY)
    theirs = make_delta(start, read_adapter(inner.blobs[named.adapter.sha256], TINY), TINY)
    update = outer.update("delta", write_delta(theirs, TINY) if delta is None else delta)
    examples = sum(u.update.num_examples for u in inner.state.rounds[-1].updates.values())
    outer.say("delta", update.model_copy(update={"release": named, "num_examples": examples, **other}))
    outer.say("coop", outer.update("coop"))
    outer.say("hub", outer.release())
    for name in outer.names:
        outer.say(name, outer.ratification())
    return outer
