"""``pgnas inspect``: every way of naming a network, tables for people, JSON for machines, mistakes in one line."""

from __future__ import annotations

import io
import json
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from safetensors.torch import save_file
from torch import nn

import pgnas
from pgnas.cli import main, tables
from pgnas.errors import InputError
from pgnas.stages.inspection_tables import amount, sections
from pgnas.stages.name_ranges import merge_names
from pgnas.supernets import build_model

FAMILY = "multibranch-resnet:width=8"


def write_module(folder: Any) -> None:
    (folder / "mine.py").write_text(
        "from torch import nn\n\n\n"
        "def build(num_classes, in_channels):\n"
        "    return nn.Sequential(nn.Conv2d(in_channels, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3),\n"
        "                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, num_classes))\n"
    )


def run_json(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert main(["inspect", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_way_of_naming_a_network(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_module(tmp_path)
    found = run_json(capsys, "--model", FAMILY)
    assert (found["inputs"], found["gated"][-1]["layer"]) == ([[3, 32, 32]], "classifier")
    found = run_json(capsys, "--model", "mine:build", "--in-channels", "1", "--image-size", "12", "--classes", "7")
    assert (found["inputs"], found["params"]) == ([[1, 12, 12]], 60 + 275 + 42)
    found = run_json(capsys, "--model", "torchvision:mobilenet_v3_small", "--image-size", "32")
    assert found["params"] == 2_542_856
    assert run_json(capsys, "--model", "densenet3d")["inputs"] == [[3, 8, 32, 32]]
    found = run_json(capsys, "--model", "densenet3d", "--frames", "4", "--image-size", "16")
    assert found["inputs"] == [[3, 4, 16, 16]]
    found = run_json(capsys, "--model", "timm:resnet10t", "--image-size", "32", "--classes", "5")
    assert found["gated"][-1]["layer"] == "fc"


def test_what_a_cap_adds_is_told(capsys) -> None:
    words = ["--model", "multibranch-resnet:width=4,stages=1", "--image-size", "8", "--classes", "10"]
    (told,) = [note for note in run_json(capsys, *words)["notes"] if "streams" in note]
    built = build_model(words[1], in_channels=3, num_classes=10, image_size=(8, 8), seed=0)
    units = [pgnas.supernet(built.module, torch.zeros(2, 3, 8, 8), streams=s).gates.units for s in (False, True)]
    assert f"{units[1] - units[0]} more binary variables" in told


def test_the_default_is_an_image_of_224_pixels_and_1000_classes(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    write_module(tmp_path)
    found = run_json(capsys, "--model", "mine:build")
    assert (found["inputs"], found["params"]) == ([[3, 224, 224]], 168 + 275 + 6000)


def test_weights_are_checked_and_change_nothing(tmp_path, capsys) -> None:
    model = pgnas.supernets.build_model(FAMILY, in_channels=3, num_classes=1000, image_size=(32, 32), seed=1).module
    save_file(model.state_dict(), tmp_path / "good.safetensors")
    save_file({"stem.0.weight": torch.zeros(2, 2)}, tmp_path / "bad.safetensors")
    plain = run_json(capsys, "--model", FAMILY)
    assert run_json(capsys, "--model", FAMILY, "--weights", str(tmp_path / "good.safetensors")) == plain
    assert main(["inspect", "--model", FAMILY, "--weights", str(tmp_path / "bad.safetensors")]) == 2
    assert "must have shape (16, 3, 3, 3)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--model", "torchvision:resnet81"], "did you mean"),
        (["--model", "multibranch-resnt"], "did you mean multibranch-resnet?"),
        (["--model", "torchvision:inception_v3", "--image-size", "32"], "--image-size"),
        (["--model", FAMILY, "--image-size", "0"], "--image-size must lie in"),
        (["--model", FAMILY, "--classes", "0"], "--classes must lie in"),
        (["--model", FAMILY, "--in-channels", "-1"], "--in-channels must lie in"),
        (["--model", FAMILY, "--image-size", "3.5"], "whole number"),
        (["--model", FAMILY, "--weights", "no/such.safetensors"], "no/such.safetensors"),
        (["--model", "nowhere.nets:build"], "must name an importable"),
        ([], "--model"),
        (["--model", FAMILY, "--max-macs", "4"], "--max-macs"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(words, part, capsys) -> None:
    assert main(["inspect", *words]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert re.fullmatch(r"pgnas: error: [^\n]+\n", err)
    assert part in err


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: pgnas.inspect(nn.Linear(2, 2)), "model Linear needs example_inputs"),
        (lambda: pgnas.inspect(nn.Linear(2, 2), torch.ones(2, 2), image_size=3), "image_size goes with a name"),
        (lambda: pgnas.inspect(FAMILY, torch.ones(2, 3, 8, 8)), "example_inputs go with a network"),
        (lambda: pgnas.inspect(nn.Linear(2, 2), torch.ones(2, 2)), "must have a layer that can be gated"),
    ],
)
def test_mistakes_in_python(call, message) -> None:
    with pytest.raises(InputError, match=message):
        call()


def test_a_network_handed_in_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Conv2d(4, 2, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    pgnas.inspect(model, torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)))
    pgnas.inspect(FAMILY)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_tables_name_every_layer_and_fit_the_width() -> None:
    found = pgnas.inspect("torchvision:densenet121", image_size=32)
    made = sections(found)
    for width in (80, 120):
        stream = io.StringIO()
        Console(file=stream, force_terminal=True, color_system=None, width=width).print(tables.fancy(made, width))
        lines = stream.getvalue().splitlines()
        assert max(map(len, lines)) <= width
        assert sum(line.startswith("    denselayer") for line in lines[:140]) == 58 * 2
        # No name is broken in two where there is room for it.
        assert not [line for line in lines[:130] if re.match(r"\s{0,4}\S{1,3}$", line.rstrip())]
    text = "\n".join(tables.plain(made))
    assert "features.denseblock1.denselayer6.conv1 reads 6 sources:" in text
    assert "features.conv0 64, features.denseblock1.denselayer{1-5}.conv2 32 each" in text
    assert f"{found.params:,}" in text
    assert next(line for line in text.splitlines() if line.startswith("  layer ")).endswith("reads")


def test_barriers_without_gated_channels_are_quiet() -> None:
    found = pgnas.inspect("torchvision:swin_t", image_size=32)
    quiet = [section for section in sections(found) if section.quiet]
    assert len(quiet) == (1 if any(not barrier.touches_gates for barrier in found.barriers) else 0)
    shown = "\n".join(tables.plain(sections(found)))
    assert all(barrier.reason in shown for barrier in found.barriers)


def expand(name: str) -> list[str]:
    """The names that a merged one stands for."""
    head, brace, rest = name.partition("{")
    if not brace:
        return [name]
    numbers, _, tail = rest.partition("}")
    found = []
    for part in numbers.split(","):
        low, dash, high = part.partition("-")
        found += [str(n) for n in range(int(low), int(high) + 1)] if dash else [part]
    return [head + number + end for number in found for end in expand(tail)]


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 3), st.integers(8, 11)), max_size=12))
def test_merged_names_stand_for_the_names_and_no_other(parts) -> None:
    names = [f"{letter}{first}.conv{second}" for letter, first, second in parts]
    merged = merge_names(names)
    assert sorted(name for entry in merged for name in expand(entry)) == sorted(set(names))


def test_similar_names_are_merged() -> None:
    assert merge_names(["a1", "a2", "b", "a4"]) == ["a{1-2,4}", "b"]
    assert merge_names([f"layer{i}.{j}.conv" for i in range(3) for j in (0, 1)]) == ["layer{0-2}.{0-1}.conv"]
    assert merge_names(["p1.q1", "p2.q2"]) == ["p1.q1", "p2.q2"]
    assert merge_names(["n01", "n02"]) == ["n{01,02}"]


def test_amounts() -> None:
    assert [amount(n) for n in (0, 999, 1000, 36_864, 115_605_504, 1_814_073_344)] == [
        "0", "999", "1.0k", "36.9k", "115.6M", "1.81G",
    ]  # fmt: skip
