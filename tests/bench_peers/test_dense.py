"""Pruners of a seed share the training of the full network."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from bench.peers.cells import Cell
from bench.peers.methods import base
from bench.peers.working import Work, opened

from pgnas.stages.pipeline import do_stage


def trained_dense(cell: Cell, work: Work) -> tuple[dict[str, object], dict[str, torch.Tensor]]:
    with opened(cell, work) as run:
        do_stage(run, "dense", base.train_dense)
        return run.folder.stage_facts("dense"), run.folder.load_tensors(base.DENSE)[0]


def test_a_second_pruner_takes_the_weights_of_the_same_settings_and_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work = Work(tmp_path, "digits", channels=1, compile="off")
    cells = [
        Cell(method=method, network="vgg", cap="10%", seed=seed, epochs=2, data="digits", candidates=2)
        for method, seed in (("torch-pruning", 0), ("fastnas", 0), ("fastnas", 1), ("torch-pruning", 1))
    ]
    trained = []
    train = base.train_plainly
    monkeypatch.setattr(base, "commit", lambda: "one")
    monkeypatch.setattr(
        base, "train_plainly", lambda run, *a, **k: (trained.append(run.config.out), train(run, *a, **k))
    )
    first, weights = trained_dense(cells[0], work)
    (tmp_path / "work" / "other").mkdir()
    (tmp_path / "work" / "other" / "stages.json").write_text("{")
    second, taken = trained_dense(cells[1], work)
    assert len(trained) == 1
    assert second["trained_by"] == cells[0].name
    assert second["spent"] == first["spent"] == 1.0
    assert all(torch.equal(taken[name], weights[name]) for name in weights)
    other, _ = trained_dense(cells[2], work)
    assert "trained_by" not in other
    monkeypatch.setattr(base, "commit", lambda: "two")
    assert "trained_by" not in trained_dense(cells[3], work)[0]
    assert len(trained) == 3
