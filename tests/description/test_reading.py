"""Descriptions that nobody vouches for: what is tampered with is refused, before memory or code is touched."""

from __future__ import annotations

import contextlib
import copy
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pgnas.description import DescriptionError, build, parse

from .networks import description, network

DESCRIPTION, STATE = description(), network().state_dict()
TEXT = json.dumps(DESCRIPTION)


def changed(change: Callable[[dict[str, Any]], Any]) -> dict[str, Any]:
    value = copy.deepcopy(DESCRIPTION)
    change(value)
    return value


def with_node(op: str, target: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The description with one more node, whose value is not the output."""
    node = {"name": "evil", "op": op, "target": target, "args": list(args), "kwargs": kwargs}
    return changed(lambda value: value["nodes"].append(node))


X = {"node": "images"}


def test_what_is_built_computes_the_same_bit_for_bit() -> None:
    module = build(parse(TEXT), STATE)
    images = torch.randn(3, 2, 5, 6)
    with torch.no_grad():
        assert torch.equal(module(images), network()(images))
    assert not module.training
    assert {name for name, _ in module.named_parameters()} == {name for name, _ in network().named_parameters()}
    assert all(torch.equal(value, STATE[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    "target",
    [
        "torch.load", "torch.save", "torch.from_file", "torch.hub.load", "torch.ops.load_library", "torch.compile",
        "torch.set_num_threads", "torch.set_default_device", "torch.utils.cpp_extension.load", "torch.manual_seed",
        "torch.jit.load", "torch._C._cuda_init", "torch.from_numpy", "torch.nonzero", "torch.vmap", "torch.empty",
        "os.system", "builtins.eval", "builtins.exec", "builtins.open", "builtins.__import__", "builtins.print",
        "operator.attrgetter", "operator.methodcaller", "operator.setitem", "operator.call", "operator.lshift",
        "math.factorial", "math.comb", "subprocess.run", "pgnas.load", "", "torch.", "torch.add.__call__", "getattr",
    ],
)  # fmt: skip
def test_functions_outside_the_list_are_refused(target: str) -> None:
    with pytest.raises(DescriptionError, match="must name an operation"):
        build(with_node("function", target, X), STATE)


@pytest.mark.parametrize(
    "target",
    [
        "numpy", "share_memory_", "__class__", "set_", "apply_", "map_", "__reduce_ex__", "resize_", "as_subclass",
        "register_hook", "storage", "untyped_storage", "data_ptr", "tolist", "item", "cuda", "backward", "add_",
        "copy_", "nonzero", "pin_memory", "__getattribute__", "module_load", "new_empty", "add)(", "type",
        "add; import os",
    ],
)  # fmt: skip
def test_methods_outside_the_list_are_refused(target: str) -> None:
    with pytest.raises(DescriptionError, match="must name an operation"):
        build(with_node("method", target, X), STATE)


@pytest.mark.parametrize("name", ["__class__", "__dict__", "data", "grad_fn", "_base", "real.__class__", "x", "sum", 3])
def test_attributes_outside_the_list_are_refused(name: object) -> None:
    with pytest.raises(DescriptionError):
        build(with_node("function", "builtins.getattr", X, name), STATE)


def test_getattr_takes_no_default_and_methods_are_those_of_tensors() -> None:
    with pytest.raises(DescriptionError, match="must read one of"):
        build(with_node("function", "builtins.getattr", X, "shape", None), STATE)
    with pytest.raises(DescriptionError, match="must read one of"):
        build(with_node("function", "builtins.getattr", X, {"node": "images"}), STATE)
    with pytest.raises(DescriptionError, match="methods of tensors only"):
        build(with_node("method", "round", 3), STATE)


@pytest.mark.parametrize("kind", ["LSTM", "Sequential", "Module", "Transformer", "modules", "Parameter", "", None, []])
def test_layers_outside_the_list_are_refused(kind: object) -> None:
    with pytest.raises(DescriptionError, match="must be of a class"):
        build(changed(lambda value: value["layers"]["stem.0"].update(type=kind)), STATE)


@pytest.mark.parametrize(
    "arguments",
    [
        {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "padding": 1, "bias": False, "device": "cuda"},
        {"in_channels": 10**12, "out_channels": 10**12, "kernel_size": 3},
        {"in_channels": 10**18, "out_channels": 10**18, "kernel_size": 10**9},
        {"in_channels": 2, "out_channels": 4, "kernel_size": 3, "padding": 1, "bias": True},
        {"in_channels": 2, "out_channels": 4, "kernel_size": {"tuple": [3] * 5000}},
        {"in_channels": "2", "out_channels": None, "kernel_size": {"slice": [1, 2, 3]}},
        {"self": 1}, {}, [], "x",
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_are_refused(arguments: object) -> None:
    with pytest.raises(DescriptionError):
        build(changed(lambda value: value["layers"]["stem.0"].update(arguments=arguments)), STATE)


BOMBS = {
    "expand": ("method", "expand", {"node": "order"}, 10**6, 10**6, 3),
    "repeat": ("method", "repeat", X, 10**6, 10**6, 10, 10),
    "zeros": ("function", "torch.zeros", [10**6, 10**6]),
    "full": ("function", "torch.full", {"tuple": [10**12]}, 0),
    "arange": ("function", "torch.arange", 10**12),
    "linspace": ("function", "torch.linspace", 0, 1, 10**12),
    "eye": ("function", "torch.eye", 10**7),
    "indices": ("function", "torch.tril_indices", 10**7, 10**7),
    "pad": ("function", "torch.nn.functional.pad", X, {"tuple": [10**10, 10**10]}),
    "interpolate": ("function", "torch.nn.functional.interpolate", X, 10**9),
    "one_hot": ("function", "torch.nn.functional.one_hot", {"node": "order"}, 10**12),
    "pool": ("function", "torch.nn.functional.adaptive_avg_pool2d", X, 10**6),
    "int": ("function", "operator.pow", 9, 10**9),
    "float": ("function", "operator.pow", 1e300, 60),
    "text": ("function", "operator.mul", "zeros", 10**12),
    "list": ("function", "operator.mul", [0], 10**12),
    "tuple": ("function", "operator.mul", 10**12, {"tuple": [0]}),
    "format": ("function", "operator.mod", "zeros", 10**9),
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_values_of_absurd_sizes_are_refused_before_memory_is_used(bomb: tuple[Any, ...]) -> None:
    op, target, *args = bomb
    with pytest.raises(DescriptionError):
        build(with_node(op, target, *args), STATE)


def grown(steps: list[dict[str, Any]]) -> dict[str, Any]:
    return changed(lambda value: value["nodes"].extend(steps))


def test_values_that_grow_step_by_step_are_refused() -> None:
    def chain(target: str, start: Any, steps: int, op: str = "function") -> dict[str, Any]:
        nodes: list[dict[str, Any]] = []
        for step in range(steps):
            last = {"node": f"v{step - 1}"} if step else start
            nodes.append({"name": f"v{step}", "op": op, "target": target, "args": [last, last]})
        return grown(nodes)

    for value in (
        chain("operator.mul", 3, 200),
        chain("operator.add", {"tuple": [1, 2]}, 200),
        chain("operator.getitem", {"tuple": [X, X]}, 200),
    ):
        begun = time.monotonic()
        with pytest.raises(DescriptionError):
            build(value, STATE)
        assert time.monotonic() - begun < 30  # not for ever: the machine may be busy


def test_splitting_into_very_many_parts_is_refused() -> None:
    many = {"name": "many", "op": "function", "target": "torch.zeros", "args": [2**28]}
    for target, rest in (("torch.unbind", []), ("torch.split", [1]), ("torch.chunk", [2**28])):
        split = {"name": "parts", "op": "function", "target": target, "args": [{"node": "many"}, *rest]}
        with pytest.raises(DescriptionError, match="many parts"):
            build(grown([many, split]), STATE)
    method = {"name": "parts", "op": "method", "target": "unbind", "args": [{"node": "many"}]}
    with pytest.raises(DescriptionError, match="many parts"):
        build(grown([many, method]), STATE)


def test_very_many_nodes_and_very_deep_ones_are_refused() -> None:
    node = {"name": "a", "op": "method", "target": "relu", "args": [X]}
    with pytest.raises(DescriptionError, match="list of at most"):
        build(changed(lambda value: value.update(nodes=[node] * 10**6)), STATE)
    deep: Any = 1
    for _ in range(50):
        deep = [deep]
    with pytest.raises(DescriptionError, match="at most 8 deep"):
        build(with_node("function", "torch.zeros", deep), STATE)
    for text in ("[" * 10**5, '{"a":' * 10**5, '{"format": "pgnas.network/1", "nodes": ' + "[" * 10**5):
        with pytest.raises(DescriptionError, match="whole JSON"):
            parse(text)
    with pytest.raises(DescriptionError, match="at most"):
        parse(" " * (2**23 + 1))


INJECTIONS = [
    "a; import os", "a)\n    import os #", "a.b", "__class__", "", " a", "a\u0000", "é", "self", "a" * 101, "lambda", 3,
    None, 'a"+__import__("os").system("true")+"',
]  # fmt: skip


@pytest.mark.parametrize("name", INJECTIONS)
def test_names_that_are_not_plain_are_refused(name: Any) -> None:
    with pytest.raises(DescriptionError, match="plain name"):
        build(changed(lambda value: value["nodes"][0].update(name=name)), STATE)
    with pytest.raises(DescriptionError, match="plain name"):
        build(changed(lambda value: value["input"].update(name=name)), STATE)


@pytest.mark.parametrize("name", [n for n in INJECTIONS if isinstance(n, str) and n not in ("a.b", "self")])
def test_layers_tensors_and_keywords_of_such_names_are_refused(name: str) -> None:
    if name != "a" * 101:
        with pytest.raises(DescriptionError):
            build(with_node("method", "sum", X, **{name: 1}), STATE)
    with pytest.raises(DescriptionError, match="plain names"):
        build(changed(lambda value: value["layers"].update({name: value["layers"]["head"]})), STATE)
    listed = {**DESCRIPTION["tensors"], name: DESCRIPTION["tensors"]["order"]}
    with pytest.raises(DescriptionError, match="plain names"):
        build(changed(lambda value: value.update(tensors=listed)), {**STATE, name: STATE["order"]})


@pytest.mark.parametrize("name", ["forward", "graph", "code", "training", "_parameters", "state_dict", "a.forward.b"])
def test_layers_and_tensors_cannot_take_the_place_of_methods(name: str) -> None:
    with pytest.raises(DescriptionError, match="plain names"):
        build(changed(lambda value: value["layers"].update({name: value["layers"]["head"]})), STATE)


@pytest.mark.parametrize("name", ["torch", "operator", "math", "getattr", "images", "device", "inf", "print"])
def test_names_of_the_generated_forward_stay_apart_from_its_globals(name: str) -> None:
    text = TEXT.replace('{"node": "images"}', json.dumps({"node": name})).replace(
        '{"name": "images"', f'{{"name": "{name}"'
    )
    module = build(parse(text), STATE)
    images = torch.randn(3, 2, 5, 6)
    with torch.no_grad():
        assert torch.equal(module(images), network()(images))


@pytest.mark.parametrize("word", ["cuda", "cpu", "meta", "numpy", "zeros; import os", '"', "%s", "{0.__class__}"])
def test_texts_outside_the_list_are_refused(word: str) -> None:
    with pytest.raises(DescriptionError, match="words that pgnas knows"):
        build(with_node("method", "to", X, word), STATE)


def test_arguments_that_write_are_refused() -> None:
    with pytest.raises(DescriptionError, match="keyword"):
        build(with_node("function", "torch.add", X, 1, out=X), STATE)
    with pytest.raises(DescriptionError, match="keyword"):
        build(with_node("function", "torch.nn.functional.relu", X, inplace=True), STATE)


def test_a_node_reads_only_those_before_it() -> None:
    with pytest.raises(DescriptionError, match="stand before it"):
        build(with_node("method", "relu", {"node": "evil"}), STATE)
    with pytest.raises(DescriptionError, match="stand before it"):
        build(with_node("method", "relu", {"node": ["x"]}), STATE)


def tensors(**changes: Tensor | None) -> dict[str, Tensor]:
    state = {name.replace(".", "_"): name for name in STATE}
    found = {**STATE, **{state.get(name, name): value for name, value in changes.items()}}
    return {name: value for name, value in found.items() if value is not None}


@pytest.mark.parametrize(
    "state",
    [
        tensors(head_weight=None), tensors(more=torch.zeros(1)), tensors(head_weight=torch.zeros(3, 8)),
        tensors(head_weight=torch.zeros(3, 7, dtype=torch.float64)), tensors(order=torch.zeros(3)), {},
    ],
)  # fmt: skip
def test_tensors_of_another_network_are_refused(state: dict[str, Tensor]) -> None:
    with pytest.raises(DescriptionError, match="tensor '"):
        build(DESCRIPTION, state)


def test_the_list_of_tensors_is_that_of_the_layers() -> None:
    tampered = changed(lambda value: value["tensors"]["head.weight"].update(shape=[3, 8]))
    with pytest.raises(DescriptionError, match="as its layer has it"):
        build(tampered, tensors(head_weight=torch.zeros(3, 8)))
    kept = {name: value for name, value in DESCRIPTION["tensors"].items() if name != "head.bias"}
    with pytest.raises(DescriptionError, match="one of its layer's"):
        build(changed(lambda value: value.update(tensors=kept)), tensors(head_bias=None))
    more = {**DESCRIPTION["tensors"], "head.extra": DESCRIPTION["tensors"]["order"]}
    with pytest.raises(DescriptionError, match="one of its layer's"):
        build(changed(lambda value: value.update(tensors=more)), {**STATE, "head.extra": STATE["order"]})
    unread = {**DESCRIPTION["tensors"], "unread": DESCRIPTION["tensors"]["order"]}
    with pytest.raises(DescriptionError, match="must be read"):
        build(changed(lambda value: value.update(tensors=unread)), {**STATE, "unread": STATE["order"]})


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", '{"format": "pgnas.network/2"}', "NaN", '{"a": NaN}', "1" * 9999]
)
def test_other_json_is_refused(text: str) -> None:
    with pytest.raises(DescriptionError, match="network description"):
        parse(text)
    with pytest.raises(DescriptionError, match="twice"):
        parse('{"a": 1, "a": 2}')


PLACES = [
    (*place, key)
    for place, value in (
        ((), DESCRIPTION),
        (("input",), DESCRIPTION["input"]),
        (("layers",), DESCRIPTION["layers"]),
        *((("layers", name), layer) for name, layer in DESCRIPTION["layers"].items()),
        *((("layers", name, "arguments"), layer["arguments"]) for name, layer in DESCRIPTION["layers"].items()),
        *((("tensors", name), entry) for name, entry in DESCRIPTION["tensors"].items()),
        *((("nodes", index), node) for index, node in enumerate(DESCRIPTION["nodes"])),
        *(
            (("nodes", index, "args"), dict(enumerate(node.get("args", []))))
            for index, node in enumerate(DESCRIPTION["nodes"])
        ),
    )
    for key in value
]
KNOWN = ["x", "torch.add", "relu", "method", "function", "stem.0", "shape", 2**40, -1, [1, 2], {"node": "images"}]
KINDS = ["node", "tuple", "slice", "range", "float", "dtype", "x", "type"]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.sampled_from(KNOWN),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KINDS), inner, max_size=3),
    max_leaves=12,
)


@given(st.sampled_from(PLACES), JSON)
@settings(max_examples=200, deadline=None)
def test_any_value_anywhere_is_refused_or_harmless(place: tuple[Any, ...], value: Any) -> None:
    tampered = copy.deepcopy(DESCRIPTION)
    owner: Any = tampered
    for key in place[:-1]:
        owner = owner[key]
    owner[place[-1]] = value
    with contextlib.suppress(DescriptionError):
        assert set(build(tampered, STATE).state_dict()) == set(STATE)
