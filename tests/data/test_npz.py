from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from pgnas.data import Augmentation, load_data

RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (40, 6, 7, 3), dtype=np.uint8)
LABELS = np.arange(40) % 2


@pytest.fixture
def load(tmp_path):
    def of(options=None, **arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return load_data(str(tmp_path / "set.npz"), **(options or {}))

    return of


def every(data) -> torch.Tensor:
    """All images, in an order of their own."""
    images = torch.cat([split.images for split in (data.train, data.select, data.estimate, data.test)])
    return images[np.lexsort(images.flatten(1).T.numpy())]


def test_layouts_and_number_types_agree(load):
    last = load(x_train=RGB, y_train=LABELS)
    assert last.train.images.shape[1:] == (3, 6, 7)
    assert last.augmentation == Augmentation(crop=1, flip=True)
    for same in (
        RGB.transpose(0, 3, 1, 2),
        np.asfortranarray(RGB),
        RGB.astype(np.int32),
        RGB.astype(">u2"),
        RGB / 255,
        (RGB / 255).astype(np.float32),
    ):
        assert load(x_train=same, y_train=LABELS).fingerprint == last.fingerprint


def test_grey_images(load):
    grey = RGB[..., 0]
    data = load(x_train=grey, y_train=LABELS)
    assert data.train.images.shape[1:] == (1, 6, 7)
    assert data.augmentation == Augmentation(crop=1)
    assert load({"augment": "on"}, x_train=grey, y_train=LABELS).augmentation == Augmentation(1, True, 3)
    assert load(x_train=grey[:, None], y_train=LABELS).fingerprint == data.fingerprint
    assert load(x_train=grey > 127, y_train=LABELS).train.images.unique().tolist() == [0, 255]


def test_a_test_split_of_its_own_is_the_test_split(load):
    data = load(x_train=RGB, y_train=LABELS[:, None], x_test=RGB[:5], y_test=LABELS[:5])
    assert torch.equal(data.test.images, torch.from_numpy(RGB[:5]).permute(0, 3, 1, 2))
    assert len(data.train) == 36
    cut = load(x_train=RGB, y_train=LABELS)
    assert torch.equal(
        every(cut), torch.from_numpy(RGB).permute(0, 3, 1, 2)[np.lexsort(RGB.transpose(0, 3, 1, 2).reshape(40, -1).T)]
    )
    assert any("no test split" in note for note in cut.notes)


def test_classes_are_the_sorted_labels_of_train(load):
    assert load(x_train=RGB, y_train=np.where(LABELS, 10, 9)).class_names == ("9", "10")
    names = np.where(LABELS, "cat", "dog")
    data = load(x_train=RGB, y_train=names, x_test=RGB[:2], y_test=names[:2])
    assert data.class_names == ("cat", "dog")
    assert data.test.labels.tolist() == [1, 0]


def test_images_are_resized(load):
    assert load({"image_size": 5}, x_train=RGB, y_train=LABELS).train.images.shape[1:] == (3, 5, 5)


BAD = {
    "no y": {"x_train": RGB},
    "no y_test": {"x_train": RGB, "y_train": LABELS, "x_test": RGB},
    "other names": {"x": RGB, "y": LABELS},
    "too few labels": {"x_train": RGB, "y_train": LABELS[:-1]},
    "one class": {"x_train": RGB, "y_train": LABELS * 0},
    "no images": {"x_train": RGB[:0], "y_train": LABELS[:0]},
    "one-hot": {"x_train": RGB, "y_train": np.eye(2)[LABELS]},
    "float labels": {"x_train": RGB, "y_train": LABELS / 2},
    "negative labels": {"x_train": RGB, "y_train": LABELS - 1},
    "unknown test label": {"x_train": RGB, "y_train": LABELS, "x_test": RGB, "y_test": LABELS + 1},
    "test of another shape": {"x_train": RGB, "y_train": LABELS, "x_test": RGB[:, 1:], "y_test": LABELS},
    "test of another number type": {"x_train": RGB, "y_train": LABELS, "x_test": RGB / 255, "y_test": LABELS},
    "test of truth values": {"x_train": RGB, "y_train": LABELS, "x_test": RGB > 9, "y_test": LABELS},
    "empty test": {"x_train": RGB, "y_train": LABELS, "x_test": RGB[:0], "y_test": LABELS[:0]},
    "flat images": {"x_train": RGB.reshape(40, -1), "y_train": LABELS},
    "channels unclear": {"x_train": RGB[:, :3], "y_train": LABELS},
    "floats beyond 1": {"x_train": RGB.astype(np.float32), "y_train": LABELS},
    "NaN": {"x_train": np.full(RGB.shape, np.nan), "y_train": LABELS},
    "integers beyond 255": {"x_train": RGB.astype(np.int64) * 2, "y_train": LABELS},
    "complex": {"x_train": RGB.astype(complex), "y_train": LABELS},
    "strings": {"x_train": RGB.astype(str), "y_train": LABELS},
    "class too small": {"x_train": RGB, "y_train": np.arange(40) // 39},
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arrays_are_refused(load, complaint, name):
    complaint(lambda: load(**BAD[name]))


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


def test_pickle_is_never_executed(load, complaint, tmp_path):
    objects = np.array([Bomb()] * 40, dtype=object)
    assert "pickle" in complaint(lambda: load(x_train=RGB, y_train=objects))
    assert "pickle" in complaint(lambda: load(x_train=objects, y_train=LABELS))
    (tmp_path / "pickle.npz").write_bytes(pickle.dumps(Bomb()))
    complaint(lambda: load_data(str(tmp_path / "pickle.npz")))


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_files_are_refused(complaint, tmp_path, compressed):
    path = tmp_path / "set.npz"
    (np.savez_compressed if compressed else np.savez)(path, x_train=RGB, y_train=LABELS)
    whole = path.read_bytes()
    for damaged in (b"", b"nonsense", whole[: len(whole) // 2], whole[:900] + bytes(200) + whole[1100:]):
        path.write_bytes(damaged)
        complaint(lambda: load_data(str(path)))


def test_an_array_that_promises_more_than_memory_is_not_read(complaint, tmp_path, monkeypatch):
    from pgnas.data import memory

    np.savez_compressed(tmp_path / "set.npz", x_train=np.zeros((40, 300, 300)), y_train=LABELS)
    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    assert "memory" in complaint(lambda: load_data(str(tmp_path / "set.npz")))
