"""Pretrained files that others publish: where they are, what they are, and how a copy
of one is checked.

Their makers write the first eight digits of a file's SHA-256 into its name; that much is always
compared. The whole digest is here where several public projects record the same one for the file;
nothing here was computed from a file of our own, and no digest is invented.
"""

import difflib
import re
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from hpc_stres.errors import ConfigError, UserError
from hpc_stres.run.paths import sha256

if TYPE_CHECKING:
    from torch import Tensor

TORCHVISION = "https://download.pytorch.org/models/"
TIMM = "https://github.com/huggingface/pytorch-image-models/releases/download/v0.1-rsb-weights/"
TORCHVISION_LICENCE = (
    "BSD-3-Clause (torchvision); trained on ImageNet-1k, whose terms may bind you as well"
)
TIMM_LICENCE = "Apache-2.0 (timm); trained on ImageNet-1k, whose terms may bind you as well"
NAMED_DIGITS = 8
SILENCE_SECONDS = 60.0
STAGES = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}


@dataclass(frozen=True, kw_only=True)
class PublishedWeights:
    """One published file."""

    name: str
    url: str
    licence: str
    about: str
    sha256: str = ""
    """The whole digest; empty: only the digits in the file's name are known."""
    family: str = "resnet"
    stages: tuple[int, ...] = ()
    width: int = 64

    @property
    def file(self) -> str:
        """The file's own name."""
        return self.url.rpartition("/")[2]

    @property
    def digits(self) -> str:
        """All that is known of the digest: the whole, or its first eight digits."""
        match = re.search(r"-([0-9a-f]{8})\.pth$", self.file)
        return self.sha256 or (match[1] if match else "")


def _torchvision(name: str, file: str, about: str, digest: str = "") -> PublishedWeights:
    depth = re.match(r"resnet(\d+)", name)
    return PublishedWeights(
        name=name, url=TORCHVISION + file, licence=TORCHVISION_LICENCE, about=about, sha256=digest,
        family="resnet" if depth else "inception_v3", stages=STAGES[int(depth[1])] if depth else (),
    )  # fmt: skip


def _timm(name: str, file: str, about: str, digest: str = "") -> PublishedWeights:
    depth = int(name.removeprefix("resnet").partition("-")[0])
    return PublishedWeights(
        name=name,
        url=TIMM + file,
        licence=TIMM_LICENCE,
        about=about,
        sha256=digest,
        stages=STAGES[depth],
    )


PUBLISHED = (
    _torchvision(
        "resnet50", "resnet50-0676ba61.pth", "torchvision IMAGENET1K_V1, 76.1 %",
        "0676ba61b6795bbe1773cffd859882e5e297624d384b6993f7c9e683e722fb8a",
    ),
    _torchvision(
        "resnet101", "resnet101-63fe2227.pth", "torchvision IMAGENET1K_V1, 77.4 %",
        "63fe2227b86e8f1f2063f43a75c84d195911b6a0eace650907dd3dc62dd49a0a",
    ),
    _torchvision(
        "resnet152", "resnet152-394f9c45.pth", "torchvision IMAGENET1K_V1, 78.3 %",
        "394f9c45966e3651a89bbb78a48410a6755854ce4a5ab64927cf1c7247f85e58",
    ),
    _torchvision("resnet50-v2", "resnet50-11ad3fa6.pth", "torchvision IMAGENET1K_V2, 80.9 %"),
    _torchvision("resnet101-v2", "resnet101-cd907fc2.pth", "torchvision IMAGENET1K_V2, 81.9 %"),
    _torchvision("resnet152-v2", "resnet152-f82ba261.pth", "torchvision IMAGENET1K_V2, 82.3 %"),
    _torchvision(
        "inception_v3", "inception_v3_google-0cc3c7bd.pth", "torchvision IMAGENET1K_V1, 77.3 %",
        "0cc3c7bd75056d25e46cba549dc184522069b81e9787eff6df84f397bd52a5ef",
    ),
    _timm(
        "resnet50-a1", "resnet50_a1_0-14fe96d1.pth", "timm a1_in1k, 80.4 %",
        "14fe96d1f9fb311a60490082d2077e6e60427dcfe21839ddf934cce948f72b0f",
    ),
    _timm("resnet101-a1", "resnet101_a1_0-cdcb52a9.pth", "timm a1_in1k"),
    _timm("resnet152-a1", "resnet152_a1_0-2eee8a7a.pth", "timm a1_in1k"),
)  # fmt: skip


def by_name(name: str) -> PublishedWeights:
    """A published file by our name for it, or by its own; an unknown one is refused
    with the nearest."""
    for entry in PUBLISHED:
        if name in (entry.name, entry.file):
            return entry
    names = [entry.name for entry in PUBLISHED]
    nearest = difflib.get_close_matches(name, names, 1)
    hint = f" (did you mean {nearest[0]}?)" if nearest else ""
    raise ConfigError(
        f"no published weights {name!r:.80}, and no such file; there are {', '.join(names)}{hint}"
    )


def recognise(path: Path) -> PublishedWeights | None:
    """Which published file this is, by its content; none: another one."""
    digest = sha256(path)
    return next((entry for entry in PUBLISHED if digest.startswith(entry.digits)), None)


def check(entry: PublishedWeights, path: Path) -> str:
    """The SHA-256 of a copy; refuses one that is not the published file."""
    digest = sha256(path)
    if not entry.digits or not digest.startswith(entry.digits):
        known = (
            f"begins with {entry.digits}"
            if len(entry.digits) == NAMED_DIGITS
            else f"is {entry.digits}"
        )
        raise UserError(
            f"{path}: this is not {entry.file}: its SHA-256 is {digest}, the published file's {known}\n"
            f"Remove it and copy {entry.url} again."
        )
    return digest


def fetch(entry: PublishedWeights, folder: Path, silence_seconds: float = SILENCE_SECONDS) -> Path:
    """Download a file into a folder and check it; nothing is left of a failed or
    interrupted download."""
    from torch.hub import download_url_to_file

    target = folder / entry.file
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _refused_when_silent(silence_seconds):
            download_url_to_file(entry.url, str(target), entry.digits)
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{entry.url}: what came is not the published file: {reason}\nTry again later."
        ) from None
    except (OSError, ValueError) as error:
        reason = str(getattr(error, "reason", None) or error) or type(error).__name__
        raise UserError(
            f"{entry.url}: cannot be fetched: {reason[:200]}\n"
            f"Fetch it where there is a network (a login node), copy it to {folder}/ and run this command again."
        ) from None
    return target


@contextmanager
def _refused_when_silent(seconds: float) -> Iterator[None]:
    """A server that says nothing for so long is an error and no endless wait."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


@dataclass(frozen=True)
class Trunk:
    """What a state dict's names and shapes say of its network."""

    family: str
    stages: tuple[int, ...]
    width: int
    classes: int | None
    planes: int

    @property
    def depth(self) -> int | None:
        """50, 101 or 152; none: another number of units."""
        return next((depth for depth, stages in STAGES.items() if stages == self.stages), None)

    def __str__(self) -> str:
        name = (
            f"ResNet-{self.depth}"
            if self.depth
            else f"{self.family} {list(self.stages) or ''}".strip()
        )
        width = f", width {self.width}" if self.family == "resnet" and self.width != 64 else ""
        head = "no classifier" if self.classes is None else f"{self.classes} classes"
        return f"{name}{width}, {self.planes} input planes, {head}"


def trunk_of(state: Mapping[str, "Tensor"]) -> Trunk | None:
    """The trunk that a state dict is of; none where its names are not those of a bottleneck ResNet
    or Inception-v3."""
    head = state.get("fc.weight")
    classes = None if head is None else int(head.shape[0])
    first = state.get("conv1.weight")
    if first is not None and "layer1.0.conv3.weight" in state:
        units: dict[int, set[int]] = {}
        for match in filter(None, (re.match(r"layer(\d+)\.(\d+)\.", name) for name in state)):
            units.setdefault(int(match[1]), set()).add(int(match[2]))
        stages = tuple(len(units[stage]) for stage in sorted(units))
        return Trunk("resnet", stages, int(first.shape[0]), classes, int(first.shape[1]))
    stem = state.get("Conv2d_1a_3x3.conv.weight")
    if stem is not None and "Mixed_7c.branch1x1.conv.weight" in state:
        return Trunk("inception_v3", (), int(stem.shape[0]), classes, int(stem.shape[1]))
    return None


def refuse_other_trunk(entry: PublishedWeights, state: Mapping[str, "Tensor"], path: Path) -> Trunk:
    """What the file's tensors are of; refuses what is not the network of the entry."""
    trunk = trunk_of(state)
    expected = (entry.family, entry.stages)
    if trunk is None or (trunk.family, trunk.stages) != expected:
        raise UserError(
            f"{path}: expected the tensors of {entry.name}, found those of {trunk or 'something else'}"
        )
    return trunk
