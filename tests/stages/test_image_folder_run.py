"""``pgnas run`` on a folder of images with networks that were not written for it, and what the command line refuses."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import pgnas
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.config_file import format_settings
from pgnas.data import StreamedSplit
from pgnas.errors import ModelError
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder
from pgnas.stages.context import Context


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three classes of coloured noise, 24 images each."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for index, name in enumerate(("blue", "green", "rød")):
        folder = root / name
        folder.mkdir()
        for number in range(24):
            pixels = rng.integers(0, 120, (34, 40, 3), dtype=np.uint8)
            pixels[..., index] += 120
            Image.fromarray(pixels).save(folder / f"{number}.png")
    return root


@pytest.mark.parametrize("model", ["torchvision:resnet18", "torchvision:mobilenet_v2"])
def test_torchvision_networks_on_a_folder(images, tmp_path, model, capsys):
    out = tmp_path / "mine"
    words = ["run", "--model", model, "--data", str(images), "--out", str(out), "--max-macs", "40%"]
    words += ["--epochs", "2", "--candidates", "2", "--image-size", "32", "--batch-size", "16", "--lr", "0.02"]
    assert main(words) == 0, capsys.readouterr().err
    result = json.loads((out / "result.json").read_text())
    assert 0 < result["found"]["macs"] <= 0.4 * result["full"]["macs"]
    assert any("no test split" in note for note in result["notes"])
    for name in ("model.pt2", "model.onnx", "model.safetensors", "model.py", "report.html"):
        assert (out / name).stat().st_size > 0
    with torch.no_grad():
        assert pgnas.load(out)(torch.zeros(2, 3, 32, 32)).shape == (2, 3)


def make_command(tmp_path, **changes):
    flags = {"model": "multibranch-resnet:width=4,stages=1", "data": "digits", "max-macs": "40%", "epochs": "1"}
    flags |= {"out": str(tmp_path / "out"), **{key.replace("_", "-"): value for key, value in changes.items()}}
    return ["run", *(word for key, value in flags.items() for word in (f"--{key}", str(value)))]


def one_line(capsys):
    text = capsys.readouterr().err.strip()
    assert "Traceback" not in text
    lines = [line for line in text.splitlines() if line.startswith("pgnas: error:")]
    assert len(lines) == 1, text
    return lines[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": "/no/such/folder"}, "no/such/folder"),
        ({"max_macs": "0%"}, "--max-macs"),
        ({"max_macs": "900%"}, "--max-macs"),
        ({"max_macs": "lots"}, "--max-macs"),
        ({"model": "resnet5000"}, "registered name"),
        ({"model": "torchvision:resnet5000"}, "did you mean"),
        ({"model": "tests_no_such:build"}, "importable"),
        ({"epochs": "0"}, "--epochs"),
        ({"no_such_flag": "1"}, "no-such-flag"),
        ({"decide_at": "200%"}, "--decide-at"),
        ({"weights": "missing.safetensors"}, "missing.safetensors"),
        ({"max_latency": "1us"}, "--max-latency"),
        ({"device_costs": "/no/such/run"}, "/no/such/run"),
        ({"image_size": "1", "model": "torchvision:alexnet"}, "alexnet"),
    ],
)
def test_bad_input_is_one_clear_line_and_code_2(tmp_path, capsys, changes, words):
    assert main(make_command(tmp_path, **changes)) == 2
    assert words in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("outputs", [5, 12])
def test_a_network_handed_in_must_tell_the_datas_classes(tmp_path, outputs):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, outputs))
    with pytest.raises(ModelError, match=rf"must give 10 logits an image.*got \(2, {outputs}\) for 2 images"):
        pgnas.run(model=network, data="digits", out=tmp_path / "out", epochs=1, device="cpu")
    assert not (tmp_path / "out").exists()


def test_milestones_after_the_end_and_a_width_that_is_not_there_are_told(tmp_path, capsys):
    command = make_command(
        tmp_path, model="torchvision:resnet18", image_size=16, schedule="multistep", milestones="5,9"
    )
    assert main([*command, "--baseline", "uniform", "--until", "search"]) == 0
    told = capsys.readouterr().err
    assert "--milestones 5,9 are not reached in 1 epochs" in told
    assert "baseline uniform: the network has no width to scale, it will be left out" in told


def test_a_folder_with_one_class_is_refused(tmp_path, images, capsys):
    lonely = tmp_path / "lonely"
    lonely.mkdir()
    (lonely / "only").symlink_to(images / "blue")
    assert main(make_command(tmp_path, data=lonely)) == 2
    assert "class" in one_line(capsys)


def test_a_folder_of_another_run_is_refused_and_left_alone(tmp_path, capsys):
    assert main([*make_command(tmp_path), "--until", "search"]) == 0
    before = (tmp_path / "out" / "posterior.safetensors").read_bytes()
    capsys.readouterr()
    assert main([*make_command(tmp_path, seed=5), "--until", "search"]) == 2
    assert "seed" in one_line(capsys)
    assert (tmp_path / "out" / "posterior.safetensors").read_bytes() == before


def test_a_begun_run_whose_data_is_away_stays_and_goes_on_when_it_is_back(tmp_path, images, capsys):
    data, out = tmp_path / "data", tmp_path / "out"
    data.symlink_to(images)
    command = make_command(tmp_path, data=data, image_size=8)
    settings = RunConfig(model="multibranch-resnet:width=4,stages=1", data=str(data), out=str(out))
    out.mkdir()
    (out / "config.toml").write_text(format_settings(replace(settings, max_macs="40%", epochs=1, image_size=8)))
    (out / "progress.json").write_text("{}")  # as after a kill before the first checkpoint
    before = (out / "config.toml").read_text()
    data.unlink()
    assert main([*command, "--until", "search"]) == 2
    assert str(data) in one_line(capsys)
    assert (out / "config.toml").read_text() == before
    data.symlink_to(images)
    assert main([*command, "--until", "search"]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("first", [True, False])
def test_a_run_reads_its_images_as_when_it_began_whatever_has_become_of_the_memory(
    tmp_path, images, monkeypatch, first
):
    config = RunConfig(model="multibranch-resnet", data=str(images), out=str(tmp_path / "out"), image_size=8)
    for fits in (first, not first):
        monkeypatch.setattr("pgnas.data.folder.fits_in_memory", lambda *_, fits=fits, **__: fits)
        with RunFolder.create_or_resume(config) as folder:
            data = Context(folder, SilentReporter()).data
        assert isinstance(data.train, StreamedSplit) is not first


def test_a_folder_of_something_else_is_refused_and_left_alone(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("years of work")
    assert main(make_command(tmp_path)) == 2
    one_line(capsys)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["thesis.txt"]


def test_a_network_that_cannot_be_traced_is_refused(tmp_path, capsys, monkeypatch):
    (tmp_path / "their_nets.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(64, 10)\n"
        "    def forward(self, x):\n"
        "        y = self.fc(x.flatten(1))\n"
        "        return y if y.sum() > 0 else -y\n"
        "def build():\n"
        "    return Net()\n"
    )
    monkeypatch.chdir(tmp_path)
    assert main(make_command(tmp_path, model="their_nets:build")) == 2
    assert "traceable" in one_line(capsys)
    assert not (tmp_path / "out").exists()


class Squeezed(nn.Module):
    """Loses the batch axis of one image, as is easily written."""

    def __init__(self, *, norm: bool):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(1, 8, 3), nn.AdaptiveAvgPool2d(1)
        self.norm, self.head = nn.BatchNorm1d(8) if norm else nn.Identity(), nn.Linear(8, 10)

    def forward(self, x):
        return self.head(self.norm(self.pool(self.conv(x)).squeeze()))


@pytest.mark.parametrize("norm", [True, False])
def test_a_network_handed_in_must_take_one_image(norm, tmp_path):
    with pytest.raises(ModelError, match=r"must work on one image as on several.*flatten\(1\)"):
        pgnas.run(model=Squeezed(norm=norm), data="digits", out=tmp_path / "out", epochs=1, device="cpu")
    assert not (tmp_path / "out").exists()
