"""Every kind of fact that an entry may state, by its URI."""

from typing import TypeAlias, get_args

from commonweal_protocols.statements.adoption import Adoption, ForeignAdoption
from commonweal_protocols.statements.compact import Compact
from commonweal_protocols.statements.data_manifest import DataManifest
from commonweal_protocols.statements.governance import (
    Ballot,
    Charter,
    Closing,
    Exit,
    Motion,
    OpenedBallot,
    SealedBallot,
)
from commonweal_protocols.statements.members import Identity, Rotation
from commonweal_protocols.statements.rounds import Incident, Ratification, Refusal, Rejection, Release, Round, Update
from commonweal_protocols.statements.secure_messages import Advertisement, Confirmation, Reveal, SealedShares, StageEnd

Predicate: TypeAlias = (
    Compact
    | Identity
    | Rotation
    | Round
    | Update
    | Refusal
    | Rejection
    | Incident
    | Release
    | Ratification
    | Adoption
    | ForeignAdoption
    | DataManifest
    | Charter
    | Motion
    | Ballot
    | SealedBallot
    | OpenedBallot
    | Closing
    | Exit
    | Advertisement
    | SealedShares
    | Confirmation
    | Reveal
    | StageEnd
)
PREDICATES: dict[str, type[Predicate]] = {p.URI: p for p in get_args(Predicate)}
TITLES = {p.kind(): p.TITLE for p in PREDICATES.values()}
"""What an entry of each kind says, in a few words."""
