from __future__ import annotations

import errno
import io
import re
import subprocess
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

import pgnas
from pgnas.cli import main, study
from pgnas.cli.flags import flag_names, setting_help
from pgnas.cli.main import STAGES, app
from pgnas.config import RunConfig, field_names
from pgnas.console import PlainReporter, RichReporter, format_fields, make_reporter
from pgnas.errors import DivergedError, RunFolderError, StorageError
from pgnas.launch import launched
from pgnas.progress import Clock

README = Path(__file__).parent.parent / "README.md"
NEEDED = ["run", "--model", "m", "--data", "d", "--out", "o"]


@dataclass
class Stages:
    """Stands in for ``pgnas.stages`` and remembers what it was asked."""

    asked: list[tuple[Any, str]] = field(default_factory=list)
    error: BaseException | None = None

    def run(self, config: RunConfig, *, until: str, progress: Any) -> types.SimpleNamespace:
        return self._answer(config, until, progress)

    def run_stage(self, path: Path, name: str, *, progress: Any) -> types.SimpleNamespace:
        return self._answer(path, name, progress)

    def _answer(self, subject: Any, stage: str, progress: Any) -> types.SimpleNamespace:
        self.asked.append((subject, stage))
        progress.stage(stage)
        if self.error is not None:
            raise self.error
        return types.SimpleNamespace(summary=lambda: ["the summary"], path=Path("o"))


@pytest.fixture
def stages(monkeypatch: pytest.MonkeyPatch) -> Stages:
    fake = Stages()
    monkeypatch.setitem(sys.modules, "pgnas.stages", fake)  # type: ignore[arg-type]
    monkeypatch.setattr(pgnas, "stages", fake, raising=False)
    return fake


def real_flags() -> set[str]:
    arguments = app["run"].assemble_argument_collection()
    return {name for argument in arguments for name in argument.names if argument.show}


def test_every_setting_has_a_flag_with_help() -> None:
    assert tuple(flag_names()) == field_names()
    assert real_flags() == set(flag_names().values()) | {"--config", "--preset", "--scale", "--until"}
    assert set(setting_help()) == set(field_names())
    assert all("``" not in text and "None" not in text for text in setting_help().values())


def test_the_readme_lists_exactly_the_real_flags() -> None:
    section = README.read_text().partition("## On the command line")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `(--[a-z-]+)` ", section, flags=re.MULTILINE)
    assert len(rows) == len(set(rows))
    assert set(rows) == real_flags()
    assert set(re.findall(r"--[a-z][a-z-]+", section)) <= real_flags()


def test_flags_win_over_the_file_and_the_file_over_the_defaults(tmp_path: Path, stages: Stages) -> None:
    path = tmp_path / "settings.toml"
    path.write_text('model = "a"\ndata = "b"\nout = "c"\nbatch_size = 64\nepochs = 7\nlr = 1\nbaseline = ["full"]\n')
    # 128 is also the default: a flag wins by being given, not by differing.
    assert main(["run", "--config", str(path), "--batch-size", "128", "--epochs", "9"]) == 0
    (config, until), *_ = stages.asked
    assert config == RunConfig(model="a", data="b", out="c", batch_size=128, epochs=9, lr=1.0, baseline=("full",))
    assert until == "report"


@pytest.mark.parametrize("words", [["full,uniform"], ["full", "--baseline", "uniform"], ["full,uniform,full"]])
def test_baselines_with_commas_or_repeated(stages: Stages, words: list[str]) -> None:
    assert main([*NEEDED, "--baseline", *words]) == 0
    assert stages.asked[0][0].baseline == ("full", "uniform")


def test_lists_and_switches_reach_their_settings(stages: Stages) -> None:
    words = ["--schedule", "multistep", "--milestones", "30,60.5", "--milestones", "70", "--gate-inputs"]
    assert main([*NEEDED, *words, "--exclude", "classifier,stem*"]) == 0
    config = stages.asked[0][0]
    assert config.milestones == (30.0, 60.5, 70.0)
    assert config.exclude == ("classifier", "stem*")
    assert config.gate_inputs


def test_milestones_that_are_no_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*NEEDED, "--schedule", "multistep", "--milestones", "soon"]) == 2
    assert "must be numbers" in capsys.readouterr().err


def test_every_flag_reaches_its_setting(stages: Stages) -> None:
    values = {
        "max_macs": "40%",
        "max_params": "2M",
        "prior": "gibbs",
        "decide_at": "50%",
        "compile": "off",
        "seed": "3",
    }
    values |= {"weight_decay": "0.001", "image_size": "8", "temperature": "0.3", "device": "cpu", "weights": "w"}
    words = [word for name, value in values.items() for word in (flag_names()[name], value)]
    assert main([*NEEDED, *words, "--until", "search"]) == 0
    config, until = stages.asked[0]
    assert until == "search"
    assert {name: str(getattr(config, name)) for name in values} == values


@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != "report"])
def test_each_stage_is_a_verb(stage: str, stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([stage, "runs/demo"]) == 0
    assert stages.asked == [(Path("runs/demo"), stage)]
    assert capsys.readouterr().out == "the summary\n"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["run"], "--model, --data, --out"),
        ([*NEEDED, "--epoch", "3"], "Did you mean --epochs?"),
        ([*NEEDED, "--epochs", "three"], "--epochs"),
        ([*NEEDED, "--epochs", "3.5"], "whole number"),
        ([*NEEDED, "--epochs", "0"], "--epochs must lie in"),
        ([*NEEDED, "--lr", "nan"], "--lr"),
        ([*NEEDED, "--device", "gpu"], "--device"),
        ([*NEEDED, "--baseline", "half"], "--baseline"),
        ([*NEEDED, "--max-macs", "140%"], "--max-macs"),
        ([*NEEDED, "--until", "lunch"], "--until"),
        ([*NEEDED, "--config", "no/such.toml"], "no/such.toml"),
        ([*NEEDED, "stray"], "stray"),
        (["sample"], "RUN"),
        (["list", "colours"], "colours"),
        (["rnu"], 'Did you mean "run"?'),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    words: list[str], part: str, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pgnas: error: ")
    assert err.count("\n") == 1
    assert part in err
    assert stages.asked == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (RunFolderError("runs/x", "must be empty"), 2),
        (StorageError("runs/x", "is full"), 1),
        (DivergedError("the loss", "must be finite"), 1),
        (OSError(errno.ENOSPC, "No space left on device", "runs/x"), 1),
    ],
)
def test_what_goes_wrong_later_is_one_line_too(
    error: Exception, code: int, stages: Stages, capsys: pytest.CaptureFixture[str]
) -> None:
    stages.error = error
    assert main(NEEDED) == code
    assert capsys.readouterr().err.splitlines()[1:] == [f"pgnas: error: {error}"]


def test_an_interrupted_run_says_how_to_resume(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    stages.error = KeyboardInterrupt()
    assert main([*NEEDED, "--max-macs", "40%"]) == 130
    assert capsys.readouterr().err.endswith("to resume: pgnas run --model m --data d --out o --max-macs 40%\n")


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_says_how_to_resume(
    rank: int, stages: Stages, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", "2")
    stages.error = KeyboardInterrupt()
    assert main(NEEDED) == 130
    told = "to resume, launch the same again, or in one process: pgnas run --model m --data d --out o\n"
    assert capsys.readouterr().err.endswith(told) is (rank == 0)


def test_a_bug_keeps_its_traceback(stages: Stages) -> None:
    stages.error = ZeroDivisionError()
    with pytest.raises(ZeroDivisionError):
        main(NEEDED)


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys; from pgnas.cli import main; sys.exit(main(['run', '--help']) or 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "--max-macs" in done.stdout


@pytest.mark.parametrize(("what", "name"), [("data", "digits"), ("models", "multibranch-resnet"), ("priors", "gibbs")])
def test_lists_name_what_there_is(what: str, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", what]) == 0
    described = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert described[name]


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "pgnas", "run"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("pgnas: error: pgnas run needs --model")


def test_fields_are_named_in_a_fixed_order() -> None:
    shown = format_fields({"own_number": 3.0, "accuracy": 0.5, "loss": 1.25, "cost": 0.4, "undecided": 0.123})
    assert shown == "loss 1.2500, val. accuracy 50.0%, exp. cost 40.0%, undecided 12.3%, own number 3"


def ticking(seconds: float) -> Callable[[], float]:
    """A clock that is set by hand: ``clock.now``."""

    def clock() -> float:
        return clock.now  # type: ignore[attr-defined, no-any-return]

    clock.now = seconds  # type: ignore[attr-defined]
    return clock


def test_plain_lines_are_few_and_the_last_is_always_there() -> None:
    stream, clock = io.StringIO(), ticking(0.0)
    reporter = PlainReporter(stream, interval=5.0, now=clock)
    reporter.stage("search")
    for done in range(1, 101):
        clock.now = done * 0.5  # type: ignore[attr-defined]
        reporter.advance(done, 100, loss=1.0)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "search"
    assert lines[1].startswith("search 1/100, loss 1.0000")
    assert lines[-1] == "search 100/100, loss 1.0000"
    assert len(lines) <= 13


def test_time_left_counts_this_session_only() -> None:
    stream, clock = io.StringIO(), ticking(0.0)
    reporter = PlainReporter(stream, interval=0.0, now=clock)
    reporter.stage("search")
    reporter.advance(90, 100)  # resumed at 90: no pace yet
    clock.now = 60.0  # type: ignore[attr-defined]
    reporter.advance(91, 100)
    assert stream.getvalue().splitlines()[1:] == ["search 90/100", "search 91/100, 9:00 left"]


def test_a_terminal_gets_a_bar_and_a_file_gets_lines() -> None:
    assert isinstance(make_reporter(io.StringIO()), PlainReporter)
    stream = io.StringIO()
    reporter = RichReporter(Console(file=stream, force_terminal=True, width=120))
    reporter.stage("search")
    reporter.advance(1, 4, loss=1.25, accuracy=0.5)
    reporter.note("[not markup]")
    reporter.close()
    reporter.close()
    assert "[not markup]" in stream.getvalue()
    assert "val. accuracy 50.0%" in stream.getvalue()


def test_a_narrow_terminal_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = ticking(0.0)
    monkeypatch.setattr("pgnas.console.Clock", lambda: Clock(clock))
    stream = io.StringIO()
    reporter = RichReporter(Console(file=stream, force_terminal=True, width=72, color_system=None))
    reporter.stage("search")
    reporter.advance(1, 400)
    clock.now = 60.0  # type: ignore[attr-defined]
    reporter.advance(94, 400, epoch=10, loss=1.2281, accuracy=0.944, cost=0.79, undecided=0.823)
    reporter.close()
    shown = " ".join(stream.getvalue().split())
    for part in ("search", "94/400", "3:15 left", "epoch 10", "1.2281", "94.4%", "79.0%", "82.3%"):
        assert part in shown, part
    assert "…" not in shown
    assert "None" not in shown


def test_flags_win_over_the_file_and_the_file_over_the_preset(tmp_path: Path, stages: Stages) -> None:
    path = tmp_path / "settings.toml"
    path.write_text("epochs = 7\nlr = 0.3\n")
    words = ["--preset", "paper/cifar10-E", "--config", str(path), "--epochs", "9", "--data", "digits", "--out", "o"]
    assert main(["run", *words]) == 0
    config = stages.asked[0][0]
    assert (config.epochs, config.lr, config.batch_size, config.data) == (9, 0.3, 72, "digits")
    assert config.schedule == "sgdr"


def test_a_shrunk_preset_says_what_became_of_it(stages: Stages, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--preset", "paper/cifar10-M", "--scale", "6%", "--out", "o"]) == 0
    assert stages.asked[0][0].model.startswith("multibranch-resnet:width=8,blocks=1")
    assert "epochs 1800 -> 6" in "".join(capsys.readouterr())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["run", "--scale", "6%", "--model", "m", "--data", "d", "--out", "o"], "--scale shrinks a preset"),
        (["run", "--preset", "paper/M", "--out", "o"], "--preset must be one of"),
        (["run", "--preset", "paper/imagenet-R50", "--out", "o"], "needs --data"),
        (["list", "models", "paper/cifar10-M"], "presets only"),
        (["list", "presets", "--scale", "6%"], "presets only"),
    ],
)
def test_wrong_uses_of_presets(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert message in capsys.readouterr().err


def test_a_preset_is_shown_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "presets", "paper/cifar10-E", "--scale", "6%"]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if line.startswith("--epochs"))
    assert row.split()[:4] == ["--epochs", "630", "2", "paper"]
    assert "s^2 times as many" in shown


def test_a_target_that_is_a_folder_is_refused_before_the_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path, tmp_path / "file" / "below"):
        for words in (
            ["predict", "nowhere", "x.png", "--json"],
            ["predict", "nowhere", "x.png", "--csv"],
            ["report", "nowhere", "--out"],
            ["compare", "nowhere", "nowhere", "--out"],
        ):
            assert main([*words, str(target)]) == 2
            assert f"{target} must be a file that can be made" in capsys.readouterr().err


def test_a_folder_name_that_is_too_long_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for words in ([*NEEDED[:-1], "x" * 300], ["sample", "x" * 300]):
        assert main(words) == 2
        assert capsys.readouterr().err.startswith("pgnas: error: ")


@pytest.mark.parametrize(("rank", "size", "expected"), [("1", "2", (1, 2)), ("", "2", (0, 1)), ("a", "2", (0, 1))])
def test_what_a_launcher_told(rank: str, size: str, expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", size)
    assert launched() == expected


def test_models_are_listed_with_their_parameters(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models"]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("multibranch-resnet "))
    assert line.endswith("; width=32,blocks=1,branches=2,stages=3")


def test_an_ablation_fine_tunes_at_a_rate_that_fits_the_optimiser(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(study, "_do", lambda study, *_: asked.append(study))
    for more in ([], ["--finetune-lr", "0.02"]):
        assert main(["study", "ablation", "--model", "m", "--data", "d", "--out", "o", *more]) == 0
    rates = [[study.finetune.peak_lr(optimizer) for optimizer in ("sgd", "adamw")] for study in asked]
    assert rates == [[pytest.approx(0.01), pytest.approx(1e-4)], [0.02, 0.02]]


@pytest.mark.parametrize("flag", ["--finetune-epochs", "--finetune-lr"])
def test_a_studys_own_flags_are_named(flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["study", "ablation", "--model", "m", "--data", "d", "--out", "o", flag, "-1"]) == 2
    assert f"{flag} must lie in" in capsys.readouterr().err
