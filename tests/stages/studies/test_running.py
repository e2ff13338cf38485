"""Whole studies, small: what they leave behind, how they are resumed, and what they refuse."""

from __future__ import annotations

import csv
import json
import statistics

import pytest

from pgnas import stages
from pgnas.cli import main
from pgnas.config_file import make_config
from pgnas.errors import ConfigError, InputError, RunError, RunFolderError
from pgnas.run_folder.admission import read_config
from pgnas.stages.context import Context
from pgnas.stages.finetuning import FinetuneSettings
from pgnas.stages.studies import Ablation, CandidateCounts, LengthScale, Temperature, WeightTerm, run_study, running

FILES = {"table.md", "table.csv", "cells.csv", "figure.png"}
SMALL = {
    "model": "multibranch-resnet:width=4,stages=1", "data": "digits", "epochs": 1, "candidates": 6,
    "granularity": "group", "initial_drop": 0.3, "recalibrate": "off", "compile": "off",
}  # fmt: skip


pytestmark = pytest.mark.usefixtures("weights_alone")


def settings(out, **changes):
    return {**SMALL, "out": str(out), **changes}


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def rows_of(cell):
    return [json.loads(line) for line in (cell / "candidates.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def ablation(tmp_path_factory):
    """A study that was killed in the middle of its last cell, and done again."""
    out = tmp_path_factory.mktemp("studies") / "ablation"
    study = Ablation(FinetuneSettings(epochs=1))

    def killed(config, **options):
        until = "search" if config.fixed_drop else "report"
        stages.run(config, until=until, **options)
        if config.fixed_drop:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(running, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            run_study(study, settings(out), seeds=(3,))
    assert not (out / "table.md").exists()
    begun = read_config(out / "random-seed3").fixed_drop
    result = run_study(study, settings(out), seeds=(3,))
    assert read_config(out / "random-seed3").fixed_drop == begun
    return out, study, result


def test_an_ablation_leaves_a_table_a_figure_and_a_run_folder_a_cell(ablation):
    out, _, result = ablation
    assert {path.name for path in out.iterdir()} == FILES | {"full-seed3", "pgnas-seed3", "random-seed3"}
    assert all((out / f"{name}-seed3" / "report.html").exists() for name in ("full", "pgnas", "random"))
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "table.md").read_text().splitlines() == result.summary()
    assert "random-seed3" in (out / "pgnas-seed3" / "report.html").read_text()  # Figure 1
    rows = {row["network"]: row for row in read_csv(out / "cells.csv")}
    assert list(rows) == [
        "full model", "PGNAS, not fine-tuned", "PGNAS, fine-tuned", "Random, not fine-tuned", "Random, fine-tuned",
    ]  # fmt: skip


def test_the_table_says_what_the_cells_found(ablation):
    out, _, result = ablation
    for name, row in (("pgnas", "PGNAS"), ("random", "Random")):
        values = {m.row: m.values for m in result.measurements}
        written = json.loads((out / f"{name}-seed3" / "result.json").read_text())
        drawn = [r["accuracy"] for r in rows_of(out / f"{name}-seed3") if not r["is_mode"]]
        assert values[f"{row}, not fine-tuned"]["test_error"] == 1 - written["found"]["test_accuracy"]
        assert values[f"{row}, not fine-tuned"]["mean_accuracy"] == statistics.fmean(drawn)
        assert values[f"{row}, not fine-tuned"]["best_accuracy"] == max(drawn)
        assert values[f"{row}, fine-tuned"]["test_error"] == 1 - written["finetuned"]["test_accuracy"]
    guided, random = (values[f"{row}, not fine-tuned"]["mean_accuracy"] for row in ("PGNAS", "Random"))
    assert f"{100 * (guided - random):+.2f} points" in result.summary()[-1]


def test_random_is_one_more_run_at_the_rate_that_gives_the_posteriors_size(ablation):
    out, _, _ = ablation
    random, guided = (read_config(out / f"{name}-seed3") for name in ("random", "pgnas"))
    assert random.fixed_drop is not None
    assert 0.2 < random.fixed_drop < 0.4  # logits start at 0.3 and take few steps
    same = {"out": "", "fixed_drop": None}
    assert make_config(random.given(), same) == make_config(guided.given(), same)
    assert not any(row["is_mode"] for row in rows_of(out / "random-seed3"))


def test_the_full_model_is_the_network_as_it_was_handed_in(ablation):
    out, _, _ = ablation
    written = json.loads((out / "full-seed3" / "result.json").read_text())
    assert written["found"]["params"] == written["full"]["params"]


def test_a_rerun_does_nothing_again(ablation, monkeypatch, contents):
    out, study, result = ablation
    before = contents(out)
    monkeypatch.setattr(Context, "data", property(lambda self: pytest.fail("data were read again")))
    assert run_study(study, settings(out), seeds=(3,)) == result
    assert contents(out) == before


def test_seeds_fine_tuned_otherwise_do_not_stay(ablation):
    out, study, _ = ablation
    base = make_config(settings(out))
    found = [
        running._done_before(kind, kind.variants(base), base, (0,))
        for kind in (study, Ablation(FinetuneSettings(epochs=2)), Ablation(None))
    ]
    all_of_it = ["full", "pgnas", "random"]  # without fine-tuning it is not looked at
    assert [[cell.variant.name for cell in cells] for cells in found] == [all_of_it, [], all_of_it]


@pytest.mark.parametrize(
    ("study", "changes", "flag"),
    [
        (Ablation(), {"fixed_drop": 0.2}, "--fixed-drop"),
        (Ablation(), {"max_macs": "40%"}, "--max-macs"),
        (Ablation(), {"seed": 3}, "--seed"),
        (Ablation(), {"ranking": "halving"}, "--ranking"),
        (Ablation(), {"finalists": 4}, "--finalists"),
        (Ablation(), {"epochs": 0}, "--epochs"),
        (Ablation(), {"model": "no-such-net"}, "no-such-net"),
        (Ablation(), {"data": "no-such-data"}, "no-such-data"),
        (LengthScale((1.0, 2.0)), {"length_scale_sq": 3.0}, "--length-scale-sq"),
        (LengthScale((1.0, -2.0)), {}, "--length-scale-sq"),
        (Temperature((0.2,)), {"temperature": 3.0}, "--temperature"),
        (CandidateCounts((4,)), {"candidates": 9}, "--candidates"),
        (WeightTerm(), {"weight_decay": 0.1}, "--weight-decay"),
    ],
)
def test_bad_input_is_refused_before_any_cell_and_leaves_nothing(study, changes, flag, tmp_path):
    with pytest.raises(InputError, match=flag):
        run_study(study, {}, settings(tmp_path / "study", **changes))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seeds", "value"), [((1, 1), None), ((0, -1), -1)])
def test_bad_seeds_are_told_under_the_flag_that_lists_them(seeds, value, tmp_path):
    with pytest.raises(ConfigError, match=r"^--seeds ") as error:
        run_study(Ablation(), settings(tmp_path / "study"), seeds=seeds)
    assert value in (None, error.value.value)
    assert list(tmp_path.iterdir()) == []


def test_values_must_differ(tmp_path):
    for make in (
        lambda: Temperature((0.2, 0.2)),
        lambda: Temperature((0.2, 0.2 + 1e-12)),  # would share a folder
        lambda: LengthScale(()),
        lambda: CandidateCounts((0, 4)),
    ):
        with pytest.raises(ConfigError, match="--values"):
            make()
    assert CandidateCounts((1_000_000, 1_000_001)).values == (1_000_000, 1_000_001)


def test_what_a_preset_says_of_the_varied_setting_is_no_flag(tmp_path, monkeypatch):
    began = []

    def no_run(config, **_):
        began.append(config)
        raise RunError("the run", "must not begin in this test")

    monkeypatch.setattr(running, "run", no_run)
    with pytest.raises(RunError):
        run_study(Temperature((0.5,)), {"temperature": 0.2}, settings(tmp_path / "study"), seeds=(4,))
    assert (began[0].temperature, began[0].seed) == (0.5, 4)
    assert began[0].out == str(tmp_path / "study" / "temperature-0.5-seed4")


def test_more_candidates_are_the_same_ranking_read_further(tmp_path):
    result = run_study(CandidateCounts((2, 6)), {**settings(tmp_path / "study"), "candidates": 3}, seeds=(0,))
    few, many = (m.values for m in result.measurements)
    cell = tmp_path / "study" / "ranked-seed0"
    written, rows = json.loads((cell / "result.json").read_text()), rows_of(cell)
    assert many["test_error"] == pytest.approx(1 - written["found"]["test_accuracy"])
    assert few["best_accuracy"] == rows[1]["accuracy"]  # the first is the mode
    assert many["best_accuracy"] >= few["best_accuracy"]
    assert len(json.loads((cell / "winners.json").read_text())) == len(
        {max(rows[:count], key=lambda r: (r["accuracy"], -r["loss"]))["digest"] for count in (2, 6)}
    )


def test_the_constant_decay_is_what_the_weight_term_is_when_all_is_kept(tmp_path):
    result = run_study(WeightTerm(), settings(tmp_path / "study", length_scale_sq=40.0, data_size=1000.0), seeds=(0,))
    constant, coupled = (read_config(tmp_path / "study" / f"{name}-seed0") for name in ("constant", "coupled"))
    assert constant.weight_decay == pytest.approx(2 * 40.0 / 1000.0)
    assert (constant.prior, constant.prior_drop, coupled.prior, coupled.weight_decay) == (
        "bernoulli",
        0.5,
        "paper",
        None,
    )
    assert (constant.temperature, constant.initial_drop) == (coupled.temperature, coupled.initial_drop) == (0.2, 0.3)
    assert [m.row for m in result.measurements] == ["π l² |m|² (Eq. 15)", "constant L2"]


def test_a_sweep_from_the_command_line(tmp_path, capsys):
    words = ["study", "length-scale", "--values", "1,1000", "--seeds", "0", "--out", str(tmp_path / "study")]
    for name, value in SMALL.items():
        words += ["--" + name.replace("_", "-"), str(value)]
    assert main(words) == 0
    assert [row["length scale"] for row in read_csv(tmp_path / "study" / "table.csv")] == ["l² = 1", "l² = 1000"]
    assert "| l² = 1000 |" in capsys.readouterr().out
    assert {p.name for p in (tmp_path / "study").iterdir()} == FILES | {
        f"length-scale-{value}-seed0" for value in (1, 1000)
    }


def test_seeds_done_before_stay_in_the_table_if_their_settings_are_the_same(tmp_path):
    study, out = LengthScale((1.0,)), tmp_path / "study"
    run_study(study, settings(out), seeds=(0,))
    assert [m.seed for m in run_study(study, settings(out), seeds=(1,)).measurements] == [0, 1]
    assert [row["seed"] for row in read_csv(out / "cells.csv")] == ["0", "1"]
    assert [m.seed for m in run_study(study, settings(out, lr=0.1), seeds=(1,)).measurements] == [0, 1]  # the default
    other = run_study(study, settings(out, temperature=0.5), seeds=(2,))
    assert [m.seed for m in other.measurements] == [2]
    (out / "length-scale-1-seed1" / "stages.json").write_text("{}")
    assert [m.seed for m in run_study(study, settings(out), seeds=(0,)).measurements] == [0]


def test_the_command_line_refuses_with_exit_code_2(tmp_path, capsys):
    out = str(tmp_path / "study")
    assert main(["study", "ablation", "--data", "digits", "--out", out]) == 2
    assert "--model" in capsys.readouterr().err
    assert main(["study", "ablation", "--scale", "3%", "--data", "digits", "--out", out]) == 2
    assert main(["study", "candidates", "--values", "4,four", "--data", "digits", "--out", out]) == 2
    assert list(tmp_path.iterdir()) == []


def test_cells_under_other_settings_are_refused_before_any_other_is_begun(tmp_path):
    out = tmp_path / "study"
    run_study(Temperature((0.5,)), settings(out, candidates=2), seeds=(0,))
    with pytest.raises(RunFolderError, match="other settings"):
        run_study(Temperature((0.1, 0.5)), settings(out, candidates=3), seeds=(0,))
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["temperature-0.5-seed0"]


def test_other_fine_tuning_is_refused_before_any_cell_is_begun(ablation):
    out, _, _ = ablation
    with pytest.raises(RunFolderError, match="fine-tuned with other settings"):
        run_study(Ablation(FinetuneSettings(epochs=2)), settings(out), seeds=(5, 3))
    assert not (out / "full-seed5").exists()
