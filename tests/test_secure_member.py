"""A member: it says nothing out of order, nothing twice, and never what would open one input alone."""

import itertools
import random
from collections.abc import Mapping
from typing import Any

import pytest

from commonweal_adapters.delta import GridTensors
from commonweal_adapters.secure_member import Member
from commonweal_protocols.errors import MalformedError, PeerError, RuleError, SignatureError
from commonweal_protocols.keys import public_hex
from commonweal_protocols.secure_messages import (
    Advertisement,
    Confirmation,
    MaskedInput,
    Place,
    Reveal,
    SealedShares,
    open_message,
)
from tests.federation import key_of
from tests.secure import STAGES, Play, a_round, delta_of, names_of, resigned

NAMES = names_of(7)
KINDS: dict[str, Any] = dict(zip(STAGES, (Advertisement, SealedShares, MaskedInput, Confirmation, Reveal), strict=True))


def until(stage: str, **kwargs: object) -> Play:
    """A round in which everybody has said what comes before ``stage``."""
    play = Play(a_round(), **kwargs)  # type: ignore[arg-type]
    for before in STAGES[: STAGES.index(stage)]:
        play.step(before)
    return play


def call(play: Play, name: str, stage: str, messages: Mapping[str, bytes] | None = None) -> object:
    member = play.members[name]
    before = play.messages.get(STAGES[STAGES.index(stage) - 1], {}) if messages is None else messages
    match stage:
        case "advertise":
            return member.advertise()
        case "mask":
            return member.mask(before, delta_of(name), 1)
        case _:
            return getattr(member, stage)(before)


@pytest.mark.parametrize("at", STAGES)
@pytest.mark.parametrize("called", STAGES)
def test_a_call_out_of_order_or_for_the_second_time_is_the_callers_bug(at: str, called: str) -> None:
    play = until(at)
    if called != at:
        with pytest.raises(RuntimeError, match=f"wanted a call of {at}, got {called}"):
            call(play, NAMES[0], called, {})
        return
    call(play, NAMES[0], at)
    with pytest.raises(RuntimeError, match=f"got {at}"):
        call(play, NAMES[0], at)


@pytest.mark.parametrize("stage", STAGES[1:])
def test_a_message_that_is_not_its_members_is_refused_and_the_call_succeeds_without_it(stage: str) -> None:
    play = until(stage)
    before = STAGES[STAGES.index(stage) - 1]
    kind, messages, mine = KINDS[before], play.messages[before], NAMES[0]
    wrong: list[tuple[dict[str, bytes], type[PeerError] | tuple[type[PeerError], ...]]] = [
        ({**messages, NAMES[3]: messages[NAMES[2]]}, (MalformedError, SignatureError)),
        ({**messages, NAMES[3]: messages[NAMES[3]][:-3] + b'0"}'}, (SignatureError, MalformedError)),
        ({**messages, "stranger": messages[NAMES[3]]}, RuleError),
        ({k: v for k, v in messages.items() if k in NAMES[:4]}, RuleError),
    ]
    elsewhere = Place(consortium="c0" * 32, round_leaf="2f" * 32, institution=NAMES[3]).model_dump()
    wrong.append(({**messages, NAMES[3]: resigned(messages[NAMES[3]], kind, NAMES[3], place=elsewhere)}, RuleError))
    if before != "confirm":
        wrong.append(({k: v for k, v in messages.items() if k != mine}, RuleError))
    for changed, error in wrong:
        with pytest.raises(error):
            call(play, mine, stage, changed)
    call(play, mine, stage, {k: v for k, v in messages.items() if k != NAMES[3]})


def test_a_key_that_another_has_advertised_too_is_refused() -> None:
    play = until("share")
    theirs = open_message(
        play.messages["advertise"][NAMES[1]], Advertisement, NAMES[1], public_hex(key_of(NAMES[1]))
    ).mask_key
    play.messages["advertise"][NAMES[2]] = resigned(
        play.messages["advertise"][NAMES[2]], Advertisement, NAMES[2], mask_key=theirs
    )
    with pytest.raises(RuleError, match="got one twice"):
        call(play, NAMES[0], "share")


def shares_of(play: Play, owner: str) -> list[dict[str, object]]:
    body = open_message(play.messages["share"][owner], SealedShares, owner, public_hex(key_of(owner)))
    return [s.model_dump() for s in body.shares]


def test_a_tampered_box_and_a_share_that_was_not_committed_to_are_refused_by_name() -> None:
    play = until("mask")
    good, owner = dict(play.messages["share"]), NAMES[4]
    for field in ("box", "mask_commitment", "self_commitment"):
        shares = shares_of(play, owner)
        mine = next(s for s in shares if s["holder"] == NAMES[0])
        mine[field] = str(mine[field])[:-1] + ("0" if str(mine[field])[-1] != "0" else "1")
        changed = {**good, owner: resigned(good[owner], SealedShares, owner, shares=tuple(shares))}
        with pytest.raises(RuleError, match=f"^{owner}: its box for {NAMES[0]} "):
            call(play, NAMES[0], "mask", changed)
        # Who holds another box of the same owner has no part in this.
        with pytest.raises(RuntimeError):
            call(play, NAMES[1], "share", {})
    call(play, NAMES[0], "mask", {k: v for k, v in good.items() if k != owner})


def test_shares_for_others_than_the_holders_are_refused_by_name() -> None:
    play = until("mask")
    good, owner = play.messages["share"], NAMES[4]
    shares = shares_of(play, owner)
    for other in (shares[1:], shares[::-1], [*shares, {**shares[0], "holder": "stranger"}]):
        changed = {**good, owner: resigned(good[owner], SealedShares, owner, shares=tuple(other))}
        with pytest.raises(RuleError, match=f"^{owner}: wanted a share for each of"):
            call(play, NAMES[0], "mask", changed)


def test_who_was_shown_other_advertisements_is_found_before_anything_is_masked() -> None:
    play = Play(a_round())
    every = play.step("advertise")
    fewer = {k: v for k, v in every.items() if k != NAMES[6]}
    play.messages["share"] = {name: play.members[name].share(fewer if name == NAMES[0] else every) for name in NAMES}
    with pytest.raises(RuleError, match=f"^{NAMES[0]}: wanted shares for the advertisements"):
        call(play, NAMES[1], "mask")


def test_a_member_masks_with_enough_partners_or_not_at_all() -> None:
    # Of eight neighbours on a ring of thirty only three are let through: a coordinator's own people, say.
    play = Play(a_round(30, neighbours=8))
    for stage in ("advertise", "share"):
        play.step(stage)
    me = names_of(30)[0]
    body = open_message(play.messages["share"][me], SealedShares, me, public_hex(key_of(me)))
    near = [s.holder for s in body.shares if s.holder != me]
    assert len(near) == 8
    for left_out in (near[:3], near[:5]):
        some = {k: v for k, v in play.messages["share"].items() if k not in left_out}
        if len(left_out) == 5:
            with pytest.raises(RuleError, match="mask: wanted at least 6 partners of 8, got 3"):
                call(play, me, "mask", some)
        else:
            with pytest.raises(RuleError, match="wanted at least 6 partners of 8, got 5"):
                call(play, me, "mask", some)
    call(play, me, "mask", {k: v for k, v in play.messages["share"].items() if k not in near[:2]})


def test_two_lists_of_survivors_open_nothing() -> None:
    """The attack that masks alone do not stop: some are told that a victim dropped out, others that it did not."""
    for half in range(1, 7):
        play = until("confirm")
        every, victim = play.messages["mask"], NAMES[6]
        without = {k: v for k, v in every.items() if k != victim}
        for i, name in enumerate(NAMES):
            told = without if i < half and name != victim else every
            play.messages.setdefault("confirm", {})[name] = play.members[name].confirm(told)
        revealed: dict[str, set[str]] = {"mask": set(), "self": set()}
        for name in NAMES:
            for some in itertools.chain([play.messages["confirm"]], lists(play.messages["confirm"], name)):
                try:
                    data = play.members[name].reveal(some)
                except (PeerError, RuntimeError):
                    continue
                body = open_message(data, Reveal, name, public_hex(key_of(name)))
                revealed[next(s.of for s in body.shares if s.owner == victim)].add(name)
        assert min(len(holders) for holders in revealed.values()) == 0


def lists(confirmations: Mapping[str, bytes], name: str) -> list[dict[str, bytes]]:
    """The confirmations that say the same as ``name``'s own: the best that a coordinator can hand it."""
    same = open_message(confirmations[name], Confirmation, name, public_hex(key_of(name))).survivors
    bodies = {n: open_message(d, Confirmation, n, public_hex(key_of(n))) for n, d in confirmations.items()}
    return [{n: d for n, d in confirmations.items() if bodies[n].survivors == same}]


def test_no_member_reveals_both_secrets_of_anybody() -> None:
    play = Play(a_round(), {NAMES[5]: "mask"})
    play.run()
    for name, data in play.messages["reveal"].items():
        shares = open_message(data, Reveal, name, public_hex(key_of(name))).shares
        assert sorted(s.owner for s in shares) == sorted(NAMES)
        assert {s.owner for s in shares if s.of == "mask"} == {NAMES[5]}


def test_a_delta_of_another_shape_or_beyond_the_grid_is_the_callers_bug() -> None:
    play = until("mask")
    good = delta_of(NAMES[0])
    name = next(iter(good.values))
    for q in (good[name][:1], good[name] * 0 + (1 << 24) + 1):
        with pytest.raises(ValueError, match="delta: wanted"):
            play.members[NAMES[0]].mask(play.messages["share"], GridTensors({**good.values, name: q}), 1)


def test_every_round_has_its_own_secrets() -> None:
    source = random.Random(1).randbytes
    members = [Member(a_round(), NAMES[0], key_of(NAMES[0]), source) for _ in range(2)]
    said = [open_message(m.advertise(), Advertisement, NAMES[0], public_hex(key_of(NAMES[0]))) for m in members]
    assert len({k for a in said for k in (a.mask_key, a.box_key)}) == 4
