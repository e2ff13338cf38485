"""Small networks, each with one thing that extraction may get wrong, and helpers that the tests of nn share."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from pgnas.architecture import Architecture
from pgnas.nn import Supernet


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(channels: int = 3, size: int = 8, batch: int = 2, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(batch, channels, size, size, generator=generator(1), dtype=dtype)


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """Random weights, biases and BatchNorm statistics: nothing is 0 or 1 by accident."""
    rng = generator(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = max(1, parameter[0].numel()) if parameter.ndim > 1 else 1
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / fan**0.5)
        for layer in model.modules():
            if isinstance(layer, _BatchNorm) and layer.running_mean is not None and layer.running_var is not None:
                layer.running_mean.copy_(torch.randn(layer.running_mean.shape, generator=rng))
                layer.running_var.copy_(torch.rand(layer.running_var.shape, generator=rng) + 0.5)
    return model


def architectures(supernet: Supernet, keeps: tuple[float, ...] = (0.02, 0.3, 0.7, 0.97)) -> list[Architecture]:
    """Random ones at several densities, all open, all closed, one gate closed, and one channel left in each."""
    rng = generator(7)
    sizes = supernet.gates.sizes
    found = [supernet.gates.architecture(torch.rand(supernet.gates.units, generator=rng) < keep) for keep in keeps]
    full = {name: tuple(range(size)) for name, size in sizes.items()}
    names = list(sizes)
    found += [
        supernet.open(),
        Architecture(sizes, dict.fromkeys(sizes, ())),
        Architecture(sizes, {name: (size - 1,) for name, size in sizes.items()}),
    ]
    return found + [Architecture(sizes, {**full, name: ()}) for name in {names[0], names[len(names) // 2], names[-1]}]


def tensors(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return [tensor for part in parts for tensor in tensors(part)]


class Network(nn.Module):
    """A network whose forward is given as a function of the module."""

    def __init__(self, run: Callable[..., Any], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.run = run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class TwoInputs(nn.Module):
    """Two inputs, an option with a default, and a dict as output."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(4, 6)
        self.c, self.d = nn.Conv2d(5, 6, 1), nn.Linear(6, 3)

    def forward(self, x: Tensor, y: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> dict[str, Any]:
        z = self.c(torch.relu(self.a(x)))
        if mask is not None:
            z = z * mask
        side = self.d(torch.relu(self.b(y)))
        return {"map": z * scale, "parts": (side, [z.mean((2, 3))])}


class Residual(nn.Module):
    """Two branches, summed onto the stream and concatenated with it."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(width)
        self.left = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.right = nn.Sequential(nn.Conv2d(width, width, 1), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
        self.mix = nn.Conv2d(2 * width, width, 3, padding=1, stride=2)
        self.head = nn.Linear(width, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn0(self.stem(x)), inplace=True)
        y = x + self.left(x)
        y += self.right(x)
        z = self.mix(torch.cat([x, y], 1))
        return self.head(F.relu(z).mean([2, 3]))


class Separable(nn.Module):
    """Depthwise and pointwise, twice, with squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.pointwise = nn.Conv2d(6, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.multiplied = nn.Conv2d(8, 16, 3, groups=8)  # two outputs a channel
        self.last = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.hardswish(self.norm(self.pointwise(self.depthwise(self.stem(x)))))
        scale = self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(x, 1))))
        return self.last(self.multiplied(x * scale.sigmoid()))


class Scaled(nn.Conv2d):
    """A convolution with a forward of its own, which no rule may take for an ordinary one."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / (1 + self.weight.square().sum((1, 2, 3), keepdim=True))
        return F.conv2d(x, weight, self.bias, self.stride, self.padding)


class Padded(nn.Conv2d):
    """A convolution that pads its input by hand, to the size that strides need."""

    def forward(self, x: Tensor) -> Tensor:
        rows, columns = (-size % stride for size, stride in zip(x.size()[-2:], self.stride, strict=True))
        x = F.pad(x, [1, columns + self.weight.shape[-1] - 2, 1, rows + self.weight.shape[-2] - 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


class Recalibrated(nn.BatchNorm2d):
    """A BatchNorm with a forward and a tensor of its own."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels)
        self.gain = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + self.gain * x.mean((2, 3), keepdim=True))


class Activated(nn.BatchNorm2d):
    """A BatchNorm with an activation behind it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.leaky_relu(super().forward(x))


class Standardised(nn.Module):
    """A convolution whose weight is made of another."""

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, channels, 3, 3, generator=generator(4)))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), padding=1)


class LastNorm(nn.LayerNorm):
    """LayerNorm of the channels of a map."""

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.normalized_shape, self.weight, self.bias).permute(0, 3, 1, 2)


class Frames(nn.Module):
    """Frames of a video go through a 2-d network as a larger batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 6, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        frames = x.reshape(b * c // 3, 3, h, w)
        y = self.b(torch.relu(self.a(frames))).mean((2, 3))
        return self.head(y.reshape(b, -1, 6).mean(1))


def _resized(net: Any, x: Tensor) -> Tensor:
    low = net.b(F.max_pool2d(F.relu(net.a(x)), 2))
    high = F.interpolate(low, size=x.shape[2:])
    skip = net.c(x)
    return net.d(high + F.interpolate(F.relu(net.e(low)), size=(skip.shape[2], skip.size(3))) + skip)


def _sized_up(net: Any, x: Tensor) -> Tensor:
    """A transposed convolution to the size of what is joined with it, and an interpolation to that."""
    y = net.a(x)
    small = F.relu(net.b(F.relu(y)))
    up = net.up(small, output_size=y.shape[-2:])
    return net.c(torch.cat([up, y, F.interpolate(net.d(small), size=y.size()[2:])], 1))


def _numbered(net: Any, x: Tensor) -> Tensor:
    """Embedded places, as many as there are."""
    tokens = net.a(x).flatten(2).transpose(1, 2)
    tokens = tokens + net.e(torch.arange(tokens.size(1), device=x.device))
    more = torch.full((x.shape[0], 1, tokens.shape[2]), 0.5, dtype=x.dtype)
    return net.c(F.relu(net.b(torch.cat([tokens, more], 1))).mean(1))


def _as_many_as_images(net: Any, x: Tensor) -> Tensor:
    """As many branches as the example has images."""
    x = F.relu(net.stem(x))
    y = torch.stack([net.a(x), net.b(x)])
    k, b, c, h, w = y.shape
    return net.c(F.relu(y).reshape(k * b, c, h, w)).reshape(k, b, -1, h, w).sum(0)


def _in_place(net: Any, x: Tensor) -> Tensor:
    y = net.a(x)
    z = F.relu(y, True)  # changes y as well
    return net.c(net.b(y) + z)


def _unpacked(net: Any, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    b, c, h, w = y.shape
    for _ in range(len(y.shape) - 3):
        y = y * (1.0 / h)
    return net.head(y.view(b, c * h * w))


def _swapped(net: Any, x: Tensor) -> Tensor:
    y = net.line(net.a(x).permute(0, 2, 3, 1))
    y = F.max_pool2d(y, 3, 1, 1)  # pools the channels: they are the last axis here
    return net.b(y.permute(0, 3, 1, 2))


def _shuffled(net: Any, x: Tensor) -> Tensor:
    """Channel shuffle, as ShuffleNet writes it."""
    y = net.b(F.relu(net.a(x)))
    b, c, h, w = y.size()
    y = y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)
    return net.c(torch.cat([(p := y.chunk(2, dim=1))[1], p[0]], 1))


def _split_attention(net: Any, x: Tensor) -> Tensor:
    """Two radices with a softmax between them, as ResNeSt writes it."""
    y = F.relu(net.b(net.a(x)))
    b, c, h, w = y.shape
    y = y.reshape(b, 2, c // 2, h, w)
    z = net.d(F.relu(net.c(y.sum(1).mean((2, 3), keepdim=True))))
    z = F.softmax(z.view(b, 1, 2, -1).transpose(1, 2), dim=1).reshape(b, -1).view(b, -1, 1, 1)
    return net.e((y * z.reshape(b, 2, c // 2, 1, 1)).sum(dim=1).contiguous())


def _layer_and_function(net: Any, x: Tensor) -> Tensor:
    norm = net.norm
    y = F.relu(F.conv2d(net.a(x), net.b.weight))
    y = F.relu(norm(net.b(y)))
    y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    z = net.line(F.relu(net.c(y)).mean((2, 3)))
    return net.head(F.relu(F.linear(z, net.line.weight)))


def _selective_kernels(net: Any, x: Tensor) -> Tensor:
    """Paths stacked on a new axis and weighed, as SKNet writes it."""
    y = torch.stack([net.a(x), net.b(x)], dim=1)
    z = torch.softmax(net.d(F.relu(net.c(y.sum(1).mean((2, 3), keepdim=True)))).view(x.size(0), 2, -1, 1, 1), 1)
    one, two = torch.unbind(y * z, 1)
    return net.e(one + two - y[:, 0])


def _tokens(net: Any, x: Tensor) -> Tensor:
    """A map as tokens and back, with a layer scale that is reshaped, as transformers and ConvNeXt write it."""
    y = F.gelu(net.a(x))
    b, _, h, w = y.shape
    y = net.b(y.flatten(2).transpose(1, 2)) * net.gamma
    left, right = y.split([h * w // 2, h * w - h * w // 2], dim=1)
    y = torch.cat([right, left], 1).permute(0, 2, 1).reshape(b, -1, h, w)
    y = torch.roll(y, (1, -1), dims=(2, 3)) + net.beta.reshape(1, -1, 1, 1)
    return net.head(net.c(y[:, :, None]).squeeze(2).view(b, -1, h // 2, 2, w).amax((3, -1)).flatten(1))


def _heads(net: Network, x: Tensor) -> Tensor:
    """Heads become part of the batch and channels again, as attention writes it."""
    a = F.relu(net.a(x))
    heads = F.relu(net.b(a).reshape(x.size(0) * 2, 3, 8, 8))
    together: Tensor = net.e(F.relu(net.c(heads).reshape(x.size(0), 8, 8, 8)) + net.d(a))
    return together


class Causal(nn.Module):
    """A transformer whose tokens see those before them."""

    mask: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(4, 3)
        layer = nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(4))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.a(x).flatten(2).mT
        out: Tensor = self.head(self.encoder(tokens, mask=self.mask)[..., 0] + tokens.mean(2))
        return out


class Heads(nn.Module):
    """Attention as vision transformers write it: one projection, split into queries, keys and values of the heads."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.embed, self.head = nn.Conv2d(3, 8, 2, stride=2), nn.Linear(8, 3)
        self.qkv, self.drop, self.proj = nn.Linear(8, 3 * 12), nn.Dropout(0.0), nn.Linear(12, 8)
        self.norm = nn.Identity()
        self.table = nn.Parameter(torch.zeros(16, 16)) if kind == "fused" else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        b, n, _ = tokens.shape
        qkv = self.qkv(tokens).reshape(b, n, 3, 3, 4).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0) if self.kind != "indexed" else (qkv[0], qkv[1], qkv[-1])
        if self.kind == "fused":
            mixed = F.scaled_dot_product_attention(self.norm(q), self.norm(k), v, attn_mask=self.table)
        else:
            weights = (q * 0.5) @ k.transpose(-2, -1)
            mixed = torch.matmul(self.drop(weights.softmax(dim=-1)), v)
        out: Tensor = self.head((tokens + self.proj(mixed.transpose(1, 2).reshape(b, n, 12))).mean(1))
        return out


def _windows(net: Any, x: Tensor) -> Tensor:
    """Windows become part of the batch, as in Swin: a view that needs numbers in order."""
    y = net.a(x).permute(0, 2, 3, 1)
    b, _, _, c = y.shape
    y = y.view(b, 2, 4, 2, 4, c).permute(0, 1, 3, 2, 4, 5).contiguous().view(-1, 16, c)
    y = net.b(y).relu().view(b, 2, 2, 4, 4, -1).permute(0, 1, 3, 2, 4, 5).contiguous().view(b, 8, 8, -1)
    out: Tensor = net.c(y).mean((1, 2))
    return out


def _normalised(attention: nn.MultiheadAttention) -> nn.MultiheadAttention:
    nn.utils.parametrizations.weight_norm(attention.out_proj)
    return attention


def _flat_sum(net: Any, x: Tensor) -> Tensor:
    return F.relu(net.a(x)).flatten(1) + F.relu(net.b(x)).flatten(1)


def _statements(net: Any, x: Tensor) -> Tensor:
    """In-place changes that are statements of their own, and one layer that changes two values."""
    y = net.a(x)
    y.mul_(0.5)
    z = net.b(net.relu(y))
    net.relu(z)
    z.add_(y)
    return net.c(z + y)


def _dynamic(net: Any, x: Tensor) -> Tensor:
    """A kernel of its own for each example, with the batch among the channels, as conditional convolutions write it."""
    y = F.relu(net.a(x))
    b, c, h, w = y.shape
    kernels = net.b(y.mean((2, 3))).reshape(b * c, 1, 3, 3)
    z = F.conv2d(y.reshape(1, b * c, h, w), kernels, padding=1, groups=b * c).view(b, c, h, w)
    return net.d(F.relu(net.c(z)) + y)


def _constant_viewed(net: Any, x: Tensor) -> Tensor:
    y = net.b(F.relu(net.a(x))).mean((2, 3))
    return net.c(y.view(y.size(0) * 4, 1)).view(y.size(0), 8)


def _with_places(net: Any, x: Tensor) -> Tensor:
    y = F.relu(net.a(x))
    z: Tensor = net.c(torch.cat([y, net.b(y) + net.places], 1))
    return z


class Places(Network):
    """A learned place is added to what a layer without a bias makes."""

    def __init__(self) -> None:
        super().__init__(_with_places, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1, bias=False), c=nn.Conv2d(8, 2, 1))
        self.places = nn.Parameter(torch.randn(1, 4, 8, 8))


def hooked() -> nn.Module:
    """Weights that hooks compute, as torch did before it had parametrizations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        normed = nn.utils.weight_norm(nn.Conv2d(6, 5, 1))
    spectral = nn.utils.spectral_norm(nn.Conv2d(5, 6, 3, padding=1))
    return nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.ReLU(), spectral, nn.ReLU(), normed, nn.ReLU(), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 2, 1)
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "shuffle": lambda: Network(_shuffled, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 8, 3), c=nn.Conv2d(8, 2, 1)),
    "split attention": lambda: Network(
        _split_attention, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 8, 3, groups=2), c=nn.Conv2d(4, 3, 1),
        d=nn.Conv2d(3, 8, 1), e=nn.Conv2d(4, 2, 1),
    ),
    "selective kernels": lambda: Network(
        _selective_kernels, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 3, padding=1), c=nn.Conv2d(4, 3, 1),
        d=nn.Conv2d(3, 8, 1), e=nn.Conv2d(4, 2, 1),
    ),
    "tokens": lambda: Network(
        _tokens, a=nn.Conv2d(3, 4, 1), b=nn.Linear(4, 6), c=nn.Conv3d(6, 4, 1), head=nn.Linear(16, 2),
        gamma=nn.Parameter(torch.randn(6)), beta=nn.Parameter(torch.randn(6)),
    ),
    "functions": lambda: Network(  # layers called as functions, with tensors of the network itself
        lambda net, x: F.linear(
            F.group_norm(F.conv2d(net.a(x), net.kernel, net.shift, stride=2), 2, net.scale).mean((2, 3)), net.last
        ),
        a=nn.Conv2d(3, 4, 1), kernel=nn.Parameter(torch.randn(6, 4, 3, 3)), shift=nn.Parameter(torch.randn(6)),
        scale=nn.Parameter(torch.randn(6)), last=nn.Parameter(torch.randn(2, 6)),
    ),
    "layer and function": lambda: Network(  # b, norm and line are called, and their tensors go into functions as well
        _layer_and_function, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), norm=nn.BatchNorm2d(4), c=nn.Conv2d(4, 5, 1),
        line=nn.Linear(5, 5, bias=False), head=nn.Linear(5, 2),
    ),
    "padded by hand": lambda: nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.ReLU(), Padded(4, 5, 3, stride=2, bias=False), LastNorm(5), Padded(5, 5, 3, groups=5),
        nn.Conv2d(5, 2, 1),
    ),
    "transposed groups": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.ReLU(), nn.ConvTranspose2d(6, 9, 2, stride=2, groups=3), nn.ReLU(),
        nn.ConvTranspose2d(9, 9, 3, groups=9), nn.Conv2d(9, 4, 1), nn.Conv2d(4, 2, 1),
    ),
    "residual": Residual,
    "separable": Separable,
    "chain": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(True), nn.MaxPool2d(2), nn.Conv2d(6, 5, 3, padding=1, bias=False),
        nn.BatchNorm2d(5), nn.PReLU(5), nn.Conv2d(5, 4, 3), nn.PReLU(), nn.Flatten(), nn.Linear(16, 7),
        nn.BatchNorm1d(7), nn.Sigmoid(), nn.Linear(7, 3),
    ),
    "closed borders": lambda: Network(  # a dropped branch leaves a constant map that the padding makes uneven
        lambda net, x: net.out(net.mid(F.relu(net.bn(net.a(y := F.relu(net.stem(x)))))) * net.b(y)),
        stem=nn.Conv2d(3, 4, 3, padding=1), a=nn.Conv2d(4, 5, 3, padding=1), bn=nn.BatchNorm2d(5),
        mid=nn.Conv2d(5, 6, 3, padding=1), b=nn.Conv2d(4, 6, 3, padding=1), out=nn.Conv2d(6, 3, 3, padding=1),
    ),
    "grouped": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1, groups=4), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 6, 1, groups=2), nn.Conv2d(6, 4, 3),
    ),
    "transposed": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2), nn.ReLU(), nn.ConvTranspose2d(6, 5, 3, stride=2, output_padding=1), nn.ReLU(),
        nn.ConvTranspose2d(5, 4, 2), nn.Conv2d(4, 2, 1),
    ),
    "layer scale": lambda: Network(
        lambda net, x: net.b(net.a(x) * net.gamma + net.a2(x) * net.shared + net.shared),
        a=nn.Conv2d(3, 6, 1), a2=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 3, 3),
        gamma=nn.Parameter(torch.randn(6, 1, 1)), shared=nn.Parameter(torch.randn(1, 6, 1, 1)),
    ),
    "attribute of a layer": lambda: Network(  # the weight of b is also read past b
        lambda net, x: net.c(net.b(net.a(x)) + net.b.weight.sum() * net.b.bias.view(1, -1, 1, 1)),
        a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 6, 1), c=nn.Conv2d(6, 2, 1),
    ),
    "slices and pad": lambda: Network(
        lambda net, x: net.c(net.b(F.pad(F.relu(net.a(x))[:, :, 1:, ::2], (1, 0, 2, 1)))[:, 1:4]),
        a=nn.Conv2d(3, 5, 3), b=nn.Conv2d(5, 6, 3, padding=1), c=nn.Conv2d(3, 2, 1),
    ),
    "nested cats": lambda: Network(
        lambda net, x: net.d(torch.cat([c := torch.cat([y := net.a(x), net.b(x), y], 1), net.c(c), y], dim=-3)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 3, 1), c=nn.Conv2d(11, 5, 3, padding=1), d=nn.Conv2d(20, 3, 1),
    ),
    "cat of blocks": lambda: Network(  # features of 64 a channel next to features of one a channel
        lambda net, x: net.head(torch.cat([net.a(x).flatten(1), (y := net.b(x)).mean((2, 3)), y.amax((2, 3))], 1)),
        a=nn.Conv2d(3, 2, 1), b=nn.Conv2d(3, 5, 3), head=nn.Linear(138, 3),
    ),
    "flat": lambda: Network(
        lambda net, x: net.head(F.dropout(F.relu(net.a(x)).view(x.size(0), -1), 0.5, training=net.training)),
        a=nn.Conv2d(3, 5, 3), head=nn.Linear(180, 3),
    ),
    "unpacked shape": lambda: Network(_unpacked, a=nn.Conv2d(3, 5, 3), head=nn.Linear(180, 3)),
    "resized": lambda: Network(
        _resized, a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(3, 4, 1), d=nn.Conv2d(4, 3, 3),
        e=nn.Conv2d(4, 4, 3, padding=1),
    ),
    "in place": lambda: Network(_in_place, a=nn.Conv2d(3, 6, 1), b=nn.Conv2d(6, 6, 3, padding=1), c=nn.Conv2d(6, 2, 1)),
    "channels last": lambda: Network(
        _swapped, a=nn.Conv2d(3, 5, 3), line=nn.Linear(5, 6), b=nn.Conv2d(6, 4, 1),
    ),
    "called twice": lambda: Network(
        lambda net, x: net.b(F.relu(net.shared(F.relu(net.shared(net.a(x)))))),
        a=nn.Conv2d(3, 4, 1), shared=nn.Conv2d(4, 4, 3, padding=1), b=nn.Conv2d(4, 2, 1),
    ),
    "norm called twice": lambda: Network(
        lambda net, x: net.c(net.norm(net.a(x))) + net.d(net.norm(net.b(x))),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4, affine=False),
        c=nn.Conv2d(4, 2, 1), d=nn.Conv2d(4, 2, 1),
    ),
    "layer norm": lambda: Network(
        lambda net, x: net.c(F.gelu(net.b(net.norm(net.a(x).permute(0, 2, 3, 1)))).movedim(-1, 1)),
        a=nn.Conv2d(3, 4, 1), norm=nn.LayerNorm(4), b=nn.Linear(4, 5), c=nn.Conv2d(5, 2, 3, padding=1),
    ),
    "group norm": lambda: nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.GroupNorm(3, 6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.GroupNorm(1, 4),
        nn.Conv2d(4, 5, 1), nn.InstanceNorm2d(5, affine=True), nn.GroupNorm(5, 5), nn.Conv2d(5, 2, 3, padding=1),
    ),
    "attention": lambda: Network(
        lambda net, x: net.head(net.encoder(net.a(x).flatten(2).transpose(1, 2)).mean(1)),
        a=nn.Conv2d(3, 8, 4, stride=4), head=nn.Linear(8, 3),
        encoder=nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True),
    ),
    "fused attention": lambda: Heads("fused"),
    "attention written out": lambda: Heads("unbound"),
    "indexed attention": lambda: Heads("indexed"),
    "attention with dropout": lambda: Network(  # hardly any, of other widths, to something else
        lambda net, x: net.head((t := net.a(x).flatten(2).mT) + net.mix(t, y := net.b(x).flatten(2).mT, y)[0]),
        a=nn.Conv2d(3, 8, 4, stride=4), b=nn.Conv2d(3, 6, 2, stride=2), head=nn.Linear(8, 3),
        mix=nn.MultiheadAttention(8, 4, dropout=1e-12, kdim=6, vdim=6, batch_first=True),
    ),
    "masked attention": lambda: Network(
        lambda net, x: net.head(net.mix(t := net.a(x).flatten(2).mT, t, t, attn_mask=net.mask)[0]),
        a=nn.Conv2d(3, 8, 4, stride=4), head=nn.Linear(8, 3), mask=nn.Parameter(torch.randn(4, 4)),
        mix=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "causal transformer": Causal,
    "attention that is normalised": lambda: Network(
        lambda net, x: net.head(
            net.mix(t := net.a(x).flatten(2).mT, t, t)[0].sum(2)
            + net.other(t, t, t)[0].sum(2) * net.other.in_proj_bias[0]
        ),
        a=nn.Conv2d(3, 8, 4, stride=4), head=nn.Linear(4, 3),
        mix=_normalised(nn.MultiheadAttention(8, 2, batch_first=True)),
        other=nn.MultiheadAttention(8, 2, batch_first=True),
    ),
    "single channels": lambda: Network(
        lambda net, x: net.c(F.relu(net.b(y := F.relu(net.a(x)))) * y.permute(0, 2, 3, 1)[..., 2].unsqueeze(1)),
        a=nn.Conv2d(3, 5, 1), b=nn.Conv2d(5, 4, 1), c=nn.Conv2d(4, 2, 1),
    ),
    "transformer": lambda: Network(  # an encoder that normalises first, a decoder that reads it and does so last
        lambda net, x: net.head(net.decoder(y := net.a(x).flatten(2).transpose(1, 2), net.encoder(y)).mean(1)),
        a=nn.Conv2d(3, 8, 4, stride=4), head=nn.Linear(8, 3),
        encoder=nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 12, dropout=0.0, activation="gelu", batch_first=True, norm_first=True), 2,
            norm=nn.LayerNorm(8), enable_nested_tensor=False,
        ),
        decoder=nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 10, dropout=0.0, batch_first=True), 1),
    ),
    "split": lambda: Network(
        lambda net, x: net.c(torch.cat([(p := net.b(net.a(x)).chunk(2, 1))[1], p[0]], 1)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 6, 1), c=nn.Conv2d(6, 2, 1),
    ),
    "split the width": lambda: Network(
        lambda net, x: net.c(torch.cat([(p := net.b(net.a(x)).chunk(2, 3))[1], p[0]], 3)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 6, 1), c=nn.Conv2d(6, 2, 1),
    ),
    "parts": lambda: Network(
        lambda net, x: net.c(torch.cat([(p := (y := net.b(net.a(x))).split([3, 1, 3], 1))[-1], p[1], y[:, ::2]], 1)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 7, 1), c=nn.Conv2d(8, 2, 1),
    ),
    "arithmetic": lambda: Network(
        lambda net, x: net.c(torch.maximum(1 - net.a(x), -(y := net.b(x))) / (y**2 + 1) - torch.add(y, y, alpha=2)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), c=nn.Conv2d(4, 2, 1),
    ),
    "spatial attention": lambda: Network(
        lambda net, x: net.c((y := F.relu(net.a(x))) * torch.sigmoid(net.b(y))),
        a=nn.Conv2d(3, 5, 1), b=nn.Conv2d(5, 1, 3, padding=1), c=nn.Conv2d(5, 2, 1),
    ),
    "own forward": lambda: nn.Sequential(nn.Conv2d(3, 5, 1), nn.ReLU(), Scaled(5, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1)),
    "weight norm": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Conv2d(5, 4, 3)), nn.Conv2d(4, 2, 1),
    ),
    "no statistics": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, track_running_stats=False), nn.ReLU(), nn.Conv2d(5, 4, 3, padding=1),
        nn.BatchNorm2d(4), nn.Conv2d(4, 2, 3, padding=1),
    ),
    "frames": Frames,
    "windows": lambda: Network(_windows, a=nn.Conv2d(3, 6, 1), b=nn.Linear(6, 5), c=nn.Linear(5, 3)),
    "heads in the batch": lambda: Network(  # a constant has a row of its own for each head
        _heads, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 6, 1), c=nn.Conv2d(3, 4, 3, padding=1), d=nn.Conv2d(4, 8, 1),
        e=nn.Conv2d(8, 3, 1),
    ),
    "flipped": lambda: Network(  # along the channels as well
        lambda net, x: net.c(F.relu(net.b(F.relu(net.a(x)))).flip(2, 1).flip(3)), a=nn.Conv2d(3, 4, 1),
        b=nn.Conv2d(4, 6, 1), c=nn.Conv2d(6, 2, 1),
    ),
    "flattened sum": lambda: Network(
        lambda net, x: net.e(F.relu(net.c(z := _flat_sum(net, F.relu(net.stem(x))))) * torch.sigmoid(net.d(z))),
        stem=nn.Conv2d(3, 3, 2, stride=2), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(3, 4, 1), c=nn.Linear(64, 5),
        d=nn.Linear(64, 5), e=nn.Linear(5, 2),
    ),
    "flattened and linear": lambda: Network(
        lambda net, x: (
            net.c(z := (h := F.relu(net.stem(x))).flatten(1) + net.t(h.mean((2, 3)))), net.d(z), net.a(h), net.b(h)
        ),
        stem=nn.Conv2d(3, 4, 2, stride=2), t=nn.Linear(4, 64), c=nn.Linear(64, 2), d=nn.Linear(64, 2),
        a=nn.Conv2d(4, 2, 1), b=nn.Conv2d(4, 2, 1),
    ),
    "places first": lambda: Network(  # as torch's transformers and recurrent layers read them by default
        lambda net, x: net.d((y := net.b(F.relu(net.a(x))).flatten(2).permute(2, 0, 1)) + net.c(F.relu(y))).mean(0),
        a=nn.Conv2d(3, 4, 3, padding=1), b=nn.Conv2d(4, 5, 3, padding=1), c=nn.Linear(5, 5), d=nn.Linear(5, 2),
    ),
    "in-place statements": lambda: Network(
        _statements, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Conv2d(4, 2, 1), relu=nn.ReLU(inplace=True)
    ),
    "a kernel an example": lambda: Network(
        _dynamic, a=nn.Conv2d(3, 4, 1), b=nn.Linear(4, 36), c=nn.Conv2d(4, 4, 1), d=nn.Conv2d(4, 2, 1)
    ),
    "constant viewed": lambda: Network(
        _constant_viewed, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), c=nn.Linear(1, 2)
    ),
    "learned places": Places,
    "sized up": lambda: Network(
        _sized_up, a=nn.Conv2d(3, 5, 1), b=nn.Conv2d(5, 6, 3, 2), up=nn.ConvTranspose2d(6, 4, 3, 2),
        c=nn.Conv2d(11, 2, 1), d=nn.Conv2d(6, 2, 1),
    ),
    "numbered places": lambda: Network(
        _numbered, a=nn.Conv2d(3, 6, 4, 4), e=nn.Embedding(5, 6), b=nn.Linear(6, 5), c=nn.Linear(5, 2)
    ),
    "as many as images": lambda: Network(
        _as_many_as_images, stem=nn.Conv2d(3, 5, 1), a=nn.Conv2d(5, 4, 1), b=nn.Conv2d(5, 4, 1), c=nn.Conv2d(4, 2, 1)
    ),
    "norms of their own": lambda: nn.Sequential(
        nn.Conv2d(3, 5, 1), Recalibrated(5), nn.Conv2d(5, 6, 1), Activated(6), nn.Conv2d(6, 2, 1)
    ),
    "standardised": lambda: nn.Sequential(
        Standardised(3, 5), nn.ReLU(), nn.Conv2d(5, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 2, 1)
    ),
    "hooked weights": hooked,
    "named tuple": lambda: Network(
        lambda net, x: Pair(net.b(y := F.relu(net.a(x))), y.mean((2, 3))), a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 2, 1),
    ),
}  # fmt: skip


def tied() -> nn.Module:
    """Two layers with one weight."""
    net = Network(
        lambda net, x: net.c(net.b(F.relu(net.a(net.stem(x))))),
        stem=nn.Conv2d(3, 4, 1),
        a=nn.Conv2d(4, 4, 1),
        b=nn.Conv2d(4, 4, 1),
        c=nn.Conv2d(4, 2, 1),
    )
    net.b.weight = net.a.weight
    return net


NETWORKS["tied"] = tied
