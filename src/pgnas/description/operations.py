"""The closed lists of what a description may name: functions, methods, attributes, words and number types.

Everything here computes new tensors, or facts about shapes, from tensors that it is given. Nothing here touches files,
devices, processes or global settings, runs what it is handed, changes a tensor in place, gives a tensor's memory to
another library, or has results whose size depends on the numbers in a tensor (the size of every result can be found
without computing it: see :mod:`pgnas.description.trial`). Whoever adds a name keeps to that.
"""

from __future__ import annotations

import builtins
import functools
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.nn import functional as F


def words(text: str) -> list[str]:
    """The words of a text: lists of names read better without quotes."""
    return text.split()


_BOTH = words("""
    abs acos add addcdiv addcmul addmm all amax amin any argmax argmin asin atan atan2 baddbmm bitwise_and
    bitwise_not bitwise_or bmm broadcast_to ceil chunk clamp clamp_max clamp_min clip clone cos cosh cross cummax
    cumprod cumsum detach diagonal diff div divide dot eq erf erfc exp exp2 expm1 fix flatten flip floor
    floor_divide fmax fmin fmod frac gather ge greater gt heaviside hypot index_select isfinite isinf isnan
    isclose le lerp less log log10 log1p log2 log_softmax logaddexp logical_and logical_not logical_or logical_xor
    logit logsumexp lt masked_fill matmul max maximum mean median min minimum mm moveaxis movedim mul multiply mv
    nan_to_num narrow ne neg negative norm not_equal outer permute positive pow prod ravel reciprocal relu
    remainder repeat_interleave reshape roll rot90 round rsqrt scatter scatter_add select sigmoid sign sin sinh
    softmax sort split split_with_sizes sqrt square squeeze std sub subtract sum swapaxes swapdims take_along_dim
    tan tanh tensor_split tile topk transpose tril triu true_divide trunc unbind unflatten unsqueeze var where
""")
"""Names that are functions of torch and methods of a tensor."""

_TORCH = words("""
    adaptive_avg_pool1d arange atleast_1d atleast_2d atleast_3d avg_pool1d batch_norm broadcast_tensors
    cartesian_prod cat cdist celu channel_shuffle column_stack concat concatenate conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dstack einsum eye full full_like
    group_norm hstack instance_norm layer_norm linspace max_pool1d max_pool2d max_pool3d meshgrid
    native_channel_shuffle ones ones_like pairwise_distance pixel_shuffle pixel_unshuffle prelu rms_norm rrelu
    rsub selu stack std_mean tensordot threshold tril_indices triu_indices var_mean vstack zeros zeros_like
""")

_FUNCTIONAL = words("""
    adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d affine_grid alpha_dropout avg_pool1d avg_pool2d avg_pool3d batch_norm bilinear celu conv1d
    conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d cosine_similarity dropout dropout1d dropout2d
    dropout3d elu embedding feature_alpha_dropout fold gelu glu grid_sample group_norm hardshrink hardsigmoid
    hardswish hardtanh instance_norm interpolate layer_norm leaky_relu linear local_response_norm log_softmax
    logsigmoid lp_pool1d lp_pool2d max_pool1d max_pool2d max_pool3d mish normalize one_hot pad pairwise_distance
    pixel_shuffle pixel_unshuffle prelu relu relu6 rms_norm rrelu scaled_dot_product_attention selu sigmoid silu
    softmax softmin softplus softshrink softsign tanh tanhshrink threshold unfold upsample
""")

_METHODS = words("""
    bfloat16 bool contiguous dim double expand expand_as float half int long new_full new_ones new_zeros numel
    repeat reshape_as size sum_to_size t to type_as unfold view view_as
""")

_OPERATORS = words("""
    abs add and_ eq floordiv ge getitem gt invert le lt matmul mod mul ne neg or_ pos pow sub truediv xor
""")

_MATH = words("""
    ceil cos exp fabs floor log log10 log2 sin sqrt tanh trunc
""")

_NAMESPACES: tuple[tuple[str, Any, list[str]], ...] = (
    ("torch.", torch, [*_BOTH, *_TORCH]),
    ("torch.nn.functional.", F, _FUNCTIONAL),
    ("operator.", operator, _OPERATORS),
    ("math.", math, _MATH),
    ("builtins.", builtins, ["getattr"]),
)

METHODS = frozenset([*_BOTH, *_METHODS])
"""Methods that may be called, of tensors only (``size`` and ``numel`` of shapes too)."""

ATTRIBUTES = frozenset(["T", "device", "dtype", "indices", "mT", "ndim", "shape", "values"])
"""Attributes that ``builtins.getattr`` may read."""

WORDS = frozenset(
    words("""
    area batch_norm bicubic bilinear border ceil circular constant fan_in floor ij linear max mean min nearest
    nearest-exact none reflect reflection replicate same softmax sum tanh trilinear trunc valid xy zeros
""")
)
"""Texts that may be arguments."""

KEYWORDS_REFUSED = frozenset(["inplace", "out", "pin_memory"])
"""Arguments that would change a tensor, or ask for memory of another kind, unless they are False."""

_EQUATION = re.compile(r"(?=.*(,|->))[A-Za-z]{0,8}(,[A-Za-z]{0,8}){0,4}(->[A-Za-z]{0,8})?")

DTYPES: Mapping[str, torch.dtype] = {
    name: getattr(torch, name) for name in words("bfloat16 bool float16 float32 float64 int16 int32 int64 int8 uint8")
}
MEMORY_FORMATS: Mapping[str, torch.memory_format] = {
    name: getattr(torch, name) for name in ("channels_last", "channels_last_3d", "contiguous_format", "preserve_format")
}

SPLITTING = frozenset(["chunk", "split", "split_with_sizes", "tensor_split", "unbind"])
"""Functions and methods that return as many tensors as an axis may be long."""


@functools.cache
def functions() -> Mapping[str, Callable[..., Any]]:
    """The functions by their full names, those that this version of torch has."""
    return {
        prefix + name: getattr(namespace, name)
        for prefix, namespace, names in _NAMESPACES
        for name in names
        if hasattr(namespace, name)
    }


@functools.cache
def _names_of() -> Mapping[Callable[..., Any], str]:
    return {function: name for name, function in reversed(list(functions().items()))}


def function_name(function: object) -> str | None:
    """The full name of a function of the list; ``None`` if it is not of it."""
    try:
        return _names_of().get(function)  # type: ignore[call-overload,no-any-return]
    except TypeError:  # not hashable
        return None


def is_equation(text: str) -> bool:
    """Whether ``text`` is one of einsum's equations, such as ``"bchw,oc->bohw"``."""
    return _EQUATION.fullmatch(text) is not None
