"""ENAS micro network, the paper's SupNet-E and SupNet-EI (Pham et al. 2018, as the code of both builds it).

Three stages of normal cells with a reduction cell between each two; a cell reads the outputs of the two before it. The
paper's instances have the arcs that are the defaults here, 5 cells a stage, and 36 (E) or 72 (EI) filters.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.errors import ModelError
from pgnas.supernets.enas_cells import EPS, Arc, Cell, parse_arc
from pgnas.supernets.parts import require_range
from pgnas.supernets.registry import register

NORMAL_ARC = "0 2 0 0 0 4 0 1 0 4 1 1 1 0 0 1 0 2 1 1"
REDUCTION_ARC = "1 0 1 0 0 3 0 2 1 1 3 1 1 0 0 4 0 3 1 1"


class AuxiliaryHead(nn.Module):
    """A second classifier, for training: ReLU, 5x5 pooling with stride 3, convolutions to 128 and 768 channels.

    On the paper's 8x8 maps the pooling leaves 2x2, which the second convolution's kernel covers; a map smaller than 5
    pixels is pooled whole.
    """

    def __init__(self, inputs: int, num_classes: int) -> None:
        super().__init__()
        self.project = nn.Sequential(
            nn.Conv2d(inputs, 128, 1, bias=False), nn.BatchNorm2d(128, eps=EPS), nn.ReLU(),
            nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(128, 768, 2, bias=False), nn.BatchNorm2d(768, eps=EPS), nn.ReLU(),
        )  # fmt: skip
        self.classifier = nn.Linear(768, num_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, inputs, H, W) to logits (B, num_classes)."""
        x = F.avg_pool2d(F.relu(x), (min(5, x.shape[2]), min(5, x.shape[3])), 3)
        logits: Tensor = self.classifier(self.project(x).mean((2, 3)))
        return logits


class EnasMicro(nn.Module):
    """The network; see the module's docstring.

    Args:
        in_channels: Channels of the images.
        num_classes: Classes.
        filters: Channels of the first stage's nodes; each later stage has twice as many.
        cells: Normal cells a stage.
        normal: Plan of the normal cells.
        reduction: Plan of the reduction cells.
        drop_path: Drop-path probability of the last cell's operations; it grows linearly with the cell's depth.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        num_classes: int,
        filters: int,
        cells: int,
        normal: Arc,
        reduction: Arc,
        drop_path: float,
    ) -> None:
        super().__init__()
        stem = 3 * filters
        self.stem = nn.Sequential(nn.Conv2d(in_channels, stem, 3, 1, 1, bias=False), nn.BatchNorm2d(stem, eps=EPS))
        reductions, depth = (cells, 2 * cells + 1), 3 * cells + 2
        self.cells = nn.ModuleList()
        self.widths: list[int] = []
        inputs, halve = (stem, stem), False
        for index in range(depth):
            reduces = index in reductions
            filters *= 2 if reduces else 1
            arc, drop = reduction if reduces else normal, drop_path * (index + 1) / depth
            self.cells.append(Cell(arc, inputs, halve=halve, filters=filters, stride=1 + reduces, drop=drop))
            self.widths.append(len(arc.loose_ends) * filters)
            inputs, halve = (inputs[1], self.widths[-1]), reduces
        self.classifier = nn.Linear(inputs[1], num_classes, bias=False)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, num_classes) of images (B, in_channels, H, W)."""
        return self.classify(self.values(x)[-1])

    def values(self, x: Tensor) -> list[Tensor]:
        """Every cell's output."""
        values = [self.stem(x)] * 2
        for cell in self.cells:
            values.append(cell(values[-2], values[-1]))
        return values[2:]

    def classify(self, x: Tensor) -> Tensor:
        """Logits (B, num_classes) of the last cell's output."""
        logits: Tensor = self.classifier(F.relu(x).mean((2, 3)))
        return logits


class EnasMicroAuxiliary(EnasMicro):
    """The network with an auxiliary head on the first cell of the last stage, for training."""

    def __init__(self, *, num_classes: int, cells: int, **options: Any) -> None:
        super().__init__(num_classes=num_classes, cells=cells, **options)
        self.auxiliary_cell = 2 * cells + 2
        self.auxiliary = AuxiliaryHead(self.widths[self.auxiliary_cell], num_classes)
        _initialise(self.auxiliary)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits (B, num_classes) of images (B, in_channels, H, W); in training also the auxiliary head's.

        The paper's loss counts the cross-entropy of the latter with weight 0.4.
        """
        values = self.values(x)
        logits = self.classify(values[-1])
        return (logits, self.auxiliary(values[self.auxiliary_cell])) if self.training else logits


def _initialise(module: nn.Module) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight)


@register("enas-micro", "the paper's SupNet-E construction: ENAS micro cells, three stages", width="filters")
def enas_micro(
    *,
    in_channels: int = 3,
    num_classes: int = 10,
    filters: int = 12,
    cells: int = 1,
    aux: bool = False,
    drop_path_keep: float = 1.0,
    normal: str = NORMAL_ARC,
    reduction: str = REDUCTION_ARC,
) -> nn.Module:
    """Build an :class:`EnasMicro`, or with ``aux`` an :class:`EnasMicroAuxiliary`.

    The paper's instances are ``PAPER_SUPERNETS["E"]`` and ``["EI"]``.
    """
    require_range("enas-micro", filters=filters, cells=cells)
    if not 0.0 < drop_path_keep <= 1.0:
        raise ModelError(
            "enas-micro drop_path_keep", "must lie in (0, 1]", value=drop_path_keep, remedy="the paper has 0.6"
        )
    family = EnasMicroAuxiliary if aux else EnasMicro
    return family(
        in_channels=in_channels,
        num_classes=num_classes,
        filters=filters,
        cells=cells,
        normal=parse_arc("normal", normal),
        reduction=parse_arc("reduction", reduction),
        drop_path=1.0 - drop_path_keep,
    )
