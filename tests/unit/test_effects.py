"""Every option of every phase of every shipped recipe, changed alone, changes what is done."""

import functools
import hashlib

import numpy as np
import pytest
import torch

from hpc_stres.config.loading import CONFIGS, load_config
from hpc_stres.config.schedule import learning_rate, total_steps
from hpc_stres.data.augment import Levels, flow_scale_and_shift, resize_planes, rgb_scale_and_shift
from hpc_stres.data.requests import Sampler, digest, requests
from hpc_stres.models import Logits
from hpc_stres.models.building import build_phase_model
from hpc_stres.models.weights import save_state
from hpc_stres.phases.train import TrainPhase
from hpc_stres.run.paths import RunPaths
from hpc_stres.store.reader import VideoRow
from hpc_stres.training.first_weights import load_first_weights
from hpc_stres.training.loss import phase_loss
from hpc_stres.training.trainable import freeze
from tests.unit.test_options import OTHERWISE

# Small networks and batches, so that hundreds of changes are tried in seconds.
SMALL = [
    "model.depth=50", "model.stages=[2, 2]", "model.width=4", "model.variant=torchvision", "data.crop=32",
    "data.short_side=64", "training.global_batch=null",
]  # fmt: skip
# What lies over a recipe is none; STFN's options are trained with one by one in test_stfn_phases, and `stm_released`
# has the values that are tried in `released` and `stm_paper`.
RECIPES = sorted(
    path.stem for path in (CONFIGS / "recipes").glob("*.yaml")
    if "." not in path.stem and not path.stem.startswith("stfn") and not path.stem.startswith("stm_released")
)  # fmt: skip
# Acts on trunks of 101 and 152 layers only: test_stm.
DEEP = ("model.temporal_units",)
# What has no effect beside segments.
WITHOUT_STRIDES = ("chunks=1", "stride=[1, 1]", "stride_shared_by=video", "window=anywhere")
# Other values for an option whose first one is what the recipe has already.
SECOND = {
    "model.operation": ["add", "multiply"], "model.temporal_pool": ["after_pool5", "before_average"],
    "model.norm_average": ["sigma", "variance"], "clips.crop": ["corners", "borders"],
    "clips.border_corners": ["two", "four"], "clips.crop_shared_by": ["group", "video"],
    "clips.stride_shared_by": ["group", "video"], "clips.window": ["released", "anywhere"],
    "clips.short_video": ["repeat", "mirror"], "clips.antialias": [False, True],
    "model.conv1_inflation": ["mean", "mirror"], "model.appearance.depth": [101], "model.motion.depth": [101],
    "optimise.global_batch": [320],
}  # fmt: skip
# Whose effect is on files and jobs and not on numbers: shown elsewhere (test_recipe, test_submit).
ON_THE_GRAPH = {"kind", "starts_from", "model.name"}
# A family of trunks that has no other takes no other value; the network of each model shows its own.
FAMILIES = ("model.appearance.family", "model.motion.family")


@pytest.fixture(scope="module")
def imagenet(tmp_path_factory):
    """A made-up trunk of RGB weights, as ImageNet's would be, and another one."""
    folder = tmp_path_factory.mktemp("weights")
    config = load_config(CONFIGS / "binding.yaml", ["recipe=nips2016", *SMALL])
    for name, seed in (("first", 1), ("second", 2)):
        model = build_phase_model(config, "appearance", 1000)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(torch.rand(parameter.shape, generator=generator) * 0.1)
        state = {
            key.removeprefix("appearance."): value for key, value in model.state_dict().items()
        }
        save_state(state, folder / f"{name}.safetensors")
    return folder


def config_of(recipe, imagenet, name, phase_of, *overrides):
    own = [f"model.weights={imagenet / 'first.safetensors'}", "training.norm_group=null"]
    # No parents: then what a network starts from can be read here.
    starts = [f"phases.{other}.starts_from=[]" for other in phase_of]
    return load_config(recipe_file(recipe), [*SMALL, *own, *starts, *overrides])


def recipe_file(recipe):
    return CONFIGS / "recipes" / f"{recipe}.yaml"


def rows():
    """Long videos of two shapes, and one that is shorter than a stack of flow."""
    sizes = [(64, 84, 60), (84, 64, 45), (64, 64, 6), (64, 84, 90)]
    return [
        VideoRow(
            id=f"v{n}", label=n % 3, frames=frames, flow_pairs=frames - 1, height=height, width=width, shard=0,
            rgb_first=0, flow_first=0, rgb_sha256="", flow_sha256="",
        )
        for n, (height, width, frames) in enumerate(sizes * 5)
    ]  # fmt: skip


class Print:
    """What one phase would do, in parts that are made when they are asked for, the cheap ones first."""

    PARTS = ("steps", "loss", "pixels", "requests", "shapes", "moves", "outputs")

    def __init__(self, config, name):
        self.config, self.name, self.phase = config, name, config.phase(name)
        self.made = {}

    def part(self, name):
        if name not in self.made:
            self.made[name] = getattr(self, name)()
        return self.made[name]

    def differs(self, other):
        return any(self.part(name) != other.part(name) for name in self.PARTS)

    def steps(self):
        """The plain numbers that the loop counts by; that it obeys them is shown in test_step and test_layouts."""
        optimise = self.phase.optimise
        rates = [learning_rate(optimise.scaled_schedule, step) for step in range(0, 40000, 97)]
        steps = total_steps(optimise.scaled_schedule)
        return (
            rates,
            steps,
            optimise.global_batch,
            optimise.norm_group,
            optimise.scaled_classifier_only_steps,
        )

    def loss(self):
        return text([loss(self.phase)])

    def pixels(self):
        levels = Levels.of_phase(self.phase)
        picture = torch.arange(40 * 40).remainder(251).to(torch.uint8).view(1, 40, 40)
        resized = resize_planes(picture, self.phase.side - 10, self.phase.clips.antialias).numpy()
        return text([*rgb_scale_and_shift(levels), *flow_scale_and_shift(levels, True), resized])

    def requests(self):
        source = Sampler(
            self.config.seed, self.name, self.phase, self.phase.side, self.config.data.short_side, rows(),
            tuple(range(20)),
        )  # fmt: skip
        return digest([request for step in (0, 1) for request in requests(source, step)[:24]])

    def shapes(self):
        self.model = build_phase_model(self.config, self.name, 3)
        freeze(self.model, self.phase.optimise.trainable)
        moving = {
            name for name, parameter in self.model.named_parameters() if parameter.requires_grad
        }
        return [
            (name, tuple(value.shape), name in moving)
            for name, value in self.model.state_dict().items()
        ]

    def moves(self):
        """The parameters that are trained."""
        self.part("shapes")
        freeze(self.model, self.phase.optimise.trainable)
        return [name for name, value in self.model.named_parameters() if value.requires_grad]

    def outputs(self):
        """In training and in test, after the first weights and one batch in two groups."""
        self.part("shapes")
        load_first_weights(self.model, self.config, self.name, RunPaths(recipe_file("none")))
        generator = torch.Generator().manual_seed(5)
        with torch.no_grad():
            # An identity over time looks at no neighbour; what it looks at shows once it has moved.
            for key, value in self.model.named_parameters():
                if "temporal" in key:
                    value.add_(torch.rand(value.shape, generator=generator) * 0.1)
        chunks = max(self.phase.clips.chunks, self.phase.family.least_chunks)
        clip = torch.rand((4, chunks, 20, self.phase.side, self.phase.side), generator=generator)
        self.model.norm_group = 2
        torch.manual_seed(3)
        with torch.no_grad():
            given = (clip[:, :, :3], clip)
            outputs = [*self.model.train()(*given), *self.model.eval()(*given)]
        return text([output.numpy() for output in outputs if output is not None])


def loss(phase):
    generator = torch.Generator().manual_seed(9)
    scores = [torch.randn(4, 3, 3, generator=generator, dtype=torch.float64) for _ in range(2)]
    streams = [value if used else None for value, used in zip(scores, phase.streams, strict=True)]
    return phase_loss(Logits(*streams), torch.tensor([0, 1, 2, 0]), phase)[0].numpy()


def text(arrays):
    total = hashlib.sha256()
    for array in arrays:
        total.update(repr(np.shape(array)).encode() + np.ascontiguousarray(array).tobytes())
    return total.hexdigest()


@functools.cache
def names_of(recipe):
    phases = load_config(recipe_file(recipe)).phases
    return {name: phase for name, phase in phases.items() if isinstance(phase, TrainPhase)}


def changed(key, value, is_joint):
    """Override texts that change one option; both streams of a joint network have one side, and stages that meet."""
    stream, _, last = key.removeprefix("model.").partition(".")
    if not is_joint or last not in ("side", "depth", "stages", "width"):
        return [f"{key}={value}"]
    other = {"appearance": "motion", "motion": "appearance"}[stream]
    return [f"{key}={value}", f"model.{other}.{last}={value}"]


@pytest.mark.parametrize("recipe", RECIPES)
def test_every_option_of_a_recipe_has_an_effect(recipe, imagenet):
    phases = names_of(recipe)
    without = []
    for name in phases:
        base = config_of(recipe, imagenet, name, phases)
        bare = config_of(recipe, imagenet, name, phases, "model.weights=null")
        before = {False: Print(base, name), True: Print(bare, name)}
        for key in base.phases[name].acting():
            if key in {*ON_THE_GRAPH, *FAMILIES, *DEEP} or (
                key == "model.motion.side" and base.phases[name].uses_rgb
            ):
                continue
            for value in SECOND.get(key, [OTHERWISE[key]]):
                value = imagenet / "second.safetensors" if key.endswith("weights") else value
                texts = [
                    f"phases.{name}.{text}"
                    for text in changed(key, value, all(base.phases[name].streams))
                ]
                # Another trunk does not take this one's weights.
                other_trunk = key.endswith(("depth", "stages", "width"))
                texts += ["model.weights=null"] if other_trunk else []
                # Corners of the frame have no option of those near its borders.
                texts += [f"phases.{name}.clips.border_corners=four"] if value == "corners" else []
                texts += [
                    f"phases.{name}.clips.{own}"
                    for own in WITHOUT_STRIDES
                    if key == "clips.segments"
                ]
                after = Print(config_of(recipe, imagenet, name, phases, *texts), name)
                if after.differs(before[other_trunk]):
                    break
            else:
                without.append(f"{name}.{key}")
    assert not without
