"""``pgnas.load``: the network back from its file anywhere, and every other file refused in one line."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, fx, nn

import pgnas
from pgnas.architecture import Architecture
from pgnas.errors import FileError, InputError, ModelError, RunFolderError
from pgnas.nn import extract, supernet
from pgnas.run_folder.tensors import load_tensors
from pgnas.stages.export_metadata import ExportMetadata
from pgnas.stages.exporting import (
    describe_network,
    export_description,
    export_pt2,
    export_safetensors,
    plain_network,
)

METADATA = ExportMetadata(
    class_names=("cat", "dog", "ü\n"),
    preprocessing={"channels": 3, "height": 32, "width": 32, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
    architecture="0123456789abcdef",
    params=1234,
    macs=567890,
)
# Runs in a process that can import pgnas and no library of models: the largest difference from the exported network.
READER = """
import sys, torch

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torchvision", "timm", "mynets"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
import pgnas

seen, watched = [], None
def watch(event, arguments):
    if watched is None:
        return
    if event in ("import", "pickle.find_class", "os.system", "subprocess.Popen", "ctypes.dlopen", "socket.connect"):
        seen.append((event, arguments[0]))
    if event == "open" and not str(arguments[0]).startswith(watched):
        seen.append((event, arguments[0]))
    if event == "exec" and arguments[0].co_filename.endswith(".py"):
        seen.append((event, arguments[0].co_filename))
sys.addaudithook(watch)

for folder in sys.argv[1:]:
    images, expected = torch.load(folder + "/expected.pt")
    for path in (folder, folder + "/model.safetensors"):
        module = pgnas.load(path)
        assert isinstance(module, torch.nn.Module) and not module.training
        with torch.no_grad():
            difference = (module(images) - expected).abs().max() / expected.abs().max()
            assert difference <= 1e-6, (folder, difference)  # kernels may choose by where memory happens to lie
        watched = folder  # now that torch has imported what it imports late
        pgnas.load(path)
        watched = None
assert not seen, seen
print("equal")
"""


class Doubling(nn.Module):
    """A layer of the user's, with a tensor that is no part of its state."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("by", torch.tensor([2.0]), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x * self.by


def own() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.BatchNorm2d(6), Doubling(), nn.Flatten(), nn.Linear(6 * 225, 4))


NETWORKS = {
    "own": own,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=4),
    "mobilenet_v3_small": lambda: torchvision.models.mobilenet_v3_small(num_classes=4),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=4),
    "convnext_atto": lambda: pytest.importorskip("timm").create_model("convnext_atto", num_classes=4),
}


def found(model: nn.Module) -> nn.Module:
    """The part of ``model`` with every second unit of each gate."""
    searched = supernet(model.eval(), torch.randn(2, 3, 32, 32))
    sizes = searched.gates.sizes
    return extract(searched, Architecture(sizes, {name: tuple(range(0, size, 2)) for name, size in sizes.items()}))


def write(module: nn.Module, folder: Path, example: Tensor) -> None:
    module = plain_network(module, example)
    network = describe_network(module, example, folder / "network.json")
    folder.mkdir()
    export_description(folder / "network.json", network)
    export_safetensors(module, folder / "model.safetensors", METADATA, network)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of files a network."""
    root = tmp_path_factory.mktemp("networks")
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        module, images = found(make()), torch.randn(3, 3, 32, 32)
        write(module, root / name, images)
        with torch.no_grad():
            torch.save((images, module(images)), root / name / "expected.pt")
    return root


@pytest.fixture
def file(exported: Path, tmp_path: Path) -> Path:
    """A file of its own for a test to spoil."""
    path = tmp_path / "model.safetensors"
    path.write_bytes((exported / "own" / "model.safetensors").read_bytes())
    return path


def test_networks_come_back_where_their_code_is_not_and_nothing_else_is_opened_or_run(
    exported: Path,
) -> None:
    command = [sys.executable, "-c", READER, *(str(exported / name) for name in NETWORKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=exported)
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


def test_what_is_loaded_is_a_plain_module_that_can_be_trained_searched_and_described_again(exported: Path) -> None:
    module = pgnas.load(exported / "own")
    assert all(p.requires_grad for p in module.parameters())
    module.train()(torch.randn(2, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    searched = pgnas.supernet(module.eval(), torch.randn(2, 3, 32, 32))
    assert searched.gates.sizes
    assert isinstance(module, fx.GraphModule)
    again = describe_network(module, torch.randn(2, 3, 32, 32), Path("network.json"))
    assert again == json.loads((exported / "own" / "network.json").read_text())


def test_the_metadata_say_what_made_the_file(exported: Path) -> None:
    _, metadata = load_tensors(exported / "own" / "model.safetensors")
    said = ExportMetadata.from_strings(metadata, subject="")
    assert said == METADATA
    assert torch.__version__.startswith(said.torch)


class Bomb:
    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, ("bang",)


def archive() -> bytes:
    buffer = io.BytesIO()
    torch.save({"x": torch.zeros(1), "y": Bomb()}, buffer)
    return buffer.getvalue()


def header(text: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if length is None else length) + text


HOSTILE = {
    "empty": (b"", "an empty file"),
    "pickle": (pickle.dumps(Bomb()), "a pickle"),
    "torch.save": (archive(), "an archive as torch.save writes it"),
    "text": (b"hello, this is no network at all", "whole safetensors file"),
    "no header": (header(b"", 0), "whole safetensors file"),
    "huge header": (header(b"{}", 2**62), "a header of more than"),
    "long header": (header(b" " * (2**25 + 1)), "a header of more than"),
    "not UTF-8": (header(b'{"\xff": {"dtype": "F32", "shape": [], "data_offsets": [0, 0]}}'), "whole safetensors"),
    "NaN": (header(b'{"a": NaN}'), "whole safetensors file"),
    "deep": (header(b'{"a":' * 10_000), "whole safetensors file"),
    "huge shape": (
        header(b'{"a": {"dtype": "F32", "shape": [1000000, 1000000], "data_offsets": [0, 4000000000000]}}'),
        "whole safetensors file",
    ),
    "escapes": (header(b'{"\\u001b[31m\\n": 1}'), "whole safetensors file"),
    "metadata alone": (header(b'{"__metadata__": {"network": "{}", "network_sha256": "0"}}'), "matches its digest"),
    "another": (header(b"{}"), "description of a network"),
}


@pytest.mark.parametrize("content", HOSTILE)
def test_what_pgnas_did_not_write_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    monkeypatch.chdir(tmp_path)
    data, words = HOSTILE[content]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with pytest.raises(FileError, match=words) as caught:
        pgnas.load(path)
    assert str(caught.value).isprintable()
    with pytest.raises(FileError):  # the folder is as good as the file
        pgnas.load(tmp_path)
    assert not (tmp_path / "bang").exists()


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".pt", ".pth", ".pkl", ".PT2", ".bin", ".py", ".json"])
def test_other_kinds_of_files_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / f"model{suffix}"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileError, match="pgnas opens no others"):
        pgnas.load(path)
    assert not (tmp_path / "bang").exists()


def test_a_pt2_is_not_opened_under_another_name(exported: Path, tmp_path: Path) -> None:
    module = pgnas.load(exported / "own")
    export_pt2(module, torch.randn(2, 3, 32, 32), tmp_path / "model.pt2", METADATA)
    (tmp_path / "model.pt2").rename(tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="an archive"):
        pgnas.load(tmp_path / "model.safetensors")


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="must exist"):
        pgnas.load(tmp_path / "nothing.safetensors")
    with pytest.raises(FileError, match="must exist"):
        pgnas.load("a\0b")
    with pytest.raises(FileError, match="must exist"):
        pgnas.load("x" * 5000)
    with pytest.raises(RunFolderError, match="must be a run folder"):
        pgnas.load(tmp_path)
    os.mkfifo(tmp_path / "pipe.safetensors")
    with pytest.raises(FileError, match="a folder or device"):
        pgnas.load(tmp_path / "pipe.safetensors")
    with pytest.raises(FileError, match="a folder or device"):
        pgnas.load("/dev/zero")


def test_a_safetensors_file_of_another_model_is_refused(exported: Path, tmp_path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, tmp_path / "model.safetensors")
    with pytest.raises(FileError, match="must hold the description of a network, got tensors alone"):
        pgnas.load(tmp_path / "model.safetensors")
    _, metadata = load_tensors(exported / "own" / "model.safetensors")
    tensors, _ = load_tensors(exported / "shufflenet" / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors", metadata)
    with pytest.raises(FileError, match="must be in description and file alike"):
        pgnas.load(tmp_path / "model.safetensors")


def test_a_description_that_was_tampered_with_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    for name in ("model.safetensors", "network.json"):
        (folder / name).write_bytes((exported / "own" / name).read_bytes())
    pgnas.load(folder)
    text = (folder / "network.json").read_text()
    for tampered, words in (
        (text.replace('"stride": 2', '"stride": 1').replace('{"tuple": [2, 2]}', "2"), "must be the description"),
        (text.replace("operator", "os"), "must be the description"),
        (text[: len(text) // 2], "whole JSON"),
        ("", "whole JSON"),
        ("[" * 100_000, "whole JSON"),
    ):
        (folder / "network.json").write_text(tampered)
        with pytest.raises(FileError, match=words):
            pgnas.load(folder)
    (folder / "network.json").write_bytes(b"\xff\xfe")
    with pytest.raises(FileError, match="UTF-8"):
        pgnas.load(folder)


@given(st.data())
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_truncations_are_refused_and_flipped_bits_too_but_in_the_numbers(file: Path, data: st.DataObject) -> None:
    whole = file.read_bytes()
    spoiled = bytearray(whole)
    (length,) = struct.unpack("<Q", whole[:8])
    # Nine times in ten in the header, which is a fifth of the file.
    place = data.draw(st.integers(0, 8 + length) | st.integers(0, len(whole) - 1))
    if data.draw(st.booleans()):
        del spoiled[place:]
    else:
        spoiled[place] ^= 1 << data.draw(st.integers(0, 7))
    path = file.with_name("spoiled.safetensors")
    path.write_bytes(spoiled)
    try:
        module = pgnas.load(path)
    except InputError:
        return
    assert len(spoiled) == len(whole)
    assert isinstance(module, fx.GraphModule)
    code = pgnas.load(file)
    assert isinstance(code, fx.GraphModule)
    assert module.code == code.code
    assert repr(module) == repr(code)


@given(st.binary(max_size=400))
@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_random_bytes_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "model.safetensors"
    for content in (data, header(data), header(b'{"__metadata__":{"network":"' + data + b'"}}')):
        path.write_bytes(content)
        with pytest.raises(FileError):
            pgnas.load(path)


def test_what_a_description_cannot_hold_is_named() -> None:
    graph = fx.Graph()
    graph.output(graph.call_function(torch.nonzero, (graph.placeholder("x"),)))
    with pytest.raises(ModelError, match=r"node 'nonzero' must be a function of torch that pgnas knows"):
        describe_network(fx.GraphModule(nn.Module(), graph), torch.zeros(1, 2), Path("network.json"))
    with pytest.raises(ModelError, match="must be a traced one"):
        describe_network(nn.Linear(1, 1), torch.zeros(1, 1), Path("network.json"))


def test_shared_weights_stay_shared(tmp_path: Path) -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
            self.two.weight = self.one.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(x))

    module = fx.symbolic_trace(Shared()).eval()
    write(module, tmp_path / "run", torch.zeros(2, 4))
    again = pgnas.load(tmp_path / "run")
    assert len(list(again.parameters())) == 3
    images = torch.randn(3, 4)
    assert torch.equal(again(images), module(images))
    tensors, metadata = load_tensors(tmp_path / "run" / "model.safetensors")
    tensors["two.weight"] = tensors["two.weight"] + 1
    save_file(tensors, tmp_path / "run" / "model.safetensors", metadata)
    with pytest.raises(FileError, match="must be the same as the tensor that it names"):
        pgnas.load(tmp_path / "run")
