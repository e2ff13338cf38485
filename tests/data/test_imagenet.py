from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from PIL import Image

from pgnas.data import ResizedCrop, StreamedSplit, load_data
from pgnas.data import folder as folders


@pytest.fixture
def layout(folder, tmp_path):
    folder(tmp_path / "train", ("n01", "n02"))
    folder(tmp_path / "val", ("n01", "n02"), 3)
    return tmp_path


def test_val_is_test_and_validation_is_cut_from_train(layout):
    data = load_data(f"imagenet:{layout}", image_size=12)
    assert [len(split) for split in (data.train, data.select, data.estimate, data.test)] == [16, 2, 2, 6]
    assert isinstance(data.train, StreamedSplit)
    assert all("train/" in data.train.files.paths[i] for i in data.select.examples.tolist())
    assert all("val/" in data.train.files.paths[i] for i in data.test.examples.tolist())
    assert data.preprocessing.mean == (0.485, 0.456, 0.406)
    assert data.preprocessing.std == (0.229, 0.224, 0.225)
    assert data.augmentation == ResizedCrop(least_area=0.08, flip=True)


def test_224_pixels_and_three_channels_are_usual(layout):
    for path in layout.rglob("*.png"):
        with Image.open(path) as image:
            image.convert("L").save(path)
    assert load_data(f"imagenet:{layout}").train.shape == (3, 224, 224)


def test_archives_are_unpacked_by_torchvision(folder, tmp_path, monkeypatch, complaint):
    assert "ILSVRC2012_img_train.tar" in complaint(lambda: load_data(f"imagenet:{tmp_path}"))
    for name in folders._ARCHIVES:
        (tmp_path / name).touch()

    def broken(root, split):
        raise RuntimeError("The archive is not present or is corrupted")

    monkeypatch.setattr(folders, "import_module", lambda name: SimpleNamespace(ImageNet=broken))
    assert "corrupted" in complaint(lambda: load_data(f"imagenet:{tmp_path}"))

    def unpack(root, split):
        folder(tmp_path / split)

    monkeypatch.setattr(folders, "import_module", lambda name: SimpleNamespace(ImageNet=unpack))
    data = load_data(f"imagenet:{tmp_path}", image_size=8)
    assert len(data.test) == 20
    assert torch.equal(data.train.labels.bincount(), torch.tensor([8, 8]))


def test_bad_input_is_refused(layout, complaint, tmp_path):
    assert "exists" in complaint(lambda: load_data(f"imagenet:{tmp_path}/nowhere"))
    assert "imagenet:PATH" in complaint(lambda: load_data("imagenet"))
    assert "'sizes'" in complaint(lambda: load_data(f"imagenet:{layout}:sizes=3"))
    assert "skip, refuse" in complaint(lambda: load_data(f"imagenet:{layout}:broken=maybe"))
    (layout / "train" / "n01" / "000.png").write_bytes(b"")
    assert "n01/000.png (empty)" in complaint(lambda: load_data(f"imagenet:{layout}"))
