"""A member: it says the same whenever it is asked, and never what would open one input alone."""

from dataclasses import replace

import pytest

from commonweal_adapters.files.delta import GridTensors
from commonweal_adapters.secure.member import Member
from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.statements.secure_messages import SealedShares
from tests.kit.secure import STAGES, Message, Play, a_round, delta_of, names_of

NAMES = names_of(7)


@pytest.mark.parametrize("stage", STAGES)
def test_a_member_that_starts_again_says_the_same_again(stage: str) -> None:
    play = Play(a_round()).until(stage)
    assert play.said(stage, NAMES[0]) == play.said(stage, NAMES[0])


def test_every_round_has_its_own_secrets_though_the_root_were_the_same() -> None:
    members = [Member(a_round(leaf=leaf), 1, NAMES[0], b"r" * 32) for leaf in ("1f" * 32, "2f" * 32)]
    assert len({k for m in members for k in (m.advertise().mask_key, m.advertise().box_key)}) == 4


def test_a_root_of_another_size_is_the_callers_bug() -> None:
    with pytest.raises(ValueError, match="root: wanted 32 bytes, got 31"):
        Member(a_round(), 1, NAMES[0], b"r" * 31)


def test_nothing_is_sealed_for_keys_that_do_not_follow_from_the_secret() -> None:
    play = Play(a_round()).until("seal")
    with pytest.raises(RuleError, match=f"seal: wanted the keys of {NAMES[0]} that follow from its secret"):
        Member(play.masking, 1, NAMES[0], b"another root".ljust(32)).seal()


@pytest.mark.parametrize("field", ["box", "mask_commitment", "self_commitment"])
def test_a_tampered_box_and_a_share_that_was_not_committed_to_are_refused_by_name(field: str) -> None:
    owner = NAMES[4]

    def lie(stage: str, name: str, said: Message) -> Message:
        if name != owner or not isinstance(said, SealedShares):
            return said
        first = said.shares[0]
        last = getattr(first, field)
        bad = first.model_copy(update={field: last[:-1] + ("0" if last[-1] != "0" else "1")})
        return said.model_copy(update={"shares": (bad, *said.shares[1:])})

    play = Play(a_round(), tamper=lie).until("mask")
    with pytest.raises(RuleError, match=f"^{owner}: its box for {NAMES[0]} "):
        play.said("mask", NAMES[0])
    # Who holds another box of the same owner has no part in this.
    play.said("mask", NAMES[1])


def test_a_member_masks_with_enough_partners_or_not_at_all() -> None:
    # Of eight neighbours on a ring of thirty only three are let through: a coordinator's own people, say.
    play = Play(a_round(30, neighbours=8)).until("mask")
    me = names_of(30)[0]
    near = play.masking.neighbours[me]
    assert len(near) == 8
    for left_out in (2, 3, 5):
        some = {n: s for n, s in play.masking.sealed.items() if n not in near[:left_out]}
        member = play.member(me, replace(play.masking, sealed=some))
        if left_out == 2:
            member.mask(delta_of(me), 1)
        else:
            with pytest.raises(RuleError, match=f"mask: wanted at least 6 partners of 8, got {8 - left_out}"):
                member.mask(delta_of(me), 1)


def test_two_lists_of_survivors_open_nothing() -> None:
    """The attack that masks alone do not stop: some are told that a victim dropped out, others that it did not.

    The coordinator forks the log to do it, and gives each side all confirmations that fit there.
    """
    victim = NAMES[6]
    for half in range(7):
        play = Play(a_round()).until("confirm")
        told_of = {True: replace(play.masking, survivors=NAMES[:6]), False: play.masking}
        sides = {name: i < half and name != victim for i, name in enumerate(NAMES)}
        revealed: dict[bool, int] = {True: 0, False: 0}
        for side, masking in told_of.items():
            mine = [name for name in masking.survivors if sides[name] is side]
            for name in mine:
                said = play.member(name, masking).confirm()
                masking = masking.confirm(name, said)
            for name in mine:
                try:
                    said_too = play.member(name, masking).reveal()
                except RuleError:
                    continue
                revealed[side] += any(s.owner == victim for s in said_too.shares)
        assert min(revealed.values()) == 0


def test_no_member_reveals_both_secrets_of_anybody() -> None:
    play = Play(a_round(), {NAMES[5]: "mask"})
    play.run()
    for reveal in play.masking.reveals.values():
        assert [s.owner for s in reveal.shares] == list(NAMES)
        assert {s.owner for s in reveal.shares if s.of == "mask"} == {NAMES[5]}


def test_nothing_is_revealed_before_enough_holders_have_confirmed() -> None:
    play = Play(a_round()).until("confirm")
    for count, name in enumerate(NAMES, 1):
        play.hear(name, play.said("confirm", name))
        if count < 5:
            with pytest.raises(RuleError, match=f"reveal: wanted 5 confirmations among the holders of {NAMES[0]}"):
                play.said("reveal", NAMES[0])
    play.said("reveal", NAMES[0])


def test_a_delta_of_another_shape_or_beyond_the_grid_is_the_callers_bug() -> None:
    play = Play(a_round()).until("mask")
    good = delta_of(NAMES[0])
    name = next(iter(good.values))
    for q in (good[name][:1], good[name] * 0 + (1 << 24) + 1):
        with pytest.raises(ValueError, match="delta: wanted"):
            play.member(NAMES[0]).mask(GridTensors({**good.values, name: q}), 1)
