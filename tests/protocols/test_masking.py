"""What may be said in which stage of a masked round: everything else is refused, and changes nothing."""

from collections.abc import Callable

import pytest

from commonweal_protocols.base.errors import RuleError
from commonweal_protocols.statements.secure_messages import Reveal, SealedShares
from commonweal_protocols.statements.values import Blob
from tests.kit.secure import ELEMENTS, STAGES, Message, Play, a_round, names_of

NAMES = names_of(7)
ME = NAMES[2]
Lie = Callable[[Play, Message], Message]


def changed(**fields: object) -> Lie:
    return lambda _, said: said.model_copy(update=fields)


def shares(change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> Lie:
    """A message with other shares in it."""

    def lie(_: Play, said: Message) -> Message:
        assert isinstance(said, SealedShares | Reveal)
        return type(said).model_validate({**said.model_dump(), "shares": tuple(change(said.model_dump()["shares"]))})

    return lie


def with_first(**fields: object) -> Lie:
    return shares(lambda s: [{**s[0], **fields}, *s[1:]])


def another_share(_: Play, said: Message) -> Message:
    assert isinstance(said, Reveal)
    first = said.shares[0]
    wrong = first.model_copy(update={"share": f"{int(first.share, 16) ^ 1:066x}"})
    return said.model_copy(update={"shares": (wrong, *said.shares[1:])})


def a_key_of_another(play: Play, said: Message) -> Message:
    return said.model_copy(update={"box_key": play.masking.advertised[NAMES[0]].mask_key})


LIES: list[tuple[str, Lie, str, str]] = [
    # stage, what is said instead, what the refusal says, why
    ("advertise", a_key_of_another, "got one twice", "a key that somebody has advertised already"),
    ("advertise", changed(box_key="09" + "00" * 31, mask_key="09" + "00" * 31), "got one twice", "one key for both"),
    ("advertise", changed(mask_key="00" * 32), "got one of small order, 0000", "every secret with it is zero"),
    ("advertise", changed(box_key="01" + "00" * 31), "got one of small order, 0100", "another point of small order"),
    ("seal", changed(advertised="0" * 64), "wanted them for the advertisements", "it was shown another list"),
    ("seal", shares(lambda s: s[1:]), f"{ME}: wanted one for each of", "a holder is left out"),
    ("seal", shares(lambda s: s[::-1]), f"{ME}: wanted one for each of", "in another order"),
    ("seal", with_first(holder="stranger"), f"{ME}: wanted one for each of", "for a stranger"),
    ("mask", changed(partners=NAMES[:2]), f"{ME}: wanted it masked with", "masked with fewer"),
    ("mask", changed(partners=()), f"{ME}: wanted it masked with", "not masked"),
    ("mask", changed(delta=Blob(sha256="d" * 64, size_bytes=8)), f"wanted a vector of {8 * ELEMENTS}", "too short"),
    ("confirm", changed(survivors=NAMES[:5]), "confirmation: wanted", "it was shown other survivors"),
    ("reveal", shares(lambda s: s[1:]), f"{ME}: wanted one share of each of", "one is kept back"),
    ("reveal", with_first(owner="stranger"), f"{ME}: wanted one share of each of", "of a stranger"),
    ("reveal", shares(lambda s: [*s, {**s[0], "of": "mask"}]), "wanted one share of each of", "both secrets of one"),
    ("reveal", with_first(of="mask"), f"wanted its share of {NAMES[0]}'s self secret", "the secret that must not be"),
    ("reveal", another_share, f"its share of {NAMES[0]} is not the one that {NAMES[0]} has sealed", "not the sealed"),
]


@pytest.mark.parametrize(("stage", "lie", "words", "why"), LIES, ids=[row[-1] for row in LIES])
def test_what_is_not_as_it_must_be_is_refused(stage: str, lie: Lie, words: str, why: str) -> None:
    play = Play(a_round()).until(stage)
    others = [name for name in NAMES if name != ME]
    for name in others if stage != "mask" else []:
        play.hear(name, play.said(stage, name))
    if stage == "reveal":
        assert play.masking.confirmed == set(NAMES)
    said = play.said(stage, ME)
    before = play.masking
    with pytest.raises(RuleError, match=words):
        play.hear(ME, lie(play, said))
    assert play.masking == before
    play.hear(ME, said)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("said_in", STAGES)
def test_nothing_is_said_in_another_stage_or_twice(stage: str, said_in: str) -> None:
    whole = Play(a_round())
    kept: dict[str, Message] = {}
    for s in STAGES:
        kept[s] = whole.said(s, ME)
        whole.step(s)
    play = Play(a_round()).until(said_in)
    if stage != said_in:
        with pytest.raises(RuleError, match=r"wanted it in the stage|has no part in this stage|already"):
            play.hear(ME, kept[stage])
        return
    play.hear(ME, kept[stage])
    with pytest.raises(RuleError, match="has no part in this stage of the round, or has spoken in it already"):
        play.hear(ME, kept[stage])


@pytest.mark.parametrize("stage", STAGES)
def test_who_was_not_there_before_has_no_part_now(stage: str) -> None:
    before = STAGES[max(0, STAGES.index(stage) - 1)]
    play = Play(a_round(), {ME: before}).until(stage)
    name = "stranger" if stage == "advertise" else ME
    whole = Play(a_round()).until(stage)
    with pytest.raises(RuleError, match="has no part in this stage"):
        play.hear(name, whole.said(stage, ME))


@pytest.mark.parametrize("stage", ["advertise", "seal", "mask"])
def test_a_stage_ends_once_with_all_who_have_spoken_if_they_are_enough(stage: str) -> None:
    play = Play(a_round()).until(stage)
    for name in NAMES[:4]:
        play.hear(name, play.said(stage, name))
    m = play.masking
    with pytest.raises(RuleError, match=f"wanted at least 5 who have spoken in {stage}, got 4"):
        m.end_stage(stage, NAMES[:4], play.updates, 5)  # type: ignore[arg-type]
    with pytest.raises(RuleError, match="wanted all who have spoken"):
        m.end_stage(stage, NAMES[:5], play.updates, 5)  # type: ignore[arg-type]
    play.hear(NAMES[4], play.said(stage, NAMES[4]))
    play.end(stage)
    with pytest.raises(RuleError, match=f"stage end: wanted the end of the stage {play.masking.stage}, got that of"):
        play.masking.end_stage(stage, NAMES[:5], play.updates, 5)  # type: ignore[arg-type]


def test_nothing_is_revealed_before_enough_holders_of_each_owner_have_confirmed() -> None:
    whole = Play(a_round())
    whole.until("reveal")
    reveal = whole.said("reveal", ME)
    play = Play(a_round()).until("confirm")
    for count, name in enumerate((ME, *(n for n in NAMES if n != ME)), 1):
        play.hear(name, play.said("confirm", name))
        if count < 5:
            with pytest.raises(RuleError, match=f"reveal: wanted the survivors confirmed first .* of {NAMES[0]}"):
                play.hear(ME, reveal)
    play.hear(ME, reveal)


def test_the_sum_can_be_had_once_enough_have_revealed() -> None:
    play = Play(a_round()).until("reveal")
    for count, name in enumerate(NAMES, 1):
        play.hear(name, play.said("reveal", name))
        assert play.masking.hidden() == (() if count >= 5 else NAMES)
