"""Where another consortium's release comes from: naming it, and holding a name to the other log's own history. Pure.

A consortium has no root above it, so its log cannot vouch for what is said in another. Anyone who names a release says
up to which checkpoint it has verified the other log; anyone who doubts it replays that log to the same place, and finds
the same name or says what differs.
"""

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.fold.state import LoggedRelease, RoundState, State
from commonweal_protocols.records.replica import Replica
from commonweal_protocols.statements.rounds import ForeignRelease
from commonweal_protocols.statements.values import Seen


def ratified_round(replica: Replica, number: int | None = None) -> tuple[RoundState, LoggedRelease]:
    """Return the round of this number, or the newest, whose release stands ratified at the end of these entries.

    Raises:
        RuleError: There is none.
    """
    for r in reversed(replica.state.rounds):
        if number in (None, r.round.round) and r.release is not None and r.release.is_ratified:
            return r, r.release
    which = "a ratified release" if number is None else f"a ratified release of round {number}"
    raise RuleError(f"log {replica.log.name}: wanted {which} among its first {replica.size} entries, got none")


def name_release(replica: Replica, number: int | None = None) -> ForeignRelease:
    """Return what another consortium's log has to say of that release.

    Raises:
        RuleError: There is none.
    """
    _, logged = ratified_round(replica, number)
    checkpoint = replica.checkpoint()
    return ForeignRelease(
        consortium=replica.state.consortium,
        log=replica.state.compact.coordinator.log,
        at=Seen(origin=checkpoint.origin, size=checkpoint.size, root=checkpoint.root.hex()),
        round=logged.release.round,
        release_leaf=logged.leaf,
        adapter=logged.release.adapter,
    )


def check_release(named: ForeignRelease, replica: Replica) -> None:
    """Check that a release is as it was named.

    Args:
        named: What somebody says in another log.
        replica: The release's own log, verified, up to the ``named.at.size`` entries that they had seen.

    Raises:
        RuleError: It is not; says what differs.
    """
    found = name_release(replica, named.round)
    for field in type(named).model_fields:
        if (got := getattr(named, field)) != (wanted := getattr(found, field)):
            raise RuleError(f"foreign release: {field}: wanted {wanted}, as its own log has it, got {got}")


def count_examples(r: RoundState, release: LoggedRelease) -> int:
    """Return from how many examples a release was made, as its contributors say."""
    return sum(r.updates[i.institution].update.num_examples for i in release.release.inputs)


def is_withdrawn(named: ForeignRelease, state: State) -> bool:
    """Whether its consortium has recalled it since: another release, or none, stands in its place."""
    release = state.rounds[named.round - 1].release if named.round <= len(state.rounds) else None
    return release is None or release.leaf != named.release_leaf or release.recalled_by is not None
