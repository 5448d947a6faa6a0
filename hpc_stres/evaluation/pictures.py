"""Pictures: flow in colour with its wheel, and pictures as part of a page."""

import base64
import html

import numpy as np
from numpy.typing import NDArray


def picture(jpeg: bytes, alt: str, kind: str = "jpeg") -> str:
    """An image that is part of the page."""
    data = base64.b64encode(jpeg).decode()
    return f'<img src="data:image/{kind};base64,{data}" alt="{html.escape(alt)}" loading="lazy">'


def colour_flow(flow: NDArray[np.float32], largest: float | None = None) -> NDArray[np.uint8]:
    """Displacements (2, H, W) as RGB: the hue is the direction, the saturation the length."""
    import cv2

    u, v = flow
    length, angle = cv2.cartToPolar(u, v, angleInDegrees=True)
    most = largest or max(float(np.percentile(length, 99)), 1e-6)
    hsv = np.stack([angle / 2, 255 * np.clip(length / most, 0, 1), np.full_like(u, 255)], axis=-1)
    return np.asarray(cv2.cvtColor(hsv.astype(np.uint8), cv2.COLOR_HSV2RGB))


def flow_wheel(side: int) -> NDArray[np.uint8]:
    """The colours of all directions and lengths, as RGBA: length 1 at the rim, nothing outside."""
    middle = (side - 1) / 2
    v, u = (np.mgrid[0:side, 0:side] - middle).astype(np.float32) / middle
    inside = np.where(np.hypot(u, v) <= 1, 255, 0).astype(np.uint8)
    return np.concatenate([colour_flow(np.stack([u, v]), 1.0), inside[..., None]], axis=2)
