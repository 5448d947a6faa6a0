"""Predict hours and node-hours of each phase, and what limits them, from a short measurement on this machine.

  hpc-stres plan --config configs/ucf101.yaml --nodes 4 --gpus-per-node 4
  hpc-stres plan --config configs/ucf101.yaml --nodes 4 --gpus-per-node 4 --gpu a100   (a GPU that is not here)
  hpc-stres plan --config configs/ucf101.yaml --nodes 4 --run-dir runs/ucf101          (submit.py then asks for it)

Measure where the jobs will run: in an interactive job on one node. The formulas are in hpc_stres/tools/planner.py;
`hpc-stres bench plan` checks them against real runs on one and two processes.
"""

import argparse
from pathlib import Path

from hpc_stres.commands import add_config_arguments, config_path

OTHER_NODES = (1, 2, 8, 64)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_config_arguments(parser)
    parser.add_argument("--nodes", type=int, metavar="N", help="nodes of a job (default: the config's)")
    parser.add_argument("--gpus-per-node", type=int, metavar="G", help="GPUs of a node, one rank each")
    parser.add_argument("--phase", default="all", help="all, or names with commas between")
    parser.add_argument("--gpu", metavar="KIND", help="plan for a GPU that is not here: v100, a100, h100, h200, l40s")
    parser.add_argument(
        "--network-gb-per-s", type=float, default=10.0, metavar="X",
        help="all-reduce speed between nodes where no preflight has measured it (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--run-dir", metavar="D", help="write plan.json there; submit.py asks for its wall times")


def run(args: argparse.Namespace) -> int:
    from hpc_stres.config.loading import load_config
    from hpc_stres.config.recipe import select_phases
    from hpc_stres.errors import ConfigError
    from hpc_stres.run.paths import RunPaths, write_sealed
    from hpc_stres.run.tables import text_table
    from hpc_stres.tools import planner
    from hpc_stres.tools.measure import measure

    overrides = list(args.overrides)
    for key, value in (("nodes", args.nodes), ("gpus_per_node", args.gpus_per_node)):
        overrides += [f"cluster.{key}={value}"] if value is not None else []
    config = load_config(config_path(args), overrides)
    phases = select_phases(config.phases, args.phase)
    if args.network_gb_per_s <= 0:
        raise ConfigError("--network-gb-per-s: expected a number above 0")
    if args.gpu:
        planner.assumed_kind(args.gpu)
    run_dir = Path(args.run_dir) if args.run_dir else None
    speeds = measure(config, phases, args.network_gb_per_s, run_dir)
    if args.gpu:
        speeds = planner.assumed(speeds, args.gpu, config.training.precision)
    plans = planner.predict_all(config, phases, config.cluster.nodes, speeds)
    print(f"{config.cluster.nodes} nodes, {config.cluster.ranks} ranks; {speeds.source}")
    print(f"network: {speeds.network_bytes_per_s / 1e9:.3g} GB/s, {speeds.network_source}\n")
    print(text_table(list(planner.HEADINGS), planner.rows(plans)))
    hours = planner.chain_hours(config, {p.name: p for p in plans})
    print(f"\nfrom the first job to the last, without queueing: {hours:.2f} hours\n")
    print(
        text_table(["nodes", "hours", "node-hours", "limits"], planner.comparison(config, phases, speeds, OTHER_NODES))
    )
    if run_dir is not None:
        write_sealed(RunPaths(run_dir).plan, planner.as_json(plans, speeds))
        print(f"\nwritten: {RunPaths(run_dir).plan}; submit.py asks for these wall times")
    return 0
