"""Networks from options: what the families share, and a network by name."""

from typing import Any

from hpc_stres.errors import ConfigError
from hpc_stres.models.interaction import Interaction
from hpc_stres.models.layer_table import DEPTHS
from hpc_stres.models.resnet import Temporal, TrunkOptions
from hpc_stres.models.trunks import AnyTrunkOptions
from hpc_stres.models.trunks.inception import FULL_WIDTH, InceptionOptions
from hpc_stres.registry import MODELS
from hpc_stres.registry.model import JointOptions, ModelOptions, NetworkRequest, TrunkSection


def trunks_of(request: NetworkRequest, temporal: Temporal) -> dict[str, TrunkOptions]:
    """What each stream's ResNet is built from."""
    return {
        stream: resnet_options(getattr(request.options, stream), request, temporal)
        for stream in MODELS.get(request.options.name).streams
    }


def frame_trunks_of(request: NetworkRequest) -> dict[str, AnyTrunkOptions]:
    """What each stream's trunk, of any family, is built from; none of them looks along time."""
    return {
        stream: frame_trunk_options(getattr(request.options, stream), request)
        for stream in MODELS.get(request.options.name).streams
    }


def frame_trunk_options(trunk: TrunkSection, request: NetworkRequest) -> AnyTrunkOptions:
    """A stream's section of the config, as a trunk of its family takes it."""
    if trunk.family == "resnet":
        return resnet_options(trunk, request, "none")
    return InceptionOptions(
        width=trunk.width or FULL_WIDTH,
        norm_group=request.norm_group,
        norm_average=request.options.norm_average,
    )


def resnet_options(
    trunk: TrunkSection, request: NetworkRequest, temporal: Temporal
) -> TrunkOptions:
    """A stream's section of the config, as the trunk takes it."""
    options = request.options
    padding = options.temporal_padding if isinstance(options, JointOptions) else "zeros"
    return TrunkOptions(
        stages=tuple(trunk.stages or DEPTHS[trunk.depth or 50]),
        width=trunk.width or 64,
        variant=trunk.variant or "torchvision",
        temporal=temporal,
        temporal_padding=padding,
        norm_group=request.norm_group,
        norm_average=options.norm_average,
    )


def interaction_of(options: ModelOptions, trunks: dict[str, TrunkOptions]) -> Interaction:
    """The interaction that a joint network's options ask for."""
    assert isinstance(options, JointOptions)
    channels = trunks["appearance"].stage_channels
    others = trunks["motion"].stage_channels
    if len(channels) != len(others) or (options.direction != "off" and channels != others):
        raise ConfigError(
            f"the streams meet channel by channel, but their stages have {list(channels)} (appearance) and "
            f"{list(others)} (motion)\nGive both the same width and number of stages."
        )
    return Interaction(
        options.operation, options.direction, options.placement, options.learned_scale, channels
    )


_TRUNK_KEYS = ("stages", "variant")


def build_model(
    name: str,
    num_classes: int,
    depth: int = 50,
    width: int = 64,
    norm_group: int | None = None,
    **options: Any,
) -> Any:
    """A network by name.

    Options: `stages` (units a stage in place of `depth`'s) and `variant` (torchvision, msra) of
    every trunk, `dropout`, and whatever the model's own options are (`hpc-stres describe NAME`
    lists them). `appearance` and `motion` may be TrunkSections of their own.
    """
    try:
        family = MODELS.get(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    known = {f for f in family.options.__dataclass_fields__ if f != "name"}
    unknown = sorted(set(options) - known - {*_TRUNK_KEYS, "dropout"})
    if unknown:
        raise ValueError(
            f"no option {unknown[0]!r}; there are {', '.join(sorted({*known, *_TRUNK_KEYS, 'dropout'}))}"
        )
    if depth not in DEPTHS and not options.get("stages"):
        raise ValueError(f"no depth {depth}; there are {', '.join(map(str, DEPTHS))}")
    stages = tuple(options.pop("stages", None) or DEPTHS[depth])
    if len(family.streams) == 2 and min(stages) < 2:
        raise ValueError(
            f"{name} joins its streams at the second unit of each stage; stages are {stages}"
        )
    trunk = TrunkSection(stages=stages, width=width, variant=options.pop("variant", None))
    dropout = options.pop("dropout", 0.0)
    trunks = {stream: options.pop(stream, trunk) for stream in family.streams}
    section = family.options(name=name, **trunks, **options)
    return build_network(section, num_classes, norm_group, dropout)


def build_network(
    options: ModelOptions, num_classes: int, norm_group: int | None, dropout: float
) -> Any:
    """The network that a model's options describe."""
    family = MODELS.get(options.name)
    return family.build(NetworkRequest(num_classes, options, norm_group, dropout))
