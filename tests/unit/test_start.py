"""Finding the micro-batch that fits: estimated, agreed on, tried, halved once."""

from types import SimpleNamespace

import pytest
import torch

from hpc_stres.errors import UserError
from hpc_stres.models.building import build_phase_model
from hpc_stres.training import memory, micro_batch, trainer
from tests.conftest import tiny_config


@pytest.fixture
def rank(monkeypatch):
    """What `agreed_micro_batch` reads of a trainer, on a world of one that agrees with itself."""
    config = tiny_config("data")
    said = []
    monkeypatch.setattr(
        micro_batch.process_groups, "agree", lambda values, group, largest=True: values
    )
    monkeypatch.setattr(memory, "fitting_micro_batch", lambda *arguments: 9)
    fields = {
        "config": config,
        "name": "st_resnet",
        "phase": config.phase("st_resnet"),
        "device": None,
        "control": None,
    }
    return SimpleNamespace(
        **fields, world=SimpleNamespace(size=1, local_size=1), say=said.append, said=said
    )


def find(rank, monkeypatch, largest_that_fits):
    tried = []

    def attempt(model, config, name, device, videos):
        tried.append(videos)
        return videos <= largest_that_fits

    monkeypatch.setattr(memory, "try_micro_batch", attempt)
    return micro_batch.agreed_micro_batch(rank, None), tried


def test_what_fits_is_taken(rank, monkeypatch):
    assert find(rank, monkeypatch, 100) == (9, [6])


def test_out_of_memory_halves_once_and_says_so(rank, monkeypatch):
    assert find(rank, monkeypatch, 4) == (4, [6, 4])
    assert rank.said == ["6 videos at once do not fit in memory; trying half"]


def test_twice_out_of_memory_is_an_error_with_the_mend(rank, monkeypatch):
    with pytest.raises(
        UserError,
        match=r"4 videos at once do not fit in memory\nSet training\.max_micro_batch lower",
    ):
        find(rank, monkeypatch, 3)


def test_the_estimate_grows_with_the_clip_and_leaves_the_network_as_it_was(monkeypatch):
    monkeypatch.setattr(memory, "free_memory", lambda device, local_size: 2.0**30)
    config = tiny_config("data")
    fits = {}
    for name in ("motion", "st_resnet"):
        model = build_phase_model(config, name, 8)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        fits[name] = memory.fitting_micro_batch(model, config, name, torch.device("cpu"), 1)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert fits["motion"] > 5 * fits["st_resnet"] > 5
    assert memory.smallest_share(10, 4, 2) == 2
    assert memory.smallest_share(10, 4, 1) == 4


@pytest.mark.gpu
def test_a_gpu_that_is_too_small_is_noticed():
    config = tiny_config("data")
    device = torch.device("cuda")
    model = build_phase_model(config, "st_resnet", 8).to(device)
    assert memory.try_micro_batch(model, config, "st_resnet", device, 1)
    assert not memory.try_micro_batch(model, config, "st_resnet", device, 10**8)


def test_ranks_that_begin_differently_are_refused(monkeypatch):
    other = "0123456789abcdef" * 4

    def agree(values, group, largest=True):
        theirs = [float(int(other[start : start + 8], 16)) for start in (0, 8, 16, 24)]
        return [(max if largest else min)(pair) for pair in zip(values, theirs, strict=True)]

    monkeypatch.setattr(micro_batch.process_groups, "agree", agree)
    micro_batch.process_groups.refuse_different_starts(other, None)
    for place in (0, 9, 31):
        differing = other[:place] + "e" + other[place + 1 :]
        with pytest.raises(
            UserError, match="the ranks do not start from the same weights, step and videos"
        ):
            micro_batch.process_groups.refuse_different_starts(differing, None)


def test_what_a_rank_begins_with_is_its_step_its_requests_its_videos_and_every_number():
    model = build_phase_model(tiny_config("data"), "motion", 8)

    def fingerprint(step=3, trail="a", videos=(0, 1, 2)):
        sampler = SimpleNamespace(videos=videos)
        rank = SimpleNamespace(
            step=step, trail=trail, world=SimpleNamespace(size=2), sampler=sampler
        )
        return trainer.start_fingerprint(rank, model)

    found = [
        fingerprint(),
        fingerprint(step=4),
        fingerprint(trail="b"),
        fingerprint(videos=(0, 1, 3)),
    ]
    with torch.no_grad():
        model.motion.bn1.running_mean[0] += 1e-6
    found.append(fingerprint())
    assert len(set(found)) == 5
    assert fingerprint() == found[-1]
