"""Frames with detail and motion, made here: what the measurements of pictures run on."""

import numpy as np
from numpy.typing import NDArray

HEIGHT, WIDTH, SIDE = 256, 340, 224


def moving_frames(count: int) -> NDArray[np.uint8]:
    """RGB frames with detail and motion, about as hard as a natural video."""
    import cv2

    random = np.random.default_rng(0)
    scene = cv2.GaussianBlur(
        random.integers(0, 256, (HEIGHT + 64, WIDTH + 64, 3)).astype(np.float32), (0, 0), 3
    )
    scene = np.clip(128 + (scene - 128) * 5, 0, 255).astype(np.uint8)
    shifts = [(round(8 + 6 * np.sin(n / 3)), 2 * n % 60) for n in range(count)]
    return np.stack([scene[y : y + HEIGHT, x : x + WIDTH] for y, x in shifts])
