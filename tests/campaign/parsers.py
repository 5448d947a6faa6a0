"""Every parser of what users give, with sound examples of what it reads."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

# Containers, and what lies in them; the decoder looks at the bytes, not at the name.
VIDEOS = ((".avi", "mpeg4"), (".mp4", "mpeg4"), (".mkv", "mjpeg"), (".webm", "vp8"))
SIDE, FRAMES = 32, 4


@dataclass(frozen=True)
class Parser:
    """What is parsed, from sound examples, and by what."""

    name: str
    examples: list[bytes]
    parse: Callable[[bytes], Any]
    free_text: bool = False
    share: float = 1.0
    """Of the cases of a short campaign: what takes long gets fewer."""
    cut: bool = False
    """Whether the cases are the examples, cut at every place, in place of edits."""


def _sealed_anew(data: bytes) -> bytes:
    """An object of JSON with the checksum of what it holds now, in one case of two: what is behind
    the checksum is to be reached."""
    from hpc_stres.run.paths import sealed

    if len(data) % 2:
        return data
    try:
        return json.dumps(sealed(json.loads(data))).encode()
    except (ValueError, AttributeError, RecursionError):
        return data


class Parsers:
    """The parsers, with a folder for the files that they read."""

    def __init__(self, folder: Path, config: Path) -> None:
        self.folder, self.config = folder, config
        folder.mkdir(parents=True, exist_ok=True)

    def all(self) -> list[Parser]:
        """Every parser of user input."""
        tiny = self.config.read_bytes()
        configs = sorted((self.config.parent.parent / "configs").glob("*.yaml"))
        shipped = [path.read_bytes() for path in configs]
        caffe = [bytes(range(10, 60)) * 3, b"\x0a\x04test\xa2\x06\x04\x0a\x02ab"]
        rows = b"run/a.avi,run,train\nrun/b.avi,run,test\nwave/c.avi,wave,train\nwave/d.avi,wave,test\n"
        table = b"path,label,split\n" + rows
        several = (
            b"path;label;split1;split2;group\na.avi;run|wave;train;test;1\nb.avi;run;test;train;2\n"
        )
        official = b"run/v_run_g01_c01.avi 1\nwave/v_wave_g01_c01.avi 2\n"
        options = [b"training.max_steps=3", b"data.crop=32", b"phases.motion.optimise.schedule=[[10, 1e-3]]",
                   b"model.appearance.weights=null", b"cluster.sbatch={mail-type: END}", b"seed=1"]  # fmt: skip
        videos = [self.video(*kind) for kind in VIDEOS]
        scores = b"video,run,wave\nv_run_g01_c01,0.5,-1\nv_wave_g01_c01,1e-3,2\n"
        return [
            Parser("config file", [tiny, *shipped], self.load_config),
            Parser("--set", options, self.load_option, free_text=True),
            Parser("CSV list", [table, several], self.load_csv),
            Parser("official lists", [official], self.load_lists),
            Parser("lists of one's own", [b"run/a.avi\nwave/b.avi 1\n"], self.load_own_lists),
            Parser("weights .safetensors", [self.safetensors()], self.load_safetensors),
            Parser("weights .pth", [self.torch_file()], self.load_torch, share=0.5),
            Parser("weights .caffemodel", caffe, self.load_caffe),
            Parser("scores .csv", [scores], self.load_score_csv),
            Parser("scores .npz", [self.score_npz()], self.load_score_npz),
            Parser("export.json", [self.export_json()], self.load_export),
            Parser("video", videos, self.load_video, share=0.5),
            Parser("video, cut", videos, self.load_video, share=0.5, cut=True),
        ]  # fmt: skip

    def _file(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return path

    # -- what calls the product ----------------------------------------------------------------------------------------

    def load_config(self, data: bytes) -> None:
        from hpc_stres.config.loading import load_config

        load_config(self._file("config.yaml", data))

    def load_option(self, data: bytes) -> None:
        from hpc_stres.config.loading import load_config

        load_config(self.config, [data.decode("utf-8", "surrogateescape")])

    def _listing(self, kind: str, lists: Path) -> None:
        from hpc_stres.config.loading import load_config
        from hpc_stres.listings import sources, splits

        places = [f"data.kind={kind}", f"data.lists={lists}", f"data.videos={self.folder}/videos"]
        if not hasattr(self, "_configs"):
            self._configs: dict[str, Any] = {}
        if kind not in self._configs:
            self._configs[kind] = load_config(self.config, places)
        splits.problems(sources.read_listing(self._configs[kind].data))

    def load_csv(self, data: bytes) -> None:
        self._listing("csv", self._file("list.csv", data))

    def load_lists(self, data: bytes) -> None:
        self._file("ucf/classInd.txt", b"1 run\n2 wave\n")
        self._file("ucf/trainlist01.txt", data)
        self._file("ucf/testlist01.txt", b"run/v_run_g02_c01.avi\nwave/v_wave_g02_c01.avi\n")
        self._listing("ucf101", self.folder / "ucf")

    def load_own_lists(self, data: bytes) -> None:
        self._file("own/train.txt", data)
        self._file("own/test.txt", b"run/x.avi\nwave/y.avi\n")
        self._listing("lists", self.folder / "own")

    def _weights(self, name: str, data: bytes) -> None:
        from hpc_stres.models.weights import read_state

        read_state(self._file(name, data))

    def load_safetensors(self, data: bytes) -> None:
        self._weights("w.safetensors", data)

    def load_torch(self, data: bytes) -> None:
        self._weights("w.pth", data)

    def load_caffe(self, data: bytes) -> None:
        self._weights("w.caffemodel", data)

    def load_score_csv(self, data: bytes) -> None:
        from hpc_stres.evaluation.fusion import read

        read(self._file("scores.csv", data))

    def load_score_npz(self, data: bytes) -> None:
        from hpc_stres.evaluation.fusion import read

        read(self._file("scores.npz", data))

    def load_export(self, data: bytes) -> None:
        import torch

        from hpc_stres.evaluation.networks import from_export

        self._file("export/export.json", _sealed_anew(data))
        self._file("export/weights.safetensors", b"")
        from_export(self.folder / "export", torch.device("cpu"))

    def load_video(self, data: bytes) -> None:
        from hpc_stres.prepare.video import decode

        for number, _ in enumerate(decode(self._file("video.bin", data), 1 << 22)):
            if number > 200:
                break

    # -- sound examples ------------------------------------------------------------------------------------------------

    @staticmethod
    def safetensors() -> bytes:
        from safetensors.numpy import save

        return bytes(
            save(
                {
                    "conv1.weight": np.ones((2, 3, 2, 2), np.float32),
                    "fc.bias": np.zeros(4, np.float32),
                }
            )
        )

    def torch_file(self) -> bytes:
        import torch

        path = self.folder / "sound.pth"
        torch.save({"conv1.weight": torch.ones(2, 3, 2, 2), "fc.bias": torch.zeros(4)}, path)
        return path.read_bytes()

    def score_npz(self) -> bytes:
        path = self.folder / "sound.npz"
        np.savez(path, ids=np.array(["a", "b"]), classes=np.array(["run", "wave"]), logits=np.ones((2, 2)),
                 labels=np.array([0, 1]))  # fmt: skip
        return path.read_bytes()

    @staticmethod
    def export_json() -> bytes:
        from hpc_stres.run.paths import sealed

        value = {
            "phase": "motion",
            "sizes": {},
            "files": {"weights.safetensors": "0" * 64},
            "classes": ["a"],
        }
        return json.dumps(sealed(value)).encode()

    def video(self, suffix: str, codec: str) -> bytes:
        """A few small pictures in a container."""
        import av

        path = self.folder / f"sound{suffix}"
        dice = np.random.default_rng(1)
        with av.open(str(path), "w") as container:
            stream: Any = container.add_stream(codec, rate=25)
            stream.width = stream.height = SIDE
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.thread_count = 1
            for _ in range(FRAMES):
                picture = np.full((SIDE, SIDE, 3), dice.integers(256), np.uint8)
                picture[: SIDE // 2] = dice.integers(256)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode())
        return path.read_bytes()
