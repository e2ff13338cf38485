"""The topology benchmark: tables, caps, cells without what is connected with nothing, searches that resume."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from pgnas.architecture import Architecture
from pgnas.cli import main
from pgnas.errors import ConfigError, FileError, ModelError
from pgnas.nn import extract, measure, supernet
from pgnas.stages.nats_tables import TopologyTable
from pgnas.stages.topology_bench import TopologyBench, bench_topology, supernet_cap
from pgnas.supernets.nats_cells import EDGES, OPERATIONS, all_cells, connected, format_cell, parse_cell
from pgnas.supernets.nats_topology import choices_of, chosen_cell, nats_topology, network_of

CELLS = list(all_cells())
STRINGS = [format_cell(cell) for cell in CELLS]
LEAST, CONV = 7_783_000, 1_000_000


def columns() -> dict[str, np.ndarray]:
    """A table of the space's shape, with costs as the space's are and accuracies that are no benchmark's."""
    weights = {"nor_conv_3x3": 9, "nor_conv_1x1": 1}
    flops = np.array([LEAST + CONV * sum(weights.get(operation, 0) for operation in cell.values()) for cell in CELLS])
    return {"arch": np.array(STRINGS), "params_c10": flops // 100, "flops_c10": flops, "true": 100 - 1e8 / flops}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "topology.npz"
    np.savez(path, **columns())
    return path


def test_rows_and_references_are_the_tables_own(path: Path) -> None:
    table = TopologyTable(path, column="true")
    assert (table.cheapest, table.largest) == (LEAST, LEAST + 54 * CONV)
    row = table.row(STRINGS[4321])
    assert (row.row, row.flops, row.params) == (4321, columns()["flops_c10"][4321], columns()["params_c10"][4321])
    assert table.accuracy(4321) == columns()["true"][4321]
    found = table.references(LEAST + 9 * CONV)
    allowed = columns()["flops_c10"] <= LEAST + 9 * CONV
    assert found.best == columns()["true"][allowed].max()
    assert found.mean == pytest.approx(columns()["true"][allowed].mean())
    assert found.only_skips == columns()["true"][STRINGS.index(format_cell(dict.fromkeys(EDGES, "skip_connect")))]


def test_a_table_that_is_none_is_refused(path: Path, tmp_path: Path) -> None:
    few, other = tmp_path / "few.npz", tmp_path / "other.npz"
    np.savez(few, **{name: values[:9] for name, values in columns().items()})
    np.savez(other, **{name: values for name, values in columns().items() if name != "flops_c10"})
    short = tmp_path / "short.npz"
    np.savez(short, **{**columns(), "true": columns()["true"][:9]})
    np.save(tmp_path / "array.npy", columns()["true"])
    for bad in (few, other, short, tmp_path / "absent.npz", tmp_path / "array.npy"):
        with pytest.raises(FileError, match="topology space"):
            TopologyTable(bad, column="true")
    with pytest.raises(ConfigError, match="true"):
        TopologyTable(path, column="false")


@torch.no_grad()
@pytest.mark.parametrize("row", [0, 77, 1234, 5000, 9876, 15_624])
def test_what_is_connected_with_nothing_is_not_in_the_network_either(row: int) -> None:
    """The found network has no multiply-adds beyond those of the connected cell."""
    network = nats_topology(channels=2, cells=1, num_classes=3)
    x = torch.randn(2, 3, 8, 8)
    gated = supernet(network, x, "operation", tie=choices_of(network))
    kept = {f"cells.0.edges.e{s}{t}": (OPERATIONS.index(op),) for (s, t), op in CELLS[row].items()}
    architecture = Architecture(gated.gates.sizes, kept)
    assert chosen_cell(architecture) == CELLS[row]
    cell = connected(CELLS[row])
    counts = measure(network_of(network, cell), (x,))
    assert gated.count(architecture).macs <= counts.macs
    if any(operation != "none" for operation in cell.values()):
        assert gated.count(architecture) == counts
    small = extract(gated, architecture)
    if cell == CELLS[row]:
        assert torch.allclose(small(x), network_of(network, cell).eval()(x), atol=1e-5)


def test_connected_cells() -> None:
    one_path = parse_cell("|nor_conv_3x3~0|+|none~0|skip_connect~1|+|none~0|none~1|avg_pool_3x3~2|")
    assert connected(one_path) == one_path
    dead = parse_cell("|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|nor_conv_1x1~2|")
    assert connected(dead) == {**dead, (0, 1): "none"}
    unfed = parse_cell("|none~0|+|none~0|nor_conv_1x1~1|+|skip_connect~0|nor_conv_3x3~1|nor_conv_3x3~2|")
    assert [edge for edge, operation in connected(unfed).items() if operation != "none"] == [(0, 3)]
    assert all(connected(connected(cell)) == connected(cell) for cell in CELLS[::97])
    with pytest.raises(ModelError, match="one operation an edge"):
        chosen_cell(Architecture({"cells.0.edges.e01": 5}, {"cells.0.edges.e01": (0, 1)}))


def test_a_cap_means_the_same_cells_in_a_small_supernet(path: Path, tmp_path: Path) -> None:
    table = TopologyTable(path, column="true")
    settings = TopologyBench(data="digits", table=path, out=tmp_path, column="true", channels=4, image_size=8)
    image = torch.zeros(1, 3, 8, 8)
    for row in (3, 999, 15_000):
        small = measure(nats_topology(channels=4, cells=1, cell=STRINGS[row]), (image,)).macs
        assert supernet_cap(settings, int(columns()["flops_c10"][row]), table) == pytest.approx(small, abs=1)


def test_a_search_ends_in_a_row_under_the_cap_and_a_rerun_repeats_nothing(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    words = ["bench", "nats-topology", "--data", "digits", "--table", str(path), "--column", "true", "--out", str(out)]
    words += ["--caps", "none,30%", "--seeds", "3", "--channels", "2", "--image-size", "8", "--epochs", "2"]
    words += ["--weights-first", "1", "--candidates", "3"]
    assert main(words) == 0
    first = json.loads((out / "results.json").read_text())
    table = TopologyTable(path, column="true")
    for finding in first["findings"]:
        network = finding["network"]
        assert network["cell"] == STRINGS[network["row"]]
        assert finding["accuracy"] == table.accuracy(network["row"])
        assert finding["share"] == network["flops"] / table.largest
    assert first["findings"][1]["share"] <= 0.3
    runs = [folder for folder in out.iterdir() if folder.is_dir()]
    assert sorted(run.name for run in runs) == ["cap30-seed3", "capnone-seed3"]
    summary = json.loads((runs[0] / "supernet.json").read_text())
    assert set(summary["choices"]["cells.0.edges.e01"]) == set(OPERATIONS)
    before = {run: (run / "posterior.safetensors").stat().st_mtime_ns for run in runs}
    assert main(words) == 0
    assert json.loads((out / "results.json").read_text()) == first
    assert before == {run: (run / "posterior.safetensors").stat().st_mtime_ns for run in runs}


@pytest.mark.parametrize(
    "settings", [{"channels": 0}, {"cells": 65}, {"caps": ()}, {"caps": ("2M",)}, {"seeds": (1, 1)}, {"caps": ("1%",)},
                 {"seeds": (0, 2**32)},
                 {"epochs": 0}, {"column": "false"}],
)  # fmt: skip
def test_settings_outside_are_refused_before_anything_is_made(
    path: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    given: dict[str, object] = {"data": "digits", "table": path, "out": tmp_path / "out", "column": "true", **settings}
    with pytest.raises((ConfigError, ModelError), match=r"--|must"):
        bench_topology(TopologyBench(**given))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
