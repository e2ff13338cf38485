from __future__ import annotations

import pytest
import torch
from torch import nn

from pgnas.architecture import Architecture
from pgnas.nn import extract_small, supernet
from pgnas.nn.choice import OneOf
from pgnas.nn.outline import Operation, outline
from pgnas.supernets import build_model


class TwoPaths(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.left, self.right = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1)
        self.head = nn.Linear(10, 3)

    def forward(self, x):
        x = self.stem(x)
        y = nn.functional.relu(self.left(x) + self.right(x) + 1.0)
        return self.head(nn.functional.avg_pool2d(torch.cat([y, x], 1), 8).flatten(1))


def by_name(operations: list[Operation]) -> dict[str, Operation]:
    return {operation.name: operation for operation in operations}


def test_what_is_drawn_and_what_an_architecture_leaves() -> None:
    made = supernet(TwoPaths(), (torch.randn(2, 3, 8, 8),))
    sizes = made.gates.sizes
    kept = {name: tuple(range(size)) for name, size in sizes.items()}
    chosen = Architecture(sizes, kept | {"left": (), "right": (0, 2), "head": (1, 2, 7)})
    operations = outline(made, chosen)
    assert [o.kind for o in operations] == [
        "input", "conv 3x3", "conv 3x3", "conv 1x1", "sum", "concat", "avg_pool2d", "linear", "output",
    ]  # fmt: skip
    found = by_name(operations)
    assert (found["left"].kept_reads, found["left"].kept_makes) == (0, 0)
    assert (found["right"].reads, found["right"].kept_reads, found["right"].kept_makes) == (4, 2, 2)
    assert (found["stem.0"].makes, found["stem.0"].kept_makes) == (4, 3)  # 0 and 2 are read by right, 1 by the head
    assert (found["head"].reads, found["head"].kept_reads, found["head"].gate) == (10, 3, "head")
    assert found["stem.0"].gate is None


@pytest.mark.parametrize("spec", ["multibranch-resnet:width=4", "densenet", "enas-micro"])
def test_the_counts_are_those_of_the_extracted_network(spec: str) -> None:
    built = build_model(spec, in_channels=3, num_classes=4, image_size=(16, 16), seed=0)
    made = supernet(built.module, (torch.randn(2, 3, 16, 16),), initial_drop=0.5)
    chosen = made.sample(generator=torch.Generator().manual_seed(0))
    operations = outline(made, chosen)
    assert all(place < number for number, operation in enumerate(operations) for place in operation.inputs)
    layers = dict(extract_small(made, chosen).module.named_modules())
    checked = 0
    for operation in operations:
        layer = layers.get(operation.name)
        if operation.reads and layer is not None:
            weight = layer.weight
            assert tuple(weight.shape[:2]) == (operation.kept_makes, operation.kept_reads)
            checked += 1
        elif operation.reads:
            assert operation.kept_makes == 0
    assert checked > 5


def test_a_densely_connected_network_is_drawn_with_few_arrows() -> None:
    built = build_model("torchvision:densenet121", in_channels=3, num_classes=4, image_size=(32, 32), seed=0)
    made = supernet(built.module, (torch.randn(2, 3, 32, 32),))
    operations = outline(made, made.open())
    assert sum(len(operation.inputs) for operation in operations) < 2 * len(operations)


def test_options_of_a_choice_are_drawn_once_each() -> None:
    choice = OneOf({"wide": nn.Conv2d(4, 4, 3, padding=1), "skip": nn.Identity(), "pool": nn.AvgPool2d(3, 1, 1)})
    network = nn.Sequential(nn.Conv2d(3, 4, 1), choice, nn.Flatten(), nn.Linear(256, 2))
    made = supernet(network, (torch.randn(2, 3, 8, 8),))
    chosen = Architecture(made.gates.sizes, {**made.open().kept, "1": (1,)})
    found = by_name(outline(made, chosen))
    assert {name: found[name].kind for name in ("1.wide", "1.skip", "1.pool")} == {
        "1.wide": "conv 3x3", "1.skip": "skip", "1.pool": "pool",
    }  # fmt: skip
    assert [found[name].kept_makes for name in ("1.wide", "1.skip", "1.pool")] == [0, 4, 0]
