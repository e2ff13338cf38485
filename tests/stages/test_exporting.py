from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import torch
import torchvision
from safetensors import safe_open
from torch import Tensor, fx, nn
from torch.nn import functional as F

from pgnas.architecture import Architecture
from pgnas.errors import FileError, ModelError, RunError
from pgnas.nn import extract, supernet
from pgnas.run_folder.storage import TEMPORARY_PREFIX
from pgnas.stages.export_check import verify
from pgnas.stages.export_metadata import ExportMetadata
from pgnas.stages.exporting import export_onnx, export_pt2, export_safetensors, export_source
from pgnas.stages.source_code import source_code

METADATA = ExportMetadata(
    class_names=("cat", '<b>"dog"</b>', "naïve\n", "not text \udcff"),
    preprocessing={"channels": 3, "height": 16, "width": 16, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
    architecture="0123456789abcdef",
    params=1234,
    macs=567890,
    settings={"model": "x", "epochs": 3, "lr": 0.1},
)
# Runs in a process that cannot import pgnas: prints each file's largest difference from the expected logits.
STRANGER = """
import importlib.util, json, pathlib, sys

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pgnas", "torchvision", "timm"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Refuse())
try:
    import pgnas
except ModuleNotFoundError:
    pass
else:
    raise SystemExit("pgnas can be imported")
import onnxruntime, torch

def run(path, images):
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images)
    if path.suffix == ".onnx":
        return torch.from_numpy(onnxruntime.InferenceSession(path).run(["logits"], {"images": images.numpy()})[0])
    spec = importlib.util.spec_from_file_location("model", path)
    model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(model)
    return model.load()(images)

found = {}
for folder in map(pathlib.Path, sys.argv[1:]):
    for images, expected in torch.load(folder / "expected.pt"):
        for name in ("model.pt2", "model.onnx", "model.py"):
            with torch.no_grad():
                output = run(folder / name, images)
            assert output.shape == expected.shape, (folder, name, output.shape)
            difference = float((output - expected).abs().max() / expected.abs().max())
            key = folder.name + "/" + name
            found[key] = max(found.get(key, 0.0), difference)
print(json.dumps(found))
"""


class Joins(nn.Module):
    """Concatenation, sum, depthwise convolution, a flattening that asks for the batch size, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([F.relu(self.one(x)), self.two(x)], 1)
        x = self.depthwise(x)
        x = F.max_pool2d(x + self.point(x), 2)
        return self.head(self.dropout(x.view(x.size(0), -1)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.layers = nn.Sequential(Block(8, 8, 1), Block(8, 12, 2))
        self.fc = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(self.stem(x)).mean((2, 3)))


def pruned(keep: Callable[[str, int], range]) -> nn.Module:
    """The part of ``Residual`` with the units that ``keep`` names of each gate."""
    model = lived_in(Residual())
    searched = supernet(model, torch.randn(2, 3, 16, 16))
    sizes = searched.gates.sizes
    kept = {name: tuple(keep(name, size)) for name, size in sizes.items()}
    return extract(searched, Architecture(sizes, kept))


def lived_in(model: nn.Module) -> nn.Module:
    """BatchNorm statistics as after training, so that leaving them out shows."""
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.bias)
            assert layer.running_mean is not None
            assert layer.running_var is not None
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2)
    return model.eval()


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "joins": lambda: fx.symbolic_trace(Joins()).eval(),
    "mobilenet": lambda: fx.symbolic_trace(lived_in(torchvision.models.mobilenet_v2(num_classes=4, width_mult=0.25))),
    "pruned": lambda: pruned(lambda name, size: range(len(name) % 2, size, 2)),
    "branch_dropped": lambda: pruned(lambda name, size: range(0 if name == "layers.0.conv2" else size)),
    "constant": lambda: pruned(lambda name, size: range(0)),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder of exported files a network."""
    root = tmp_path_factory.mktemp("exported")
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        module, folder = make().eval(), root / name
        images = [torch.randn(size, 3, 16, 16) for size in (1, 3, 5)]
        write_all(module, images[1], folder)
        with torch.no_grad():
            torch.save([(x, module(x)) for x in images], folder / "expected.pt")
    return root


def write_all(module: nn.Module, example: Tensor, folder: Path) -> None:
    export_pt2(module, example, folder / "model.pt2", METADATA)
    export_onnx(module, example, folder / "model.onnx", METADATA)
    export_safetensors(module, folder / "model.safetensors", METADATA)
    export_source(module, example, folder / "model.py", METADATA)


@pytest.fixture(scope="module")
def differences(exported: Path) -> dict[str, float]:
    """What a process without pgnas finds; one process for all, as importing torch takes seconds."""
    command = [sys.executable, "-I", "-c", STRANGER, *(str(exported / name) for name in NETWORKS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=exported)
    assert done.returncode == 0, done.stderr
    found: dict[str, float] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("file", ["model.pt2", "model.onnx", "model.py"])
@pytest.mark.parametrize("network", NETWORKS)
def test_files_reproduce_the_network_where_pgnas_is_not(differences: dict[str, float], network: str, file: str) -> None:
    assert differences[f"{network}/{file}"] <= 1e-4


def expected_metadata() -> ExportMetadata:
    """What UTF-8 can hold of it."""
    return dataclasses.replace(METADATA, class_names=(*METADATA.class_names[:3], "not text ?"))


def test_metadata_read_back_from_each_file(exported: Path) -> None:
    folder = exported / "pruned"
    with safe_open(folder / "model.safetensors", framework="pt") as file:
        assert ExportMetadata.from_strings(file.metadata(), subject="") == expected_metadata()
    props = {prop.key: prop.value for prop in onnx.load(folder / "model.onnx").metadata_props}
    assert ExportMetadata.from_strings(props, subject="") == expected_metadata()
    extra = {"pgnas.json": ""}
    torch.export.load(folder / "model.pt2", extra_files=extra)
    fields = json.loads(extra["pgnas.json"])
    assert fields["class_names"] == list(expected_metadata().class_names)
    assert fields["preprocessing"] == METADATA.preprocessing
    assert fields["settings"] == METADATA.settings


def test_foreign_metadata_are_refused() -> None:
    with pytest.raises(FileError, match=r"x\.onnx must hold metadata of format"):
        ExportMetadata.from_strings({}, subject="x.onnx")
    with pytest.raises(FileError, match=r"x\.onnx must hold whole metadata"):
        ExportMetadata.from_strings({"format": "pgnas.export/1"}, subject="x.onnx")


def test_the_source_holds_class_names_and_preprocessing(exported: Path) -> None:
    path = exported / "pruned" / "model.py"
    names: dict[str, object] = {"__name__": "model", "__file__": str(path)}
    exec(path.read_text(encoding="utf-8"), names)
    assert names["CLASS_NAMES"] == list(METADATA.class_names)
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    mean, std = (torch.tensor(METADATA.preprocessing[key]).view(3, 1, 1) for key in ("mean", "std"))
    preprocess = names["preprocess"]
    assert callable(preprocess)
    torch.testing.assert_close(preprocess(images), (images / 255 - mean) / std)


def test_the_source_of_a_network_on_volumes_normalises_volumes() -> None:
    steps = {"channels": 2, "depth": 2, "height": 3, "width": 4, "mean": [0.5, 0.25], "std": [0.5, 0.125]}
    metadata = dataclasses.replace(METADATA, preprocessing=steps)
    network = fx.symbolic_trace(nn.Sequential(nn.Conv3d(2, 4, 1), nn.Flatten(), nn.Linear(96, 4)))
    names: dict[str, object] = {"__name__": "model", "__file__": "model.py"}
    exec(source_code(network, metadata=metadata), names)
    assert (names["CHANNELS"], names["DEPTH"], names["HEIGHT"], names["WIDTH"]) == (2, 2, 3, 4)
    volumes = torch.randint(0, 256, (3, 2, 2, 3, 4), dtype=torch.uint8)
    preprocess = names["preprocess"]
    assert callable(preprocess)
    mean, std = (torch.tensor(steps[key]).view(2, 1, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(preprocess(volumes), (volumes / 255 - mean) / std)


def test_onnx_is_one_file_with_a_named_batch(exported: Path) -> None:
    model = onnx.load(exported / "pruned" / "model.onnx", load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert not any(tensor.external_data for tensor in model.graph.initializer)
    images, logits = model.graph.input[0], model.graph.output[0]
    assert (images.name, logits.name) == ("images", "logits")
    assert images.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    assert [d.dim_param or d.dim_value for d in images.type.tensor_type.shape.dim] == ["batch", 3, 16, 16]
    assert [d.dim_param or d.dim_value for d in logits.type.tensor_type.shape.dim] == ["batch", 4]


@pytest.mark.parametrize("file", ["model.pt2", "model.onnx"])
def test_files_do_not_tell_where_they_were_made(exported: Path, file: str) -> None:
    data = (exported / "pruned" / file).read_bytes()
    for path in (str(Path(torch.__file__).parent), str(Path.home()), str(Path(__file__).parent)):
        assert path.encode() not in data or path == "/"


def test_the_module_is_not_changed(tmp_path: Path) -> None:
    module = pruned(lambda name, size: range(0, size, 2)).train()
    calls: list[int] = []
    module.register_forward_hook(lambda *_: calls.append(1))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    flags = [p.requires_grad for p in module.parameters()]
    example = torch.randn(1, 3, 16, 16)
    random_state = torch.get_rng_state()
    write_all(module, example, tmp_path)
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(layer.training for layer in module.modules())
    assert flags == [p.requires_grad for p in module.parameters()]
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    calls.clear()
    module.eval()(example)
    assert calls == [1]


def test_a_file_that_does_not_reproduce_the_network_is_not_written(tmp_path: Path) -> None:
    class Random(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.dropout(x.mean((2, 3)), 0.5, training=True)

    with pytest.raises(RunError, match=r"model\.pt2 must reproduce the network's output"):
        export_pt2(fx.symbolic_trace(Random()), torch.randn(2, 3, 4, 4), tmp_path / "model.pt2", METADATA)
    with pytest.raises(RunError, match=r"model\.py must reproduce the network's output"):
        export_source(fx.symbolic_trace(Random()), torch.randn(2, 3, 4, 4), tmp_path / "model.py", METADATA)
    assert not list(tmp_path.glob("*")) + list(tmp_path.glob(TEMPORARY_PREFIX + "*"))


def test_verify_compares(exported: Path) -> None:
    folder = exported / "joins"
    images, expected = torch.load(folder / "expected.pt")[2]
    for name in ("model.pt2", "model.onnx"):
        assert verify(folder / name, images, expected) <= 1e-4
        with pytest.raises(RunError, match="must reproduce"):
            verify(folder / name, images, expected * 1.01)
        with pytest.raises(RunError, match="must reproduce"):
            verify(folder / name, images, expected * float("nan"))
    for name in ("expected.pt", "model.py"):
        with pytest.raises(FileError, match=r"must be a \.pt2 or \.onnx"):
            verify(folder / name, images, expected)


def test_a_network_for_one_batch_size_is_refused(tmp_path: Path) -> None:
    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, -1)

    with pytest.raises(ModelError, match=r"exportable by torch\.export with a batch of any size"):
        export_pt2(Fixed(), torch.randn(2, 1, 2, 2), tmp_path / "model.pt2", METADATA)


def test_a_network_of_two_outputs_is_refused(tmp_path: Path) -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return x, x

    with pytest.raises(ModelError, match="must return one tensor"):
        export_onnx(Two(), torch.randn(2, 1, 2, 2), tmp_path / "model.onnx", METADATA)


def test_a_network_too_large_for_one_onnx_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pgnas.stages.exporting._ONNX_LIMIT", 100)
    with pytest.raises(ModelError, match="must be under 2 GB"):
        export_onnx(nn.Linear(100, 1), torch.randn(2, 100), tmp_path / "model.onnx", METADATA)


def test_tied_tensors_are_stored_apart(tmp_path: Path) -> None:
    module = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    module[1].weight = module[0].weight
    export_safetensors(module, tmp_path / "model.safetensors", METADATA)
    with safe_open(tmp_path / "model.safetensors", framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).load_state_dict(stored, strict=True)
