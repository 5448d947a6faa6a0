"""Hand-crafted scores are of today's test videos, whatever they were when the phase was trained."""

import shutil

import numpy as np
import pytest

from hpc_stres.errors import UserError
from hpc_stres.evaluation.scores import Scores
from hpc_stres.handcrafted import phase
from hpc_stres.handcrafted.classifier import Classifier
from hpc_stres.handcrafted.extraction import Extraction, Result
from hpc_stres.parallel.world import find_world
from hpc_stres.prepare.run import prepare
from hpc_stres.run.paths import RunPaths
from tests.unit.listed import own_config, rows_of, write_csv
from tests.unit.test_handcrafted_phase import PHASES
from tests.unit.untrained import evaluate_here

pytest.importorskip("sklearn")


def made_up(extraction):
    """What an extraction gives, from the contents of its videos alone."""
    ids = [video for video, _ in extraction.scored]
    rows = [extraction.store.rows[extraction.store.number[video]] for video in ids]
    scores = np.array([[int(row.rgb_sha256[:4], 16), 30000.0] for row in rows])
    machines = Classifier(np.zeros((2, 1), np.float32), np.zeros(2))
    return Result(ids, scores, machines, {}, 0)


def test_test_videos_that_changed_are_scored_again_and_labels_are_todays(
    root, tmp_path, monkeypatch, capsys
):
    """Test videos may change after a training: networks test them as they are, and so does this."""
    monkeypatch.setattr(Extraction, "run", made_up)
    rows, run_dir = rows_of(root, 12), tmp_path / "run"
    write_csv(root, rows)
    config = own_config(root, *PHASES[1:2], "data.workers=1")

    def make():
        prepare(config, quiet=True)
        parts = RunPaths(run_dir).phase("idt").root / "parts"
        parts.mkdir(parents=True, exist_ok=True)
        return phase.run(config, "idt", run_dir, find_world({}), ())

    assert make()
    before = evaluate_here(run_dir)["splits"]["1"]["idt"]
    # Another label of a test video: no score changes, the accuracy does.
    rows[0][1] = "walk"
    write_csv(root, rows)
    assert make()
    assert "done already" in capsys.readouterr().out
    after = evaluate_here(run_dir)["splits"]["1"]["idt"]
    assert after["videos"] == 6
    assert after["confusion"]["matrix"] != before["confusion"]["matrix"]
    # Another video under the same name.
    videos = root / "binding" / "videos"
    shutil.copy(videos / rows[3][0], videos / rows[0][0])
    prepare(config, quiet=True)
    with pytest.raises(UserError, match="no scores of 1 test videos"):
        evaluate_here(run_dir)
    old = Scores.load(RunPaths(run_dir).scores(1, "idt"))
    assert make()
    assert "1 videos to be scored are new or not as they were" in capsys.readouterr().out
    evaluate_here(run_dir)
    new = Scores.load(RunPaths(run_dir).scores(1, "idt"))
    differing = [name for n, name in enumerate(old.ids) if (old.logits[n] != new.logits[n]).any()]
    assert differing == [rows[0][0].removesuffix(".avi")]
