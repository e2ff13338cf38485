"""The entry point: parse, call the library, turn what goes wrong into one line and an exit code.

Exit codes: 0 done, 1 a run went wrong, 2 the input breaks a rule, 130 interrupted.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, CycloptsError, Parameter

from pgnas import config_file
from pgnas.cli import bench, presets, study, viewing
from pgnas.cli.flags import comma_separated, given, make_flags_class, whole_number
from pgnas.cli.predict import predict
from pgnas.cli.reporter import reporter
from pgnas.console import print_either, print_error, print_interrupted, print_lines
from pgnas.errors import PgnasError

# torch takes seconds to import: whatever needs it is imported inside the command.

Stage = Literal["search", "sample", "extract", "train", "export", "evaluate", "report"]
STAGES: dict[Stage, str] = {
    "search": "Learn the posterior of a network's gates together with its weights.",
    "sample": "Draw architectures from the posterior and rank them on the validation images.",
    "extract": "Build the best architecture as a plain, smaller network.",
    "train": "Train the extracted network for the epochs that remain.",
    "export": "Write the network as .pt2, .onnx and .safetensors.",
    "evaluate": "Measure accuracy, calibration and cost on the test images.",
    "report": "Draw report.html, of a finished run or of one that is still going.",
}

INTERRUPTED = 130
_WHOLE = Parameter(converter=whole_number)


def _version() -> str:
    try:
        return metadata.version("pgnas")
    except metadata.PackageNotFoundError:
        return "unknown"


app = App(
    name="pgnas",
    help=(
        "Posterior-guided neural architecture search: a smaller, better-shaped network from one training run.\n\n"
        "run does all stages in a new run folder; each stage is also a command on an existing one."
    ),
    version=_version,
    suppress_keyboard_interrupt=False,
    result_action="return_value",
)


def run(
    *,
    flags: Annotated[Any, Parameter(name="*")] = None,
    config: Path | None = None,
    preset: str | None = None,
    scale: str | None = None,
    until: Stage = "report",
) -> None:
    """Search, sample, extract, train, export, evaluate and report, in a run folder.

    Running the same command again resumes what was interrupted.

    Args:
        flags: The settings whose flags were given.
        config: A TOML file of settings; flags win over it. A run folder's config.toml is one.
        preset: A named set of settings, such as paper/cifar10-M; the file of --config and flags win over it.
        scale: Shrink the preset to a share such as 10%, by the rule that pgnas list presets NAME states.
        until: The last stage to do; later ones can follow as pgnas STAGE RUN.
    """
    named, notes = presets.layer(preset, scale)
    in_file = config_file.read_settings(config) if config is not None else {}
    settings = config_file.make_config(named, in_file, given(flags))
    with reporter() as progress:
        from pgnas import stages

        for note in notes:
            progress.note(note)

        result = stages.run(settings, until=until, progress=progress)
    print_lines(result.summary())


run.__annotations__["flags"] = Annotated[make_flags_class(), Parameter(name="*")]
app.command(run, sort_key=0)


def _add_stage(stage: Stage, text: str, place: int) -> None:
    def command(path: Annotated[Path, Parameter(name="RUN", help="The run folder.")], /) -> None:
        with reporter() as progress:
            from pgnas import stages

            result = stages.run_stage(path, stage, progress=progress)
        print_lines(result.summary())

    app.command(command, name=stage, help=text, sort_key=place)


for _place, (_stage, _text) in enumerate(STAGES.items(), start=1):
    if _stage not in ("evaluate", "report"):  # they have flags
        _add_stage(_stage, _text, _place)


@app.command(sort_key=list(STAGES).index("evaluate") + 1)
def evaluate(
    path: Annotated[Path, Parameter(name="RUN")],
    /,
    *,
    samples: Annotated[int | None, _WHOLE] = None,
    ood: Annotated[tuple[str, ...], Parameter(negative=())] = (),
) -> None:
    """Measure accuracy, calibration and cost on the test images, and how sure the predictions are.

    Of the found network, the average of networks sampled from the posterior, and the full network if it was trained.

    Args:
        path: The run folder.
        samples: Networks sampled from the posterior; not given: as many as before, 16 at first.
        ood: Other data, as for --data of pgnas run: how well uncertainty tells their test split from the run's; may be
            repeated.
    """
    with reporter() as progress:
        from pgnas import stages

        if samples is None and not ood:
            result = stages.run_stage(path, "evaluate", progress=progress)
        else:
            from pgnas.stages.evaluating import evaluate as measure

            result = measure(path, samples=samples, ood=ood, progress=progress)
    print_lines(result.summary())


app.command(viewing.report, sort_key=len(STAGES), help=STAGES["report"])
app.command(viewing.status, sort_key=len(STAGES))
app.command(viewing.compare, sort_key=len(STAGES))


@app.command(sort_key=len(STAGES))
def finetune(
    path: Annotated[Path, Parameter(name="RUN")],
    /,
    *,
    epochs: Annotated[int, _WHOLE] = 10,
    lr: float | None = None,
    weight_decay: float | None = None,
    out: Path | None = None,
) -> None:
    """Train the found network of a finished run further, with plain weight decay, and export it again.

    Running the same command again resumes what was interrupted.

    Args:
        path: The run folder.
        epochs: Epochs.
        lr: Peak learning rate of the run's optimiser (cosine after warm-up); not given: 0.01, with AdamW 1e-4.
        weight_decay: Decay of the weights; not given: 5e-4, with AdamW 0.05.
        out: Work in a copy of the run folder, made here; not given: in the run folder itself.
    """
    with reporter() as progress:
        from pgnas.stages.finetuning import FinetuneSettings
        from pgnas.stages.finetuning import finetune as train_further

        settings = FinetuneSettings(epochs=epochs, lr=lr, weight_decay=weight_decay)
        result = train_further(path, settings, out=out, progress=progress)
    print_lines(result.summary())


@app.command(sort_key=len(STAGES))
def front(
    path: Annotated[Path, Parameter(name="RUN")],
    /,
    *,
    caps: Annotated[tuple[str, ...], Parameter(converter=comma_separated, negative=())] = (),
    points: Annotated[int | None, _WHOLE] = None,
    epochs: Annotated[int, _WHOLE] = 2,
    lr: float | None = None,
    cost: Literal["macs", "params"] = "macs",
    start: Literal["larger", "larger-search", "search", "joint"] = "larger",
) -> None:
    """Networks for several caps from one run, whose posterior is searched on from cap to cap.

    Each is ranked, extracted, trained, exported and evaluated in a folder of its own in RUN/front, beside front.json,
    front.csv and front.svg. Running the same command again resumes what was interrupted.

    Args:
        path: The run folder; its search must be done.
        caps: The caps, such as 20%,40%,60%.
        points: Instead of caps: so many, evenly spaced.
        epochs: What each may cost after the search, in epochs of the full network: half of it searches on, the rest
            trains the network chosen.
        lr: Learning rate at the beginning of these, from where it falls to 0; not given: 0.03, or 0.1 with --start
            joint, and a hundredth of that with AdamW.
        cost: What is capped: multiply-adds or parameters.
        start: What each begins with: the next larger network, trained (the first: the run's), that one's search (the
            first: the run's), or the run's search; joint: that one's search, in a third of the epochs, and
            then all are trained together with shared weights.
    """
    with reporter() as progress:
        from pgnas.stages.front import front as make_front
        from pgnas.stages.front_settings import FrontSettings

        settings = FrontSettings(caps=caps, points=points, epochs=epochs, lr=lr, cost=cost, start=start)
        result = make_front(path, settings, progress=progress)
    print_lines(result.summary())


@app.command(name="list", sort_key=len(STAGES) + 1)
def list_(
    what: Annotated[Literal["models", "data", "priors", "presets"], Parameter(name="WHAT")],
    name: Annotated[str | None, Parameter(name="NAME")] = None,
    /,
    *,
    scale: str | None = None,
) -> None:
    """List what --model, --data, --prior or --preset can name.

    Args:
        what: Which list.
        name: One preset, to see every setting of it and where it comes from.
        scale: Show that preset shrunk, as pgnas run --scale would.
    """
    from pgnas.cli.listing import describe

    print_lines(describe(what) if name is None and scale is None else presets.describe(what, name, scale))


@app.command(sort_key=len(STAGES) + 2)
def inspect(
    *,
    model: str,
    image_size: Annotated[int | None, _WHOLE] = None,
    frames: Annotated[int | None, _WHOLE] = None,
    in_channels: Annotated[int, _WHOLE] = 3,
    classes: Annotated[int, _WHOLE] = 1000,
    weights: str | None = None,
    json_: Annotated[bool, Parameter(name="--json", negative=())] = False,
) -> None:
    """Show what of a network would be gated, what not and why, and what it costs, before any training.

    Args:
        model: The network, as for pgnas run.
        image_size: Side of the images in pixels; not given: 224, or what a registered family is made for.
        frames: Frames of a clip; not given: images, or what a registered family is made for.
        in_channels: Channels of the images.
        classes: Classes.
        weights: A .safetensors file of starting weights, to see whether it fits.
        json_: Print everything as JSON.
    """
    from pgnas.cli import tables
    from pgnas.stages import inspection_tables
    from pgnas.stages.inspecting import inspect

    found = inspect(
        model, image_size=image_size, frames=frames, in_channels=in_channels, classes=classes, weights=weights
    )
    if json_:
        print_lines([json.dumps(found.to_json(), indent=1)])
        return
    sections = inspection_tables.sections(found)
    print_either(tables.plain(sections), lambda width: tables.fancy(sections, width))


app.command(predict, sort_key=len(STAGES))
app.command(study.app)
app.command(bench.app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (``None``: those of this process) and return the exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        app(words, exit_on_error=False, print_error=False)
    except PgnasError as error:
        print_error(str(error))
        return error.exit_code
    except CycloptsError as error:
        print_error(str(error))
        return 2
    except KeyboardInterrupt:
        print_interrupted(shlex.join(["pgnas", *words]))
        return INTERRUPTED
    except BrokenPipeError:
        # The reader (head, less) has left; without this, Python complains once more when it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print_error(str(error))
        return 1
    return 0
