"""E_q[cost] against the mean of the counted cost over all 2^U gates."""

import dataclasses
import itertools
import random

import pytest
import torch
from torch import Tensor

from pgnas.bayes import BilinearCost
from pgnas.errors import InputError


def long(*values: int) -> Tensor:
    return torch.tensor(values, dtype=torch.long)


def make(
    units: int,
    slots: list[tuple[int, list[int]]],
    outputs: list[tuple[int, bool, list[int]]],
    fixed: list[int],
    weights: list[float] | None = None,
    per_output: list[float] | None = None,
) -> BilinearCost:
    """Slots are (layer or -1, units); outputs are (layer, always, slots that read)."""
    return BilinearCost(
        units=units,
        slot_layer=long(*(layer for layer, _ in slots)),
        entry_slot=long(*(s for s, (_, members) in enumerate(slots) for _ in members)),
        entry_unit=long(*(u for _, members in slots for u in members)),
        fixed_inputs=long(*fixed),
        output_layer=long(*(layer for layer, _, _ in outputs)),
        output_always=torch.tensor([always for _, always, _ in outputs], dtype=torch.bool),
        reader_output=long(*(p for p, (_, _, read) in enumerate(outputs) for _ in read)),
        reader_slot=long(*(s for _, _, read in outputs for s in read)),
        layer_weight=torch.tensor(weights or [1.0] * len(fixed), dtype=torch.float64),
        output_weight=torch.tensor(per_output or [0.0] * len(fixed), dtype=torch.float64),
    )


def enumerate_mean(cost: BilinearCost, logits: Tensor) -> float:
    p = torch.sigmoid(logits).tolist()
    total = 0.0
    for gates in itertools.product([False, True], repeat=cost.units):
        weight = 1.0
        for probability, gate in zip(p, gates, strict=True):
            weight *= probability if gate else 1 - probability
        total += weight * cost.count(torch.tensor(gates, dtype=torch.bool))
    return total


def logits_of(units: int, seed: int, scale: float = 2.0) -> Tensor:
    return scale * torch.randn(units, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def random_instance(seed: int, *, joint: bool) -> BilinearCost:
    """Layers that read and write channels gated by units which may be tied in any way.

    With ``joint`` slots have up to two units, of disjoint pairs (2j, 2j + 1), so that the readers of an output are
    disjoint once contained ones are gone; else they have one unit, any of all.
    """
    rng = random.Random(seed)
    units, layers = 8, rng.randint(1, 3)
    slots: list[tuple[int, list[int]]] = []
    for _ in range(rng.randint(4, 10)):
        a, b = rng.choice([(0, 1), (2, 3), (4, 5), (6, 7)])
        members = rng.choice([[a], [b], [a, b], [b, a, a]]) if joint else [rng.randrange(units)]
        slots.append((rng.randrange(-1, layers), members if rng.random() < 0.97 else []))
    outputs = [
        (rng.randrange(layers), rng.random() < 0.15, rng.choices(range(len(slots)), k=rng.randint(0, 4)))
        for _ in range(rng.randint(1, 6))
    ]
    fixed = [rng.randint(0, 2) for _ in range(layers)]
    return make(units, slots, outputs, fixed, [rng.uniform(0.1, 2) for _ in fixed], [rng.uniform(0, 2) for _ in fixed])


@pytest.mark.parametrize("joint", [False, True], ids=["single units", "joint slots"])
@pytest.mark.parametrize("seed", range(30))
def test_expected_cost_is_the_mean_over_all_gates(seed: int, joint: bool) -> None:
    cost = random_instance(seed, joint=joint)
    logits = logits_of(cost.units, seed)
    assert cost.exact
    assert cost.expected(logits).item() == pytest.approx(enumerate_mean(cost, logits), rel=1e-9, abs=1e-12)


def test_the_random_instances_cover_the_hard_cases() -> None:
    plans = [random_instance(seed, joint=joint)._plan for seed in range(30) for joint in (False, True)]
    assert sum(plan.pair_input.numel() > 0 for plan in plans) > 20
    assert sum(plan.given.terms.row.numel() > 0 for plan in plans) > 5
    assert sum(plan.outputs.terms.entry_term.numel() > plan.outputs.terms.row.numel() for plan in plans) > 10


def test_a_plain_chain_is_the_sum_of_products() -> None:
    # 3 fixed inputs -> 2 channels -> 4 classes: E = 3 * (p0 + p1) + (p0 + p1) * 4, with biases.
    cost = make(
        2, [(1, [0]), (1, [1])], [(0, False, [0]), (0, False, [1])] + [(1, True, [])] * 4, [3, 0], None, [1, 10]
    )
    logits = logits_of(2, 0)
    p = torch.sigmoid(logits).sum()
    assert torch.allclose(cost.expected(logits), 3 * p + 4 * p + p + 40)
    assert cost.full == 3 * 2 + 2 * 4 + 2 + 40


def test_a_unit_that_is_both_input_and_output_counts_once() -> None:
    # A stream of 3 channels read and written by one layer: sum_{i != j} p_i p_j + sum_i p_i.
    cost = make(3, [(0, [u]) for u in range(3)], [(0, False, [u]) for u in range(3)], [0])
    logits = logits_of(3, 1)
    p = torch.sigmoid(logits)
    assert torch.allclose(cost.expected(logits), p.sum() ** 2 - p.square().sum() + p.sum())


def test_an_output_is_needed_if_any_reader_is_open() -> None:
    cost = make(3, [(-1, [0]), (-1, [1, 2]), (-1, [0])], [(0, False, [0, 1, 2, 2])], [5])
    logits = logits_of(3, 2)
    p = torch.sigmoid(logits)
    assert torch.allclose(cost.expected(logits), 5 * (1 - (1 - p[0]) * (1 - p[1] * p[2])))


def test_a_gate_on_a_whole_operation_is_exact_whether_or_not_its_inputs_repeat_it() -> None:
    # Unit 0 gates the operation; 1..3 its inputs, 4..6 the channels that others read behind it.
    width = range(3)
    readers = [(-1, [0, 4 + k]) for k in width] + [(-1, [0, 4 + (k + 1) % 3]) for k in width]
    outputs = [(0, False, [3 + k, 6 + k]) for k in width]
    repeated = make(7, [(0, [0, 1 + k]) for k in width] + readers, outputs, [0])
    plain = make(7, [(0, [1 + k]) for k in width] + readers, outputs, [0])
    logits = logits_of(7, 3)
    assert repeated.exact
    assert repeated._plan.pair_input.numel() == 0
    for cost in (repeated, plain):
        assert cost.expected(logits).item() == pytest.approx(enumerate_mean(cost, logits), rel=1e-12)
    assert torch.allclose(repeated.expected(logits), plain.expected(logits))


def test_partly_overlapping_readers_are_taken_as_independent_and_said_to_be() -> None:
    cost = make(3, [(-1, [0, 1]), (-1, [1, 2]), (-1, [0, 2])], [(0, False, [0, 1, 2])], [1])
    p = torch.sigmoid(logits_of(3, 4))
    assert not cost.exact
    independent = 1 - (1 - p[0] * p[1]) * (1 - p[1] * p[2]) * (1 - p[0] * p[2])
    assert torch.allclose(cost.expected(logits_of(3, 4)), independent)


def test_gradients_equal_finite_differences() -> None:
    for seed in range(4):
        cost = random_instance(seed, joint=True)
        assert torch.autograd.gradcheck(cost.expected, logits_of(cost.units, seed).requires_grad_())


def test_more_open_gates_cost_more() -> None:
    for seed in range(10):
        cost = random_instance(seed, joint=seed % 2 == 0)
        logits = logits_of(cost.units, seed).requires_grad_()
        cost.expected(logits).backward()
        assert logits.grad is not None
        assert (logits.grad >= -1e-12).all()


@pytest.mark.parametrize("end", [30.0, 100.0, 200.0])
def test_the_ends_are_finite_and_are_the_count_in_single_precision(end: float) -> None:
    for seed in range(20):
        cost = random_instance(seed, joint=seed % 2 == 0)
        gates = torch.rand(cost.units, generator=torch.Generator().manual_seed(seed)) < 0.5
        for kept in (gates, torch.ones_like(gates), torch.zeros_like(gates)):
            logits = torch.where(kept, end, -end).requires_grad_()
            value = cost.expected(logits)
            value.backward()
            assert value.item() == pytest.approx(cost.count(kept), rel=1e-5, abs=1e-5)
            assert logits.grad is not None
            assert logits.grad.isfinite().all()


def test_a_rarely_needed_output_keeps_its_digits_in_single_precision() -> None:
    cost = make(2, [(-1, [0]), (-1, [1])], [(0, False, [0, 1])], [1])
    logits = torch.tensor([-25.0, -28.0], requires_grad=True)
    value = cost.expected(logits)
    value.backward()
    p = torch.sigmoid(logits.detach().double())
    assert value.item() == pytest.approx(p.sum().item(), rel=1e-5)
    assert logits.grad is not None
    assert logits.grad.double().tolist() == pytest.approx(p.tolist(), rel=1e-5)


def test_moving_and_sharing_leave_the_original_alone() -> None:
    cost = random_instance(5, joint=True)
    before = {f.name: getattr(cost, f.name) for f in dataclasses.fields(cost)}
    moved = cost.to("meta")
    assert moved._plan.outputs.terms.row.device.type == moved.slot_layer.device.type == "meta"
    assert all(getattr(cost, name) is value for name, value in before.items())
    same = cost.to("cpu")
    assert torch.equal(same.expected(logits_of(8, 0)), cost.expected(logits_of(8, 0)))


def test_a_network_with_thousands_of_channels_compiles_and_runs_quickly() -> None:
    # A dense block: 40 layers of 32 channels, each channel read by every later layer through its own unit.
    layers, width = 40, 32
    producer = torch.arange(layers * width) // width
    output, reader = torch.nonzero(producer[:, None] < torch.arange(layers), as_tuple=True)
    slots = output.numel()
    cost = BilinearCost(
        units=slots,
        slot_layer=reader,
        entry_slot=torch.arange(slots),
        entry_unit=torch.arange(slots),
        fixed_inputs=torch.full((layers,), 3),
        output_layer=producer,
        output_always=producer == layers - 1,
        reader_output=output,
        reader_slot=torch.arange(slots),
        layer_weight=torch.ones(layers),
        output_weight=torch.ones(layers),
    )
    assert cost.expected(torch.full((slots,), 50.0)).item() == pytest.approx(cost.full, rel=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"entry_unit": long(0, 9)}, r"entry_unit must be in \[0, 2\)"),
        ({"slot_layer": torch.zeros(2)}, "slot_layer must be a 1-d long tensor"),
        ({"reader_slot": long(0)}, "reader_slot must have shape"),
        ({"output_always": long(0, 0)}, "output_always must be bool"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(change: dict[str, Tensor], message: str) -> None:
    cost = make(2, [(0, [0]), (0, [1])], [(0, False, [0]), (0, False, [1])], [1])
    fields = {f.name: getattr(cost, f.name) for f in dataclasses.fields(cost) if f.init}
    with pytest.raises(InputError, match=message):
        BilinearCost(**{**fields, **change})


def test_logits_and_gates_of_another_size_are_refused() -> None:
    cost = make(2, [(0, [0]), (0, [1])], [(0, False, [0]), (0, False, [1])], [1])
    with pytest.raises(InputError, match="keep_logits must have shape"):
        cost.expected(torch.zeros(3))
    with pytest.raises(InputError, match="kept must be bool"):
        cost.count(torch.zeros(2))
