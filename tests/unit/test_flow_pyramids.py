"""The two pyramids of TV-L1: against an oracle, on large motions, and what stores and runs say."""

import copy
import subprocess
from dataclasses import replace

import numpy as np
import pytest
import yaml

from hpc_stres.config.loading import dump, load_config, load_resolved, load_run
from hpc_stres.config.schema import DataConfig
from hpc_stres.data.flow import encode_flow, tvl1
from hpc_stres.errors import FieldError, UserError
from hpc_stres.store.location import Settings, flow_name, store_folder
from tests.conftest import run_python, tiny_config
from tests.unit.test_flow import emulated, inner
from tests.unit.tvl1_oracle import tvl1_oracle

BORDER = 24


def waves(period, ys, xs, seed=0):
    """A texture that is known everywhere: no interpolation favours a solver."""
    random = np.random.default_rng(seed)
    angle, phase = random.uniform(0, 2 * np.pi, (2, 60))
    wave = 2 * np.pi / period * random.uniform(0.3, 1, 60)
    total = np.zeros(np.shape(ys))
    for a, p, k in zip(angle, phase, wave, strict=True):
        total += np.cos(k * (np.cos(a) * xs + np.sin(a) * ys) + p)
    return np.clip(np.rint(128 + 40 * total / np.sqrt(30)), 0, 255).astype(np.uint8)


def translated(period, dx, dy, size=(128, 160), seed=0):
    ys, xs = np.mgrid[: size[0], : size[1]].astype(float)
    return np.stack([waves(period, ys, xs, seed), waves(period, ys - dy, xs - dx, seed)])


def shifted(sigma, dx, dy, size=(256, 288)):
    """Blurred noise, which has waves of every length, cut out of one scene in two places."""
    import cv2

    rows, cols = size
    noise = np.random.default_rng(7).integers(0, 256, (rows + 40, cols + 40)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), sigma)
    levels = np.rint(128 + 40 * (smooth - smooth.mean()) / smooth.std())
    scene = np.clip(levels, 0, 255).astype(np.uint8)
    cuts = [scene[20 - y : 20 - y + rows, 20 - x : 20 - x + cols] for x, y in ((0, 0), (dx, dy))]
    return np.ascontiguousarray(np.stack(cuts))


def rotated(period, degrees, size=(136, 176)):
    """Two frames and the true motion of each pixel."""
    ys, xs = np.mgrid[: size[0], : size[1]].astype(float)
    cy, cx = (size[0] - 1) / 2, (size[1] - 1) / 2
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    dy, dx = ys - cy, xs - cx
    second = waves(period, -s * dx + c * dy + cy, c * dx + s * dy + cx)
    frames = np.stack([waves(period, ys, xs), second])
    return frames, np.stack([c * dx - s * dy - dx, s * dx + c * dy - dy])


def error(flow, truth):
    """Mean end-point error away from the border, where one of the frames shows nothing."""
    return float(inner(np.hypot(*(flow - np.asarray(truth))), BORDER).mean())


# -- the oracle -----------------------------------------------------------------------------------

ORACLE_SIZES = [
    (96, 128), (37, 53), (64, 33), (33, 64), (32, 31), (31, 90), (30, 90), (16, 16), (15, 40),
    (9, 7), (3, 2), (1, 30), (30, 1), (1, 1),
]  # fmt: skip


@pytest.mark.parametrize("size", ORACLE_SIZES)
def test_paper_is_the_oracles_algorithm_at_every_size(size):
    for period, (dx, dy) in ((8, (1.5, -2.0)), (16, (-3.0, 0.5))):
        frames = translated(period, dx, dy, size)
        difference = np.linalg.norm(tvl1(frames) - tvl1_oracle(frames), axis=1)
        assert difference.mean() < 0.002, (period, dx, dy)


@pytest.mark.parametrize("kernels", [tvl1, emulated])
def test_paper_is_the_oracles_algorithm_on_every_motion(kernels):
    random = np.random.default_rng(3)
    ys, xs = np.mgrid[:61, :84].astype(float)
    cases = {
        "rest": np.stack([waves(12, ys, xs)] * 2),
        "constant": np.stack([np.full((61, 84), level, np.uint8) for level in (0, 255)]),
        "brighter": np.stack([waves(12, ys, xs) // 2, waves(12, ys, xs) // 2 + 20]),
        "rotation": rotated(12, 3, (61, 84))[0],
        "four frames": np.stack([waves(12, ys - 0.4 * n**2, xs + n) for n in range(4)]),
        "half black": np.where(xs < 40, 0, translated(8, 2, 1, (61, 84))).astype(np.uint8),
        "faint noise": (100 + random.integers(0, 3, (2, 61, 84))).astype(np.uint8),
    }
    for name, frames in cases.items():
        difference = np.linalg.norm(kernels(frames) - tvl1_oracle(frames), axis=1)
        assert difference.mean() < 0.005, name


def test_the_oracle_itself_finds_a_motion_and_differs_from_the_other_pyramid():
    frames = translated(10, 5, -3, (64, 80))
    oracle = tvl1_oracle(frames)[0]
    assert error(oracle, [[[5.0]], [[-3.0]]]) < 0.01
    assert np.linalg.norm(tvl1(frames, pyramid="opencv4") - oracle[None], axis=1).mean() > 0.05


# -- large motions --------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [1.5, 2.5, 5])
@pytest.mark.parametrize(("distance", "bound"), [(6, 0.005), (10, 0.005), (14, 0.005), (18, 0.01)])
def test_paper_follows_large_translations(sigma, distance, bound):
    steps = [(distance, 0), (0, -distance), (-round(0.8 * distance), round(0.6 * distance))]
    for dx, dy in steps:
        found = tvl1(shifted(sigma, dx, dy))[0]
        assert error(found, [[[dx]], [[dy]]]) < bound, (dx, dy)


@pytest.mark.parametrize("sigma", [1.5, 2.5])
def test_opencv4_loses_them(sigma):
    """Else there were no need for another pyramid; this fails if both names mean one thing."""
    for distance in (6, 10, 14):
        frames, truth = shifted(sigma, distance, 0, (128, 160)), [[[distance]], [[0.0]]]
        lost = error(tvl1(frames, pyramid="opencv4")[0], truth)
        assert lost > 5 * error(tvl1(frames)[0], truth)
        assert distance < 10 or lost > 5


@pytest.mark.parametrize(("degrees", "bound"), [(2, 0.02), (6, 0.04), (9, 0.12)])
def test_paper_follows_rotations(degrees, bound):
    for period in (8, 16):
        frames, truth = rotated(period, degrees)
        ours = error(tvl1(frames)[0], truth)
        assert ours < bound
        assert ours < error(tvl1(frames, pyramid="opencv4")[0], truth)


def test_both_pyramids_agree_with_the_reference_frames_that_show_their_pictures(clips):
    """The second and the fourth, at rest; the others show motion that no pair of pictures has."""
    import cv2

    folder = clips / "tvl1_reference"

    def read(name, number):
        return cv2.imread(str(folder / f"{name}_{number:05d}.jpg"), cv2.IMREAD_GRAYSCALE)

    pictures = np.stack([read("img", number) for number in range(1, 11)])
    for pyramid in ("paper", "opencv4"):
        for number in (2, 4):
            flow = tvl1(pictures[number - 1 : number + 1], pyramid=pyramid)
            for axis, plane in zip("xy", encode_flow(flow)[0].astype(float), strict=True):
                assert np.abs(plane - read(axis, number)).mean() < 0.65


# -- as a kernel ----------------------------------------------------------------------------------

STRICT = (
    "-O3",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-std=c++17",
    "-fPIC",
    "-shared",
    "-pthread",
)


def built(tmp_path, *flags, source="tvl1.cpp"):
    from hpc_stres import native

    compiler = native.compiler()
    library = tmp_path / f"{source}.so"
    as_cpp = ("-include", "cmath", "-x", "c++") if source.endswith(".cu") else ()
    command = [compiler, *STRICT, *flags, *as_cpp, str(native.SOURCES / source), "-o", str(library)]
    subprocess.run(command, check=True, capture_output=True)
    return library


@pytest.mark.parametrize("source", ["tvl1.cpp", "tvl1.cu"])
def test_the_sanitizers_see_nothing_at_any_size(tmp_path, source):
    flags = ("-O1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all")
    library = built(tmp_path, *flags, source=source)
    asking = ["g++", "-print-file-name=libasan.so"]
    runtime = subprocess.run(asking, capture_output=True, text=True, check=True)
    code = f"""
import ctypes, random
library = ctypes.CDLL({str(library)!r})
random.seed(0)
for number in range(60 if {source.endswith("cpp")} else 12):
    count, threads = random.randint(1, 3), random.randint(0, 4)
    rows, cols = random.choice([(1, 1), (1, 37), (37, 1), (33, 34), (17, 16)])
    if number % 3:
        rows, cols = random.randint(1, 24), random.randint(1, 24)
    size = (count + 1) * rows * cols
    frames = (ctypes.c_uint8 * size)(*random.choices(range(256), k=size))
    flow = (ctypes.c_float * (2 * count * rows * cols))()
    if {source.endswith("cpp")}:
        assert library.tvl1_batch(frames, count, rows, cols, number % 2, threads, flow) == 0
    else:
        options, work = (number % 7, ctypes.c_size_t(number % 5 * 20_000)), (ctypes.c_double * 2)()
        size = count, rows, cols, number % 2
        assert library.tvl1_batch_gpu_in(frames, *size, *options, flow, work) == 0
        assert library.tvl1_batch_gpu(frames, *size, flow) == 0
"""
    env = {"LD_PRELOAD": runtime.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    run = run_python("-c", code, env=env)
    assert run.returncode == 0, run.stderr[-2000:]


def test_too_little_memory_is_a_sentence_and_not_the_end_of_the_process():
    code = """
import numpy as np, resource
from hpc_stres import native
from hpc_stres.data.flow import tvl1
from hpc_stres.errors import UserError
tvl1(np.zeros((2, 8, 8), np.uint8), threads=2)
frames = np.zeros((3, 3000, 2000), np.uint8)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (300 << 20),) * 2)
for threads in (1, 2):
    try:
        tvl1(frames, threads=threads)
    except UserError as error:
        print(error)
"""
    run = run_python("-c", code)
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("TV-L1: no memory left for frames of 2000x3000") == 2


# -- which flow a store holds ---------------------------------------------------------------------


def test_the_store_of_another_pyramid_is_another_store_and_says_so(tmp_path):
    paper, old = tiny_config(tmp_path), tiny_config(tmp_path, "data.flow_pyramid=opencv4")
    assert paper.data.flow_pyramid == "paper"
    assert store_folder(paper) != store_folder(old)
    assert Settings.of(paper.data).as_json()["flow_pyramid"] == "paper"
    assert flow_name(Settings.of(paper.data).as_json()) == "native paper"
    assert flow_name(Settings.of(old.data).as_json()) == "native opencv4"


def test_stores_that_do_not_say_hold_opencv4(tmp_path):
    before = {"short_side": 64, "jpeg_quality": 95, "flow_backend": "native"}
    assert flow_name(before) == "native opencv4"
    assert Settings.stored(before) == Settings(64, 95, "native", "opencv4")
    for backend in ("dali", "imported"):
        assert flow_name(before | {"flow_backend": backend}) == backend
        assert Settings.stored(before | {"flow_backend": backend}).flow_pyramid == "none"
    now = Settings(64, 95, "cuda", "paper")
    assert Settings.stored(now.as_json()) == now


def test_results_say_which_flow_was_tested(tmp_path, data_root, store):
    from hpc_stres.evaluation.evaluate import summarise
    from hpc_stres.run.paths import read_json

    config = tiny_config(data_root)
    for settings, name in (
        (store.manifest["settings"], "native paper"),
        ({"short_side": 64, "jpeg_quality": 95, "flow_backend": "native"}, "native opencv4"),
    ):
        store_of_then = copy.copy(store)
        store_of_then.manifest = store.manifest | {"settings": settings}
        assert summarise(config, tmp_path, store_of_then)["flow"] == name
        assert read_json(tmp_path / "results.json")["flow"] == name


def test_a_pyramid_without_effect_is_refused():
    for other in ({"flow_backend": "dali"}, {"frames": "f", "flow_frames": "f"}):
        assert Settings.of(DataConfig(**other)).flow_pyramid == "none"
        with pytest.raises(FieldError, match="flow_pyramid: expected none"):
            DataConfig(**other, flow_pyramid="opencv4")


def test_a_run_of_an_older_version_keeps_its_flow(tmp_path):
    """Its config has no key for what there was no choice of; today's default mixes two flows."""
    config = tiny_config(tmp_path / "data")
    run = tmp_path / "run"
    run.mkdir()
    written = yaml.safe_load(dump(config))
    del written["data"]["flow_pyramid"]
    (run / "config.yaml").write_text(yaml.safe_dump(written))
    (run / "provenance.json").write_text("{}")
    for read in (
        load_run(run),
        load_resolved(run / "config.yaml"),
        load_config(run / "config.yaml"),
    ):
        assert read.data.flow_pyramid == "opencv4"
    assert load_run(run, ["data.flow_pyramid=paper"]).data.flow_pyramid == "paper"
    (run / "config.yaml").write_text(dump(config))
    assert load_run(run) == config


def test_prepared_flow_is_that_of_the_settings(tmp_path, data_root):
    from hpc_stres.listings.splits import Video
    from hpc_stres.prepare.extract import prepare_video
    from hpc_stres.prepare.video import decode, encode_jpeg, gray, resize

    path = sorted(data_root.rglob("*.avi"))[0]
    frames = np.stack([gray(resize(frame, 48, 48)) for frame in decode(path)])[:5]
    for pyramid in ("paper", "opencv4"):
        settings = Settings(48, 95, "native", pyramid)
        planes = [p for pair in encode_flow(tvl1(frames, pyramid=pyramid)) for p in pair]
        found = prepare_video(Video("v", path, 0), settings)
        assert found.flow[: len(planes)] == [encode_jpeg(plane, 95) for plane in planes]
    with pytest.raises(UserError, match="another tool extracts it"):
        prepare_video(Video("v", path, 0), replace(settings, flow_backend="imported"))


def test_flow_preview_draws_either(tmp_path, data_root):
    path = sorted(data_root.rglob("*.avi"))[0]
    pictures = []
    for pyramid in ("paper", "opencv4"):
        out = tmp_path / f"{pyramid}.png"
        arguments = (
            "flow-preview",
            path,
            "--out",
            out,
            "--frames",
            2,
            "--short-side",
            64,
            "--pyramid",
            pyramid,
        )
        run = run_python("-m", "hpc_stres", *arguments)
        assert run.returncode == 0, run.stderr
        pictures.append(out.read_bytes())
    assert pictures[0] != pictures[1]
