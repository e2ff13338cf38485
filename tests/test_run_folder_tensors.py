from __future__ import annotations

import os
import pickle
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from pgnas.config import RunConfig
from pgnas.errors import FileError
from pgnas.run_folder import RunFolder
from pgnas.run_folder.tensors import load_checkpoint, load_tensors, save_checkpoint, save_tensors

Make = Callable[..., RunConfig]
Contents = Callable[[Path], dict[str, bytes]]


# Checkpoints


def state(step: int) -> dict[str, Any]:
    return {"weights": {"w": torch.full((40,), float(step))}, "step": step, "name": "n", "rng": torch.get_rng_state()}


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor):
        return torch.equal(left, right)
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    return bool(left == right)


def test_the_last_two_are_kept_and_the_newest_is_loaded(folder: RunFolder) -> None:
    assert folder.load_checkpoint("search") is None
    for step in (1, 2, 10):
        folder.save_checkpoint("search", state(step), step)
    folder.save_checkpoint("search-full", state(99), 99)  # another name that begins alike
    names = sorted(path.name for path in folder.file("checkpoints").iterdir())
    assert names == ["search-00000002.pt", "search-00000010.pt", "search-full-00000099.pt"]
    loaded = folder.load_checkpoint("search")
    assert loaded is not None
    assert same(loaded, state(10))
    folder.delete_checkpoints("search")
    assert folder.load_checkpoint("search") is None
    assert folder.load_checkpoint("search-full") is not None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damage_never_loads_as_another_state(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for step in (1, 2):
            save_checkpoint(folder, "search", state(step), step)
        newest = folder / "search-00000002.pt"
        whole = bytearray(newest.read_bytes())
        place = data.draw(st.integers(0, len(whole) - 1))
        if data.draw(st.booleans()):
            del whole[place:]
        else:
            whole[place] ^= 1 << data.draw(st.integers(0, 7))
        newest.write_bytes(whole)
        loaded = load_checkpoint(folder, "search")
        assert loaded is not None
        assert same(loaded, state(1)) or same(loaded, state(2))


def test_falling_back_is_said(folder: RunFolder, caplog: pytest.LogCaptureFixture) -> None:
    for step in (1, 2):
        folder.save_checkpoint("search", state(step), step)
    folder.file("checkpoints/search-00000002.pt").write_bytes(b"half")
    loaded = folder.load_checkpoint("search")
    assert loaded is not None
    assert loaded["step"] == 1
    assert "search-00000002.pt is damaged" in caplog.text


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (os.environ["PGNAS_TEST_BOMB"],)


def test_a_checkpoint_cannot_run_code(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGNAS_TEST_BOMB", str(tmp_path / "bang"))
    folder.save_checkpoint("search", state(1), 1)
    torch.save({"x": Bomb()}, folder.file("checkpoints/search-00000002.pt"))
    folder.file("checkpoints/search-00000003.pt").write_bytes(pickle.dumps(Bomb()))
    loaded = folder.load_checkpoint("search")
    assert loaded is not None
    assert loaded["step"] == 1
    assert not (tmp_path / "bang").exists()


@pytest.mark.parametrize("value", [np.float64(1.0), Counter("ab"), {1, 2}, object(), [Path("x")], {Path("x"): 1}])
def test_what_could_not_be_loaded_safely_is_not_saved(folder: RunFolder, value: object) -> None:
    with pytest.raises(TypeError, match="plain value"):
        folder.save_checkpoint("search", {"x": value}, 1)
    assert folder.load_checkpoint("search") is None


def test_an_optimizer_and_its_schedule_are_plain(folder: RunFolder) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    schedule.step()
    saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "schedule": schedule.state_dict()}
    folder.save_checkpoint("search", saved, 1)
    loaded = folder.load_checkpoint("search")
    assert loaded is not None
    optimizer.load_state_dict(loaded["optimizer"])  # type: ignore[arg-type]
    assert same(loaded["model"], model.state_dict())


# safetensors


def test_tensors_come_back_with_their_metadata(folder: RunFolder) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    values = {"a": base, "view": base.t(), "shared": base[0], "int": torch.tensor(3), "empty": torch.zeros(0, 2)}
    folder.save_tensors("x.safetensors", values, {"kind": "posterior", "digest": "ab"})
    loaded, metadata = folder.load_tensors("x.safetensors")
    assert same(loaded, values)
    assert metadata == {"kind": "posterior", "digest": "ab"}
    assert same(load_file(folder.file("x.safetensors")), values)  # readable without pgnas
    folder.save_tensors("y.safetensors", values)
    assert folder.load_tensors("y.safetensors")[1] == {}


def test_a_file_may_hold_nothing(tmp_path: Path) -> None:
    for metadata in ({}, {"space": "x"}):
        save_tensors(tmp_path / "t.safetensors", {}, metadata)
        assert load_tensors(tmp_path / "t.safetensors") == ({}, metadata)


def test_equal_contents_give_equal_bytes(tmp_path: Path) -> None:
    metadata = {f"key {number}": "ü" * number for number in range(8)}
    found = set()
    for number in range(5):
        save_tensors(tmp_path / f"{number}", {"b": torch.ones(3), "a": torch.zeros(1)}, metadata)
        found.add((tmp_path / f"{number}").read_bytes())
    assert len(found) == 1


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_tensors(path, {"a": torch.ones(5), "b": torch.ones(2)}, {"k": "v"})
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FileError, match="whole safetensors file"):
            load_tensors(path)
    with pytest.raises(FileError, match="must exist"):
        load_tensors(tmp_path / "none.safetensors")
    with pytest.raises(FileError):
        load_tensors(tmp_path)
