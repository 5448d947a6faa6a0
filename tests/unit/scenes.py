"""Made-up films with exact flow: a textured disc that moves by itself, and a camera that pans over the world behind."""

import numpy as np


def texture(seed, height, width, grain=2.0):
    """Smooth noise of 8 bits around 120."""
    fy, fx = np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    noise = np.fft.fft2(np.random.default_rng(seed).standard_normal((height, width)))
    smooth = np.fft.ifft2(noise * np.exp(-2 * (np.pi * grain) ** 2 * (fy**2 + fx**2))).real
    return np.clip(np.rint(120 + 25 * smooth / smooth.std()), 60, 180).astype(np.uint8)


def film(velocity=(3, 0), pan=(0, 0), side=96, frames=16, radius=20, seed=0):
    """Gray frames and exact flow; whole pixels, so that nothing is interpolated."""
    world, skin = texture(seed, 400, 400), texture(seed + 1, 2 * radius + 1, 2 * radius + 1)
    ys, xs = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = ys**2 + xs**2 <= radius**2
    gray, flow = [], []
    for number in range(frames):
        left, top = 150 + number * pan[0], 150 + number * pan[1]
        x = 150 + side // 2 + (number - frames // 2) * velocity[0] + frames // 2 * pan[0] - left
        y = 150 + side // 2 + (number - frames // 2) * velocity[1] + frames // 2 * pan[1] - top
        picture = world[top : top + side, left : left + side].copy()
        motion = np.empty((side, side, 2), np.float32)
        motion[:] = -np.array(pan)
        for dy, dx in zip(ys[disc], xs[disc], strict=True):
            if 0 <= y + dy < side and 0 <= x + dx < side:
                picture[y + dy, x + dx] = skin[dy + radius, dx + radius]
                motion[y + dy, x + dx] = np.array(velocity) - np.array(pan)
        gray.append(picture)
        flow.append(motion)
    return gray, flow[:-1]
