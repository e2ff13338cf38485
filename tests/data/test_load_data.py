from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from pgnas.data import Augmentation, load_data, memory, register, registered_sources, torchvision_sets


def test_digits():
    data = load_data("digits")
    assert (len(data.train) + len(data.select) + len(data.estimate) + len(data.test)) == 1797
    assert data.train.images.shape[1:] == (1, 8, 8)
    assert data.train.images.max() == 255
    assert data.class_names == tuple("0123456789")
    assert data.augmentation == Augmentation(crop=1)
    assert load_data("digits", augment="off").augmentation == Augmentation()
    assert load_data("digits", augment="on").augmentation == Augmentation(crop=1, cutout=4)
    assert load_data("digits", image_size=12).train.images.shape[1:] == (1, 12, 12)


def test_the_data_seed_alone_decides_the_splits():
    torch.manual_seed(1)
    first = load_data("digits")
    torch.manual_seed(2)
    np.random.seed(2)
    assert load_data("digits").fingerprint == first.fingerprint != load_data("digits", data_seed=1).fingerprint


def test_each_named_source_has_one_line(complaint):
    sources = registered_sources()
    assert {"digits", "cifar10", "cifar100", "fashion-mnist"} <= {source.name for source in sources}
    assert all(source.description and "\n" not in source.description for source in sources)
    with pytest.raises(ValueError, match="registered already"):
        register("digits", "again")(lambda image_size: None)


@pytest.mark.parametrize("spec", ["cifar-10", "CIFAR10", "cifr10"])
def test_a_misspelt_name_is_recognised(complaint, spec):
    assert "did you mean 'cifar10'?" in complaint(lambda: load_data(spec))


@pytest.mark.parametrize(
    "spec", ["", "nonsense", "./nowhere", "no/where", "gone.npz", "a\0b", "~/no-such-folder", "x" * 9999]
)
def test_what_is_neither_name_nor_path_is_refused(complaint, spec):
    complaint(lambda: load_data(spec))


OPTIONS = {
    "{}:broken=skip": "must name the kind of data before a path with options, got '{}'; write folder:{}:broken=skip",
    "{}:stream=on:broken=skip": "got '{}'; write folder:{}:stream=on,broken=skip",
    "folder:{}:stream=on:broken=skip": "must have commas between its options, got ':stream=on:broken=skip'; "
    "write folder:{}:stream=on,broken=skip",
    "folder:{}:stream=on,broken=skip:frames=2": "write folder:{}:stream=on,broken=skip,frames=2",
    "folder:{}/nowhere:stream=on:broken=skip": "must name a path that exists, got '{}/nowhere:stream=on'; "
    "write folder:PATH:option=value",
}


@pytest.mark.parametrize("spec", OPTIONS)
def test_options_that_are_written_wrongly_are_written_right(complaint, tmp_path, monkeypatch, spec):
    (tmp_path / "im=gs: 1").mkdir()
    monkeypatch.chdir(tmp_path)
    for path in ("im=gs: 1", "~/im=gs: 1"):
        monkeypatch.setenv("HOME", str(tmp_path))
        message = complaint(lambda path=path: load_data(spec.replace("{}", path)))
        shown = OPTIONS[spec].replace("'{}/nowhere", f"'{os.path.expanduser(path)}/nowhere")
        assert message.endswith(shown.replace("{}", path))


def test_options_of_a_file_of_arrays_name_its_kind(complaint, tmp_path):
    (tmp_path / "a.npz").touch()
    message = complaint(lambda: load_data(f"{tmp_path}/a.npz:up=H"))
    assert message.endswith(f"write npz:{tmp_path}/a.npz:up=H")


def test_a_path_that_looks_like_options_is_a_path(complaint, tmp_path):
    (tmp_path / "a:stream=on").mkdir()
    for spec in (f"{tmp_path}/a:stream=on", f"folder:{tmp_path}/a:stream=on:broken=skip"):
        assert "class folders" in complaint(lambda spec=spec: load_data(spec))


def test_a_file_of_another_kind_is_refused(complaint, tmp_path):
    (tmp_path / "data.tar").write_bytes(b"x")
    assert "unpack" in complaint(lambda: load_data(str(tmp_path / "data.tar")))


@pytest.mark.parametrize("size", [0, -1, 10_000])
def test_an_impossible_size_is_refused(complaint, size):
    assert "--image-size" in complaint(lambda: load_data("digits", image_size=size))


def test_what_does_not_fit_in_memory_is_refused_before_it_is_read(complaint, monkeypatch):
    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    assert "smaller --image-size" in complaint(lambda: load_data("digits", image_size=64))
    assert len(load_data("digits").train)


def test_available_memory_is_known_here():
    assert memory.available_memory() is None or memory.available_memory() > 2**20


class FakeVision:
    """Stands in for torchvision's CIFAR-10: (N, H, W, C) numpy images and a list of labels."""

    classes = ("cat", "dog")

    def __init__(self, *, root: str, train: bool, download: bool) -> None:
        assert download
        assert Path(root).is_dir()
        self.data = np.full((20, 6, 6, 3), 9 if train else 1, dtype=np.uint8)
        self.targets = [0, 1] * 10


class FakeGrey(FakeVision):
    """Likewise Fashion-MNIST: tensors."""

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.data, self.targets = torch.from_numpy(self.data[..., 0]), torch.tensor(self.targets)


def test_sets_of_torchvision_are_kept_in_the_cache(monkeypatch, tmp_path):
    fakes = SimpleNamespace(CIFAR10=FakeVision, FashionMNIST=FakeGrey)
    monkeypatch.setattr(torchvision_sets, "import_module", lambda name: fakes)
    monkeypatch.setenv("PGNAS_HOME", str(tmp_path))
    data = load_data("cifar10", image_size=8)
    assert (tmp_path / "data").is_dir()
    assert data.train.images.shape == (16, 3, 8, 8)
    assert data.test.images.eq(1).all()
    assert len(data.test) == 20
    assert data.augmentation == Augmentation(crop=1, flip=True)
    assert load_data("fashion-mnist").train.images.shape == (16, 1, 6, 6)


def test_a_failed_download_is_one_line(monkeypatch, tmp_path, complaint):
    def offline(**options):
        raise OSError("network\nunreachable")

    monkeypatch.setattr(torchvision_sets, "import_module", lambda name: SimpleNamespace(CIFAR100=offline))
    monkeypatch.setenv("PGNAS_HOME", str(tmp_path))
    assert "network unreachable" in complaint(lambda: load_data("cifar100"))


def test_the_cache_is_at_home_by_default(monkeypatch):
    monkeypatch.delenv("PGNAS_HOME", raising=False)
    assert torchvision_sets.cache_folder() == Path.home() / ".cache" / "pgnas" / "data"


def test_cifar10_as_an_image_folder(tmp_path):
    home = os.environ.get("PGNAS_DATA")
    if not home or not (Path(home) / "cifar10.tar").is_file():
        pytest.skip("set PGNAS_DATA to a folder with cifar10.tar")
    import tarfile

    kept = {f"{i:04}.webp" for i in range(40)}
    with tarfile.open(Path(home) / "cifar10.tar") as archive:
        members = [member for member in archive if Path(member.name).name in kept]
        archive.extractall(tmp_path, members=members, filter="data")
    data = load_data(str(tmp_path / "cifar10"))
    assert data.train.images.shape == (360, 3, 32, 32)
    assert len(data.test) == 400
    assert len(data.select) == len(data.estimate) == 20
    assert data.preprocessing.mean == pytest.approx((0.4914, 0.4822, 0.4465), abs=0.06)
