"""Configs of run folders that older versions wrote, as this version writes them."""

from hpc_stres.config.tree import Node

# Options of a phase before there were sections, and where they are now.
MOVED = {
    **{
        key: f"model.{key}"
        for key in ("temporal_pool", "temporal_padding", "conv1_inflation", "conv1_rescale", "norm_average")
    },
    **{
        key: f"clips.{key}"
        for key in (
            "chunks", "stride", "stride_shared_by", "short_video", "crop", "border_corners",
            "crop_shared_by", "antialias",
        )
    },
    "chunk_window": "clips.window",
    **{
        key: f"optimise.{key}"
        for key in (
            "global_batch", "norm_group", "schedule", "dropout", "classifier_only_steps",
            "loss_over_time", "loss_weight_appearance", "loss_weight_motion",
        )
    },
}  # fmt: skip
# Keys of the `cluster` section before `prepare` was a section of it.
OF_PREPARE = {
    "cpu_partition": "partition",
    "prepare_cpus": "cores",
    "prepare_memory_gib": "memory_gib",
}


def gather_prepare(node: Node) -> None:
    """Move what profiles and run folders of older versions say about the job that prepares
    into its section."""
    cluster = node.value.get("cluster")
    if cluster is None or not isinstance(cluster.value, dict):
        return
    for old, new in OF_PREPARE.items():
        given = cluster.value.pop(old, None)
        section = cluster.value.setdefault("prepare", Node({}, cluster.origin))
        if given is not None and isinstance(section.value, dict):
            section.value.setdefault(new, given)


def upgrade(node: Node, place: str) -> None:
    """Change a run folder's config in place: what had no choice then has what was done,
    what moved is moved."""
    data = node.value.get("data")
    if data is not None and isinstance(data.value, dict) and "flow_pyramid" not in data.value:
        given = {key: item.value for key, item in data.value.items()}
        if given.get("flow_frames") is None and given.get("flow_backend") != "dali":
            data.value["flow_pyramid"] = Node(
                "opencv4", f"{place}: written before there was a choice"
            )
    phases = node.value.get("phases")
    if phases is None or not isinstance(phases.value, dict):
        return
    for phase in phases.value.values():
        if isinstance(phase.value, dict) and isinstance(
            getattr(phase.value.get("model"), "value", None), str
        ):
            _into_sections(phase)


def _into_sections(phase: Node) -> None:
    """A flat phase, which held the options of every model at their defaults as well."""
    flat = dict(phase.value)
    model = flat.pop("model")
    sections: dict[str, dict[str, Node]] = {"model": {"name": model}, "clips": {}, "optimise": {}}
    known = _options_of(str(model.value))
    for key, item in flat.items():
        section, _, name = MOVED.get(key, "").partition(".")
        if section == "model" and name not in known:
            continue  # a default that said nothing
        if section:
            sections[section][name] = item
    phase.value.clear()
    phase.value.update({key: item for key, item in flat.items() if key not in MOVED})
    phase.value.update({key: Node(value, phase.origin) for key, value in sections.items()})


def _options_of(model: str) -> set[str]:
    from hpc_stres.registry import MODELS

    return set(MODELS.get(model).options.__dataclass_fields__) if model in MODELS else set()
