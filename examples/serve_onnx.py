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
stored, cut = ways["frames"], ways["sampling"]
if "segments" in cut or ways["view"] != {"part": "full frame", "times": 1}:
    sys.exit(
        "this example shows full frames at evenly spaced chunks; this network wants what `preprocessing` says"
    )


def as_jpeg(picture):
    """Frames and flow are stored as JPEG files before a network learns from them."""
    written = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, stored["jpeg_quality"]])[1]
    return cv2.imdecode(written, cv2.IMREAD_UNCHANGED)


capture, frames = cv2.VideoCapture(sys.argv[2]), []
while (read := capture.read())[0]:
    short, height, width = stored["short_side"], *read[1].shape[:2]
    size = [int(side * short / min(height, width) + 1e-6) // 2 * 2 for side in (width, height)]
    frames.append(cv2.resize(read[1], size, interpolation=cv2.INTER_CUBIC))
if not frames:
    sys.exit(f"{sys.argv[2]}: no frame can be read")
pairs, last = max(1, len(frames) - 1), len(frames) - cut["last_frame_from_end"]
first, last = (cut["first_frame"], last) if cut["first_frame"] <= last else (0, len(frames) - 1)
chosen = np.floor(np.linspace(first, last, cut["chunks"]) + 0.5).astype(int)
chosen = chosen if cut["chunks"] > 1 else np.array([(first + last) // 2])
levels = {}
if "rgb" in ways:
    levels["rgb"] = np.stack([as_jpeg(frames[number])[..., ::-1] for number in chosen])
if "flow" in ways:
    solver, bound = cv2.optflow.createOptFlow_DualTVL1(), ways["flow"]["bound_pixels"]
    if ways["flow"]["method"].endswith("paper"):
        solver.setScaleStep(0.5), solver.setMedianFiltering(1)
    gray = [cv2.cvtColor(frame, cv2.COLOR_BGR2GRAY) for frame in frames]
    around = np.arange(ways["flow"]["pairs"][0], ways["flow"]["pairs"][1] + 1)
    stacks = (chosen[:, None] + around) % (2 * pairs)  # beyond its ends a video is mirrored
    stacks = np.where(stacks < pairs, stacks, 2 * pairs - 1 - stacks)
    planes = {}
    for n in set(stacks.ravel().tolist()):
        moved = solver.calc(gray[n], gray[min(n + 1, len(gray) - 1)], None)
        grey = np.floor((np.clip(moved, -bound, bound) + bound) * 255 / (2 * bound) + 0.5)
        planes[n] = np.stack([as_jpeg(grey[..., axis].astype(np.uint8)) for axis in (0, 1)], -1)
    levels["flow"] = np.stack([np.concatenate([planes[n] for n in s], -1) for s in stacks.tolist()])
answers = []
for flip in ("", "flipped_")[: 1 + cut["flips"]]:
    clips = {}
    for name, pictures in levels.items():
        seen = pictures[:, :, ::-1] if flip else pictures
        scale, shift = (ways[name].get(flip + key, ways[name][key]) for key in ("scale", "shift"))
        clip = seen.astype(np.float32) * np.float32(scale) + np.float32(shift)
        clips[name] = np.ascontiguousarray(clip.transpose(0, 3, 1, 2)[None])
    answers += [out[0].astype(np.float64).mean(axis=0) for out in session.run(None, clips)]
logits = np.mean(answers, axis=0)
shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
if ways["probabilities"] == "sigmoid":
    shares = 0.5 + 0.5 * np.tanh(logits / 2)
for best in np.argsort(-shares, kind="stable")[:5]:
    print(f"{100 * shares[best]:5.1f} %  {classes[best]}")
