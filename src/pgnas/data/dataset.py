"""What a loaded data set is: four splits, and what must be done to an example before a network sees it."""

from __future__ import annotations

from dataclasses import dataclass

from pgnas.data.preprocessing import Preprocessing
from pgnas.data.splits import AnyAugmentation, Examples


@dataclass(frozen=True, eq=False)
class DataSet:
    """A data set, split.

    Attributes:
        name: What the user called it.
        class_names: Name of each label.
        train: What the weights and the posterior are fitted to.
        select: Half of the validation examples; the selection among architectures sees them.
        estimate: The other half; no selection ever sees them, so that they give an honest estimate.
        test: For the last line of a report only.
        preprocessing: Shape, mean and standard deviation of the training examples.
        augmentation: What to do to training examples.
        notes: What was decided or skipped on the way, one sentence each.
        fingerprint: SHA-256 of the contents of the splits; see ``fingerprint_of``.
    """

    name: str
    class_names: tuple[str, ...]
    train: Examples
    select: Examples
    estimate: Examples
    test: Examples
    preprocessing: Preprocessing
    augmentation: AnyAugmentation
    notes: tuple[str, ...]
    fingerprint: str
