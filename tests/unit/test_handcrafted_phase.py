"""A phase of hand-crafted features: the same bytes however it is made, its column, its fusion with other scores."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from hpc_stres import registry
from hpc_stres.config.loading import load_config
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.evaluation.fusion import l2_normalised
from hpc_stres.evaluation.published import HANDCRAFTED_PROTOCOL, PUBLISHED_PROTOCOL, published_for
from hpc_stres.evaluation.scores import Scores
from hpc_stres.evaluation.table import MIXED
from hpc_stres.handcrafted import phase
from hpc_stres.handcrafted.extraction import Extraction, Videos
from hpc_stres.handcrafted.parts import read_arrays, write_arrays
from hpc_stres.launch.jobs import is_done, make_jobs
from hpc_stres.parallel.world import find_world
from hpc_stres.prepare.run import prepare
from hpc_stres.registry import PHASE_KINDS
from hpc_stres.registry.phase import entry_point
from hpc_stres.run.paths import RunPaths
from hpc_stres.run.product import read_done
from hpc_stres.store.held_out import held_out
from hpc_stres.store.labels import label_table
from hpc_stres.store.reader import Store
from tests.conftest import ROOT, TINY
from tests.forks import Command
from tests.unit.listed import own_config, rows_of, write_csv
from tests.unit.untrained import evaluate_here
from tests.waiting import PATIENCE_SECONDS, wait_until

pytest.importorskip("sklearn")
SMALL = (
    "scales: 1, step: 8, length: 6, gaussians: 2, vocabulary_videos: 5, vocabulary_samples: 400,"
)
SMALL += " descriptors: [hof, trajectory, mbhx], cost: 10"
PHASES = [
    f"extensions=['{ROOT / 'tests/unit/extensions/own_rest.py'}']",
    f"phases.idt={{kind: handcrafted, {SMALL}, least_motion_pixels: 0.5}}",
    "phases.prior={kind: prior, prefers: 3}",
    "phases.both={kind: fuse, starts_from: [idt, prior], weights: [3, 1]}",
]


@pytest.fixture(autouse=True)
def _as_before():
    with registry.temporarily():
        yield


def run(data_root, run_dir, name, *overrides, workers=1):
    config = load_config(
        TINY, [f"data.root={data_root}", *PHASES, f"data.workers={workers}", *overrides]
    )
    kind = PHASE_KINDS.get(config.phase(name).kind)
    assert entry_point(kind.run)(config, name, run_dir, find_world({}), ())
    return config


@pytest.fixture(scope="module")
def run_dir(data_root, tmp_path_factory):
    """A run whose phase of hand-crafted features was made by one worker, and evaluated beside another kind."""
    folder = tmp_path_factory.mktemp("made by one") / "run"
    with registry.temporarily():
        for name in ("idt", "prior", "both"):
            run(data_root, folder, name)
        evaluate_here(folder)
    return folder


def command(data_root, run_dir, workers=2):
    words = ["--config", TINY, "--phase", "idt", "--run-dir", run_dir]
    for override in (f"data.root={data_root}", *PHASES, f"data.workers={workers}"):
        words += ["--set", override]
    return [sys.executable, "-m", "hpc_stres", "train", *map(str, words)]


def wait_for_pieces(process, parts, count):
    """Until it has made so many Fisher vectors, or has ended."""
    wait_until(
        lambda: process.poll() is not None or len(list(parts.glob("fisher-*"))) >= count,
        "Fisher vectors",
    )


def stopped_midway(data_root, folder, pieces):
    """A run folder in which the phase was stopped with so many Fisher vectors, and what it said.

    A machine may be so fast that the phase ends first: then it is tried again in another folder.
    """
    for attempt in range(5):
        run_dir = folder / str(attempt)
        process = Command(command(data_root, run_dir)[1:])
        parts = RunPaths(run_dir).phase("idt").root / "parts"
        try:
            wait_for_pieces(process, parts, pieces)
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGTERM)
            process.wait(PATIENCE_SECONDS)
        finally:
            process.kill()
        if process.returncode != 0:
            break
    assert process.returncode == 75, process.errors
    return run_dir, parts, process.errors


def same_products(one, other):
    return all(
        (RunPaths(one).phase("idt").root / name).read_bytes()
        == (RunPaths(other).phase("idt").root / name).read_bytes()
        for name in phase.PRODUCTS
    )


@pytest.mark.distributed
def test_stopped_damaged_and_resumed_by_others_it_has_the_bytes_of_one(
    data_root, run_dir, tmp_path
):
    stopped, parts, said = stopped_midway(data_root, tmp_path, 3)
    assert "what is made is kept" in said
    made = sorted(parts.glob("fisher-*"))
    assert 3 <= len(made) < 32
    # One piece torn by a kill, and one with a changed bit.
    made[0].write_bytes(made[0].read_bytes()[:100])
    damaged = bytearray(made[1].read_bytes())
    damaged[len(damaged) // 2] ^= 1
    made[1].write_bytes(damaged)
    # By two processes it was begun; the ranks of MPI finish it, where there are any.
    mpirun = (
        ["mpirun", "--allow-run-as-root", "--oversubscribe", "-n", "2"]
        if shutil.which("mpirun")
        else []
    )
    words = [*mpirun, *command(data_root, stopped)]
    result = subprocess.run(
        words, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_SECONDS
    )
    assert result.returncode == 0, result.stderr
    assert same_products(stopped, run_dir)
    assert not parts.exists()


@pytest.mark.parametrize("damage", ["none", "torn", "bit", "edited", "gone"])
def test_only_a_whole_piece_is_taken_as_made(tmp_path, damage):
    path = tmp_path / "p.npz"
    write_arrays(path, "key", {"a": np.arange(300)})
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= damage == "bit"
    path.write_bytes(content[: 100 if damage == "torn" else None])
    if damage == "edited":
        whole = dict(np.load(path))
        np.savez(path, **{**whole, "a": whole["a"] + 1})
    if damage == "gone":
        path.unlink()
    assert (read_arrays(path, "key") is not None) == (damage == "none")
    assert read_arrays(path, "other") is None


def test_its_column_and_the_fused_one_are_in_the_table(run_dir, data_root):
    config = load_config(run_dir / "config.yaml", [f"data.root={data_root}"])
    idt, prior, both = (
        Scores.load(RunPaths(run_dir).scores(1, name)) for name in ("idt", "prior", "both")
    )
    np.testing.assert_allclose(
        both.logits, 0.75 * l2_normalised(idt.logits) + 0.25 * l2_normalised(prior.logits)
    )
    results = evaluate_here(run_dir)["splits"]["1"]
    assert [(name, column["title"]) for name, column in results.items()] == [
        ("prior", "Prior"), ("idt", "IDT"), ("both", "IDT +Prior"),
    ]  # fmt: skip
    assert results["idt"]["videos"] == 8
    assert is_done(config, RunPaths(run_dir), "idt")
    job = make_jobs(config, run_dir.parent / "another", ["idt"], True)[0]
    assert (job.nodes, job.ranks_per_node, job.gpus_per_node) == (1, 1, 0)


def scorer(config, run_dir, store):
    """What scores a video of the store with a phase's product alone."""
    from hpc_stres.handcrafted import classifier, encoding, tracks, video

    arrays = read_arrays(RunPaths(run_dir).phase("idt").root / "classifier.npz", "idt")
    options = phase.job_of(config, "idt", run_dir).options
    words = {
        name: encoding.Vocabulary.of(
            {key.partition("_")[2]: a for key, a in arrays.items() if key.startswith(f"{name}_")}
        )
        for name in options.descriptors
    }
    made = classifier.Classifier(arrays["weights"], arrays["biases"])

    def score(number):
        described = tracks.describe(video.read_video(store, number), options)
        return made.scores(encoding.encode(described.arrays, words)[None])[0]

    return score


def test_the_product_scores_a_video_again(run_dir, data_root, store):
    scored = read_arrays(RunPaths(run_dir).phase("idt").root / "scores.npz", "idt")
    score = scorer(load_config(TINY, [f"data.root={data_root}", *PHASES]), run_dir, store)
    again = score(store.number[scored["ids"][2]])
    assert again.shape == (8,)
    np.testing.assert_allclose(again, scored["logits"][2], atol=1e-5)


def test_scores_of_a_part_that_was_made_again_are_not_fused(run_dir, data_root, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(run_dir, copy)
    run(data_root, copy, "both")
    done = read_done(RunPaths(copy).phase("both"))
    (copy / "phases" / "prior" / "done.json").unlink()
    with pytest.raises(UserError, match="phase prior is not finished"):
        run(data_root, copy, "both")
    _finish_prior_otherwise(copy)
    with pytest.raises(UserError, match="phase prior was made again after both was"):
        evaluate_here(copy)
    run(data_root, copy, "both")
    assert read_done(RunPaths(copy).phase("both"))["fuses"] != done["fuses"]
    assert "both" in evaluate_here(copy)["splits"]["1"]


def _finish_prior_otherwise(run_dir):
    from hpc_stres.run.product import write_product

    counts = RunPaths(run_dir).phase("prior").root / "prior.json"
    counts.write_text(counts.read_text().replace("]", " ]"))
    write_product(run_dir, "prior", ["prior.json"], {})


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("phases.idt.starts_from=[motion]", "expected none: it reads the store only"),
        ("phases.idt.length=10", "expected a multiple of 3"),
        ("phases.idt.patch=31", "expected an even number"),
        ("phases.idt.descriptors=[hog, hog]", "each once"),
        ("phases.idt.descriptors=[hug]", "did you mean hog"),
        ("phases.idt.skips=[2, 1]", "the smallest first"),
        ("phases.idt.skips=[]", "expected different numbers"),
        ("phases.idt.gaussians=1000", "expected 1000 .gaussians. or more"),
        ("phases.idt.cost=0", "expected a number above 0"),
        ("phases.idt.chunks=3", "unknown key"),
        ("phases.both.starts_from=[idt]", "expected two or more phases"),
        ("phases.both.starts_from=[idt, idt]", "expected two or more phases"),
        ("phases.both.starts_from=[idt, nothing]", "no phase 'nothing'"),
        ("phases.both.weights=[1]", "expected 2 numbers"),
        ("phases.both.weights=[0, 0]", "not all 0"),
        ("phases.both.weights=[1, -1]", "numbers of 0 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(override, words):
    with pytest.raises(ConfigError, match=words):
        load_config(TINY, [*PHASES, override])


def test_the_recipe_has_the_papers_chain_and_the_demonstration_its_schedules():
    for one, other in (("recipe=handcrafted", "recipe=nips2016"), (None, None)):
        files = (
            (TINY, TINY)
            if one
            else (ROOT / "configs/binding_handcrafted.yaml", ROOT / "configs/binding.yaml")
        )
        ours, theirs = (
            load_config(file, [key] if key else [])
            for file, key in zip(files, (one, other), strict=True)
        )
        assert {name: ours.phase(name) for name in theirs.phases} == dict(theirs.phases)
        assert set(ours.phases) - set(theirs.phases) == {
            "idt",
            "mifs",
            "st_resnet_star_idt",
            "st_resnet_star_mifs",
        }


def test_only_the_published_features_stand_beside_published_figures():
    chosen = [
        "recipe=handcrafted",
        "phases.other={kind: fuse, starts_from: [st_resnet_star, idt], weights: [2, 1]}",
    ]
    config = load_config(TINY, chosen)
    assert config.phase("idt").published == {"ucf101": 86.4, "hmdb51": 61.7}
    assert config.phase("st_resnet_star_idt").published == {"ucf101": 94.6, "hmdb51": 70.3}
    assert config.phase("st_resnet_star_idt").title == "ST-ResNet* +IDT"
    assert [config.phase(name).published for name in ("mifs", "st_resnet_star_mifs", "other")] == [
        {},
        {},
        {},
    ]
    assert load_config(TINY, [*chosen, "phases.idt.gaussians=64"]).phase("idt").published == {}


def test_published_figures_stand_beside_columns_of_several_protocols():
    shown = {"top1": 50.0, "top5": 90.0, "videos": 96, "of": 96, "interval95": [40.0, 60.0]}
    both = f"{PUBLISHED_PROTOCOL}; {HANDCRAFTED_PROTOCOL}"
    words = {
        "net": PUBLISHED_PROTOCOL,
        "idt": HANDCRAFTED_PROTOCOL,
        "both": both,
        "quick": "quick: one clip",
    }
    table = {
        name: {**shown, "protocol": text, "published": {"ucf101": 80.0 + number}}
        for number, (name, text) in enumerate(words.items())
    }
    results = {
        "official": "ucf101",
        "protocol": MIXED,
        "splits": {"1": table, "2": table, "3": table},
    }
    assert published_for(results) == {"net": 80.0, "idt": 81.0, "both": 82.0}
    assert published_for({**results, "splits": {"1": table}}) is None
    assert published_for({**results, "official": None}) is None


def test_a_piece_depends_on_settings_seed_and_content(data_root, store, tmp_path):
    jobs = [
        phase.job_of(load_config(TINY, [f"data.root={data_root}", *PHASES, *more]), "idt", tmp_path)
        for more in (
            [],
            ["phases.idt.cost=1"],
            ["phases.idt.step=9"],
            ["phases.idt.hog=colour"],
            ["seed=8"],
        )
    ]
    assert len({job.video_key(store.rows[0]) for job in jobs}) == 5
    assert jobs[0].video_key(store.rows[0]) != jobs[0].video_key(store.rows[1])


@pytest.mark.parametrize(("train", "scored"), [([], [0]), ([0], [])])
def test_a_split_without_training_or_test_videos_is_refused(
    data_root, store, tmp_path, train, scored
):
    job = phase.job_of(load_config(TINY, [f"data.root={data_root}", *PHASES]), "idt", tmp_path)
    with pytest.raises(UserError, match=f"no {'test' if train else 'training'} videos"):
        Extraction(job, store, Videos(train, scored, np.eye(8, dtype=bool)), None, quiet=True)


def test_held_out_videos_are_scored_and_not_trained_on(data_root, store):
    config = load_config(TINY, [f"data.root={data_root}", "evaluation.validation_share=0.34"])
    videos = phase.videos_of(store, config)
    held = held_out(store, config)
    assert held
    assert sorted([*videos.train, *held]) == sorted(store.present(1, "train"))
    assert sorted(videos.scored) == sorted([*store.present(1, "test"), *held])
    assert (videos.members == np.eye(8, dtype=bool)).all()


def test_videos_of_several_classes_train_a_machine_for_each_class(root, tmp_path):
    """All but the scoring of the parts: of own videos with one or two classes, some held out."""
    rows = rows_of(root, 14)
    for number, row in enumerate(rows):
        row[1] = ("jump|walk", "walk", "jump|sit")[number // 2 % 3]
    write_csv(root, rows)
    share = "evaluation.validation_share=0.2"
    config = own_config(root, "data.labels=multi", share, *PHASES[1:2], "data.workers=1")
    store = Store(prepare(config, quiet=True))
    kind = PHASE_KINDS.get("handcrafted")
    assert entry_point(kind.run)(config, "idt", tmp_path / "run", find_world({}), ())
    table = evaluate_here(tmp_path / "run")["splits"]["1"]["idt"]
    assert table["videos"] == 7
    assert table["validation"]["videos"] == len(held_out(store, config)) == 1
    made = Scores.load(RunPaths(tmp_path / "run").scores(1, "idt"))
    sets = {
        row.id: set(np.flatnonzero(label_table(store, config.data)[row.label]))
        for row in store.rows
    }
    assert [set(np.flatnonzero(row)) for row in made.labels] == [sets[name] for name in made.ids]
    # Each machine tells the videos that it was trained on: those of its class, also where they have another one.
    score = scorer(config, tmp_path / "run", store)
    for number in phase.videos_of(store, config).train:
        assert set(np.flatnonzero(score(number) > 0)) == sets[store.rows[number].id]
