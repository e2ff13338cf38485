"""Every example of the README runs."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgnas.cli import main
from pgnas.cli.main import app
from pgnas.stages import finishing
from pgnas.testing import temporary_rules

README = (Path(__file__).parent.parent / "README.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL) for line in block.splitlines()]

ON_A_RUN = ("pgnas evaluate", "pgnas front", "pgnas predict", "pgnas status", "pgnas report", "pgnas compare")


def _downloads(command: str) -> bool:
    return "--preset" in command and "--data" not in command


def test_the_python_examples_run_one_after_another_and_the_commands_on_their_run(tmp_path, newcomers_folder, capsys):
    torch.manual_seed(0)
    with temporary_rules():
        run_examples(tmp_path)
    shutil.copytree("runs/readme", "runs/again")  # as another run
    commands = [c for c in COMMANDS if c.startswith(ON_A_RUN)]
    assert commands
    for command in commands:
        capsys.readouterr()
        words = [w.split(",")[0] if "%," in w else w for w in shlex.split(command)[1:]]  # one point of a front will do
        assert main(words) == 0, command
        assert capsys.readouterr().out


def run_examples(tmp_path):
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        exec(compile(block, "README.md", "exec"), names)
        if "search" in block:
            found = names["result"]
            assert found.counts.macs <= 0.4 * found.full.macs
            assert found.score.metric > 0.8
            assert isinstance(found.model, torch.nn.Module)
        if "extract" in block:
            with torch.no_grad():
                torch.testing.assert_close(names["small"](names["images"]), names["y"], rtol=1e-4, atol=1e-4)
    assert names["report"].operations == {"layer": "Follow"}
    assert (tmp_path / "runs" / "readme" / "report.html").exists()
    assert names["result"]["found"]["test_accuracy"] > 0.5


@pytest.mark.parametrize("verb", ["evaluate", "front", "predict", "report", "compare"])
def test_the_flags_of_the_other_commands_are_the_real_ones(verb):
    rows = re.findall(rf"\| flag of `pgnas {verb}` .*\n\|[-|]+\n((?:\|.*\n)+)", README)
    documented = re.findall(r"^\| `(--[a-z-]+)`", rows[0], re.MULTILINE)
    arguments = app[verb].assemble_argument_collection()
    assert sorted(documented) == sorted(n for a in arguments for n in a.names if a.show and n.startswith("--"))


@pytest.fixture
def newcomers_folder(tmp_path, monkeypatch):
    """A folder with images, an .npz file and a package, as the README's examples name them."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "path" / "to" / "images" / name).mkdir(parents=True)
        for number in range(12):
            pixels = rng.integers(0, 255, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "path" / "to" / "images" / name / f"{number}.png")
    np.savez("mine.npz", x_train=rng.integers(0, 255, (60, 8, 8), dtype=np.uint8), y_train=np.arange(60) % 3)
    (tmp_path / "mypackage").mkdir()
    (tmp_path / "mypackage" / "__init__.py").touch()
    (tmp_path / "mypackage" / "nets.py").write_text(
        "from torch import nn\n\n\n"
        "def build(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),\n"
        "                         nn.Linear(288, num_classes))\n"
    )


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("pgnas run") and not _downloads(c)])
def test_the_commands_run(command, newcomers_folder, capsys):
    words = shlex.split(command)[1:]
    # Shortened so that the tests stay quick: the path is the README's, the number of epochs is not.
    words = [w for i, w in enumerate(words) if w != "--epochs" and (i == 0 or words[i - 1] != "--epochs")]
    if "--budget" in words:
        words[words.index("--budget") + 1] = "1"
    else:
        words += ["--epochs", "1"]
    assert main([*words, "--candidates", "4", "--batch-size", "16", "--until", "extract"]) == 0
    assert (Path(words[words.index("--out") + 1]) / "architecture.json").exists(), capsys.readouterr().err


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("pgnas study")])
def test_the_studies_run(command, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finishing, "FORMATS", {})  # exporting every run would take longer than the runs
    words = re.sub(r"--(seeds|values) \S+", "", command)  # shortened, as above
    words = [*shlex.split(words)[1:], "--seeds", "0", "--epochs", "1", "--candidates", "2"]
    words += ["--finetune-epochs", "1"] if "ablation" in words else ["--values", "50"]
    assert main(words) == 0, capsys.readouterr().err
    out = Path(words[words.index("--out") + 1])
    assert capsys.readouterr().out.startswith((out / "table.md").read_text())
    assert (out / "figure.png").exists()


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith("pgnas inspect")])
def test_the_inspections_run(command, capsys):
    assert main(shlex.split(command)[1:]) == 0
    assert capsys.readouterr().out


def test_make_targets_of_the_readme_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    targets = [line.split()[1] for line in COMMANDS if line.startswith("make ")]
    assert targets[:2] == ["demo", "test"]
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
