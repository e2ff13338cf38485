"""Files that are not what a run needs: one line on stderr, exit code 2, and no code of theirs is run."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pgnas import stages
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.run_folder import RunFolder

MODEL = "multibranch-resnet:width=4,stages=2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose network has been trained and not exported."""
    out = tmp_path_factory.mktemp("runs") / "run"
    config = RunConfig(model=MODEL, data="digits", out=str(out), epochs=1, candidates=2, max_macs="60%", batch_size=512)
    return stages.run(config, until="train").path


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("bang"),)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def archived(path: Path) -> None:
    torch.save({"x": Bomb()}, path)


def truncated(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def of_another_model(path: Path) -> None:
    save_file({"conv1.weight": torch.zeros(4, 1, 3, 3)}, path)


def of_another_width(path: Path) -> None:
    state = load_file(path)
    save_file({name: torch.cat([value, value]) if value.ndim else value for name, value in state.items()}, path)


def of_another_space(path: Path) -> None:
    value = json.loads(path.read_text())
    name = next(iter(value["gates"]))
    value["gates"][name] = {"size": 99, "kept": "0-3"}
    del value["digest"]
    path.write_text(json.dumps(value))


def changed_by_hand(path: Path) -> None:
    value = json.loads(path.read_text())
    next(iter(value["gates"].values()))["kept"] = ""
    path.write_text(json.dumps(value))


def deep(path: Path) -> None:
    path.write_text("[" * 100_000)


def not_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


TENSORS = [pickled, archived, truncated, emptied, folder, of_another_model, of_another_width]
VALUES = [pickled, truncated, emptied, folder, of_another_space, changed_by_hand, deep, not_text]
CASES = [
    *[("sample", "posterior.safetensors", spoil) for spoil in TENSORS],
    *[("train", "extracted.safetensors", spoil) for spoil in TENSORS],
    *[("export", "found.safetensors", spoil) for spoil in TENSORS],
    *[("extract", "architecture.json", spoil) for spoil in VALUES],
]


def require_one_line(capsys: pytest.CaptureFixture[str], part: str) -> None:
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pgnas: error: ")
    assert err.count("\n") == 1
    assert part in err
    assert not Path("bang").exists()


@pytest.mark.parametrize(("stage", "name", "spoil"), CASES, ids=[f"{n}-{s.__name__}" for _, n, s in CASES])
def test_spoiled_files_of_a_run_are_refused(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    name: str,
    spoil: Callable[[Path], None],
) -> None:
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    with RunFolder.open(run) as opened:
        opened.forget_from(stage)
    spoil(run / name)
    capsys.readouterr()
    assert main([stage, str(run)]) == 2
    require_one_line(capsys, "architecture" if name == "architecture.json" else name)


@pytest.mark.parametrize("spoil", [pickled, archived, emptied, folder, of_another_model])
@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_starting_weights_of_other_kinds_are_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    suffix: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"weights{suffix}"
    spoil(path)
    words = ["run", "--model", MODEL, "--data", "digits", "--out", "out", "--weights", str(path)]
    assert main(words) == 2
    require_one_line(capsys, path.name)
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("tensors", "part"),
    [
        ({}, "no tensors"),
        ({"stem.0.weight": torch.full((4, 1, 3, 3), float("nan"))}, "finite"),
        ({"stem.0.weight\x1b[31m": torch.zeros(1)}, "no such name"),
    ],
)
def test_starting_weights_without_sense_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tensors: object, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert isinstance(tensors, dict)
    save_file(tensors, "weights.safetensors")
    words = ["run", "--model", MODEL, "--data", "digits", "--out", "out", "--weights", "weights.safetensors"]
    assert main(words) == 2
    require_one_line(capsys, part)
