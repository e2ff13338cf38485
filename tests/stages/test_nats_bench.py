"""The size benchmark: a table is read with care, rows under the cap and nearest, and searches that resume."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest

from pgnas.cli import main
from pgnas.errors import ConfigError, FileError
from pgnas.stages.nats_bench import SizeBench, bench_size, supernet_share
from pgnas.stages.nats_tables import SizeTable
from pgnas.supernets.nats_size import size_macs

WIDTHS = np.array(list(itertools.product(range(8, 65, 8), repeat=5)))


def columns() -> dict[str, np.ndarray]:
    """A table of the space's shape and costs, with accuracies that are no benchmark's."""
    flops = np.array([size_macs(row) for row in WIDTHS.tolist()]).astype(np.int64) + 10
    made = {f"c{place + 1}": WIDTHS[:, place] for place in range(5)}
    return {**made, "params": flops // 100, "flops": flops, "accuracy": 100 - 1e3 / np.sqrt(flops)}


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tables") / "size.npz"
    np.savez(path, **columns())
    return path


def test_the_nearest_row_rounds_every_width_where_the_cap_allows_it(path: Path) -> None:
    table = SizeTable(path)
    (found,) = table.nearest([0, 11, 13, 40, 90], table.largest)
    assert found.widths == (8, 8, 16, 40, 64)


def test_under_a_cap_no_cheaper_row_is_nearer(path: Path) -> None:
    table, kept = SizeTable(path), [30.0, 50.0, 20.0, 44.0, 64.0]
    cap = 0.2 * table.largest
    (found,) = table.nearest(kept, cap)
    assert found.flops <= cap < size_macs([32, 48, 24, 48, 64])  # rounding alone would not do
    distances = ((WIDTHS - kept) ** 2).sum(1)[columns()["flops"] <= cap]
    assert sum((w - k) ** 2 for w, k in zip(found.widths, kept, strict=True)) == distances.min()
    assert tuple(WIDTHS[found.row]) == found.widths
    assert found.flops == size_macs(found.widths) + 10
    assert table.accuracy(found.row) == pytest.approx(100 - 1e3 / found.flops**0.5)


def test_rounding_leaves_no_flops_unused_that_the_search_used(path: Path) -> None:
    table, flops, kept = SizeTable(path), columns()["flops"], [12.0, 28.0, 18.0, 32.0, 28.0]
    cap = 0.064 * table.largest
    use = size_macs(kept)
    (plain,), (found,) = table.nearest(kept, cap), table.nearest(kept, cap, use=use)
    assert plain.flops < 0.9 * use < found.flops <= cap
    by_widths = dict(zip(map(tuple, WIDTHS.tolist()), flops.tolist(), strict=True))
    for place in range(5):
        larger = tuple(width + 8 * (place == other) for other, width in enumerate(found.widths))
        assert by_widths.get(larger, np.inf) > min(use, cap)
    (whole,) = table.nearest([64.0] * 5, table.largest, use=2 * table.largest, count=3)
    assert whole.widths == (64,) * 5  # all others leave flops unused


def test_several_rows_come_nearest_first_and_none_leaves_flops_unused(path: Path) -> None:
    table, kept = SizeTable(path), [13.0, 26.0, 16.0, 33.0, 26.0]
    cap = 0.064 * table.largest
    rows = table.nearest(kept, cap, use=size_macs(kept), count=5)
    distances = [sum((w - k) ** 2 for w, k in zip(row.widths, kept, strict=True)) for row in rows]
    assert len({row.row for row in rows}) == 5
    assert distances == sorted(distances)
    assert rows[:1] == table.nearest(kept, cap, use=size_macs(kept))
    for row in rows:
        assert row.flops <= cap
        grown = [(*row.widths[:place], width + 8, *row.widths[place + 1 :]) for place, width in enumerate(row.widths)]
        assert min(size_macs(widths) + 10 for widths in grown) > min(size_macs(kept), cap)


def test_references_are_the_tables_own(path: Path) -> None:
    table = SizeTable(path)
    found = table.references(0.25 * table.largest)
    flops = columns()["flops"] / table.largest
    assert (found.uniform_width, found.uniform_share) == (32, pytest.approx(0.2516, abs=1e-4))
    assert found.best == pytest.approx(100 - 1e3 / np.sqrt(flops[flops <= 0.25].max() * table.largest))
    assert found.near_cap is not None
    assert found.near_cap < found.best


def test_a_table_that_is_none_is_refused(path: Path, tmp_path: Path) -> None:
    text, short, other = tmp_path / "text.npz", tmp_path / "short.npz", tmp_path / "other.npz"
    text.write_text("no table")
    np.save(tmp_path / "array.npy", WIDTHS)
    np.savez(short, **{**columns(), "c3": WIDTHS[:7, 2]})
    np.savez(other, **{name: values for name, values in columns().items() if name != "flops"})
    for bad in (text, short, other, tmp_path / "absent.npz", tmp_path / "array.npy"):
        with pytest.raises(FileError, match="size space"):
            SizeTable(bad)
    np.savez(other, **columns(), second=columns()["accuracy"])
    assert SizeTable(other, column="second").column == "second"
    for column in (None, "third", "c1"):
        with pytest.raises(ConfigError, match=r"accuracy, second"):
            SizeTable(other, column=column)


def test_a_pickled_table_is_not_unpickled(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", **columns(), extra=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(FileError, match="allow_pickle"):
        SizeTable(tmp_path / "t.npz")


@pytest.mark.parametrize("share", [0.05, 0.25, 0.8])
def test_the_supernets_cap_is_what_the_same_shape_costs_at_its_width(share: float) -> None:
    full = supernet_share(share, 64) * size_macs([64] * 5, skips="conv")
    assert full == pytest.approx(share * size_macs([64] * 5), rel=0.01)  # but for the skips' convolutions
    assert share < supernet_share(share, 16) < 1.2 * share  # the stem's share is larger in a narrow network


def test_a_search_ends_in_a_row_under_the_cap_and_a_rerun_repeats_nothing(path: Path, tmp_path: Path) -> None:
    out = tmp_path / "bench"
    words = ["bench", "nats-size", "--data", "digits", "--table", str(path), "--out", str(out), "--caps", "20%"]
    words += [
        "--seeds",
        "3",
        "--width",
        "8",
        "--image-size",
        "8",
        "--epochs",
        "2",
        "--candidates",
        "4",
        "--finalists",
        "0",
    ]
    assert main(words) == 0
    first = json.loads((out / "results.json").read_text())
    (finding,) = first["findings"]
    table, found = SizeTable(path), finding["network"]
    cap = 0.2 * table.largest
    assert 0.5 * cap < found["flops"] <= cap
    assert finding["share"] == found["flops"] / table.largest
    assert finding["accuracy"] == table.accuracy(found["row"])
    widths = [8 * kept for kept in finding["kept"]]
    assert table.nearest(widths, cap, use=size_macs(widths))[0].row == found["row"]
    runs = [folder for folder in out.iterdir() if folder.is_dir()]
    assert [run.name for run in runs] == ["cap20-seed3"]
    before = {run: (run / "posterior.safetensors").stat().st_mtime_ns for run in runs}
    assert main(words) == 0
    assert json.loads((out / "results.json").read_text()) == first
    assert before == {run: (run / "posterior.safetensors").stat().st_mtime_ns for run in runs}


def test_finals_choose_among_the_rows_near_the_best_candidate(path: Path, tmp_path: Path) -> None:
    settings = {"data": "digits", "table": path, "out": tmp_path / "bench", "caps": ("20%",), "seeds": (0,)}
    settings |= {"width": 8, "image_size": 8, "epochs": 2, "candidates": 4}
    (ranked,) = bench_size(SizeBench(**settings, finalists=0)).findings  # type: ignore[arg-type]
    run = tmp_path / "bench" / "cap20-seed0"
    assert not (run / "finalists.jsonl").exists()
    assert ranked.finalists == (ranked.network.widths,)
    (found,) = bench_size(SizeBench(**settings, finalists=4)).findings  # type: ignore[arg-type]
    table, widths = SizeTable(path), [8 * channels for channels in ranked.kept]
    near = table.nearest(widths, 0.2 * table.largest, use=size_macs(widths), count=4)
    assert found.finalists == tuple(row.widths for row in near)
    assert (found.kept, found.val_best) == (ranked.kept, ranked.val_best)
    rows = [json.loads(line) for line in (run / "finalists.jsonl").read_text().splitlines()]
    assert [row["epochs"] for row in rows] == [1] * 4 + [3] * 2
    first, last = ({row["name"]: row["loss"] for row in rows if row["epochs"] == epochs} for epochs in (1, 3))
    assert set(last) == set(sorted(first, key=first.__getitem__)[:2])
    assert "-".join(map(str, found.network.widths)) == min(last, key=last.__getitem__)
    assert found.seconds > ranked.seconds
    assert bench_size(SizeBench(**settings, finalists=4)).findings == (found,)  # type: ignore[arg-type]
    assert len((run / "finalists.jsonl").read_text().splitlines()) == 6  # a rerun trains nothing again
    bench_size(SizeBench(**settings, finalists=2, finalist_epochs=3))  # type: ignore[arg-type]
    added = [json.loads(line) for line in (run / "finalists.jsonl").read_text().splitlines()][6:]
    assert [(row["first"], row["epochs"]) for row in added] == [(3, 3)] * 2  # other epochs are another training


@pytest.mark.parametrize(
    "settings",
    [
        {"width": 12},
        {"caps": ()},
        {"caps": ("2M",)},
        {"seeds": (1, 1)},
        {"seeds": (0, -1)},
        {"caps": ("0.1%",)},
        {"caps": ("20%", "20 %")},
        {"finalists": 1},
        {"finalists": -1},
        {"finalist_epochs": 0},
    ],
)
def test_settings_outside_are_refused_before_anything_is_made(
    path: Path, tmp_path: Path, settings: dict[str, object]
) -> None:
    with pytest.raises(ConfigError, match="--"):
        bench_size(SizeBench(data="digits", table=path, out=tmp_path / "out", **settings))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_table_is_found_through_the_environment(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["bench", "nats-size", "--out", str(tmp_path / "out")]
    monkeypatch.delenv("PGNAS_DATA", raising=False)
    assert main(words) == 2
    assert "PGNAS_DATA" in capsys.readouterr().err
    monkeypatch.setenv("PGNAS_DATA", str(tmp_path))
    assert main(words) == 2
    assert "nats_size.npz" in capsys.readouterr().err
