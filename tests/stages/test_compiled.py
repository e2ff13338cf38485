"""A compiled network is used if its gradients are those of the plain one, and changes nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pgnas.stages.compiled import CompiledForward


class Spoilt(torch.autograd.Function):
    """The identity, with a gradient times a factor."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


class Compiler:
    """Stands for torch.compile: what it makes multiplies gradients by a factor, another one if options are given."""

    def __init__(self, first: float, second: float = 1.0) -> None:
        self.first, self.second = first, second
        self.calls = 0

    def __call__(self, network: nn.Module, *, dynamic: bool, options: dict[str, Any] | None = None) -> Any:
        factor = self.first if options is None else self.second

        def forward(*args: Any, **kwargs: Any) -> Tensor:
            self.calls += 1
            return Spoilt.apply(network(*args, **kwargs), factor)

        return forward


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def gradient(forward, network, x, *, mixed=False):
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
        outputs = forward(x)
    outputs.float().square().sum().backward()
    return torch.cat([p.grad.flatten().clone() for p in network.parameters()])


def test_where_compilation_fails_the_plain_network_goes_on(monkeypatch, caplog):
    network = nn.Linear(2, 2)

    def broken(*args, **kwargs):
        raise torch._dynamo.exc.BackendCompilerFailed(lambda: None, RuntimeError("no compiler"), None)

    monkeypatch.setattr(torch, "compile", lambda network, **options: broken)
    x = torch.randn(3, 2)
    forward = CompiledForward(network)
    assert torch.equal(forward(x), network(x))
    assert "torch.compile failed" in caplog.text
    assert torch.equal(forward(x), network(x))


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 0.0, -1.0, 1.2])
def test_a_compiled_network_with_wrong_gradients_is_not_used(monkeypatch, caplog, network, factor, mixed):
    monkeypatch.setattr(torch, "compile", Compiler(factor, factor))
    x = torch.randn(50, 4)
    found = gradient(CompiledForward(network), network, x, mixed=mixed)
    assert torch.equal(found, gradient(network, network, x, mixed=mixed))
    assert "torch.compile is not used: the" in caplog.text
    assert "CXX" in caplog.text


def test_the_second_attempt_is_used_if_its_gradients_are_right(monkeypatch, caplog, network):
    compiler = Compiler(float("nan"))
    monkeypatch.setattr(torch, "compile", compiler)
    x, forward = torch.randn(5, 4), CompiledForward(network)
    assert torch.equal(gradient(forward, network, x), gradient(network, network, x))
    assert "with wider ones the gradient of the compiled network is not finite" in caplog.text
    used = compiler.calls
    gradient(forward, network, x)
    assert compiler.calls == used + 1


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_right_gradients_are_used_with_rounding_and_dropout_too(monkeypatch, caplog, network, precision, dropout):
    compiler = Compiler(1.0)
    monkeypatch.setattr(torch, "compile", compiler)
    network.insert(3, nn.Dropout(dropout))
    forward = CompiledForward(network)
    with torch.autocast("cpu", precision, enabled=precision != torch.float32):
        forward(torch.randn(64, 4))
    assert compiler.calls == 2
    assert not caplog.text


def test_the_check_leaves_buffers_gradients_and_randomness_as_they_were(monkeypatch, network):
    monkeypatch.setattr(torch, "compile", Compiler(1.0))
    x, forward = torch.randn(5, 4), CompiledForward(network)
    network.append(nn.Dropout(0.5))
    states = []
    for run in (network, forward):
        for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm1d)):
            norm.reset_running_stats()
        network.zero_grad()
        torch.manual_seed(1)
        output = run(x)
        assert all(p.grad is None for p in network.parameters())
        states.append([output.detach(), torch.rand(3), *(b.clone() for b in network.buffers())])
    assert all(map(torch.equal, *states))


def test_without_gradients_nothing_is_checked_until_there_are_some(monkeypatch, caplog, network):
    compiler = Compiler(float("nan"), float("nan"))
    monkeypatch.setattr(torch, "compile", compiler)
    forward, x = CompiledForward(network), torch.randn(5, 4)
    with torch.no_grad():
        forward(x)
    assert (compiler.calls, caplog.text) == (1, "")
    forward(x)
    assert "not used" in caplog.text


def test_gradients_that_are_not_finite_without_a_compiler_are_not_its_fault(monkeypatch, caplog, network):
    monkeypatch.setattr(torch, "compile", Compiler(2.0, 2.0))
    with torch.no_grad():
        network[0].weight[0, 0] = float("nan")
    CompiledForward(network)(torch.randn(5, 4))
    assert not caplog.text
