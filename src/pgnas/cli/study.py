"""``pgnas study``: the paper's tables, each a set of runs with several seeds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from pgnas import config_file
from pgnas.cli import presets
from pgnas.cli.flags import given, make_flags_class, numbers, whole_number, wholes
from pgnas.cli.reporter import reporter
from pgnas.console import print_lines
from pgnas.errors import ConfigError

if TYPE_CHECKING:
    from pgnas.stages.studies import Study

app = App(
    name="study",
    help=(
        "Regenerate the paper's tables, for a preset at any scale or for your own network and data.\n\n"
        "A study does the same run in several variants, each with several seeds; --out is a folder of run folders that "
        "ends up with table.md, table.csv and figure.png. It takes the flags of pgnas run. The same command again "
        "resumes it."
    ),
    sort_key=99,  # beside bench
)
_Numbers = Annotated[tuple[float, ...], Parameter(converter=numbers, negative=())]
_Wholes = Annotated[tuple[int, ...], Parameter(converter=wholes, negative=())]


@dataclass(frozen=True, kw_only=True)
class Shared:
    """What all studies take besides the flags of a run.

    Attributes:
        seeds: A run of each variant each.
        config: A TOML file of settings; flags win over it.
        preset: A named set of settings, such as paper/cifar10-M; the file of --config and flags win over it.
        scale: Shrink the preset to a share such as 10%, by the rule that pgnas list presets NAME states.
    """

    seeds: _Wholes = (0, 1, 2)
    config: Path | None = None
    preset: str | None = None
    scale: str | None = None


_Shared = Annotated[Shared, Parameter(name="*")]


def _command(function: Callable[..., None]) -> Callable[..., None]:
    """Make a function a command whose ``flags`` are those of ``pgnas run``."""
    function.__annotations__["flags"] = Annotated[make_flags_class(), Parameter(name="*")]
    app.command(function)
    return function


def _do(study: Study, flags: Any, shared: Shared | None) -> None:
    shared = shared or Shared()
    named, notes = presets.layer(shared.preset, shared.scale)
    in_file = config_file.read_settings(shared.config) if shared.config is not None else {}
    with reporter() as progress:
        from pgnas.stages.studies import run_study

        for note in notes:
            progress.note(note)
        result = run_study(study, named, in_file, given(flags), seeds=shared.seeds, progress=progress)
    print_lines([*result.summary(), "", f"study folder: {result.path}"])


@_command
def ablation(
    *,
    finetune_epochs: Annotated[int, Parameter(converter=whole_number)] = 10,
    finetune_lr: float | None = None,
    flags: Any = None,
    shared: _Shared | None = None,
) -> None:
    """Compare the full model, random networks and PGNAS's, not fine-tuned and fine-tuned (Table 3, Figure 1).

    Random's drop rate is matched to the size that PGNAS finds; figure.png shows all candidates, guided and random.

    Args:
        finetune_epochs: Epochs of fine-tuning; 0: none.
        finetune_lr: Peak learning rate of fine-tuning; not given: 0.01, with AdamW 1e-4.
        flags: The settings whose flags were given.
        shared: What all studies take.
    """
    from pgnas.stages.finetuning import FinetuneSettings
    from pgnas.stages.studies import Ablation

    try:
        tuned = None if finetune_epochs == 0 else FinetuneSettings(epochs=finetune_epochs, lr=finetune_lr)
    except ConfigError as error:
        flag = error.subject.replace("--", "--finetune-")
        raise ConfigError(flag, error.rule, value=error.value, remedy=error.remedy) from error
    _do(Ablation(tuned), flags, shared)


@_command
def length_scale(
    *, values: _Numbers = (50.0, 150.0, 250.0, 500.0), flags: Any = None, shared: _Shared | None = None
) -> None:
    """Compare length scales: l^2 of the paper prior.

    Args:
        values: Values of l^2.
        flags: The settings whose flags were given.
        shared: What all studies take.
    """
    from pgnas.stages.studies import LengthScale

    _do(LengthScale(values), flags, shared)


@_command
def temperature(*, values: _Numbers = (0.2, 0.6667), flags: Any = None, shared: _Shared | None = None) -> None:
    """Compare temperatures of the relaxation.

    Args:
        values: Values of tau.
        flags: The settings whose flags were given.
        shared: What all studies take.
    """
    from pgnas.stages.studies import Temperature

    _do(Temperature(values), flags, shared)


@_command
def candidates(
    *, values: _Wholes = (50, 500, 1500, 5000, 10000), flags: Any = None, shared: _Shared | None = None
) -> None:
    """Compare numbers of candidates: the best of the first C of one ranking.

    Args:
        values: Values of C.
        flags: The settings whose flags were given.
        shared: What all studies take.
    """
    from pgnas.stages.studies import CandidateCounts

    _do(CandidateCounts(values), flags, shared)


@_command
def weight_term(*, decay: float | None = None, flags: Any = None, shared: _Shared | None = None) -> None:
    """Compare the weight term of Eq. 15, scaled by the keep probability, with a constant L2 decay.

    Args:
        decay: The constant decay; not given: 2 l^2 / N, which is what the weight term is when all is kept.
        flags: The settings whose flags were given.
        shared: What all studies take.
    """
    from pgnas.stages.studies import WeightTerm

    _do(WeightTerm(decay), flags, shared)
