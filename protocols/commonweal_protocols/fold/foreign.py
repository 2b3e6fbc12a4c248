"""The fold's part that is about other consortia: what a member may say here of their releases. Pure.

No log can vouch for another. What is folded is what the member says that it has verified, in a form that anyone who has
the other log's records can check against them (``provenance``).
"""

from dataclasses import replace

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.fold.state import LoggedForeignAdoption, State
from commonweal_protocols.statements.adoption import ForeignAdoption
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.statements.values import Digest, Name


def on_foreign_adoption(state: State, leaf: Digest, name: Name, adoption: ForeignAdoption) -> State:
    """A member decides for itself on another consortium's release.

    Raises:
        RuleError: It is this consortium's own, or it was seen in an older state of the other log than one before.
    """
    release, before = adoption.release, state.foreign.get(name, ())
    if release.consortium == state.consortium:
        raise RuleError("foreign adoption: wanted a release of another consortium, got one of this")
    seen = max(
        (b.adoption.release.at.size for b in before if b.adoption.release.consortium == release.consortium), default=0
    )
    if release.at.size < seen:
        raise RuleError(
            f"foreign adoption: wanted the log of {release.consortium} at {seen} entries or more, as {name} saw it "
            f"before, got {release.at.size}"
        )
    logged = LoggedForeignAdoption(leaf, state.size, adoption)
    return replace(state, foreign={**state.foreign, name: (*before, logged)})


def check_source(state: State, name: Name, update: Update) -> None:
    """Check that a member which is a consortium gives a release of its own, and that no other says that it does.

    Raises:
        RuleError: Not so.
    """
    member = state.member(name)
    wanted = member.consortium if member else None
    got = update.release.consortium if update.release else None
    if got != wanted:
        of = (
            f"a release of the consortium {wanted}, for which {name} speaks"
            if wanted
            else f"no consortium's release: {name} is none"
        )
        raise RuleError(f"update: wanted {of}, got {got or 'none'}")
    if wanted == state.consortium:
        raise RuleError(f"update: {name} speaks for this very consortium, which cannot be a member of itself")
