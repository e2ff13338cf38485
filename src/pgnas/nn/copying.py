"""Copies of networks whose layers keep tensors that they have computed."""

from __future__ import annotations

import copy
from typing import Any, TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def copied(module: M, memo: dict[int, Any] | None = None) -> M:
    """A deep copy, also of layers that keep a weight which a hook computes (``nn.utils.weight_norm`` and the like).

    Such a weight has a history of gradients, with which ``copy.deepcopy`` does not copy it. Here it is copied as a
    plain value; the hook computes it anew with the next call.

    Args:
        module: The network.
        memo: As of ``copy.deepcopy``: copies that were made with the same one share what their originals share.
    """
    memo = {} if memo is None else memo
    for part in module.modules():
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)
