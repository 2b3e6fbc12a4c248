"""The sum of a masked round: the plain merge's bytes whoever drops out, and nothing else to be seen."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from commonweal_adapters.aggregate import factor_mean
from commonweal_adapters.delta import LIMIT, GridTensors, write_adapter
from commonweal_adapters.secure_member import flatten
from commonweal_adapters.secure_sum import SecureSum, explain, secure_mean
from commonweal_adapters.source import Delta, Held
from commonweal_protocols.errors import BlobError, PeerError, RuleError
from commonweal_protocols.keys import public_hex
from commonweal_protocols.predicates import Blob
from commonweal_protocols.secure_messages import MaskedInput, Reveal, SealedShares, open_message
from tests.federation import TINY, blob_of, key_of
from tests.secure import ELEMENTS, STAGES, Play, a_round, delta_of, names_of, resigned, weight_of

NAMES = names_of(7)
START = delta_of("start-00", 1 << 22)
DROPS = ("advertise", "share", "mask", "confirm", "reveal")


def filled(q: int) -> GridTensors:
    return GridTensors({name: np.full_like(old, q) for name, old in START.items()})


def plain(names: Sequence[str]) -> bytes:
    return write_adapter(factor_mean(START, [Delta(n, weight_of(n), Held(delta_of(n))) for n in names]), TINY)


def released(total: SecureSum) -> bytes:
    return write_adapter(secure_mean(START, total), TINY)


# -- the same bytes, whoever drops out


@pytest.mark.parametrize("millis", [500, 667])
def test_whoever_drops_out_below_the_threshold_the_release_is_the_plain_one(millis: int) -> None:
    round_ = a_round(millis=millis)
    most = len(NAMES) - round_.quorum
    assert most == {500: 3, 667: 2}[millis]
    for count in range(most + 1):
        for i, gone in enumerate(itertools.combinations(NAMES, count)):
            # Every pattern of who; the stages go round, so that each is met by each number of members.
            drops = {name: DROPS[(i + k) % len(DROPS)] for k, name in enumerate(gone)}
            total = Play(round_, drops).run()
            left = [n for n in NAMES if drops.get(n, "confirm") in ("confirm", "reveal")]
            assert list(total.weights) == left
            assert total.dropped == tuple(n for n in gone if drops[n] == "mask")
            assert released(total) == plain(left)


@pytest.mark.parametrize("stages", list(itertools.product(DROPS, repeat=2)), ids="-".join)
def test_two_of_seven_may_drop_out_at_any_two_stages(stages: tuple[str, str]) -> None:
    drops = dict(zip((NAMES[1], NAMES[5]), stages, strict=True))
    total = Play(a_round(), drops).run()
    assert released(total) == plain(list(total.weights))


@pytest.mark.parametrize("stage", DROPS)
def test_one_more_than_the_threshold_allows_ends_the_round_without_a_sum(stage: str) -> None:
    with pytest.raises(RuleError, match=r"wanted (at least )?5 "):
        Play(a_round(), dict.fromkeys(NAMES[:3], stage)).run()


def test_on_a_ring_each_masks_with_a_few_and_the_sum_is_still_the_plain_one() -> None:
    names = names_of(30)
    drops = {names[3]: "mask", names[11]: "mask", names[20]: "reveal", names[25]: "advertise"}
    play = Play(a_round(30, neighbours=8, millis=500), drops)
    total = play.run()
    left = [n for n in names if drops.get(n, "reveal") == "reveal"]
    assert released(total) == plain(left)
    partners = [
        open_message(d, MaskedInput, n, public_hex(key_of(n))).partners for n, d in play.messages["mask"].items()
    ]
    assert max(len(p) for p in partners) == 8


def test_the_sum_is_exact_at_the_ends_of_the_range() -> None:
    ends = {n: LIMIT if i % 3 else -LIMIT for i, n in enumerate(NAMES)}
    total = Play(a_round(), delta=lambda n: filled(ends[n])).run()
    assert set(total.values.tolist()) == {sum(weight_of(n) * ends[n] for n in NAMES)}


def test_a_mean_beyond_the_grid_is_refused_as_the_plain_merge_does_it() -> None:
    total = Play(a_round(), delta=lambda _: filled(LIMIT)).run()
    secure_mean(filled(0), total)
    with pytest.raises(BlobError, match=f"wanted at most 2\\^24 = {LIMIT} grid steps, got {LIMIT + 1}"):
        secure_mean(filled(1), total)


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
    play = Play(a_round())
    for stage in ("advertise", "share", "mask"):
        play.step(stage)
    late = play.messages["mask"].pop(NAMES[2])
    for stage in ("confirm", "reveal"):
        play.drops = {NAMES[2]: "confirm"}
        play.step(stage)
    total = play.sum()
    assert released(total) == plain([n for n in NAMES if n != NAMES[2]])
    play.messages["mask"][NAMES[2]] = late
    with pytest.raises(PeerError, match=f"wanted its share of {NAMES[2]}'s self secret, got the other"):
        play.sum()


# -- what is refused, by name


def test_a_share_that_is_not_the_sealed_one_is_refused_by_its_holders_name() -> None:
    play = Play(a_round(), {NAMES[5]: "mask"})
    play.run()
    good = dict(play.messages["reveal"])
    for owner in (NAMES[1], NAMES[5]):
        body = open_message(good[NAMES[3]], Reveal, NAMES[3], public_hex(key_of(NAMES[3])))
        shares = [s.model_dump() for s in body.shares]
        for s in shares:
            if s["owner"] == owner:
                s["share"] = f"{int(s['share'], 16) ^ 1:066x}"
        play.messages["reveal"] = {**good, NAMES[3]: resigned(good[NAMES[3]], Reveal, NAMES[3], shares=tuple(shares))}
        with pytest.raises(
            RuleError, match=f"^{NAMES[3]}: its share of {owner} is not the one that {owner} has sealed"
        ):
            play.sum()
        del play.messages["reveal"][NAMES[3]]
        assert released(play.sum()) == plain([n for n in NAMES if n != NAMES[5]])


def test_a_share_of_somebody_unknown_and_two_of_one_owner_are_refused_by_name() -> None:
    play = Play(a_round())
    play.run()
    good = dict(play.messages["reveal"])
    share = open_message(good[NAMES[3]], Reveal, NAMES[3], public_hex(key_of(NAMES[3]))).shares[0].model_dump()
    for shares, message in (
        (({**share, "owner": "stranger"},), "holds no share of stranger"),
        ((share, {**share, "of": "mask"}), "both secrets of one must not be known"),
        (({**share, "of": "mask"},), f"wanted its share of {NAMES[0]}'s self secret"),
    ):
        play.messages["reveal"] = {**good, NAMES[3]: resigned(good[NAMES[3]], Reveal, NAMES[3], shares=shares)}
        with pytest.raises(RuleError, match=f"^{NAMES[3]}: .*{message}"):
            play.sum()


def test_an_owner_whose_shares_do_not_give_what_it_committed_to_is_named() -> None:
    """Every share is the sealed one, and yet they give another seed: the owner has lied to its holders."""

    def lie(stage: str, messages: dict[str, bytes]) -> dict[str, bytes]:
        if stage == "share":
            messages[NAMES[4]] = resigned(messages[NAMES[4]], SealedShares, NAMES[4], seed_commitment="0" * 64)
        return messages

    play = Play(a_round(), tamper=lie)
    play.step("advertise")
    play.step("share")
    # The liar itself plays on as if it had said so.
    play.members[NAMES[4]]._own["share"] = play.messages["share"][NAMES[4]]
    for stage in ("mask", "confirm", "reveal"):
        play.step(stage)
    with pytest.raises(RuleError, match=f"^{NAMES[4]}: the shares that it has left do not give the seed"):
        play.sum()


def test_one_who_leaves_shares_of_another_key_and_drops_out_is_named() -> None:
    play = Play(a_round(), {NAMES[4]: "mask"})
    play.step("advertise")
    play.members[NAMES[4]]._mask_key = X25519PrivateKey.generate()
    for stage in STAGES[1:]:
        play.step(stage)
    with pytest.raises(
        RuleError, match=f"^{NAMES[4]}: the shares that it has left do not give the key that it has adv"
    ):
        play.sum()


def test_an_input_masked_with_others_or_of_another_length_is_refused_by_name() -> None:
    play = Play(a_round())
    play.run()
    good, name = dict(play.messages["mask"]), NAMES[2]
    body = open_message(good[name], MaskedInput, name, public_hex(key_of(name)))
    for changes, message in (
        ({"partners": body.partners[1:]}, "wanted an input masked with"),
        ({"vector": Blob(sha256=body.vector.sha256, size_bytes=8).model_dump()}, f"wanted a vector of {8 * ELEMENTS}"),
    ):
        play.messages["mask"] = {**good, name: resigned(good[name], MaskedInput, name, **changes)}
        with pytest.raises(RuleError, match=f"^{name}: {message}"):
            play.sum()


def test_a_vector_that_is_not_the_signed_one_is_refused_by_name() -> None:
    play = Play(a_round())
    play.run()
    body = open_message(play.messages["mask"][NAMES[2]], MaskedInput, NAMES[2], public_hex(key_of(NAMES[2])))
    vector = play.vectors[body.vector.sha256]
    for other in (vector[:-1], bytes([vector[0] ^ 1]) + vector[1:]):
        play.vectors[body.vector.sha256] = other
        with pytest.raises(BlobError, match=f"masked vector of {NAMES[2]}: wanted sha256 {body.vector.sha256}"):
            play.sum()


def test_a_sum_out_of_the_honest_range_is_refused_without_a_name() -> None:
    def huge(stage: str, messages: dict[str, bytes]) -> dict[str, bytes]:
        if stage == "mask":
            name = NAMES[1]
            body = open_message(messages[name], MaskedInput, name, public_hex(key_of(name)))
            vector = np.frombuffer(play.vectors[body.vector.sha256], "<u8") + np.uint64(1 << 62)
            blob = blob_of(vector.tobytes())
            play.vectors[blob.sha256] = vector.tobytes()
            messages[name] = resigned(messages[name], MaskedInput, name, vector=blob.model_dump())
            play.members[name]._own["mask"] = messages[name]
        return messages

    play = Play(a_round(), tamper=huge)
    with pytest.raises(BlobError, match="some input is out of range, and masks hide whose"):
        play.run()


# -- what can be said of it


def test_the_explanation_names_who_stands_in_the_sum_and_what_nobody_can_prove() -> None:
    round_ = a_round()
    said = explain(round_, Play(round_, {NAMES[0]: "advertise", NAMES[5]: "mask"}).run())
    proved = [line for line in said.splitlines() if line.startswith("proved")]
    assert f"{NAMES[1]}, {NAMES[2]}, {NAMES[3]}, {NAMES[4]}, {NAMES[6]} signed one input" in proved[0]
    assert f"together {sum(weight_of(n) for n in NAMES[1:5]) + weight_of(NAMES[6])}" in proved[0]
    assert f"left out: {NAMES[5]} (dropped out after leaving shares), {NAMES[0]} (before)" in proved[1]
    assert "fewer than 5 of its holders" in said
    for word in ("in range", "robust rules", "influence"):
        assert word in said


def test_the_mean_is_the_fractions_rounded_half_to_even() -> None:
    total = Play(a_round()).run()
    weight = sum(total.weights.values())
    merged = flatten(secure_mean(filled(0), total))
    assert merged.tolist() == [round(Fraction(int(v), weight)) for v in total.values]
