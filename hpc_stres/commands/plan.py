"""Predict hours and node-hours of each phase, and what limits them, from a short measurement
on this machine.

  hpc-stres plan --config configs/ucf101.yaml --nodes 4 --gpus-per-node 4
  hpc-stres plan --config configs/ucf101.yaml --nodes 4 --gpus-per-node 4 --gpu a100   (a GPU that is not here)
  hpc-stres plan --config configs/ucf101.yaml --nodes 4 --run-dir runs/ucf101          (submit.py then asks for it)
  hpc-stres plan --config configs/ucf101.yaml --gpu a100 --shapes 2x4x1440,8x4x240     (which one costs what)

Measure where the jobs will run: in an interactive job on one node, all of whose ranks then measure
at once. With --gpu nothing is measured: hours are a range between speeds that were published for
that GPU. The formulas are in hpc_stres/tools/planner.py, the published speeds and their sources in
gpus.py; `hpc-stres bench plan` checks plans against real runs on one and two processes.
"""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hpc_stres.commands import add_config_arguments, config_path
from hpc_stres.config.cluster import ClusterConfig
from hpc_stres.config.schema import Config

if TYPE_CHECKING:
    from hpc_stres.tools.planner import Speeds

OTHER_NODES = (1, 2, 8, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument(
        "--nodes", type=int, metavar="N", help="nodes of a job (default: the config's)"
    )
    parser.add_argument(
        "--gpus-per-node", type=int, metavar="G", help="GPUs of a node, one rank each"
    )
    parser.add_argument("--phase", default="all", help="all, or names with commas between")
    parser.add_argument(
        "--gpu",
        metavar="KIND",
        help="plan for a GPU that is not here: v100, a100, h100, h200, l40s",
    )
    parser.add_argument(
        "--bench", metavar="FILE", help="figures of `hpc-stres bench step --json`, for --gpu"
    )
    parser.add_argument(
        "--network-gb-per-s", type=float, default=10.0, metavar="X",
        help="all-reduce speed between nodes where no preflight has measured it (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--shapes", metavar="NxGxM,...",
        help="compare jobs of so many nodes x GPUs of a node x minutes, in node-hours and days; auto: 1 to 8 nodes",
    )  # fmt: skip
    parser.add_argument(
        "--run-dir", metavar="D", help="write plan.json there; submit.py asks for its wall times"
    )


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_config
    from hpc_stres.config.recipe import select_phases
    from hpc_stres.errors import ConfigError

    overrides = list(args.overrides)
    for key, value in (("nodes", args.nodes), ("gpus_per_node", args.gpus_per_node)):
        overrides += [f"cluster.{key}={value}"] if value is not None else []
    config = load_config(config_path(args), overrides)
    phases = select_phases(config.phases, args.phase)
    if args.shapes:
        from hpc_stres.launch.shapes import parse_shapes

        parse_shapes(args.shapes, config.cluster)  # refuses before anything is measured
    if args.network_gb_per_s <= 0:
        raise ConfigError("--network-gb-per-s: expected a number above 0")
    if args.bench and not args.gpu:
        raise ConfigError(
            "--bench: it says how fast a GPU that is not here would be; give --gpu as well"
        )
    return (
        _plan_published(config, phases, args) if args.gpu else _plan_measured(config, phases, args)
    )


def _plan_measured(config: Config, phases: list[str], args: argparse.Namespace) -> int:
    """Measure, print, and leave plan.json."""
    from hpc_stres.run.tables import text_table
    from hpc_stres.tools import planner
    from hpc_stres.tools.measure import measure

    speeds = measure(config, phases, args.network_gb_per_s, _run_dir(args))
    plans = planner.predict_all(config, phases, config.cluster.nodes, speeds)
    _print_head(config.cluster, speeds)
    print(text_table(list(planner.HEADINGS), planner.rows(plans)))
    hours = planner.chain_hours(config.phases, {p.name: p for p in plans})
    print(f"\nfrom the first job to the last, without queueing: {hours:.2f} hours\n")
    _print_other_nodes(config, phases, speeds)
    _print_shapes(args, config.cluster, phases, speeds)
    _write(args, planner.as_json(plans, speeds))
    return 0


def _plan_published(config: Config, phases: list[str], args: argparse.Namespace) -> int:
    """A range out of published speeds; submit.py is told the slow end of it."""
    from hpc_stres.run.tables import text_table
    from hpc_stres.tools import gpus, planner

    gpus.published(args.gpu, config.training.precision)  # refuses before torch is imported
    share, source = _step_share(args.bench)
    from hpc_stres.tools.measure import count_needs, network_only

    network = network_only(config, args.network_gb_per_s, _run_dir(args))
    ends = planner.published_speeds(
        config, count_needs(config, phases), args.gpu, share, source, network
    )
    slow, fast = (
        planner.predict_all(config, phases, config.cluster.nodes, speeds) for speeds in ends
    )
    _print_head(config.cluster, ends[0])
    print(
        text_table(
            ["phase", "limit", "hours", "node-hours"], planner.range_rows(config.phases, slow, fast)
        )
    )
    print("\non other numbers of nodes, at the slow end:\n")
    _print_other_nodes(config, phases, ends[0])
    _print_shapes(args, config.cluster, phases, ends[0])
    _write(args, planner.as_json(slow, ends[0]))
    return 0


def _step_share(bench: str | None) -> tuple[float, str]:
    """Our step's speed beside ResNet-50's: of a file of `hpc-stres bench step`, or the one
    that was committed."""
    from hpc_stres.tools import gpus
    from hpc_stres.tools.bench.figures import read_figure

    if bench is None:
        return gpus.STEP_SHARE, gpus.STEP_SHARE_SOURCE
    return read_figure(Path(bench), "step", gpus.SHARE_FIGURE), f"of {bench}"


def _run_dir(args: argparse.Namespace) -> Path | None:
    return Path(args.run_dir) if args.run_dir else None


def _print_head(cluster: "ClusterConfig", speeds: "Speeds") -> None:
    print(f"{cluster.nodes} nodes, {cluster.ranks} ranks; {speeds.source}")
    wire = speeds.wire(cluster.nodes)
    inside = cluster.nodes == 1 and speeds.node is not None
    source = "measured between the ranks of this node" if inside else speeds.network_source
    print(
        f"network: {wire.bytes_per_s / 1e9:.3g} GB/s, {wire.latency_s * 1e6:.0f} us a message, {source}\n"
    )


def _print_other_nodes(config: Config, phases: list[str], speeds: "Speeds") -> None:
    from hpc_stres.run.tables import text_table
    from hpc_stres.tools import planner

    table = planner.comparison(config, phases, speeds, OTHER_NODES)
    print(text_table(["nodes", "hours", "node-hours", "limits"], table))


def _print_shapes(
    args: argparse.Namespace, cluster: "ClusterConfig", phases: list[str], speeds: "Speeds"
) -> None:
    """The shapes that were asked for, side by side."""
    if not args.shapes:
        return
    from hpc_stres.config.loading import load_config
    from hpc_stres.errors import ConfigError
    from hpc_stres.launch import shapes
    from hpc_stres.run.tables import text_table
    from hpc_stres.tools import planner

    costs: dict[shapes.Shape, shapes.Cost | str] = {}
    for shape in shapes.parse_shapes(args.shapes, cluster):
        try:
            own = load_config(config_path(args), [*args.overrides, *shape.overrides])
            plans = planner.predict_all(own, phases, shape.nodes, speeds)
            costs[shape] = shapes.cost(own, plans, shapes.queue_seconds(own, phases[0]))
        except ConfigError as error:
            costs[shape] = str(error).splitlines()[0]
    print("\n" + text_table(list(shapes.HEADINGS), shapes.rows(costs)))


def _write(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """plan.json, where a run folder is given."""
    from hpc_stres.run.paths import RunPaths, write_sealed

    run_dir = _run_dir(args)
    if run_dir is not None:
        write_sealed(RunPaths(run_dir).plan, content)
        print(f"\nwritten: {RunPaths(run_dir).plan}; submit.py asks for these wall times")
