"""The topology space: strings and rows, the supernet as a sum, networks of one cell as the benchmark counts them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pgnas.errors import ModelError
from pgnas.nn import measure
from pgnas.nn.choice import GATES
from pgnas.supernets.nats_cells import EDGES, OPERATIONS, all_cells, format_cell, parse_cell
from pgnas.supernets.nats_topology import nats_topology, network_of, operation_modules

from .nats_data import table

MIXED = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"
DEAD_NODE = "|nor_conv_3x3~0|+|skip_connect~0|none~1|+|none~0|none~1|nor_conv_1x1~2|"
NOTHING = format_cell(dict.fromkeys(EDGES, "none"))


def test_every_cell_has_its_own_string_that_reads_back() -> None:
    strings = {format_cell(cell): cell for cell in all_cells()}
    assert len(strings) == 15_625
    assert all(parse_cell(text) == cell for text, cell in strings.items())


def test_every_row_of_the_table_is_a_cell_and_its_columns_are_the_edges() -> None:
    columns = table("nats_topology.npz")
    codes = {edge: columns[f"op_e{edge[0]}{edge[1]}"] for edge in EDGES}
    assert tuple(columns["op_names"]) == OPERATIONS
    for row, text in enumerate(columns["arch"].tolist()):
        assert parse_cell(text) == {edge: OPERATIONS[code[row]] for edge, code in codes.items()}
    assert set(columns["arch"].tolist()) == {format_cell(cell) for cell in all_cells()}


@pytest.mark.parametrize("row", [0, 1, 7, 4321, 15_624])
def test_networks_of_a_cell_cost_what_the_table_says(row: int) -> None:
    columns = table("nats_topology.npz")
    counts = measure(nats_topology(cell=str(columns["arch"][row])), (torch.zeros(1, 3, 32, 32),))
    assert (counts.params, counts.macs + 10) == (columns["params_c10"][row], columns["flops_c10"][row])


def randomised(network: nn.Module) -> nn.Module:
    """In evaluation, with weights and BatchNorm statistics that hide nothing."""
    rng = torch.Generator().manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=rng) / 2)
            module.running_var.copy_(torch.rand(module.num_features, generator=rng) + 0.5)
    return network.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("text", [MIXED, DEAD_NODE, NOTHING, format_cell(dict.fromkeys(EDGES, "nor_conv_3x3"))])
def test_a_cells_network_is_the_supernet_with_the_other_operations_closed(text: str) -> None:
    supernet = randomised(nats_topology(num_classes=3, channels=8, cells=1))
    cell = parse_cell(text)
    found = network_of(supernet, cell)
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    for edge, modules in operation_modules(supernet).items():
        for operation, names in modules.items():
            for name in names if operation != cell[edge] else ():
                supernet.get_submodule(name).register_forward_hook(_close)
    assert torch.allclose(found(x), supernet(x), rtol=1e-12, atol=1e-12)
    assert (found(x).std(0).max() > 1e-6) == (text != NOTHING)  # what is compared depends on the image


def _close(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return torch.zeros_like(output)


def test_a_choice_opens_one_module_a_cell_and_only_reductions_are_in_no_choice() -> None:
    network = nats_topology(channels=2, cells=2)
    modules = operation_modules(network)
    assert list(modules) == list(EDGES)
    assert all(len(names) == (0 if op == "none" else 6) for ops in modules.values() for op, names in ops.items())
    chosen = [name for ops in modules.values() for names in ops.values() for name in names]
    marks = {name for name, module in network.named_modules() if name.endswith(f".{GATES}")}
    inside = {name for name, _ in network.named_modules() if name.count(".") == 4 and ".edges." in name} - marks
    assert len(set(chosen)) == len(chosen) == 6 * 6 * 4
    assert inside == set(chosen)


def test_the_published_network_has_15_cells_of_16_32_64_channels() -> None:
    network = nats_topology(cell=MIXED)
    convolutions = [m.out_channels for m in network.modules() if isinstance(m, nn.Conv2d)]
    assert {channels: convolutions.count(channels) for channels in (16, 32, 64)} == {16: 11, 32: 13, 64: 13}


@pytest.mark.parametrize(
    "text", ["", "|none~0|", MIXED.replace("~1", "~0"), MIXED.replace("none", "max_pool_3x3"), MIXED + "|none~0|"]
)
def test_strings_of_another_form_are_refused(text: str) -> None:
    with pytest.raises(ModelError, match="form"):
        parse_cell(text)


def test_only_a_supernet_has_the_weights_of_every_cell() -> None:
    with pytest.raises(ModelError, match="all operations"):
        network_of(nats_topology(channels=2, cells=1, cell=NOTHING), parse_cell(MIXED))
    with pytest.raises(ModelError, match="all operations"):
        network_of(nn.Linear(2, 2), parse_cell(MIXED))
    with pytest.raises(ModelError, match="edges"):
        format_cell({(0, 1): "none"})
