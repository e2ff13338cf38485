from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import pytest
from bench.peers.cells import Cell, read_results
from bench.peers.networks import NETWORKS

ONE = Cell(method="pgnas", network="resnet", cap="40%", seed=0)


def test_cells_that_differ_have_names_that_differ():
    options = {
        "method": ["pgnas", "uniform"],
        "network": list(NETWORKS),
        "cap": ["40%", "25%"],
        "seed": [0, 1],
        "start": ["scratch", "trained"],
        "epochs": [20, 2],
        "data": ["cifar10", "digits"],
        "dense_share": ["50%", "25%"],
        "candidates": [64, 8],
        "precision": ["auto", "bf16"],
    }
    assert set(options) == {field.name for field in dataclasses.fields(Cell)}
    cells = [Cell(**dict(zip(options, values, strict=True))) for values in itertools.product(*options.values())]
    assert len({cell.name for cell in cells}) == len(cells)


def test_cells_of_one_table_differ_in_method_and_seed_alone():
    for change in ({"method": "uniform"}, {"seed": 2}):
        assert dataclasses.replace(ONE, **change).table == ONE.table
    for change in ({"cap": "25%"}, {"network": "vgg"}, {"start": "trained"}, {"epochs": 2}, {"data": "digits"}):
        assert dataclasses.replace(ONE, **change).table != ONE.table


@pytest.mark.parametrize("network", NETWORKS)
def test_a_name_is_good_on_every_file_system(network: str):
    name = dataclasses.replace(ONE, network=network, cap="12.5%").name
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-.")


def test_a_result_is_the_cell_s_own(tmp_path: Path):
    other = dataclasses.replace(ONE, seed=1)
    ONE.write(tmp_path, {"after": {"test": 0.5}})
    other.write(tmp_path, {"after": {"test": 0.6}})
    results = read_results(tmp_path)
    assert [Cell.of(result) for result in results] == [ONE, other]
    assert [result["after"]["test"] for result in results] == [0.5, 0.6]
    assert not list(tmp_path.rglob("*.part"))


def test_a_trained_start_begins_with_the_full_network_of_its_seed():
    full = dataclasses.replace(ONE, start="trained", seed=3).full
    assert (full.method, full.start, full.seed, full.network) == ("full", "scratch", 3, "resnet")
