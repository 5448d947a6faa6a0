"""One training step of ST-ResNet-50."""

from hpc_stres.tools.bench.figures import Figure, interleaved, quotients, ratio
from hpc_stres.tools.bench.resnet50 import share_figures
from hpc_stres.tools.bench.scene import SIDE


def bench_step(threads: int, repeats: int) -> list[Figure]:
    """One training step of ST-ResNet-50, two videos of five chunks at 112 pixels."""
    import torch

    from hpc_stres.models import build_model

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model("st_resnet", 101, norm_group=2).to(device)
    shape = (2, 5, 20, SIDE // 2, SIDE // 2)
    rgb = torch.randn(*shape[:2], 3, *shape[3:], device=device)
    flow = torch.randn(shape, device=device)

    def step(dtype: str, last: bool) -> None:
        def order(clip: torch.Tensor) -> torch.Tensor:
            flat = clip.flatten(0, 1)
            return flat.to(memory_format=torch.channels_last).unflatten(0, shape[:2]) if last else clip

        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
            output = model(order(rgb), order(flow))
        (output.appearance.float().sum() + output.motion.float().sum()).backward()
        if device.type == "cuda":
            torch.cuda.synchronize()

    cases = [("float32", False), ("float32", True), ("bfloat16", True)]
    timings = interleaved(repeats, *(lambda case=case: step(*case) for case in cases))
    names = ["float32", "float32 channels-last", "bfloat16 channels-last"]
    figures = [
        Figure("step", name, timing.median_s / 2, "s/video", spread=timing.spread)
        for name, timing in zip(names, timings, strict=True)
    ]
    over = ratio("step", "channels-last over contiguous", quotients(timings[0], timings[1]))
    return [*figures, over, *share_figures(repeats)]
