"""One of each statement that a masked round is made of."""

from commonweal_protocols.statements.registry import Predicate
from commonweal_protocols.statements.secure_messages import (
    Advertisement,
    Confirmation,
    Reveal,
    RevealedShare,
    SealedShare,
    SealedShares,
    StageEnd,
)
from commonweal_protocols.statements.statement import Header

LEAF = "1f" * 32
SHARE = SealedShare(holder="coop", box="0" * 164, mask_commitment="1" * 64, self_commitment="2" * 64)
MESSAGES: list[Predicate] = [
    Advertisement(round=1, round_leaf=LEAF, mask_key="ab" * 32, box_key="cd" * 32),
    SealedShares(round=1, round_leaf=LEAF, advertised="a" * 64, seed_commitment="b" * 64, shares=(SHARE,)),
    Confirmation(round=1, round_leaf=LEAF, survivors=("clinic", "coop")),
    Reveal(round=1, round_leaf=LEAF, shares=(RevealedShare(owner="coop", of="mask", share="0" * 66),)),
    StageEnd(round=1, round_leaf=LEAF, stage="seal", speakers=("clinic", "coop")),
]
HEADER = Header(consortium="c0" * 32, seq=1, prev="ab" * 32, seen=())
