"""Published weights: what is fetched, checked and converted; nothing is left of what is not right."""

import dataclasses
import functools
import hashlib
import http.server
import socket
import threading

import pytest
import torch

from hpc_stres.commands import weights as command
from hpc_stres.errors import ConfigError, UserError
from hpc_stres.models import build_model, published_weights
from hpc_stres.models.published_weights import PUBLISHED, PublishedWeights, by_name, fetch, trunk_of
from hpc_stres.models.weights import read_state, save_state, to_torchvision

SIZES = {"stages": (2, 2), "width": 4}


@pytest.fixture
def shelf(tmp_path):
    """A folder that a server on this machine offers, and its address."""
    folder = tmp_path / "shelf"
    folder.mkdir()

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *words):
            pass

    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=folder)
    )
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def publish(shelf, monkeypatch, damage=None, **changes):
    """A small ResNet as torchvision would publish it, under a name with its first eight digits."""
    folder, address = shelf
    plain = to_torchvision(build_model("appearance", 1000, **SIZES).state_dict(), "appearance")
    torch.save(plain, folder / "new.pth")
    digest = hashlib.sha256((folder / "new.pth").read_bytes()).hexdigest()
    name = f"tiny-{digest[:8]}.pth"
    (folder / "new.pth").rename(folder / name)
    if damage:
        damage(folder / name)
    entry = PublishedWeights(
        name="tiny", url=f"{address}/{name}", licence="MIT", about="a test's", **SIZES
    )
    entry = dataclasses.replace(entry, **{"sha256": digest, **changes})
    monkeypatch.setattr(published_weights, "PUBLISHED", (entry, *PUBLISHED))
    return entry, plain


def run(*words, folder, capsys):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    assert command.run(parser.parse_args([*words, "--to", str(folder)])) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("known", ["whole", "eight digits"])
def test_a_published_file_is_fetched_checked_and_converted(
    shelf, tmp_path, monkeypatch, capsys, known
):
    entry, plain = publish(shelf, monkeypatch, **({} if known == "whole" else {"sha256": ""}))
    assert len(entry.digits) == (64 if known == "whole" else 8)
    out = run("tiny", folder=tmp_path / "w", capsys=capsys)
    assert "resnet [2, 2], width 4, 3 input planes, 1000 classes" in out
    assert [path.name for path in (tmp_path / "w").iterdir()] == ["tiny.safetensors"]
    found = read_state(tmp_path / "w" / "tiny.safetensors")
    assert found.keys() == plain.keys()
    assert all(torch.equal(found[name], plain[name]) for name in plain)
    assert "there already" in run("tiny", folder=tmp_path / "w", capsys=capsys)


def test_a_copy_that_lies_there_needs_no_network_and_stays(shelf, tmp_path, monkeypatch, capsys):
    entry, _ = publish(shelf, monkeypatch, url="http://127.0.0.1:9/none-00000000.pth")
    source = next(shelf[0].iterdir())
    own = tmp_path / "w" / entry.file
    own.parent.mkdir()
    own.write_bytes(source.read_bytes())
    run("tiny", folder=own.parent, capsys=capsys)
    assert sorted(path.name for path in own.parent.iterdir()) == [entry.file, "tiny.safetensors"]


@pytest.mark.parametrize("known", ["whole", "eight digits"])
def test_a_file_that_is_another_is_refused_and_not_kept(shelf, tmp_path, monkeypatch, known):
    def damage(path):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    entry, _ = publish(shelf, monkeypatch, damage, **({} if known == "whole" else {"sha256": ""}))
    with pytest.raises(UserError, match="what came is not the published file"):
        fetch(entry, tmp_path / "w")
    assert list((tmp_path / "w").iterdir()) == []
    own = tmp_path / "w" / entry.file
    own.write_bytes(next(shelf[0].iterdir()).read_bytes())
    with pytest.raises(UserError, match=f"this is not {entry.file}: its SHA-256 is [0-9a-f]{{64}}"):
        command._provide("tiny", tmp_path / "w", again=False)


@pytest.mark.parametrize("what", ["gone", "refused", "silent"])
def test_without_the_file_or_a_network_the_way_out_is_said(shelf, tmp_path, monkeypatch, what):
    entry, _ = publish(shelf, monkeypatch)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    if what == "gone":
        next(shelf[0].iterdir()).unlink()
    elif what == "refused":
        listener.close()
        entry = dataclasses.replace(entry, url=f"http://127.0.0.1:{port}/{entry.file}")
    else:
        entry = dataclasses.replace(entry, url=f"http://127.0.0.1:{port}/{entry.file}")
    with pytest.raises(
        UserError, match=r"cannot be fetched: .*\nFetch it where there is a network"
    ):
        fetch(entry, tmp_path / "w", silence_seconds=0.3)
    listener.close()
    assert list((tmp_path / "w").iterdir()) == []
    assert socket.getdefaulttimeout() is None


def test_a_file_of_another_network_is_refused(shelf, tmp_path, monkeypatch):
    publish(shelf, monkeypatch, stages=(3, 4, 6, 3))
    with pytest.raises(
        UserError, match=r"expected the tensors of tiny, found those of resnet \[2, 2\]"
    ):
        command._provide("tiny", tmp_path / "w", again=False)
    assert not (tmp_path / "w" / "tiny.safetensors").exists()


def test_every_entry_says_where_what_and_how_it_is_checked():
    assert (
        len({entry.name for entry in PUBLISHED})
        == len({entry.url for entry in PUBLISHED})
        == len(PUBLISHED)
    )
    for entry in PUBLISHED:
        assert entry.url.startswith("https://")
        assert len(entry.digits) in (8, 64)
        # The whole digest agrees with what its makers wrote into the file's name.
        assert f"-{entry.digits[:8]}.pth" in entry.file
        assert entry.licence
        assert by_name(entry.name) is by_name(entry.file) is entry
    with pytest.raises(ConfigError, match=r"did you mean resnet50\?"):
        by_name("resnet5")


@pytest.mark.parametrize("depth", [50, 101, 152])
def test_a_trunk_is_known_by_its_names_and_shapes(depth):
    with torch.device("meta"):
        state = to_torchvision(build_model("appearance", 1000, depth).state_dict(), "appearance")
    assert str(trunk_of(state)) == f"ResNet-{depth}, 3 input planes, 1000 classes"
    assert trunk_of({"some.weight": torch.zeros(1)}) is None


def test_what_is_in_a_file_is_said(tmp_path, capsys):
    state = build_model("st_resnet", 5, **SIZES).state_dict()
    save_state(state, tmp_path / "w.safetensors")
    out = run(str(tmp_path / "w.safetensors"), folder=tmp_path, capsys=capsys)
    assert "a network of this package: appearance and motion" in out
    assert "no published file that is known here" in out
    listed = run(folder=tmp_path, capsys=capsys)
    for entry in PUBLISHED:
        assert entry.url in listed
        assert entry.digits in listed
