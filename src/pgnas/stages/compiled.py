"""A network under ``torch.compile``, trusted once its gradients have been compared with the plain network's."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from pgnas.errors import first_line
from pgnas.stages.engine import own_randomness

_logger = logging.getLogger(__name__)

SLACK, FLOOR = 3.0, 0.05
"""A compiled network's gradient may be this many times as far from the one in single precision as the plain network's
is, and this share of its norm on top."""
NARROWER: dict[str, Any] = {"cpp.simdlen": 256}
"""What the second attempt on a CPU is compiled with: vectors of 256 bits, for which compilers are older."""


class CompiledForward:
    """A network's forward pass under ``torch.compile``; the plain one where that fails, with a logged warning.

    It fails if it cannot compile, or if its gradients are wrong: some C++ compilers mistranslate kernels on processors
    that are newer than they are, and a search would end in NaN, or worse, would not. So on the first batch the
    gradients of a random linear function of the outputs are compared. The network and the random state are as before.

    Args:
        network: The network.
    """

    def __init__(self, network: nn.Module) -> None:
        self._plain = network
        self._forward: Callable[..., Any] = torch.compile(network, dynamic=False)
        self._is_checked = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The network's output."""
        try:
            if not self._is_checked and torch.is_grad_enabled():
                self._is_checked = True
                self._forward = self._checked(args, kwargs)
            return self._forward(*args, **kwargs)
        except torch._dynamo.exc.TorchDynamoException as error:
            _logger.warning("torch.compile failed and is not used: %s", first_line(error)[:200])
            self._forward = self._plain
            return self._plain(*args, **kwargs)

    def _checked(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Callable[..., Any]:
        """The compiled network if its gradients are right; on a CPU one with narrower vectors; or the plain one."""
        wrong = self._wrong(self._forward, args, kwargs)
        if wrong is None:
            return self._forward
        if _device(self._plain) == "cpu":
            narrower = torch.compile(self._plain, dynamic=False, options=NARROWER)
            if self._wrong(narrower, args, kwargs) is None:
                _logger.warning("torch.compile: vectors of 256 bits from here on; with wider ones %s", wrong)
                return narrower
        remedy = "another C++ compiler (environment variable CXX) may do better"
        _logger.warning("torch.compile is not used: %s; %s", wrong, remedy)
        return self._plain

    def _wrong(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> str | None:
        """What is wrong with its gradients on a batch; None: nothing."""
        with _as_before(self._plain):
            with torch.autocast(_device(self._plain), enabled=False):
                exact = self._gradient(self._plain, args, kwargs)
            plain = self._gradient(self._plain, args, kwargs)
            if not (exact + plain).isfinite().all():  # nothing to compare with
                return None
            compiled = self._gradient(forward, args, kwargs)
        if not compiled.isfinite().all():
            return "the gradient of the compiled network is not finite, that of the plain one is"
        norm = exact.norm().clamp_min(torch.finfo(exact.dtype).tiny)
        error, rounding = float((compiled - exact).norm() / norm), float((plain - exact).norm() / norm)
        if error <= SLACK * rounding + FLOOR:
            return None
        return f"the compiled network's gradient is off by {error:.0%} of its norm, the plain one's by {rounding:.0%}"

    def _gradient(self, forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
        """The gradient of a random linear function of the outputs by all weights, (P,)."""
        weights = [p for p in self._plain.parameters() if p.requires_grad]
        outputs = [x for x in pytree.tree_leaves(forward(*args, **kwargs)) if isinstance(x, Tensor) and x.requires_grad]
        generator = torch.Generator().manual_seed(0)
        factors = [torch.randn(x.shape, generator=generator).to(x) for x in outputs]
        with torch.autocast(_device(self._plain), enabled=False):
            found = torch.autograd.grad(outputs, weights, factors, allow_unused=True)
        pairs = zip(found, weights, strict=True)
        return torch.cat([(torch.zeros_like(p) if g is None else g).flatten().float() for g, p in pairs])


def _device(network: nn.Module) -> str:
    return next(network.parameters()).device.type


@contextlib.contextmanager
def _as_before(network: nn.Module) -> Iterator[None]:
    """Give a network its buffers back, and the global generators their state."""
    buffers = {name: value.clone() for name, value in network.named_buffers()}
    with own_randomness():
        try:
            yield
        finally:
            with torch.no_grad():
                for name, value in network.named_buffers():
                    value.copy_(buffers[name])
