"""Our step beside the network that GPUs are measured with: a plain ResNet-50, written
here in torch alone."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from hpc_stres.tools.bench.figures import Figure, interleaved, quotients, rate, ratio
from hpc_stres.tools.bench.scene import SIDE
from hpc_stres.tools.gpus import SHARE_FIGURE

VIDEOS, CHUNKS, IMAGES, CLASSES = 2, 5, 16, 1000
# Multiply-adds of an ST-ResNet-50 video of five chunks over those of a ResNet-50 image.
IMAGES_OF_A_VIDEO = 12.8
STAGES = ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2))


class Bottleneck(nn.Module):
    """The stride is in the 3 x 3 convolution, as in what GPUs are measured with (v1.5)."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        sizes = ((inputs, width, 1, 1), (width, width, 3, stride), (width, 4 * width, 1, 1))
        layers: list[nn.Module] = []
        for number, (a, b, kernel, step) in enumerate(sizes):
            layers += [nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False), nn.BatchNorm2d(b)]
            layers += [nn.ReLU(inplace=True)] if number < 2 else []
        self.body = nn.Sequential(*layers)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    """ResNet-50 for 1000 classes."""

    def blocks() -> Iterator[nn.Module]:
        inputs = 64
        for width, count, stride in STAGES:
            for number in range(count):
                yield Bottleneck(inputs, width, stride if number == 0 else 1)
                inputs = 4 * width

    stem = [
        nn.Conv2d(3, 64, 7, 2, 3, bias=False),
        nn.BatchNorm2d(64),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(3, 2, 1),
    ]
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, CLASSES)]
    return nn.Sequential(*stem, *blocks(), *head)


def share_figures(repeats: int) -> list[Figure]:
    """Videos/s of ST-ResNet-50 against images/s of ResNet-50 over 12.8: both in bfloat16,
    channels-last, at 224."""
    from hpc_stres.models import build_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ours = build_model("st_resnet", 101, norm_group=VIDEOS).to(device)
    plain = resnet50().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = _channels_last(torch.randn(IMAGES, 3, SIDE, SIDE, device=device))
    clips = [
        _channels_last(torch.randn(VIDEOS * CHUNKS, planes, SIDE, SIDE, device=device)).unflatten(
            0, (VIDEOS, CHUNKS)
        )
        for planes in (3, 20)
    ]

    def wait() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = ours(*clips)
        (logits.appearance.float().sum() + logits.motion.float().sum()).backward()
        wait()

    def reference() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            logits = plain(images)
        logits.float().sum().backward()
        wait()

    own, other = interleaved(min(repeats, 3), step, reference)
    shares = tuple(value * VIDEOS / (IMAGES / IMAGES_OF_A_VIDEO) for value in quotients(other, own))
    return [
        rate("step", "ST-ResNet-50 in bfloat16, 5 chunks at 224", VIDEOS, own, "videos/s"),
        rate("step", "ResNet-50 in bfloat16 at 224", IMAGES, other, "images/s"),
        ratio("step", SHARE_FIGURE, shares),
    ]


def _channels_last(pictures: Tensor) -> Tensor:
    return pictures.contiguous(memory_format=torch.channels_last)
