"""TV-L1: sign, unit and order on known motion; agreement with OpenCV; GPU kernels; 8-bit encoding.

What tells the two pyramids apart is in test_flow_pyramids.py.
"""

import numpy as np
import pytest

from hpc_stres.data.flow import decode_flow, encode_flow, tvl1
from hpc_stres.errors import UserError
from hpc_stres.prepare.video import decode, gray, resize, target_size

BACKENDS = ("native", "opencv")
PYRAMIDS = ("paper", "opencv4")
REAL = (
    "v_SoccerJuggling_g23_c01.avi",
    "v_BaseballPitch_g01_c01.avi",
    "TrumanShow_wave_f_nm_np1_fr_med_26.avi",
)


def texture(height=96, width=128):
    import cv2

    noise = np.random.default_rng(0).integers(0, 256, (height, width)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.5)
    return 128 + (smooth - smooth.mean()) * 40 / smooth.std()


def moved(picture, matrix):
    import cv2

    size = (picture.shape[1], picture.shape[0])
    warped = cv2.warpAffine(
        picture, np.float32(matrix), size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    return np.clip(np.rint(warped), 0, 255).astype(np.uint8)


def inner(flow, border=16):
    return flow[..., border:-border, border:-border]


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dx", "dy"), [(3, 0), (0, 2), (-2.5, 1.5), (6, -4)])
def test_a_translation_has_its_sign_unit_and_order(backend, pyramid, dx, dy):
    picture = texture()
    frames = np.stack(
        [moved(picture, [[1, 0, 0], [0, 1, 0]]), moved(picture, [[1, 0, dx], [0, 1, dy]])]
    )
    flow = tvl1(frames, backend, pyramid=pyramid)
    assert flow.shape == (1, 2, 96, 128)
    assert flow.dtype == np.float32
    assert abs(float(np.median(inner(flow[0, 0]))) - dx) < 0.15
    assert abs(float(np.median(inner(flow[0, 1]))) - dy) < 0.15


def rotation_error(backend, pyramid, degrees=2.0):
    import cv2

    picture = texture()
    matrix = cv2.getRotationMatrix2D((63.5, 47.5), degrees, 1.0)
    frames = np.stack([moved(picture, [[1, 0, 0], [0, 1, 0]]), moved(picture, matrix)])
    ys, xs = np.mgrid[0:96, 0:128].astype(np.float64)
    truth = np.stack(
        [
            matrix[0, 0] * xs + matrix[0, 1] * ys + matrix[0, 2] - xs,
            matrix[1, 0] * xs + matrix[1, 1] * ys + matrix[1, 2] - ys,
        ]
    )
    return float(np.hypot(*inner(tvl1(frames, backend, pyramid=pyramid)[0] - truth)).mean())


def test_error_on_a_rotation_is_not_above_opencvs():
    ours, reference = rotation_error("native", "opencv4"), rotation_error("opencv", "opencv4")
    assert ours <= reference * 1.02
    assert ours < 0.2


@pytest.mark.parametrize("name", REAL)
def test_ours_agrees_with_opencv_on_real_clips(clips, name):
    frames = []
    for frame in decode(clips / name):
        frames.append(gray(resize(frame, *target_size(*frame.shape[:2], 256))))
        if len(frames) == 3:
            break
    frames = np.stack(frames)
    # With `paper`, OpenCV reduces pictures in another way and sees black outside of them.
    for pyramid, bound in (("opencv4", (0.1, 0.5)), ("paper", (0.2, 0.6))):
        ours, reference = tvl1(frames, pyramid=pyramid), tvl1(frames, "opencv", pyramid=pyramid)
        difference = inner(np.linalg.norm(ours - reference, axis=1))
        assert difference.mean() <= bound[0]
        assert np.percentile(difference, 95) <= bound[1]


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_ours_does_not_depend_on_threads_or_batches(pyramid):
    picture = texture(48, 64)
    frames = np.stack([moved(picture, [[1, 0, 0.7 * n**2], [0, 1, 0.3 * n]]) for n in range(6)])
    whole = tvl1(frames, pyramid=pyramid)
    for threads in (2, 3, 8):
        assert np.array_equal(whole, tvl1(frames, threads=threads, pyramid=pyramid))
    assert np.array_equal(whole[1:3], tvl1(frames[1:4], pyramid=pyramid))
    assert np.array_equal(whole[4:5], tvl1(frames[4:6], pyramid=pyramid))


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_identical_frames_do_not_move_and_one_frame_has_no_flow(pyramid):
    frame = texture(48, 64).astype(np.uint8)
    assert not tvl1(np.stack([frame, frame]), pyramid=pyramid).any()
    assert tvl1(frame[None], pyramid=pyramid).shape == (0, 2, 48, 64)
    flat = np.full((2, 20, 20), 77, np.uint8)
    assert not tvl1(flat, pyramid=pyramid).any()


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (1, 40), (40, 1), (3, 5), (31, 33)])
def test_pictures_of_any_size_have_finite_flow(pyramid, size):
    frames = np.random.default_rng(0).integers(0, 256, (3, *size), np.uint8)
    assert np.isfinite(tvl1(frames, pyramid=pyramid)).all()
    assert np.isfinite(emulated(frames, pyramid)).all()


def test_opencv_says_which_pictures_it_does_not_take():
    with pytest.raises(UserError, match="OpenCV's TV-L1 does not take frames of 40x1"):
        tvl1(np.zeros((2, 1, 40), np.uint8), "opencv")


def test_encoding():
    values = np.array([-25, -20, 0, 0.079, 20, 30], np.float32)
    assert encode_flow(values).tolist() == [0, 0, 128, 128, 255, 255]
    ramp = np.linspace(-20, 20, 1001, dtype=np.float32)
    assert np.abs(decode_flow(encode_flow(ramp)) - ramp).max() <= 20 / 255 + 1e-5


WRONG = {
    "float": np.zeros((2, 4, 4), np.float32),
    "one picture": np.zeros((4, 4), np.uint8),
    "colour": np.zeros((2, 4, 4, 3), np.uint8),
    "no frames": np.zeros((0, 4, 4), np.uint8),
    "no rows": np.zeros((2, 0, 4), np.uint8),
    "no columns": np.zeros((2, 4, 0), np.uint8),
    "unequal": [np.zeros((4, 4), np.uint8), np.zeros((4, 5), np.uint8)],
}


@pytest.mark.parametrize("backend", ["native", "opencv", "cuda", "dali"])
@pytest.mark.parametrize("name", WRONG)
def test_wrong_frames_are_refused_before_any_kernel_sees_them(name, backend):
    with pytest.raises(ValueError, match="tvl1 reads uint8 gray frames"):
        tvl1(WRONG[name], backend)


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="no TV-L1 back end 'brox'"):
        tvl1(np.zeros((2, 4, 4), np.uint8), "brox")
    with pytest.raises(ValueError, match="no TV-L1 pyramid 'opencv3'; there are paper, opencv4"):
        tvl1(np.zeros((2, 4, 4), np.uint8), pyramid="opencv3")


@pytest.mark.parametrize("room", [np.empty((1, 2, 4, 4), np.float32), np.empty((2, 2, 4, 4))])
def test_kernels_do_not_write_into_room_that_is_too_small(room):
    from hpc_stres import native
    from hpc_stres.data import flow

    frames = np.zeros((3, 4, 4), np.uint8)
    with pytest.raises(ValueError, match=r"flow of \(3, 4, 4\) frames is float32 \(2, 2, 4, 4\)"):
        flow.run_kernels(native.load_emulated("tvl1"), frames, room, "paper")
    with pytest.raises(ValueError, match=r"flow of \(3, 4, 4\) frames"):
        flow._native(frames, room, 1, "paper")


# -- the GPU's kernels, here run pixel after pixel on the CPU -------------------------------------


def emulated(frames, pyramid="paper", batch=128):
    from hpc_stres import native
    from hpc_stres.data.flow import run_kernels

    flow = np.empty((len(frames) - 1, 2, *frames.shape[1:]), np.float32)
    run_kernels(native.load_emulated("tvl1"), np.ascontiguousarray(frames), flow, pyramid, batch)
    return flow


@pytest.mark.parametrize("pyramid", PYRAMIDS)
@pytest.mark.parametrize("size", [(48, 64), (33, 47), (17, 80), (9, 7), (1, 30)])
def test_the_kernels_of_the_gpu_compute_what_the_cpus_sweeps_do(size, pyramid):
    picture = texture(96, 128)
    shifts = [(0, 0), (1.5, -0.7), (2.2, 0.4), (-1.0, 1.0)]
    frames = np.stack(
        [moved(picture, [[1, 0, dx], [0, 1, dy]])[: size[0], : size[1]] for dx, dy in shifts]
    )
    # The sums of changes are taken in another order, so that a pair may stop an iteration earlier or later; single
    # pixels at the frame's edge, which one frame does not show, then go another way.
    difference = np.linalg.norm(tvl1(frames, pyramid=pyramid) - emulated(frames, pyramid), axis=1)
    assert float(difference.mean()) < 0.01
    assert float(np.percentile(difference, 95)) < 0.02


@pytest.mark.parametrize("pyramid", PYRAMIDS)
def test_the_kernels_take_any_number_of_pairs_at_once(pyramid):
    picture = texture(40, 48)
    frames = np.stack([moved(picture, [[1, 0, 0.8 * n**2], [0, 1, 0]]) for n in range(6)])
    whole = emulated(frames, pyramid)
    for batch in (1, 2, 3):
        np.testing.assert_array_equal(whole, emulated(frames, pyramid, batch))


def test_the_kernels_become_a_library_for_a_gpu(tmp_path, monkeypatch):
    """Machine code for each kind of GPU, and its registers: test_flow_tiles."""
    from hpc_stres import native

    if native.cuda_compiler() is None:
        pytest.skip("no nvcc on this machine")
    monkeypatch.setenv("HPC_STRES_CACHE", str(tmp_path))
    assert native.load_cuda("tvl1", "sm_90").tvl1_batch_gpu_in


@pytest.mark.parametrize("backend", ["cuda", "dali"])
def test_without_a_gpu_its_back_ends_say_so(backend):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(UserError, match=f"flow back end {backend}: there is no CUDA GPU here"):
        tvl1(np.zeros((2, 32, 32), np.uint8), backend)


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("backend", "pyramid", "mean"),
    [("cuda", "paper", 0.1), ("cuda", "opencv4", 0.1), ("dali", "paper", 0.5)],
)
def test_gpu_back_ends_agree_with_opencv(backend, pyramid, mean):
    picture = texture(256, 340)
    frames = np.stack([moved(picture, [[1, 0, 1.5 * n], [0, 1, -0.5 * n]]) for n in range(4)])
    reference = tvl1(frames, "opencv", pyramid=pyramid)
    difference = np.linalg.norm(tvl1(frames, backend, pyramid=pyramid) - reference, axis=1)
    assert float(inner(difference).mean()) < mean
    if backend == "cuda":
        ours = tvl1(frames, "cuda", pyramid=pyramid) - tvl1(frames, pyramid=pyramid)
        assert float(np.linalg.norm(ours, axis=1).mean()) < 0.01


def test_a_coarse_grid_becomes_one_displacement_a_pixel():
    from hpc_stres.data.flow import from_dali

    found = np.zeros((2, 4, 5, 2), np.float32)
    found[..., 0], found[..., 1] = 3.0, -1.0
    flow = from_dali(found, (15, 18))
    assert flow.shape == (2, 2, 15, 18)
    assert (flow[:, 0] == 3.0).all()
    assert (flow[:, 1] == -1.0).all()
