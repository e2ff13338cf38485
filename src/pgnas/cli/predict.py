"""``pgnas predict``: classes of images, with what is known and what is not."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from pgnas.cli import tables
from pgnas.cli.flags import whole_number
from pgnas.cli.reporter import reporter
from pgnas.console import print_either

if TYPE_CHECKING:
    from pgnas.stages.inspection_tables import Section
    from pgnas.stages.predicting import ImagePredictions

_SHOWN_CLASSES = 3


def predict(
    path: Annotated[Path, Parameter(name="RUN")],
    /,
    *images: Annotated[Path, Parameter(name="IMAGES")],
    samples: Annotated[int, Parameter(converter=whole_number)] = 16,
    calibrated: Annotated[bool, Parameter(negative=())] = False,
    json: Path | None = None,
    csv: Path | None = None,
) -> None:
    """Predict the class of images with the found network and with the average of networks sampled from the posterior.

    Entropies are in nats; of the average's, the epistemic part is what the networks disagree about.

    Args:
        path: The run folder.
        images: Image files, and folders of them.
        samples: Networks sampled from the posterior, made at the first use; 0: the found network alone.
        calibrated: Apply the temperatures that were fitted on validation; entropies are then not split.
        json: Write everything to this file.
        csv: Likewise, a line an image and network.
    """
    with reporter() as progress:
        from pgnas.run_folder.storage import require_target
        from pgnas.stages.predicting import predict_images

        for target in (json, csv):
            if target is not None:
                require_target(target)
        found = predict_images(path, images, samples=samples, calibrated=calibrated, progress=progress)
    found.write(json=json, csv=csv)
    sections = [_section(found)]
    print_either(tables.plain(sections), lambda width: tables.fancy(sections, width))


def _section(found: ImagePredictions) -> Section:
    from pgnas.stages.inspection_tables import Column, Section

    titles = ("image", "network", "classes", "entropy", "aleatoric", "epistemic")
    columns = tuple(Column(title, numeric=place > 2) for place, title in enumerate(titles))
    title = f"Predictions{' at the fitted temperatures' if found.calibrated else ''}"
    return Section(title, columns, tuple(_rows(found)))


def _rows(found: ImagePredictions) -> Iterator[tuple[str, ...]]:
    names = {"found": "found", "ensemble": f"average of {found.samples}"}
    for row in found.rows():
        best = sorted(zip(found.class_names, row["probabilities"], strict=True), key=lambda item: -item[1])[
            :_SHOWN_CLASSES
        ]
        classes = ", ".join(f"{name} {share:.3f}" for name, share in best)
        parts = ("–" if row[key] is None else f"{row[key]:.3f}" for key in ("entropy", "aleatoric", "epistemic"))
        yield row["file"], names[row["network"]], classes, *parts
