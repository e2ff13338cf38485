"""The families once more, as plain functions: every tensor of a network is taken in order, and its shape demanded."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

CONVOLUTIONS = {4: F.conv2d, 5: F.conv3d}


class Tape:
    """A network's tensors in the order in which they are used."""

    def __init__(self, network: nn.Module) -> None:
        state = network.state_dict()
        self.tensors = [value for name, value in state.items() if not name.endswith("num_batches_tracked")]

    def take(self, *shape: int) -> Tensor:
        tensor = self.tensors.pop(0)
        assert tuple(tensor.shape) == shape
        return tensor

    def conv(self, x, outputs, *kernel, stride=1, pad=None, dilation=1, depthwise=False):
        kernel = kernel if len(kernel) > 1 else kernel * (x.ndim - 2)
        weight = self.take(outputs, 1 if depthwise else x.shape[1], *kernel)
        padding = tuple(dilation * (k // 2) for k in kernel) if pad is None else pad
        groups = outputs if depthwise else 1
        return CONVOLUTIONS[x.ndim](x, weight, None, stride, padding, dilation, groups)

    def norm(self, x, eps=1e-5):
        scale, shift, mean, variance = (self.take(x.shape[1]) for _ in range(4))
        by_channel = [1, -1] + [1] * (x.ndim - 2)
        slope = scale / (variance + eps).sqrt()
        return x * slope.view(by_channel) + (shift - mean * slope).view(by_channel)

    def linear(self, x, outputs, bias=True):
        y = x @ self.take(outputs, x.shape[1]).T
        return y + self.take(outputs) if bias else y

    def done(self, y):
        assert not self.tensors
        return y


def halved(tape, x, outputs, eps=1e-5):
    """Two 1x1 convolutions on every second pixel, the second of the image shifted by one."""
    shifted = torch.zeros_like(x)
    shifted[:, :, :-1, :-1] = x[:, :, 1:, 1:]
    first = tape.conv(x[:, :, ::2, ::2], outputs // 2, 1)
    return tape.norm(torch.cat([first, tape.conv(shifted[:, :, ::2, ::2], outputs - outputs // 2, 1)], 1), eps)


def multibranch(network, x, *, width, blocks, classes, branches=2, stages=3):
    tape = Tape(network)
    x = tape.norm(tape.conv(x, 16, 3))
    for stage in range(stages):
        outputs = width * 2**stage
        for block in range(blocks):
            stride = 2 if stage > 0 and block == 0 else 1
            if stride == 2:
                parts = [halved(tape, x.relu(), outputs)]
            elif block == 0 and outputs != 16:
                parts = [tape.norm(tape.conv(x.relu(), outputs, 1))]
            else:
                parts = [x]
            for _ in range(branches):
                y = tape.norm(tape.conv(x.relu(), outputs, 3, stride=stride)).relu()
                parts.append(tape.norm(tape.conv(y, outputs, 3)))
            x = sum(parts)
    return tape.done(tape.linear(x.relu().mean((2, 3)), classes))


EPS = 1e-3


def _point(tape, x, filters):
    return tape.norm(tape.conv(x.relu(), filters, 1), EPS)


def _enas_operation(tape, x, code, filters, stride):
    if code == 2:
        counts = F.avg_pool2d(torch.ones_like(x), 3, stride, 1)
        return F.avg_pool2d(x, 3, stride, 1) / counts
    if code == 3:
        return F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=-torch.inf), 3, stride)
    if code == 4:
        return x if stride == 1 else halved(tape, x, filters, EPS)
    for step in (stride, 1):
        x = tape.conv(x.relu(), filters, 3 + 2 * code, stride=step, depthwise=True)
        x = tape.norm(tape.conv(x, filters, 1), EPS)
    return x


def _enas_cell(tape, before, last, arc, filters, stride):
    if before.shape[2] != last.shape[2]:
        a = halved(tape, before.relu(), filters, EPS)
    else:
        a = before if before.shape[1] == filters else _point(tape, before, filters)
    b = last if last.shape[1] == filters else _point(tape, last, filters)
    values, read = [a, _point(tape, b, filters)], set()
    for i in range(0, len(arc), 4):
        total = 0
        for source, code in (arc[i : i + 2], arc[i + 2 : i + 4]):
            read.add(source)
            total = total + _enas_operation(tape, values[source], code, filters, stride if source < 2 else 1)
        values.append(total)
    if stride == 2:
        for index in {0, 1} - read:
            values[index] = halved(tape, values[index], filters, EPS)
    return torch.cat([value for index, value in enumerate(values) if index not in read], 1)


def enas(network, x, *, filters, cells, classes, normal, reduction, aux=False):
    tape = Tape(network)
    before = last = tape.norm(tape.conv(x, 3 * filters, 3), EPS)
    for index in range(3 * cells + 2):
        reduces = index in (cells, 2 * cells + 1)
        filters *= 2 if reduces else 1
        arc = [int(n) for n in (reduction if reduces else normal).split()]
        before, last = last, _enas_cell(tape, before, last, arc, filters, 2 if reduces else 1)
        if index == 2 * cells + 2:
            hidden = last
    y = tape.linear(last.relu().mean((2, 3)), classes, bias=False)
    if not aux:
        return tape.done(y)
    z = F.avg_pool2d(hidden.relu(), 5, 3)
    z = tape.norm(tape.conv(z, 128, 1), EPS).relu()
    z = tape.norm(tape.conv(F.pad(z, (0, 1, 0, 1)), 768, 2, 2, pad=0), EPS).relu()
    return y, tape.done(tape.linear(z.mean((2, 3)), classes, bias=False))


def multikernel(network, x, *, width, blocks, classes, small):
    tape = Tape(network)
    if small:
        x = tape.norm(tape.conv(x, width, 3)).relu()
    else:
        x = F.max_pool2d(tape.norm(tape.conv(x, width, 7, stride=2)).relu(), 3, 2, 1)
    for stage, count in enumerate(blocks):
        planes = width * 2**stage
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            y = tape.norm(tape.conv(x, planes, 1)).relu()
            # the tensors come in the order of definition: the kernels after conv1, bn1 and before bn2
            y = _kernels(tape, y, planes, stride)
            y = tape.norm(y).relu()
            y = tape.norm(tape.conv(y, 4 * planes, 1))
            skip = x
            if block == 0:
                skip = tape.norm(tape.conv(x, 4 * planes, 1, stride=stride))
            x = (y + skip).relu()
    return tape.done(tape.linear(x.mean((2, 3)), classes))


def _kernels(tape, x, planes, stride):
    sizes = [planes // 4 + (index < planes % 4) for index in range(4)]
    shapes = [(1, 1), (3, 1), (3, 2), (5, 2)]
    kinds = zip(sizes, shapes, strict=True)
    return torch.cat([tape.conv(x, n, k, stride=stride, dilation=d) for n, (k, d) in kinds if n], 1)


def dense(network, x, *, growth, blocks, classes, stem):
    """The DenseNet for images (B, C, H, W) and for clips (B, C, T, H, W)."""
    tape, clips = Tape(network), x.ndim == 5

    def framewise(kernel):
        return (1, kernel, kernel) if clips else (kernel, kernel)

    def strided(stride):
        return (1, stride, stride) if clips else stride

    def pool(function, x, *sizes):
        frames = x.transpose(1, 2).flatten(0, 1) if clips else x
        y = function(frames, *sizes)
        return y.unflatten(0, (len(x), -1)).transpose(1, 2) if clips else y

    channels = 2 * growth
    if stem == "3x3":
        half = growth
        x = tape.norm(tape.conv(x, half, *framewise(3), stride=strided(2))).relu()
        x = tape.norm(tape.conv(x, half, *framewise(3))).relu()
        x = tape.conv(x, channels, *framewise(3))
    else:
        x = tape.conv(x, channels, *framewise(7 if stem == "7x7" else 3), stride=strided(2 if stem == "7x7" else 1))
    x = tape.norm(x).relu()
    x = x if stem == "small" else pool(F.max_pool2d, x, 3, 2, 1)
    for index, count in enumerate(blocks):
        for _ in range(count):
            y = tape.norm(x).relu()
            # torchvision registers norm1, conv1, norm2, conv2
            y = tape.norm(tape.conv(y, 4 * growth, *framewise(1))).relu()
            if clips:
                y = tape.conv(y, 4 * growth, 3, 1, 1)
            x = torch.cat([x, tape.conv(y, growth, *framewise(3))], 1)
        if index < len(blocks) - 1:
            x = pool(F.avg_pool2d, tape.conv(tape.norm(x).relu(), x.shape[1] // 2, *framewise(1)), 2, 2)
    x = tape.norm(x).relu()
    return tape.done(tape.linear(x.flatten(2).mean(2), classes))
