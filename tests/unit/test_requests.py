"""Requests: a pure function of config and step, and what the paper and the code say of frames, crops and flips."""

import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from hpc_stres import counter
from hpc_stres.config.loading import load_config
from hpc_stres.data.requests import (
    HALF_STACK,
    MARK_BITS,
    MOST_SHORT,
    Sampler,
    choose_frames,
    digest,
    flow_stack,
    mark,
    order_of_pass,
    requests,
    requests_at,
    sampler,
    spread_frames,
    total,
)
from hpc_stres.errors import ConfigError
from hpc_stres.layout import plan
from hpc_stres.phases.train import TrainPhase
from hpc_stres.store.reader import VideoRow
from tests.conftest import ROOT, altered, tiny_config

STEPS = range(40)


def row(number, frames=100, height=256, width=340):
    return VideoRow(
        id=f"v{number}", label=number % 5, frames=frames, flow_pairs=max(frames - 1, 1), height=height, width=width,
        shard=0, rgb_first=0, flow_first=0, rgb_sha256="", flow_sha256="",
    )  # fmt: skip


def make(name, **changes):
    phase = load_config(ROOT / "configs" / "ucf101.yaml", ["data.root=x"]).phase(name)
    rows = [row(number) for number in range(50)]
    return Sampler(
        3,
        name,
        altered(phase, global_batch=32, norm_group=4, **changes),
        224,
        256,
        rows,
        tuple(range(50)),
    )


def many(source):
    return [request for step in STEPS for request in requests(source, step)]


def test_the_same_step_is_the_same_batch_whatever_was_asked_before():
    source = make("st_resnet")
    late = requests(source, 17)
    assert [requests(source, step) for step in (3, 17, 5)][1] == late
    assert digest(late) == digest(requests(make("st_resnet"), 17))
    assert requests(source, 18) != late
    assert requests(replace(source, seed=4), 17) != late
    assert requests(replace(source, name="other"), 17) != late


@pytest.mark.parametrize("sizes", [(32, 4), (30, 7), (5, 5), (14, 1)])
@pytest.mark.parametrize("world", [1, 2, 3, 5, 8, 32])
def test_what_the_ranks_compute_is_the_batch_and_their_marks_add_up_to_its_own(sizes, world):
    plain = make("appearance", crop_shared_by="group")
    source = replace(plain, phase=altered(plain.phase, global_batch=sizes[0], norm_group=sizes[1]))
    whole = requests(source, 9)
    try:
        layout = plan(*sizes, world, max_micro_batch=sizes[1])
    except ConfigError:
        assert world > 1, "one rank takes any batch in micro-steps of its own"
        return
    parts = [
        requests_at(source, 9, share.positions) for shares in layout.shares for share in shares
    ]
    assert sorted(request for part in parts for request in part) == whole
    assert sum(total(9, part) for part in parts) % 2**MARK_BITS == total(9, whole)
    assert f"{total(9, whole):016x}" == digest(whole, 9)


def test_a_mark_tells_every_part_of_a_request_and_its_step():
    request = requests(make("st_resnet"), 0)[3]
    other = [
        request._replace(position=4), request._replace(video=request.video + 1), request._replace(label=9),
        request._replace(frames=request.frames[::-1]), request._replace(flow=request.flow[::-1]),
        request._replace(box=request.box._replace(left=request.box.left + 1)), request._replace(flip=not request.flip),
    ]  # fmt: skip
    marks = [mark(0, request), mark(1, request), *(mark(0, one) for one in other)]
    assert len(set(marks)) == len(marks)
    assert all(0 <= value < 2**MARK_BITS for value in marks)


def test_numbers_without_a_new_generator_are_those_of_a_new_one():
    draw = random.Random(2)
    for _ in range(200):
        name = draw.choice(["motion", "st_resnet", "a phase", "\u00e9"])
        key = (
            draw.choice([0, 7, 2**31, 2**62]),
            name,
            draw.randrange(40),
            draw.randrange(2**40),
            draw.randrange(512),
        )
        count = draw.randrange(1, 12)
        assert counter.uniforms(*key, count) == counter.generator(*key).random(count).tolist()


def test_the_order_of_a_pass_is_the_permutation_of_its_counter():
    for count in (1, 50, MOST_SHORT + 3):
        expected = counter.generator(3, "motion", counter.ORDER, 5).permutation(count)
        assert (order_of_pass(3, "motion", count, 5) == expected).all()


def test_every_video_is_seen_once_in_each_pass():
    batches = [request.video for request in many(make("motion"))]
    for start in range(0, len(batches) - 50, 50):
        assert Counter(batches[start : start + 50]) == Counter(range(50))
    assert batches[:50] != batches[50:100]


def test_a_chunk_is_a_frame_and_the_ten_flows_around_it():
    for request in many(make("st_resnet")):
        for frame, stack in zip(request.frames, request.flow, strict=True):
            assert stack == tuple(range(frame - HALF_STACK, frame + HALF_STACK))
            assert stack[0] >= 0
            assert stack[-1] <= 98


def strides(batch):
    return {
        b - a for request in batch for a, b in zip(request.frames, request.frames[1:], strict=False)
    }


def test_strides_of_each_phase():
    assert strides(many(make("st_resnet"))) == set(range(5, 16))
    star = [r for r in many(make("st_resnet_star")) if r.frames[-1] - r.frames[0] < 80]
    assert strides(star) >= set(range(1, 8))
    assert all(len(r.frames) == 11 for r in many(make("st_resnet_star")))
    assert all(len(r.frames) == 1 for r in many(make("motion")) + many(make("appearance")))


def test_single_frames_cover_what_is_valid():
    assert {r.frames[0] for r in many(make("motion"))} <= set(range(5, 95))
    appearance = {r.frames[0] for r in many(make("appearance"))}
    assert min(appearance) < 5
    assert max(appearance) > 94


def test_a_stride_that_does_not_fit_shrinks_to_cover_the_video():
    phase = make("st_resnet").phase
    assert choose_frames(phase, 30, 0.99, 0.5) == (5, 10, 15, 19, 24)
    assert choose_frames(phase, 15, 0.0, 0.5) == (5, 6, 7, 8, 9)
    assert choose_frames(phase, 11, 0.0, 0.5) == (5, 5, 5, 5, 5)


@pytest.mark.parametrize("frames", [1, 2, 5, 10])
def test_very_short_videos_are_padded_symmetrically(frames):
    phase = make("st_resnet").phase
    pairs = max(frames - 1, 1)
    chosen = choose_frames(phase, frames, 0.5, 0.5)
    assert len(chosen) == 5
    assert all(0 <= frame < frames for frame in chosen)
    for frame in chosen:
        assert all(0 <= pair < pairs for pair in flow_stack(frame, pairs, "mirror"))
    assert flow_stack(5, 4, "mirror") == (0, 1, 2, 3, 3, 2, 1, 0, 0, 1)
    assert flow_stack(5, 4, "repeat") == (0, 1, 2, 3, 0, 1, 2, 3, 0, 1)


def test_released_windows_lie_on_the_lattice_and_never_start_at_its_first_point():
    source = make("st_resnet", window="released")
    for request in many(source):
        stride = request.frames[1] - request.frames[0]
        assert (request.frames[0] - 5) % stride == 0
        assert request.frames[0] > 5 or 5 + 5 * stride > 94


def test_one_crop_inside_the_frame_and_a_fair_flip():
    for name in ("motion", "appearance", "st_resnet"):
        batch = many(make(name))
        for request in batch:
            box = request.box
            assert 0 <= box.top <= box.top + box.height <= 256
            assert 0 <= box.left <= box.left + box.width <= 340
        assert 0.44 < sum(r.flip for r in batch) / len(batch) < 0.56


def test_motion_crops_are_corners_and_centre_of_four_sizes():
    batch = many(make("motion"))
    assert {r.box.height for r in batch} == {r.box.width for r in batch} == {256, 224, 192, 168}
    assert len({(r.box.height, r.box.width) for r in batch}) == 16, (
        "height and width are drawn independently"
    )
    places = Counter(
        (r.box.top / (256 - r.box.height), r.box.left / (340 - r.box.width))
        for r in batch
        if r.box.height < 256
    )
    assert set(places) == {(0, 0), (0, 1), (1, 0), (1, 1), (0.5, 0.5)}


def test_border_crops_stay_near_the_corners():
    corners = Counter()
    for request in many(make("st_resnet")):
        box = request.box
        assert 168 <= box.height <= 256
        assert 168 <= box.width <= 280
        if min(256 - box.height, 340 - box.width) < 20:
            continue
        down, right = box.top / (256 - box.height), box.left / (340 - box.width)
        assert min(down, 1 - down) < 0.28
        assert min(right, 1 - right) < 0.28
        corners[down > 0.5, right > 0.5] += 1
    assert len(corners) == 4
    released = Counter()
    for request in many(make("st_resnet", border_corners="two")):
        box = request.box
        if min(256 - box.height, 340 - box.width) >= 20:
            released[box.top / (256 - box.height) > 0.5, box.left / (340 - box.width) > 0.5] += 1
    assert set(released) == {(False, False), (True, True)}


def test_what_a_group_shares_in_the_released_code():
    source = make("appearance", crop_shared_by="group")
    batch = requests(source, 0)
    groups = 8
    for group in range(groups):
        assert len({request.flip for request in batch[group::groups]}) == 1
    joint = requests(make("st_resnet", stride_shared_by="group"), 0)
    for group in range(groups):
        assert len(strides(joint[group::groups])) == 1
    assert len(strides(joint)) > 1


def test_an_option_does_not_shift_the_other_draws():
    plain, shared = make("st_resnet"), make("st_resnet", stride_shared_by="group")
    for one, two in zip(requests(plain, 2), requests(shared, 2), strict=True):
        assert (one.video, one.box, one.flip) == (two.video, two.box, two.flip)


def test_test_chunks_are_evenly_spaced():
    assert spread_frames(186, 25)[0] == 5
    assert spread_frames(186, 25)[-1] == 180
    assert len(spread_frames(186, 25)) == 25
    assert spread_frames(1, 25) == (0,) * 25
    assert spread_frames(100, 1) == (49,)
    assert sorted(spread_frames(29, 25)) == list(spread_frames(29, 25))


def test_a_config_and_a_phase_are_enough(data_root, store):
    config = tiny_config(data_root)
    assert requests(config, 3, "st_resnet") == requests(sampler(config, "st_resnet", store), 3)
    assert len(requests(config, 0)) == 10
    assert isinstance(config.phase("motion"), TrainPhase)


def every_start(phase, count, stride_draw=0.0):
    draws = [(place + 0.5) / 1000 for place in range(1000)]
    return {choose_frames(phase, count, stride_draw, draw)[0] for draw in draws}


def test_every_valid_start_is_drawn_the_first_and_the_last_too():
    assert every_start(make("appearance").phase, 37) == set(range(37))
    assert every_start(make("motion").phase, 40) == set(range(5, 35))
    joint = make("st_resnet").phase
    # Five chunks at stride 5 span 20 frames; the last stack of flow ends with the video.
    assert every_start(joint, 60) == set(range(5, 35))
    assert every_start(joint, 31) == {5}
    assert every_start(joint, 32) == {5, 6}
    longest = choose_frames(joint, 60, 0.0, 0.9999)
    assert flow_stack(longest[-1], 59, "mirror")[-1] == 58
    released = make("st_resnet", window="released").phase
    # The lattice 5, 10 ... 50: its first point is never a start, the last that leaves five points
    # is.
    assert every_start(released, 60) == {10, 15, 20, 25, 30}


def test_a_split_without_training_videos_is_refused(data_root, store):
    from hpc_stres.errors import UserError

    class Empty:
        rows = store.rows

        def present_rows(self, split, part):
            return np.zeros(0, np.int32)

    with pytest.raises(UserError, match="phase motion: split 1 has no training video"):
        sampler(tiny_config(data_root), "motion", Empty())
