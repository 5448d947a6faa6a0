"""Ablations: a grid becomes run folders with one phase a variant, and one table with intervals over seeds."""

import pytest
import yaml
from scipy import stats

from hpc_stres.config.loading import load_config, plain
from hpc_stres.errors import ConfigError
from hpc_stres.launch import ablation
from hpc_stres.run.paths import write_sealed
from tests.conftest import ROOT, TINY, run_python

VARIANTS = {
    "add it": {"model.operation": "add"},
    "gate it": {"model.operation": "multiply", "optimise.loss_over_time": "mean"},
    "half": {"model.operation": "add", "training.weight_decay": 0.0},
}


def write(tmp_path, **changes):
    content = {
        "config": str(TINY),
        "column": "st_resnet",
        "seeds": [3, 5],
        "variants": VARIANTS,
        **changes,
    }
    path = tmp_path / "grid.yaml"
    path.write_text(
        yaml.safe_dump({k: v for k, v in content.items() if v is not None}, sort_keys=False)
    )
    return path


def test_variants_of_a_phase_share_a_run_and_its_streams(tmp_path):
    grid = ablation.read_grid(write(tmp_path))
    made = ablation.runs(grid)
    assert [(run.name, run.seed, list(run.variants)) for run in made] == [
        ("seed3", 3, ["add it", "gate it"]), ("weight_decay_0.0-seed3", 3, ["half"]),
        ("seed5", 5, ["add it", "gate it"]), ("weight_decay_0.0-seed5", 5, ["half"]),
    ]  # fmt: skip
    config = ablation.config_of(grid, made[0], ["phases.st_resnet.starts_from=[motion]"], "local")
    assert config.seed == 3
    base = load_config(TINY, ["phases.st_resnet.starts_from=[motion]"])
    added, gated = (config.phases[f"st_resnet_{name}_it"] for name in ("add", "gate"))
    assert plain(added) == plain(base.phases["st_resnet"])
    assert (gated.model.operation, gated.optimise.loss_over_time) == ("multiply", "mean")
    assert (
        ablation.wanted_phases(grid, made[0], config.phases)
        == "motion,st_resnet_add_it,st_resnet_gate_it"
    )
    assert ablation.config_of(grid, made[1], [], "local").training.weight_decay == 0.0


def test_a_grid_is_all_combinations(tmp_path):
    values = {"model.operation": ["add", "multiply"], "clips.chunks": [5, 6, 7]}
    grid = ablation.read_grid(write(tmp_path, variants=None, grid=values))
    assert len(grid.variants) == 6
    assert grid.variants["operation multiply, chunks 6"] == {
        "model.operation": "multiply",
        "clips.chunks": 6,
    }


def test_the_table_has_students_interval_over_seeds(tmp_path):
    grid = ablation.read_grid(write(tmp_path, seeds=[3, 5, 8]))
    scores = {3: 50.0, 5: 60.0, 8: 64.0}
    for seed, top1 in scores.items():
        results = {"splits": {"1": {"st_resnet_add_it": {"top1": top1}}}}
        write_sealed(tmp_path / "out" / f"seed{seed}" / "results.json", results)
    rows = ablation.rows(grid, tmp_path / "out")
    assert rows[0].top1 == scores
    low, high = stats.t.interval(0.95, 2, loc=58.0, scale=stats.sem([50.0, 60.0, 64.0]))
    assert rows[0].mean - rows[0].half_width == pytest.approx(low)
    assert rows[0].mean + rows[0].half_width == pytest.approx(high)
    header, cells = ablation.table(rows, grid.seeds)
    assert header == ["", "top-1 %", "95 % over seeds", "seed 3", "seed 5", "seed 8"]
    assert cells[0] == ["add it", "58.00", f"{low:.1f} - {high:.1f}", "50.00", "60.00", "64.00"]
    assert cells[1] == ["gate it", "-", "", "-", "-", "-"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"column": 3}, "column: expected a phase"),
        ({"seeds": [1, 1]}, "seeds: expected a list of different"),
        ({"seeds": []}, "seeds: expected"),
        ({"grid": {"a.b": [1]}}, "either `variants` .* or `grid`"),
        ({"variants": {"x": 3}}, r"variants\.x: expected a mapping"),
        (
            {"variants": None, "grid": {"model.operation": "add"}},
            r"grid\.model\.operation: expected a list",
        ),
        ({"sedes": [1]}, r"grid\.yaml:\d+: sedes: unknown key"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml: cannot read the config"),
        ({"column": "st_resnt"}, "no phase st_resnt; it has"),
        ({"variants": {"a b": {}, "a-b": {}}}, "two labels give one phase name"),
        ({"variants": {"x": {"model.operaton": "add"}}}, "nearest valid key is operation"),
        (
            {"variants": {"x": {"model.direction": "off", "model.operation": "multiply"}}},
            "`direction` is off",
        ),
    ],
)
def test_a_wrong_grid_is_refused_by_key(tmp_path, changes, words):
    with pytest.raises(ConfigError, match=words):
        load_first(write(tmp_path, **changes))


def load_first(path):
    grid = ablation.read_grid(path)
    return ablation.config_of(grid, ablation.runs(grid)[0], [], "local")


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "ablations").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_shipped_ablation_loads(path):
    grid = ablation.read_grid(path)
    for run in ablation.runs(grid):
        config = ablation.config_of(grid, run, [], "local")
        assert grid.column not in ablation.wanted_phases(grid, run, config.phases).split(",")


def test_ablate_trains_tests_and_prints_one_table(data_root, tmp_path):
    path = write(tmp_path, column="motion", seeds=[3], variants={
        "small groups": {"optimise.norm_group": 2}, "no dropout": {"optimise.dropout": 0.0},
    })  # fmt: skip
    words = ["-m", "hpc_stres", "ablate", path, "--out", tmp_path / "out", "--cluster", "local"]
    chosen = [f"data.root={data_root}", "training.max_steps=1", "evaluation.protocol=quick"]
    settings = [word for text in chosen for word in ("--set", text)]
    result = run_python(*words, "--table")
    assert result.returncode == 1
    assert "no variant has been evaluated yet" in result.stderr
    result = run_python(*words, *settings)
    assert result.returncode == 0, result.stderr + result.stdout
    again = run_python(*words, "--table")
    assert again.returncode == 0
    assert [line.split("  ")[0] for line in again.stdout.splitlines()[-2:]] == [
        "small groups",
        "no dropout",
    ]
    assert again.stdout.splitlines()[-2:] == result.stdout.splitlines()[-2:]
