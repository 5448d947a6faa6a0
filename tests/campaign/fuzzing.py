"""Parsers of what users give, under a memory and a time limit: whatever comes in, a value or a sentence comes out.

Cases are made by hypothesis: edits of sound files (cut, doubled, overwritten, words of trouble put in), and for options
free text as well. Each parser runs in a child; a signal is a crash, and so is any exception but the package's own.
"""

import contextlib
import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

from tests.campaign.judge import CRASHED, STOPPED, SURVIVED, Outcome
from tests.campaign.outcomes import outcomes_of

MEMORY_BYTES, CASE_SECONDS = 2 << 30, 20
MOST_LINES = 3
TROUBLE = [
    b"",
    b"\0",
    b"\xff",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b"\t",
    b" ",
    b'"',
    b"'",
    b",",
    b";",
    b":",
    b": ",
    b"- ",
    b"[",
    b"{",
    b"&a [*a, *a]",
    b"*a",
    b"!!python/object/apply:os.getcwd []",
    b"<<: {}",
    b"? ",
    b"| ",
    b".inf",
    b".nan",
    b"-1",
    b"0",
    b"1e400",
    b"9" * 400,
    b"0x",
    b"1_0",
    b"null",
    b"true",
    b"~",
    b"../../x",
    b"/",
    b"/dev/zero",
    b"\xe2\x80\xae",
    b"%",
    b"#",
    b"2026-11-21",
    b"train",
    b"\xef\xbb\xbf",
    b"\x00\x01",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff\xff\xff\xff\x7f",
]
Edits = list[tuple[int, float, float, bytes]]
EDIT = st.tuples(st.integers(0, 4), st.floats(0, 1), st.floats(0, 1),
                 st.one_of(st.sampled_from(TROUBLE), st.binary(max_size=8)))  # fmt: skip


def edited(data: bytes, edits: Edits) -> bytes:
    """A file after some edits."""
    for how, first, second, word in edits:
        a, b = sorted((int(first * len(data)), int(second * len(data))))
        b = min(b, a + 400)
        if how == 0:
            data = data[:a] + word + data[a:]
        elif how == 1:
            data = data[:a] + word + data[a + len(word) :]
        elif how == 2:
            data = data[:a] + data[b:]
        elif how == 3:
            data = data[:b] + data[a:]
        else:
            data = data[:a]
    return data


@dataclass(frozen=True)
class Parser:
    """What is parsed, from sound examples, and by what."""

    name: str
    examples: list[bytes]
    parse: Callable[[bytes], Any]
    free_text: bool = False
    share: float = 1.0
    """Of the cases: what takes long gets fewer."""


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
            Parser("video", [self.video()], self.load_video, share=0.5),
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

        self._file("export/export.json", data)
        self._file("export/weights.safetensors", b"")
        from_export(self.folder / "export", torch.device("cpu"))

    def load_video(self, data: bytes) -> None:
        from hpc_stres.prepare.video import decode

        for number, _ in enumerate(decode(self._file("video.avi", data), 1 << 22)):
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

    def video(self) -> bytes:
        from hpc_stres.prepare.video import write_video

        path = self.folder / "sound.avi"
        picture = np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8)
        write_video(path, [np.roll(picture, n, 1) for n in range(8)], 25)
        return path.read_bytes()


def run(parser: Parser, number: int, cases: int) -> list[Outcome]:
    """So many cases for a parser, in a child."""

    def work(tell: Callable[[Outcome], None]) -> None:
        _limit()
        _try_all(parser, number, max(1, int(cases * parser.share)), tell)

    outcomes, status = outcomes_of(work)
    if status:
        outcomes.append(Outcome(CRASHED, f"{parser.name}: ended with {status}: see {last_case()}"))
    return outcomes


def last_case() -> Path:
    """The file that holds the case at which a child died."""
    return Path("/tmp") / f"campaign-case-{os.getuid()}"


def _limit() -> None:
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MEMORY_BYTES, resource.RLIM_INFINITY))
    signal.signal(signal.SIGALRM, _too_slow)


def _too_slow(*_: Any) -> None:
    raise TimeoutError(f"more than {CASE_SECONDS} s")


def _cases(parser: Parser) -> st.SearchStrategy[bytes]:
    made = st.builds(
        edited, st.sampled_from(parser.examples), st.lists(EDIT, min_size=1, max_size=6)
    )
    if not parser.free_text:
        return made
    return st.one_of(made, st.text(max_size=40).map(lambda t: t.encode("utf-8", "surrogatepass")))


def _try_all(parser: Parser, number: int, cases: int, tell: Callable[[Outcome], None]) -> None:
    @seed(number)
    @settings(max_examples=cases, deadline=None, database=None, phases=[Phase.explicit, Phase.generate],
              suppress_health_check=list(HealthCheck))  # fmt: skip
    @given(_cases(parser))
    def one(data: bytes) -> None:
        outcome = _try(parser, data)
        if outcome.verdict == CRASHED:
            with contextlib.suppress(OSError):
                last_case().write_bytes(data)
        tell(outcome)

    one()


def _try(parser: Parser, data: bytes) -> Outcome:
    from hpc_stres.errors import UserError
    from hpc_stres.prepare.video import UndecodableError

    signal.alarm(CASE_SECONDS)
    try:
        parser.parse(data)
    except (UserError, UndecodableError) as error:
        lines = len(str(error).splitlines())
        said = str(error)
        return Outcome(STOPPED if 0 < lines <= MOST_LINES else CRASHED, said)
    except Exception as error:
        kind = f"{type(error).__name__}: {error}"[:200]
        return Outcome(CRASHED, f"{parser.name}: {kind}, for {data[:200]!r}")
    finally:
        signal.alarm(0)
    return Outcome(SURVIVED, "")


def run_all(
    folder: Path, config: Path, number: int, cases: int
) -> Iterator[tuple[str, list[Outcome]]]:
    """Every parser in turn."""
    for parser in Parsers(folder, config).all():
        yield parser.name, run(parser, number, cases)
