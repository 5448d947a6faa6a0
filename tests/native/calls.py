"""Random calls of the compiled kernels from Python, as the package calls them: `python -m tests.native.calls 300`.

Arrays are views of larger ones: with gaps, backwards, transposed, repeated. What comes of a view must
be, byte for byte, what comes of its copy in one piece; and a sanitizer, where there is one, sees what
lies outside.
"""

import sys

import numpy as np
import torch

from hpc_stres import native
from hpc_stres.data.augment import finish_on_cpu
from hpc_stres.data.flow import run_kernels, tvl1
from hpc_stres.models import norm_cpu, norm_fused

MOST_SIDE = 24
TYPES = (torch.float32, torch.bfloat16, torch.float64)


def strided(dice, shape):
    """Bytes of a shape as a view: every second one, backwards, transposed, or one line repeated."""
    how = dice.integers(5)
    if how == 0:
        room = dice.integers(0, 256, [2 * side for side in shape], np.uint8)
        return room[tuple(slice(dice.integers(2), None, 2) for _ in shape)]
    if how == 1:
        return dice.integers(0, 256, shape, np.uint8)[tuple([slice(None, None, -1)] * len(shape))]
    if how == 2:
        return dice.integers(0, 256, shape[::-1], np.uint8).transpose()
    if how == 3:
        return np.broadcast_to(dice.integers(0, 256, shape[-1:], np.uint8), shape)
    return dice.integers(0, 256, shape, np.uint8)


def same(one, other, what):
    """Refuse two arrays that differ in a byte."""
    if one.tobytes() != other.tobytes():
        raise SystemExit(f"{what}: a view gives something else than its copy")


def resize(dice):
    """A stack of gray pictures, or one with channels, to floats or halves."""
    height, width, side_y, side_x = (int(dice.integers(1, MOST_SIDE)) for _ in range(4))
    count = int(dice.choice([1, 3, 20, dice.integers(1, 65)]))
    packed = bool(dice.integers(2)) and count > 1
    shapes = [(height, width, count)] if packed else [(height, width)] * count
    pictures = [strided(dice, shape) for shape in shapes]
    scale, shift = (dice.random(count, np.float32) for _ in range(2))
    kind = np.uint16 if dice.integers(2) else np.float32
    antialias, flip = bool(dice.integers(2)), bool(dice.integers(2))
    side = None if dice.integers(4) == 0 else (side_y, side_x)
    made = []
    for some in (pictures, [picture.copy() for picture in pictures]):
        out = np.zeros((*(side or (height, width)), count), kind)
        finish_on_cpu(some, side, antialias, (scale, shift), flip, out)
        made.append(out)
    same(*made, "resize")


def flow(dice):
    """A few small frames, on the CPU's kernel and on the GPU's as plain C++."""
    frames = strided(dice, tuple(int(dice.integers(1, most)) for most in (4, MOST_SIDE, MOST_SIDE)))
    pyramid = str(dice.choice(["paper", "opencv4"]))
    threads = int(dice.integers(1, 5))
    whole = frames.copy()
    same(tvl1(frames, "native", threads, pyramid), tvl1(whole, "native", 1, pyramid), "flow")
    if len(frames) > 1:
        room = np.zeros((len(frames) - 1, 2, *frames.shape[1:]), np.float32)
        run_kernels(native.load_emulated("tvl1"), whole, room, pyramid, batch=2)
        if not np.isfinite(room).all():
            raise SystemExit("flow: a displacement that is not finite")


def view(dice, shape, kind):
    """A tensor of four axes in one of several layouts."""
    frames, channels, height, width = shape
    how = dice.integers(4)
    if how == 0:
        room = torch.randn(frames, 2 * channels, height, 2 * width)[:, ::2, :, 1::2]
    elif how == 1:
        room = torch.randn(width, height, channels, frames).permute(3, 2, 1, 0)
    elif how == 2:
        room = torch.randn(1, channels, 1, width).expand(shape)
    else:
        room = torch.randn(shape).contiguous(memory_format=torch.channels_last)
    return room.to(kind)


def norm(dice):
    """The fused normalisation, forwards and backwards."""
    shape = tuple(int(dice.integers(1, most)) for most in (6, 70, 9, 9))
    groups, kind = int(dice.integers(1, 4)), TYPES[dice.integers(3)]
    x, residual, grad = (view(dice, shape, kind) for _ in range(3))
    wide = torch.float64 if kind == torch.float64 else torch.float32
    weight, bias = torch.rand(2 * shape[1], dtype=wide)[::2], torch.rand(shape[1], dtype=wide)
    owner = torch.from_numpy(dice.integers(0, groups, shape[0], np.int32))
    other = residual if dice.integers(2) else None
    relu, results = bool(dice.integers(2)), []
    for change in (
        lambda value: value,
        lambda value: value.clone(memory_format=torch.channels_last),
    ):
        leaves = [change(x), None if other is None else change(other), weight, bias]
        leaves = [None if leaf is None else leaf.detach().requires_grad_() for leaf in leaves]
        y, *_ = norm_fused.sub_batch_norm(*leaves, owner, groups, 1e-5, relu, "")
        wanted = [leaf for leaf in leaves if leaf is not None]
        results.append([y.detach(), *torch.autograd.grad(y, wanted, change(grad))])
    for one, copied in zip(*results, strict=True):
        same(one.double().contiguous().numpy(), copied.double().contiguous().numpy(), "norm")


def main():
    """So many calls, each of a seed of its own."""
    assert norm_cpu.library() is not None, "no kernels to call"
    for number in range(int(sys.argv[1])):
        dice = np.random.default_rng(number)
        torch.manual_seed(number)
        (resize, norm, resize, norm, flow)[number % 5](dice)
    print(f"{sys.argv[1]} calls")


if __name__ == "__main__":
    main()
