"""What `training.reproducible: bitwise` costs: a step of ST-ResNet-50 over the same
step without it."""

from collections.abc import Callable
from typing import Any

from hpc_stres.tools.bench.figures import Figure, quotients, ratio
from hpc_stres.tools.bench.network import CHUNKS, STEPS_TO_GROW, VIDEOS, at_most, rounds, timed
from hpc_stres.tools.bench.scene import SIDE

TARGET = 1.1


def bench_bitwise(threads: int, repeats: int) -> list[Figure]:
    """Two videos in one group: as one unit, where the target is, and as two."""
    plain = _step(None, threads)
    whole, single = _step(VIDEOS, threads), _step(1, threads)
    # As many rounds as a process needs to have its memory, and few more: a step takes ten seconds.
    ours, theirs, small = rounds(min(repeats, 3), whole, plain, single, uncounted=STEPS_TO_GROW)
    return [
        timed("bitwise", "an ordinary step, float32", theirs, "s"),
        at_most("bitwise", f"unit of {VIDEOS}, the group's size, over it", ours, theirs, TARGET),
        ratio("bitwise", "unit of 1 over it", quotients(small, theirs)),
    ]


def _step(unit: int | None, threads: int) -> Callable[[], None]:
    """One SGD step, bitwise in units of so many videos, or ordinary."""
    import torch

    from hpc_stres.models import assign_groups, build_model
    from hpc_stres.models.exact.mode import UnitByUnit
    from hpc_stres.models.exact.session import Session
    from hpc_stres.models.exact_network import attach

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build_model("st_resnet", 101, norm_group=VIDEOS).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    rgb, flow = (_clips(planes, device) for planes in (3, 20))
    owners = torch.zeros(VIDEOS, dtype=torch.long, device=device)
    groups = assign_groups(owners, 1, CHUNKS, torch.float32)

    def ordinary() -> None:
        optimizer.zero_grad(set_to_none=False)
        _loss(model(rgb, flow, groups)).backward()
        optimizer.step()

    if unit is None:
        return ordinary
    session = Session(model, device, threads)
    mode = UnitByUnit(session)
    attach(model, session, mode)
    session.units = VIDEOS // unit

    def bitwise() -> None:
        # One thread a kernel, as in training.
        torch.set_num_threads(1)
        with mode:
            logits = model(rgb, flow, groups)
        _loss(logits).backward()
        session.write_gradients()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        torch.set_num_threads(threads)

    return bitwise


def _clips(planes: int, device: Any) -> Any:
    import torch

    frames = torch.randn(VIDEOS * CHUNKS, planes, SIDE, SIDE, device=device)
    frames = frames.contiguous(memory_format=torch.channels_last)
    return frames.unflatten(0, (VIDEOS, CHUNKS))


def _loss(logits: Any) -> Any:
    return sum(scores.logsumexp(2).sum() for scores in logits)
