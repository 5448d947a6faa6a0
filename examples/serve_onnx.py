"""What happens in a video, by model.onnx of `hpc-stres export`; needs onnxruntime, NumPy and OpenCV with its contrib
modules (opencv-contrib-python-headless), and nothing of this package:  python serve_onnx.py model.onnx clip.avi"""

import json
import sys

import cv2
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
known = session.get_modelmeta().custom_metadata_map
ways, classes = json.loads(known["preprocessing"]), json.loads(known["classes"])
capture, frames = cv2.VideoCapture(sys.argv[2]), []
while (read := capture.read())[0]:
    short, height, width = ways["frames"]["short_side"], *read[1].shape[:2]
    size = [int(side * short / min(height, width) + 1e-6) // 2 * 2 for side in (width, height)]
    frames.append(cv2.resize(read[1], size, interpolation=cv2.INTER_CUBIC))
cut, pairs = ways["sampling"], max(1, len(frames) - 1)
first, last = cut["first_frame"], len(frames) - cut["last_frame_from_end"]
first, last = (first, last) if first <= last else (0, len(frames) - 1)
chosen = np.floor(np.linspace(first, last, cut["chunks"]) + 0.5).astype(int)
clips = {}
if "rgb" in ways:
    rgb = np.stack([frames[number][..., ::-1] for number in chosen]).astype(np.float32)
    clips["rgb"] = (
        rgb * np.float32(ways["rgb"]["scale"]) + np.float32(ways["rgb"]["shift"])
    ).transpose(0, 3, 1, 2)
if "flow" in ways:
    solver, bound = cv2.optflow.createOptFlow_DualTVL1(), ways["flow"]["bound_pixels"]
    if ways["flow"]["method"].endswith("paper"):
        solver.setScaleStep(0.5), solver.setMedianFiltering(1)
    gray = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
    around = np.arange(ways["flow"]["pairs"][0], ways["flow"]["pairs"][1] + 1)
    stacks = (chosen[:, None] + around) % (2 * pairs)
    stacks = np.where(
        stacks < pairs, stacks, 2 * pairs - 1 - stacks
    )  # beyond its ends a video is mirrored
    moved = {
        n: solver.calc(gray[n], gray[min(n + 1, len(gray) - 1)], None)
        for n in set(stacks.ravel().tolist())
    }
    planes = np.stack(
        [np.concatenate([moved[n] for n in stack], axis=-1) for stack in stacks.tolist()]
    )
    planes = np.floor((np.clip(planes, -bound, bound) + bound) * 255 / (2 * bound) + 0.5).astype(
        np.float32
    )
    planes = planes * np.float32(ways["flow"]["scale"]) + np.float32(ways["flow"]["shift"])
    clips["flow"] = planes.transpose(0, 3, 1, 2)
logits = np.mean(
    [out.mean(axis=1)[0] for out in session.run(None, {k: v[None] for k, v in clips.items()})],
    axis=0,
)
shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
for best in np.argsort(-shares, kind="stable")[:5]:
    print(f"{100 * shares[best]:5.1f} %  {classes[best]}")
