"""The theorem of extraction on networks that hypothesis makes up."""

from __future__ import annotations

import os
from typing import Any

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from pgnas.nn import supernet

from .networks import architectures, images, randomise
from .test_extract import require_theorem

Step = tuple[str, int, int]
STEPS = (
    "conv", "wide", "grouped", "depthwise", "multiplied", "norm", "relu", "in place", "prelu", "add", "mul", "cat",
    "twice", "excite", "scale", "pool", "resize", "slice", "pad", "split", "narrow", "permute", "shift", "again",
    "group norm", "layer norm", "shuffle", "stack", "transposed", "tokens", "heads",
    "attention", "queries",
)  # fmt: skip


class Made(nn.Module):
    """A network made of steps, each on the values before it; the head reads all that nothing else read.

    Args:
        steps: (operation, which value, which other value).
        x: An example input: layers are made to fit as the steps first run.
    """

    def __init__(self, steps: list[Step], x: Tensor) -> None:
        super().__init__()
        self.steps = steps
        self.layers = nn.ModuleDict()
        self.scales = nn.ParameterDict()
        self.head_out: nn.Module | None = None
        with torch.no_grad():
            features = self.features(x.float())
        self.head_out = nn.Linear(features.shape[1], 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head_out(self.features(x))

    def features(self, x: Tensor) -> Tensor:
        values, used = [x], set()
        for index, (kind, one, two) in enumerate(self.steps):
            a = one % len(values)
            like = [i for i, v in enumerate(values) if v.shape[2] == values[a].shape[2]]
            b = like[two % len(like)]
            used |= {a, b} if kind in ("add", "mul", "cat") else {a}
            values.append(self.step(str(index), kind, values[a], values[b]))
        ends = [v for i, v in enumerate(values) if i not in used]
        flat = [F.relu(end).flatten(1) if i % 2 else end.mean((2, 3)) for i, end in enumerate(ends)]
        return torch.cat(flat, 1) if len(flat) > 1 else flat[0]

    def layer(self, name: str, make: Any, *args: Any, **kwargs: Any) -> nn.Module:
        if self.head_out is None and name not in self.layers:
            self.layers[name] = make(*args, **kwargs).eval()
        return self.layers[name]

    def step(self, name: str, kind: str, x: Tensor, y: Tensor) -> Tensor:
        c = x.shape[1] if self.head_out is None else -1  # sizes are only read while the layers are made
        conv = nn.Conv2d
        match kind:
            case "conv":
                return self.layer(name, conv, c, 4, 3, padding=1)(x)
            case "wide":
                return self.layer(name, conv, c, 6, 1, bias=False)(x)
            case "grouped":
                return self.layer(f"{name}b", conv, 4, 6, 3, padding=1, groups=2)(self.layer(name, conv, c, 4, 1)(x))
            case "depthwise":
                return self.layer(name, conv, c, c, 3, padding=1, groups=c)(x)
            case "multiplied":
                return self.layer(name, conv, c, 2 * c, 1, groups=c)(x)
            case "norm":
                return self.layer(name, nn.BatchNorm2d, c)(x)
            case "relu":
                return F.relu(x)
            case "in place":
                y = self.layer(name, conv, c, 4, 1)(x)
                return F.relu(y, True) + y.sigmoid()
            case "prelu":
                return self.layer(name, nn.PReLU, c)(x)
            case "add" | "mul":
                z = self.layer(name, conv, y.shape[1] if self.head_out is None else -1, c, 1)(y)
                return x + z if kind == "add" else x * z
            case "cat":
                return torch.cat([x, y], 1)
            case "twice":
                return torch.cat([x, F.relu(x), x], dim=1)
            case "excite":
                return x * torch.sigmoid(self.layer(name, conv, c, c, 1)(x.mean((2, 3), keepdim=True)))
            case "scale":
                if self.head_out is None and name not in self.scales:
                    self.scales[name] = nn.Parameter(torch.ones(c, 1, 1))
                return x * self.scales[name]
            case "pool":
                return F.avg_pool2d(x, 2) if x.shape[2] >= 4 else x
            case "resize":
                return F.interpolate(x, size=y.shape[2:])
            case "slice":
                return x[:, :, 1:] if x.shape[2] > 1 else x
            case "pad":
                return F.pad(x, (0, 0, 1, 0))
            case "split":
                return x.chunk(2, 1)[0]
            case "narrow":
                return x[:, 1:] if x.shape[1] > 1 else x
            case "permute":
                return x.transpose(2, 3).transpose(2, 3)
            case "shift":
                return x + 1
            case "group norm":
                return self.layer(name, nn.GroupNorm, 2 - c % 2, c)(x)
            case "layer norm":
                return self.layer(name, nn.LayerNorm, c)(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
            case "shuffle":
                groups = 2 - x.shape[1] % 2
                return x.reshape(x.size(0), groups, -1, x.size(2), x.size(3)).transpose(1, 2).flatten(1, 2)
            case "stack":
                return torch.stack([x, F.relu(x)], 1).sum(1)
            case "transposed":
                z = self.layer(name, conv, c, 4, 1)(x)
                return self.layer(f"{name}b", nn.ConvTranspose2d, 4, 6, 3, padding=1, groups=2)(z)
            case "tokens":
                tokens = F.gelu(self.layer(name, nn.Linear, c, 5)(x.flatten(2).transpose(1, 2)))
                return tokens.transpose(1, 2).unflatten(2, (x.size(2), x.size(3)))
            case "heads":
                z = self.layer(name, conv, c, 4, 1)(x)
                z = self.layer(f"{name}b", conv, 2, 3, 1)(z.reshape(x.size(0) * 2, 2, x.size(2), x.size(3)))
                return z.reshape(x.size(0), 6, x.size(2), x.size(3))
            case "attention":
                tokens = self.layer(name, nn.Linear, c, 6)(x.flatten(2).transpose(1, 2))
                mixed = self.layer(f"{name}b", nn.MultiheadAttention, 6, 3, batch_first=True)(tokens, tokens, tokens)[0]
                return (mixed + tokens).transpose(1, 2).reshape(x.size(0), 6, x.size(2), x.size(3))
            case "queries":
                n = x.size(2) * x.size(3)
                qkv = self.layer(name, nn.Linear, c, 24)(x.flatten(2).transpose(1, 2)).reshape(x.size(0), n, 3, 4, 2)
                q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
                z = (q @ k.transpose(-2, -1)).softmax(-1) @ F.relu(v)
                z = self.layer(f"{name}b", nn.Linear, 8, 5)(z.transpose(1, 2).flatten(2))
                return z.transpose(1, 2).unflatten(2, (x.size(2), x.size(3)))
            case _:
                return self.layer(name, conv, c, c, 1)(self.layer(name, conv, c, c, 1)(x))


EXAMPLES = int(os.environ.get("PGNAS_EXAMPLES", "80"))
"""More of them look further: the first are always the same."""


@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(
    st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=10),
    st.booleans(),
    st.booleans(),
    st.sampled_from([1, 1, 2, 3]),
)
def test_random_network(steps: list[Step], gate_inputs: bool, streams: bool, per_gate: int) -> None:
    x = images(size=4)
    model = randomise(Made([("conv", 0, 0), *steps], x)).double()
    gated = supernet(model, x, gate_inputs=gate_inputs, streams=streams, channels_per_gate=per_gate)
    for architecture in architectures(gated, keeps=(0.2, 0.6)):
        require_theorem(gated, (x,), architecture, 1e-9)
