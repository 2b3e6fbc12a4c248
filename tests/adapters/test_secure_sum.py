"""The sum of a masked round: the plain merge's bytes anyone who drops out, and nothing else to be seen."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from commonweal_adapters.exact.weighted_sum import factor_mean
from commonweal_adapters.files.delta import LIMIT, GridTensors, write_adapter
from commonweal_adapters.files.source import Delta, Held
from commonweal_adapters.secure.masked_sum import secure_mean
from commonweal_adapters.secure.member import flatten
from commonweal_protocols.base.errors import BlobError, PeerError
from commonweal_protocols.fold.masked_round import explain
from commonweal_protocols.statements.rounds import Update
from commonweal_protocols.statements.secure_messages import SealedShares
from tests.kit.federation import TINY, blob_of
from tests.kit.secure import STAGES, Message, Play, a_round, delta_of, names_of, weight_of

NAMES = names_of(7)
START = delta_of("start-00", 1 << 22)
DROPS = STAGES


def filled(q: int) -> GridTensors:
    return GridTensors({name: np.full_like(old, q) for name, old in START.items()})


def plain(names: Sequence[str]) -> bytes:
    return write_adapter(factor_mean(START, [Delta(n, weight_of(n), Held(delta_of(n))) for n in names]), TINY)


def released(play: Play) -> bytes:
    return write_adapter(secure_mean(START, play.sum(), play.weight()), TINY)


# -- the same bytes, no matter who drops out


@pytest.mark.parametrize("millis", [500, 667])
def test_whoever_drops_out_below_the_threshold_the_release_is_the_plain_one(millis: int) -> None:
    round_ = a_round(millis=millis)
    most = len(NAMES) - round_.terms.threshold(len(NAMES))
    assert most == {500: 3, 667: 2}[millis]
    for count in range(most + 1):
        for i, gone in enumerate(itertools.combinations(NAMES, count)):
            # Every pattern of who; the stages go round, so that each is met by each number of members.
            drops = {name: DROPS[(i + k) % len(DROPS)] for k, name in enumerate(gone)}
            play = Play(round_, drops)
            play.run()
            left = [n for n in NAMES if drops.get(n, "confirm") in ("confirm", "reveal")]
            assert list(play.masking.survivors) == left
            assert play.masking.sealed.keys() - set(left) == {n for n in gone if drops[n] == "mask"}
            assert released(play) == plain(left)


@pytest.mark.parametrize("stages", list(itertools.product(DROPS, repeat=2)), ids="-".join)
def test_two_of_seven_may_drop_out_at_any_two_stages(stages: tuple[str, str]) -> None:
    drops = dict(zip((NAMES[1], NAMES[5]), stages, strict=True))
    play = Play(a_round(), drops).until("reveal")
    play.step("reveal")
    assert released(play) == plain(play.masking.survivors)


@pytest.mark.parametrize("stage", DROPS)
def test_one_more_than_the_threshold_allows_ends_the_round_without_a_sum(stage: str) -> None:
    with pytest.raises(PeerError, match=r"wanted (at least )?5 "):
        Play(a_round(), dict.fromkeys(NAMES[:3], stage)).run()


def test_on_a_ring_each_masks_with_a_few_and_the_sum_is_still_the_plain_one() -> None:
    names = names_of(30)
    drops = {names[3]: "mask", names[11]: "mask", names[20]: "reveal", names[25]: "advertise"}
    play = Play(a_round(30, neighbours=8, millis=500), drops)
    play.run()
    left = [n for n in names if drops.get(n, "reveal") == "reveal"]
    assert released(play) == plain(left)
    assert max(len(update.partners) for update in play.updates.values()) == 8


def test_the_sum_is_exact_at_the_ends_of_the_range() -> None:
    ends = {n: LIMIT if i % 3 else -LIMIT for i, n in enumerate(NAMES)}
    total = Play(a_round(), delta=lambda n: filled(ends[n])).run()
    assert set(total.tolist()) == {sum(weight_of(n) * ends[n] for n in NAMES)}


def test_a_mean_beyond_the_grid_is_refused_as_the_plain_merge_does_it() -> None:
    play = Play(a_round(), delta=lambda _: filled(LIMIT))
    total = play.run()
    secure_mean(filled(0), total, play.weight())
    with pytest.raises(BlobError, match=f"wanted at most 2\\^24 = {LIMIT} grid steps, got {LIMIT + 1}"):
        secure_mean(filled(1), total, play.weight())


# -- what the coordinator sees


def test_masked_vectors_look_like_noise_and_equal_inputs_look_unlike() -> None:
    same = delta_of(NAMES[0], 3)
    play = Play(a_round(), delta=lambda _: same)
    play.run()
    vectors = list(play.vectors.values())
    assert len(set(vectors)) == len(NAMES)
    for one, two in itertools.combinations(vectors, 2):
        gap = (np.frombuffer(one, "<u8") - np.frombuffer(two, "<u8")).view(np.int64)
        assert np.abs(gap).min() > 1 << 40  # without masks: the weights' difference times at most 3
    counts = np.bincount(np.frombuffer(b"".join(vectors), np.uint8), minlength=256)
    wanted = counts.sum() / 256
    chi = float(((counts - wanted) ** 2 / wanted).sum())
    assert abs(chi - 255) < 5 * math.sqrt(2 * 255)


def test_without_a_dropped_members_own_mask_its_late_input_stays_hidden() -> None:
    """It has masked, but its input came late: the others gave its mask key away, and its self-mask still holds."""
    play = Play(a_round(), {NAMES[2]: "mask"}).until("mask")
    late = play.said("mask", NAMES[2])
    assert isinstance(late, Update)
    for stage in ("mask", "confirm", "reveal"):
        play.step(stage)
    assert released(play) == plain([n for n in NAMES if n != NAMES[2]])
    play.updates[NAMES[2]] = late
    play.masking = replace(play.masking, survivors=NAMES)
    with pytest.raises(BlobError, match=f"^{NAMES[2]}: the shares that it has left do not give the seed"):
        play.sum()


# -- what is refused, by name


def test_an_owner_whose_shares_do_not_give_what_it_committed_to_is_named() -> None:
    """Every share is the sealed one, and yet they give another seed: the owner has lied to its holders."""

    def lie(stage: str, name: str, said: Message) -> Message:
        if name == NAMES[4] and isinstance(said, SealedShares):
            return said.model_copy(update={"seed_commitment": "0" * 64})
        return said

    with pytest.raises(BlobError, match=f"^{NAMES[4]}: the shares that it has left do not give the seed"):
        Play(a_round(), tamper=lie).run()


def test_one_who_leaves_shares_of_another_key_and_drops_out_is_named() -> None:
    def lie(stage: str, name: str, said: Message) -> Message:
        if name != NAMES[4] or stage != "seal":
            return said
        liar = play.member(name)
        liar._mask_key = X25519PrivateKey.from_private_bytes(b"k" * 32)
        liar._masking = replace(play.masking, advertised={**play.masking.advertised, name: liar.advertise()})
        return liar.seal()

    play = Play(a_round(), {NAMES[4]: "mask"}, tamper=lie)
    with pytest.raises(
        BlobError, match=f"^{NAMES[4]}: the shares that it has left do not give the key that it has adv"
    ):
        play.run()


def test_a_vector_that_is_not_the_signed_one_is_refused_by_name() -> None:
    play = Play(a_round())
    play.run()
    sha256 = play.updates[NAMES[2]].delta.sha256
    vector = play.vectors[sha256]
    for other in (vector[:-1], bytes([vector[0] ^ 1]) + vector[1:]):
        play.vectors[sha256] = other
        with pytest.raises(BlobError, match=f"masked vector of {NAMES[2]}: wanted sha256 {sha256}"):
            play.sum()


def test_a_sum_out_of_the_honest_range_is_refused_without_a_name() -> None:
    def huge(stage: str, name: str, said: Message) -> Message:
        if name != NAMES[1] or not isinstance(said, Update):
            return said
        vector = np.frombuffer(play.vectors[said.delta.sha256], "<u8") + np.uint64(1 << 62)
        play.vectors[blob_of(vector.tobytes()).sha256] = vector.tobytes()
        return said.model_copy(update={"delta": blob_of(vector.tobytes())})

    play = Play(a_round(), tamper=huge)
    with pytest.raises(BlobError, match="some input is out of range, and masks hide whose"):
        play.run()


def test_without_enough_shares_there_is_no_sum() -> None:
    play = Play(a_round()).until("reveal")
    for name in NAMES[:4]:
        play.hear(name, play.said("reveal", name))
    with pytest.raises(BlobError, match=f"unmask: wanted 5 shares of {NAMES[0]}, got 4"):
        play.sum()


# -- what can be said of it


def test_the_explanation_names_who_stands_in_the_sum_and_what_nobody_can_prove() -> None:
    play = Play(a_round(), {NAMES[0]: "advertise", NAMES[5]: "mask"})
    play.run()
    said = explain(play.masking, {i.institution: i.weight for i in play.inputs()})
    proved = [line for line in said if line.startswith("proved")]
    wanted = ", ".join(f"{NAMES[i]} (weight {weight_of(NAMES[i])})" for i in (1, 2, 3, 4, 6))
    assert f"each of {wanted} signed one input; together {play.weight()}" in proved[0]
    assert f"left out: {NAMES[5]} (dropped out after leaving shares), {NAMES[0]} (before)" in proved[1]
    # Six have advertised, so six hold shares of each: 6 · 667 // 1000 + 1.
    assert any("who has not the help of 5 of its holders" in line for line in said)
    for word in ("in range", "robust rules", "influence"):
        assert any(word in line for line in said)


def test_the_mean_is_the_fractions_rounded_half_to_even() -> None:
    play = Play(a_round())
    total = play.run()
    merged = flatten(secure_mean(filled(0), total, play.weight()))
    assert merged.tolist() == [round(Fraction(int(v), play.weight())) for v in total]
