"""Tracing: what is followed, and what is refused in one line."""

from __future__ import annotations

import dataclasses
import itertools
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.errors import ModelError
from pgnas.nn import extract, supernet

from .networks import Network, Pair, images, tensors

X = images(dtype=torch.float32)


def network(run: Callable[..., Any]) -> nn.Module:
    made = Network(run, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 4, 1), head=nn.Linear(4, 2))
    made.register_buffer("line", torch.linspace(-1, 1, 8).view(1, 1, 1, 8))
    return made


@dataclasses.dataclass
class Output:
    scores: Tensor
    map: Tensor


def by_shape(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    if x.shape[2] > 4 and x.size(-1) == 8 and len(y.shape) == 4 and y.dim() == 4 and y.ndim == 4:
        y = net.b(y)
    for i in range(y.shape[1] // 2):
        y = y + i
    return net.head(y.mean((2, 3)))


def by_lists(net: Any, x: Tensor) -> Tensor:
    parts = [net.a(x)]
    parts.append(net.b(parts[-1]))
    _, _, h, w = parts[0].shape
    for left, right in itertools.pairwise(parts):
        x = left + right * (h / w) + float(len(parts))
    return net.head(F.avg_pool2d(x, (h, w)).view(x.size(0), -1))


FOLLOWED = {
    "shapes": by_shape,
    "lists": by_lists,
    "view of a number": lambda net, x: net.head(F.adaptive_avg_pool2d(net.b(net.a(x)), 1).view(-1, 4)),
    "reshape by the batch": lambda net, x: net.head(net.b(net.a(x)).mean((2, 3)).reshape(x.shape[0], -1)),
    "dataclass": lambda net, x: Output(scores=net.head((y := net.b(net.a(x))).mean((2, 3))), map=y),
    "named tuple": lambda net, x: Pair(net.head((y := net.b(net.a(x))).mean((2, 3))), y),
    "list": lambda net, x: [net.b(net.a(x)), (x,)],
    "zeros of sizes": lambda net, x: net.b(net.a(x) + torch.zeros(x.shape[0], 1, *x.shape[2:])),
    "ones of a shape": lambda net, x: net.b(net.a(x) + torch.ones(*x.shape)[:, :1]),
    "new ones": lambda net, x: net.b(net.a(x)) + net.line.new_ones(x.shape[0], 1, 1, 1),
    "identity of the batch": lambda net, x: torch.eye(x.shape[0]) @ net.head(net.b(net.a(x)).mean((2, 3))),
    "number of a size": lambda net, x: net.b(net.a(x)) * torch.tensor(x.shape[0]),
    "expanded buffer": lambda net, x: net.b(net.a(x) + net.line.expand(x.shape[0], -1, 8, 8)),
    "repeated buffer": lambda net, x: net.b(net.a(x) + net.line.repeat(x.size(0), 1, 1, 1)),
    "is a tensor": lambda net, x: net.b(net.a(x) * (1 if torch.is_tensor(x) and not torch.is_tensor(x.shape) else 2)),
    "type and device": lambda net, x: net.b(net.a(x)) * torch.ones(1, dtype=x.dtype, device=x.device),
}


def flat(value: Any) -> list[Tensor]:
    return tensors(vars(value) if dataclasses.is_dataclass(value) else value)


@pytest.mark.parametrize("name", FOLLOWED)
def test_followed(name: str) -> None:
    model = network(FOLLOWED[name]).eval()
    made = supernet(model, X)
    small = extract(made, made.open())
    for x in (X, X[:1], torch.cat([X, X.flip(0)])):
        expected, found = model(x), small(x)
        assert type(found) is type(expected)
        for part, value in zip(flat(found), flat(expected), strict=True):
            torch.testing.assert_close(part, value)


REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "values": (
        lambda net, x: net.b(net.a(x)) if x.sum() > 0 else net.a(x),
        r"^model Network must be traceable by torch.fx .+, got .*depends on the value of tensor",
    ),
    "item": (lambda net, x: net.b(net.a(x)) * float(x.max()), r"^model Network must be traceable by torch.fx"),
    "random": (
        lambda net, x: net.b(net.a(x)) + torch.rand_like(x[:, :1]),
        r"^model Network must compute the same when traced, got another output; look for random",
    ),
    "always dropped": (
        lambda net, x: net.b(F.dropout(net.a(x), 0.5, training=True)),
        r"^model Network must compute the same when traced",
    ),
    "type that tracing hides": (
        lambda net, x: net.b(net.a(x) * (1 if isinstance(x, Tensor) else 2)),
        r"^model Network must compute the same when traced, got another output; .+ isinstance\(x, Tensor\)",
    ),
    "error for a type that tracing hides": (
        lambda net, x: net.b(net.a(x)) if isinstance(x, Tensor) else net.only_tensors,
        r"^model Network must be traceable .+, got .*only_tensors.*; .+ isinstance\(x, Tensor\)",
    ),
    "batch as a number": (
        lambda net, x: net.head(net.b(net.a(x)).mean((2, 3)).view(len(x), 4)),
        r"^model Network must not turn the batch size into a Python number, got .+ batches of 2 only",
    ),
    "wrong input": (
        lambda net, x: net.b(net.a(x[:, :2])),
        r"^model Network must run on inputs of shape \(2, 3, 8, 8\) \(float32\), got .+; check the image size",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_in_one_line(name: str) -> None:
    run, message = REFUSED[name]
    with pytest.raises(ModelError, match=message) as caught:
        supernet(network(run), X)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "inputs",
    [(), "image", (X, X[:1]), (torch.tensor(1.0),), (X[:0],)],
    ids=["none", "str", "batches", "scalar", "empty"],
)
def test_example_inputs_are_checked(inputs: Any) -> None:
    with pytest.raises(ModelError, match=r"^example_inputs must "):
        supernet(network(by_shape), inputs)


def test_dtype_of_model_and_example_must_agree() -> None:
    with pytest.raises(ModelError, match=r"must run on inputs of shape \(2, 3, 8, 8\) \(float32\)"):
        supernet(network(by_shape).double(), X)


def test_a_supernet_of_a_supernet_is_refused() -> None:
    with pytest.raises(ModelError, match="must be an ordinary network"):
        supernet(supernet(network(by_shape), X), X)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    model = network(by_shape)
    model.extra = threading.Lock()  # type: ignore[assignment]
    with pytest.raises(ModelError, match=r"must be copyable by copy\.deepcopy, got [^\n]+$"):
        supernet(model, X)


def test_functional_dropout_follows_the_mode() -> None:
    model = network(lambda net, x: net.b(F.dropout(net.a(x), 0.5, net.training)))
    made = supernet(model, X)
    with made.fixed(made.open()):
        assert not torch.equal(made.train()(X), made(X))
        assert torch.equal(made.eval()(X), made(X))
    assert made.report.notes == ("functional dropout 'dropout' became the layer 'functional_dropout'",)


class Dropping(nn.Module):
    """Functional dropouts that follow the mode, and one more thing that does."""

    def __init__(self, run: Callable[[Dropping, Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.run = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), run

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(self.a(x), 0.5, self.training)
        return self.run(self, F.alpha_dropout(y, p=0.5, training=self.training))


class Rectified(Dropping):
    def forward(self, x: Tensor) -> Tensor:
        y = F.rrelu(self.a(x), training=self.training)
        return self.b(y)


def test_what_reads_the_mode_is_noted_and_dropout_is_not() -> None:
    made = supernet(Dropping(lambda net, x: net.b(x)), X)
    assert [note.split("'")[1] for note in made.report.notes] == ["dropout", "alpha_dropout"]
    with made.fixed(made.open()):
        assert not torch.equal(made.train()(X), made(X))
    assert any("reads self.training" in note for note in supernet(Rectified(lambda net, x: x), X).report.notes)


def test_tracing_leaves_torch_as_it_was() -> None:
    names = ("expand", "new_zeros", "new_ones", "new_empty")
    before = [vars(Tensor).get(name) for name in names], torch.zeros, torch.ones, torch.is_tensor
    for run in (FOLLOWED["expanded buffer"], FOLLOWED["zeros of sizes"], FOLLOWED["ones of a shape"]):
        supernet(network(run), X)
    with pytest.raises(ModelError):
        supernet(network(REFUSED["values"][0]), X)
    assert ([vars(Tensor).get(name) for name in names], torch.zeros, torch.ones, torch.is_tensor) == before


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + 1 if self.training else self.conv(x)


class DropPath(nn.Module):
    """Stochastic depth, as many libraries have it."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 0 if self.training else x


def test_behaviour_in_training_that_is_lost_is_noted() -> None:
    made = supernet(nn.Sequential(nn.Conv2d(3, 4, 1), Noisy()), X)
    lost = "self.training: the supernet keeps what it does in evaluation"
    assert made.report.notes == (f"'1' reads {lost}",)
    made = supernet(nn.Sequential(nn.Conv2d(3, 4, 1), Noisy(), Noisy(), Noisy()), X)
    assert made.report.notes == (f"'1' and 2 more of its type read {lost}",)


def test_stochastic_depth_keeps_its_training_behaviour_and_lets_channels_through() -> None:
    model = Network(lambda net, x: net.b(net.a(x)) + net.path(net.c(x)),
                    a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1), c=nn.Conv2d(3, 2, 1), path=DropPath())  # fmt: skip
    made = supernet(model, X)
    assert made.report.barriers == {}
    assert made.report.notes == ()
    with torch.no_grad(), made.fixed(made.open()):
        torch.testing.assert_close(made.train()(X), model.b(model.a(X)))
        torch.testing.assert_close(made.eval()(X), model.b(model.a(X)) + model.c(X))


def test_example_of_one_image_works_for_batches() -> None:
    model = network(FOLLOWED["reshape by the batch"]).eval()
    made = supernet(model, X[:1])
    torch.testing.assert_close(extract(made, made.open())(X), model(X))


def test_layers_without_a_forward_of_their_own_are_layers() -> None:
    class Mine(nn.Conv2d):
        pass

    made = supernet(nn.Sequential(Mine(3, 4, 1), nn.ReLU(), Mine(4, 2, 1)), X)
    assert made.report.gated == {"2": 4}


@pytest.mark.parametrize("taken", ["graph", "meta", "code"])
def test_a_layer_of_a_name_that_a_traced_network_needs_is_refused(taken: str) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 1)
            setattr(self, taken, nn.Conv2d(4, 2, 1))

        def forward(self, x: Tensor) -> Tensor:
            return getattr(self, taken)(self.first(x))  # type: ignore[no-any-return]

    with pytest.raises(ModelError, match=f"must not have an attribute .* got {taken}; rename it"):
        supernet(Named(), X)
    assert supernet(nn.Sequential(Named().first, nn.Conv2d(4, 2, 1)), X)


def test_an_input_may_be_called_as_the_masks_are() -> None:
    class Experts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor, gates: Tensor) -> Tensor:
            y: Tensor = self.b(self.a(x)) * gates.reshape(-1, 1, 1, 1)
            return y

    inputs = (X, torch.rand(len(X)))
    gated = supernet(Experts(), inputs).eval()
    architecture = gated.sample()
    with torch.no_grad(), gated.fixed(architecture):
        torch.testing.assert_close(gated(*inputs), extract(gated, architecture)(*inputs))


def test_values_without_a_batch_axis_of_their_own_are_traced() -> None:
    """Flattened altogether, or squeezed: with one example a value has other axes than with several."""
    flat = Network(
        lambda net, x: net.b(net.a(x).mean((2, 3)).reshape(-1).reshape(-1, 4)), a=nn.Conv2d(3, 4, 1), b=nn.Linear(4, 2)
    )
    squeezed = Network(
        lambda net, x: net.b(F.adaptive_avg_pool2d(net.a(x), 1).squeeze()), a=nn.Conv2d(3, 4, 1), b=nn.Linear(4, 2)
    )
    for net in (flat, squeezed):
        gated = supernet(net, X, gate_inputs=True)
        shapes = [gated.graph.example_shape(name) for name in gated.graph.ops if name in ("squeeze", "reshape_1", "b")]
        assert all(shape[0] == 1 and len(shape) == 2 for shape in shapes)
        assert gated.count(gated.open()).macs == 3 * 4 * 64 + 4 * 2


def test_names_that_python_keeps_for_itself_are_refused_in_one_line() -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branches = nn.ModuleDict({"global": nn.Conv2d(3, 4, 1), "local": nn.Conv2d(3, 4, 3, padding=1)})

        def forward(self, x: Tensor) -> Tensor:
            return sum(branch(x) for branch in self.branches.values())

    with pytest.raises(ModelError, match=r"Python keeps for itself, got branches\.global; rename it"):
        supernet(Branches(), X)
    unused = network(lambda net, x: net.b(net.a(x)))
    unused.add_module("class", nn.Linear(2, 2))
    assert supernet(unused, X).report.barriers == {}
