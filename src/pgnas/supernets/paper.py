"""The paper's supernets by name: how to build each at full size, and what the paper prints for it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pgnas.supernets.registry import MODELS, parse_parameters


@dataclass(frozen=True)
class PaperSupernet:
    """One supernet of the paper at full size.

    Attributes:
        model: What ``--model`` builds it.
        num_classes: Classes of the paper's data.
        printed: Parameters that the paper prints, in millions; None where it prints none.
        ungated: Patterns of the layers that the paper's code does not gate, beside the stem.
    """

    model: str
    num_classes: int
    printed: float | None
    ungated: tuple[str, ...] = ()

    def count(self) -> int:
        """Its parameters, gates aside; nothing is allocated."""
        name, _, text = self.model.partition(":")
        family = MODELS[name]
        with torch.device("meta"):
            network = family.factory(in_channels=3, num_classes=self.num_classes, **parse_parameters(family, text))
        return sum(parameter.numel() for parameter in network.parameters())


_DENSE = "growth=32,blocks=6-12-24-16,stem=7x7"
_DENSE_UNGATED = ("features.conv0*", "classifier")
_ENAS = "cells=5,aux=true,drop_path_keep=0.6"

PAPER_SUPERNETS: dict[str, PaperSupernet] = {
    "M": PaperSupernet("multibranch-resnet:width=96,blocks=4", 10, 26.2, ("classifier",)),
    "MI": PaperSupernet("multibranch-resnet:width=160,blocks=4", 10, 72.7, ("classifier",)),
    "E": PaperSupernet(f"enas-micro:filters=36,{_ENAS}", 10, 4.6),
    "EI": PaperSupernet(f"enas-micro:filters=72,{_ENAS}", 10, 15.3),
    "R-50": PaperSupernet("multikernel-resnet:width=64,blocks=3-4-6-3,stem=7x7", 1000, 44.0),
    "D-121": PaperSupernet(f"densenet:{_DENSE}", 1000, None, _DENSE_UNGATED),
    "D3D-121": PaperSupernet(f"densenet3d:{_DENSE}", 174, None, _DENSE_UNGATED),
}
"""SupNet-... of the paper; ``docs/paper.md`` explains where a count differs from the printed one."""
