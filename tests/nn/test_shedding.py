"""The theorem of shedding: without the units that are closed for good the supernet computes what it computed."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import pgnas
from pgnas.bayes import BernoulliPrior, GibbsPrior, KLContext, entropy
from pgnas.errors import ModelError
from pgnas.nn import ShedSupernet, Supernet, supernet
from pgnas.nn.gate import CLOSED, Granularity
from pgnas.nn.shedding import shed_counts

from .networks import NETWORKS, architectures, generator, images, randomise, tensors

DRAWS = ("flat",)  # its dropout draws for as many numbers as are left


def closings(gated: Supernet) -> list[Tensor]:
    """Units to close: random shares, single gates, everything."""
    return [~gated.gates.mask(architecture) for architecture in architectures(gated)]


def spread_logits(gated: Supernet) -> None:
    with torch.no_grad():
        for parameter in gated.gates.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator(5), dtype=parameter.dtype))


def both(gated: Supernet, closed: Tensor) -> tuple[Supernet, ShedSupernet]:
    """A copy of the supernet with the units closed, and another one that shed them."""
    whole, other = copy.deepcopy(gated), copy.deepcopy(gated)
    whole.gates.close_(closed)
    other.gates.close_(closed)
    return whole, ShedSupernet(other)


def require_same(found: object, expected: object, tolerance: float = 1e-9) -> None:
    for a, b in zip(tensors(found), tensors(expected), strict=True):
        assert (a - b).abs().max() <= tolerance * max(1.0, float(b.abs().max()))


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_changes_in_evaluation(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images()).double()
    spread_logits(gated)
    for closed in closings(gated)[::2]:
        whole, shed = both(gated, closed)
        x = torch.cat([images(), images().flip(0)])
        with torch.no_grad():
            require_same(shed.eval()(x), whole.eval()(x))


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in DRAWS])
def test_nothing_changes_in_training_nor_do_the_gradients(name: str) -> None:
    gated = supernet(randomise(NETWORKS[name]()).double(), images()).double()
    spread_logits(gated)
    for closed in closings(gated)[1:8:2]:
        whole, shed = both(gated, closed)
        x = images(batch=4)
        noise = torch.rand(4, gated.gates.units, generator=generator(2), dtype=torch.float64)
        outputs = [tensors(net.train()(x, noise=noise)) for net in (whole, shed)]
        for output in outputs:
            sum(t.sin().sum() for t in output).backward()
        require_same([t.detach() for t in outputs[1]], [t.detach() for t in outputs[0]])
        expected = shed.take({n: p.grad for n, p in whole.body.named_parameters() if p.grad is not None})
        for parameter, value in shed.body.named_parameters():
            if value.grad is not None:
                torch.testing.assert_close(value.grad, expected[parameter], rtol=1e-6, atol=1e-9)
        for found, wanted in zip(shed.gates.parameters(), whole.gates.parameters(), strict=True):
            if wanted.grad is not None:
                torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-6, atol=1e-9)


def test_tied_gates_and_gated_images_are_shed_alike() -> None:
    options = {"gate_inputs": True, "tie": [["left.0", "right.0"]]}
    gated = supernet(randomise(NETWORKS["residual"]()).double(), images(), **options).double()
    for closed in closings(gated):
        whole, shed = both(gated, closed)
        with torch.no_grad():
            require_same(shed.eval()(images()), whole.eval()(images()))


@pytest.mark.parametrize("name", ["residual", "separable", "grouped", "chain", "tied", "layer scale"])
def test_what_is_put_back_computes_the_same(name: str) -> None:
    """After training steps of the shed supernet, with its statistics; what left has the numbers it had."""
    gated = supernet(randomise(NETWORKS[name]()).double(), images()).double()
    spread_logits(gated)
    for closed in closings(gated)[1:4]:
        _, shed = both(gated, closed)
        optimizer = torch.optim.SGD(shed.weight_parameters(), lr=0.1, momentum=0.9)
        for _ in range(2):
            optimizer.zero_grad()
            sum(t.square().mean() for t in tensors(shed.train()(images()))).backward()
            optimizer.step()
        with torch.no_grad():
            expected = shed.eval()(images())
            require_same(shed.put_back().eval()(images()), expected)
        ones = {n: torch.ones_like(p) for n, p in gated.body.named_parameters()}
        left = shed.put(shed.take(ones))
        before = dict(gated.body.named_parameters())
        for parameter, value in shed.full.body.named_parameters():
            gone = left.get(parameter, torch.zeros_like(value)) == 0
            assert torch.equal(value[gone], before[parameter][gone])


@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_cost_and_kl_are_those_of_keep_probability_zero(granularity: Granularity) -> None:
    """Expected cost and the Gibbs KL exactly; the Bernoulli KL has log 1/u a closed unit, which is a constant."""
    gated = supernet(randomise(NETWORKS["residual"]()), images(dtype=torch.float32), granularity)
    spread_logits(gated)
    groups = gated.gates.group_of_unit
    closed = groups % 2 == 0 if granularity == "group" else torch.arange(len(groups)) % 3 == 0
    _, shed = both(gated, closed)
    with torch.no_grad():
        own = gated.gates.logits()
        zero = torch.where(closed, -60.0, own)
        direct = copy.deepcopy(gated)
        if granularity == "channel":
            direct.gates.unit_logits.copy_(zero)
            for kind in ("macs", "params"):
                assert float(shed.expected_cost(kind)) == pytest.approx(float(direct.expected_cost(kind)), rel=1e-6)
        logits = shed.gates.logits()
        cost = shed.expected_cost("macs")
        context = KLContext(logits=logits, data_size=10.0, expected_cost=cost, multiplier=2.0)
        rest = float(2.0 * 10.0 * cost - entropy(own[~closed]).sum())
        assert float(GibbsPrior().kl(context)) == pytest.approx(rest, rel=1e-5)
        remaining = KLContext(logits=own[~closed], data_size=10.0)
        constant = int(closed.sum()) * -torch.tensor(0.3).log()
        expected = float(BernoulliPrior(0.3).kl(remaining) + constant)
        assert float(BernoulliPrior(0.3).kl(context)) == pytest.approx(expected, rel=1e-5)


def test_weights_read_through_a_unit_are_those_that_are_left() -> None:
    gated = supernet(randomise(NETWORKS["grouped"]()).double(), images()).double()
    nothing = torch.zeros(gated.gates.units, dtype=torch.bool)
    whole, shed = both(gated, nothing)
    torch.testing.assert_close(shed.weight_sq(), whole.weight_sq())
    closed = torch.arange(gated.gates.units) % 2 == 0
    _, shed = both(gated, closed)
    assert (shed.weight_sq() <= whole.weight_sq() + 1e-12).all()
    assert shed.weight_sq()[~closed].min() > 0


def test_a_supernet_gets_cheaper_and_its_cost_is_counted_without_building() -> None:
    gated = supernet(randomise(NETWORKS["residual"]()), images(dtype=torch.float32))
    last = gated.count(gated.open()).macs
    for share in (0.2, 0.5, 0.8, 1.0):
        closed = torch.rand(gated.gates.units, generator=generator(3)) < share
        counts = shed_counts(gated, closed)
        _, shed = both(gated, closed)
        assert shed.counts == counts
        assert counts.params == sum(p.numel() for p in shed.body.parameters())
        assert counts.macs <= last
        last = counts.macs
    assert last < 0.2 * gated.count(gated.open()).macs


@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_settled_logits_never_open_and_name_the_same_architectures(granularity: Granularity) -> None:
    gated = supernet(NETWORKS["residual"](), images(dtype=torch.float32), granularity, initial_drop=0.5)
    groups = gated.gates.group_of_unit
    closed = groups % 2 == 0
    _, shed = both(gated, closed)
    shed.gates.settle_()
    state = copy.deepcopy(shed.put_back().state_dict())
    fresh = supernet(NETWORKS["residual"](), images(dtype=torch.float32), granularity)
    fresh.load_state_dict(state)
    assert (torch.sigmoid(fresh.gates.logits())[closed] == 0).all()
    assert fresh.gates.logits()[closed].max() <= CLOSED / 2
    assert (fresh.gates.rsample(torch.rand(1000, fresh.gates.units), 100.0)[:, closed] == 0).all()
    fresh.gates.clamp_(8.0)  # as after every step of a search that goes on with them
    assert (torch.sigmoid(fresh.gates.logits())[closed] == 0).all()
    for _ in range(20):
        assert not fresh.gates.mask(fresh.sample(generator=generator(1)))[closed].any()
    kept = fresh.gates.architecture(~closed)
    small = pgnas.extract(fresh, kept)
    with torch.no_grad(), fresh.eval().fixed(kept):
        require_same(small(images(dtype=torch.float32)), fresh(images(dtype=torch.float32)), 1e-5)


def test_a_group_with_one_logit_closes_whole() -> None:
    gated = supernet(NETWORKS["residual"](), images(dtype=torch.float32), "group")
    part = torch.zeros(gated.gates.units, dtype=torch.bool)
    part[0] = True
    with pytest.raises(ModelError, match="whole groups"):
        gated.gates.close_(part)


@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
def test_narrowed_gates_keep_an_architecture_and_nothing_beside_it(granularity: Granularity) -> None:
    gated = supernet(NETWORKS["residual"](), images(dtype=torch.float32), granularity, initial_drop=0.3)
    before = gated.gates.logits().detach().clone()
    kept = torch.rand(gated.gates.units, generator=generator(0)) < 0.6
    first = gated.gates.specs[0]
    kept[: first.groups[0].stop] = False  # a whole group
    gated.gates.narrow_(gated.gates.architecture(kept))
    logits = gated.gates.logits().detach()
    torch.testing.assert_close(logits[kept], before[kept])
    assert (torch.sigmoid(logits[: first.groups[0].stop]) == 0).all()
    if granularity != "group":
        assert (torch.sigmoid(logits[~kept]) < 1e-30).all()
    drawn = gated.gates.sample(generator=generator(1))
    assert not drawn[: first.groups[0].stop].any()
    gated.gates.open_(8.0)
    opened = torch.sigmoid(gated.gates.logits().detach())
    assert (opened[kept] > 0.999).all()
    assert (opened[: first.groups[0].stop] == 0).all()
