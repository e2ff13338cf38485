from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pgnas.data import Batches, Preprocessing, Split, VolumeAugmentation, load_data
from pgnas.data.resizing import resized

RNG = np.random.default_rng(0)
CUBES = RNG.integers(0, 2, (40, 6, 6, 6), dtype=np.uint8)
LABELS = np.arange(40) % 2


@pytest.fixture
def load(tmp_path):
    def of(options=None, *, spec="{}", **arrays):
        np.savez(tmp_path / "set.npz", **arrays)
        return load_data(spec.format(tmp_path / "set.npz"), **(options or {}))

    return of


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def volumes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator())


def test_layouts_of_volumes_agree(load):
    data = load(x_train=CUBES, y_train=LABELS)
    assert data.train.shape == data.preprocessing.shape == (1, 6, 6, 6)
    assert data.preprocessing.size == (6, 6, 6)
    for same in (CUBES[:, None], CUBES > 0, CUBES.astype(np.float32), CUBES.astype(np.int64)):
        assert load(x_train=same, y_train=LABELS).fingerprint == data.fingerprint
    assert data.train.images.unique().tolist() == [0, 255]
    levels = load(x_train=CUBES * 2, y_train=LABELS)
    assert levels.train.images.unique().tolist() == [0, 2]


def test_volumes_with_colour_and_unequal_sides(load):
    data = load(x_train=volumes(40, 3, 4, 5, 6).numpy(), y_train=LABELS)
    assert data.train.shape == (3, 4, 5, 6)
    assert Preprocessing.from_dict(data.preprocessing.to_dict()) == data.preprocessing


def test_what_could_be_volumes_but_was_read_as_images_is_noted(load):
    (note,) = [n for n in load(x_train=volumes(40, 5, 6, 6).numpy(), y_train=LABELS).notes if "channels" in n]
    assert "images of 5 channels" in note
    assert not [n for n in load(x_train=volumes(40, 4, 6, 6).numpy(), y_train=LABELS).notes if "channels" in n]


def test_the_test_volumes_are_scaled_as_the_training_volumes(load, complaint):
    data = load(x_train=CUBES, y_train=LABELS, x_test=CUBES[:4], y_test=LABELS[:4])
    assert torch.equal(data.test.images[:, 0], torch.from_numpy(CUBES[:4]) * 255)
    assert "0..1" in complaint(lambda: load(x_train=CUBES, y_train=LABELS, x_test=CUBES * 9, y_test=LABELS))


def test_classes_name_the_labels(load, complaint):
    names = np.array(["chair", "sofa", "table"])
    assert load(x_train=CUBES, y_train=LABELS, classes=names).class_names == ("chair", "sofa")
    assert load(x_train=CUBES, y_train=LABELS + 1, classes=names).class_names == ("sofa", "table")
    assert "classes" in complaint(lambda: load(x_train=CUBES, y_train=LABELS + 2, classes=names))
    assert "classes" in complaint(lambda: load(x_train=CUBES, y_train=LABELS, classes=np.arange(3)))
    assert "differ" in complaint(lambda: load(x_train=CUBES, y_train=LABELS, classes=np.array(["a", "a"])))


def test_volumes_that_show_nothing_are_left_out_and_noted(load):
    cubes = CUBES.copy()
    cubes[3], cubes[8] = 0, 1
    data = load(x_train=cubes, y_train=LABELS, x_test=cubes[3:6], y_test=LABELS[3:6])
    assert len(data.train) + len(data.select) + len(data.estimate) == 38
    assert len(data.test) == 2
    assert [note.split(" left")[0] for note in data.notes] == ["2 training volumes", "1 test volumes"]


@pytest.mark.parametrize(
    "shape",
    [(40, 6, 6, 6, 3), (40, 0, 6, 6, 6), (40, 2, 2, 2, 2, 2), (40, 6, 5, 6)],
    ids=["channels last", "empty", "six axes", "neither images nor cubes"],
)
def test_other_layouts_are_refused(load, complaint, shape):
    complaint(lambda: load(x_train=np.zeros(shape, dtype=np.uint8), y_train=LABELS))


def test_augmentation_of_volumes_follows_the_settings(load):
    wide = volumes(40, 1, 32, 32, 32).numpy()
    auto = load(x_train=wide, y_train=LABELS)
    assert auto.augmentation == VolumeAugmentation(turn=True, shift=2)
    assert load({"augment": "off"}, x_train=CUBES, y_train=LABELS).augmentation.is_identity
    assert load({"augment": "on"}, x_train=CUBES, y_train=LABELS).augmentation == VolumeAugmentation(True, True, 0)
    assert load(spec="npz:{}:up=D", x_train=CUBES, y_train=LABELS).augmentation == VolumeAugmentation(turn=True, up=0)


def test_options_that_mean_nothing_are_refused(load, complaint):
    arrays = {"x_train": CUBES, "y_train": LABELS}
    for spec, word in (
        ("npz:{}:up=north", "one of D, H, W"),
        ("npz:{}:size=3", "'size'"),
        ("npz:{}x", "exists"),
        ("digits:{}", "after digits"),
        ("npz:", "exists"),
        ("npz", "npz:PATH"),
    ):
        assert word in complaint(lambda spec=spec: load(spec=spec, **arrays))
    images = {"x_train": CUBES[..., 0], "y_train": LABELS}
    assert "volumes" in complaint(lambda: load(spec="npz:{}:up=D", **images))


@pytest.mark.parametrize("up", [0, 1, 2])
def test_a_turn_is_about_the_vertical_and_moves_no_slice_of_it(up):
    given = volumes(32, 2, 4, 4, 4)
    turned = VolumeAugmentation(turn=True, up=up)(given, generator=generator())
    plane = [2 + axis for axis in range(3) if axis != up]
    by = [torch.rot90(given, k, plane) for k in range(4)]
    which = torch.stack([(turned == other).flatten(1).all(1) for other in by])
    assert which.sum(0).tolist() == [1] * 32
    assert which.any(1).all()  # every quarter turn occurs


def test_where_sides_differ_turns_are_half_turns():
    given = volumes(32, 1, 3, 5, 4)
    turned = VolumeAugmentation(turn=True)(given, generator=generator())
    same, half = ((turned == other).flatten(1).all(1) for other in (given, torch.rot90(given, 2, (2, 3))))
    assert (same ^ half).all()
    assert half.any()
    assert same.any()


def test_a_shift_moves_all_voxels_alike_and_brings_in_zeros():
    given = torch.zeros(64, 1, 7, 7, 7, dtype=torch.uint8)
    given[:, :, 3, 3, 3] = 9
    shifted = VolumeAugmentation(shift=2)(given, generator=generator())
    where = shifted.nonzero()
    assert where[:, 0].tolist() == list(range(64))
    moved = where[:, 2:] - 3
    assert moved.amin(0).tolist() == [-2, -2, -2]
    assert moved.amax(0).tolist() == [2, 2, 2]
    assert len({tuple(row) for row in moved.tolist()}) > 20
    edge = VolumeAugmentation(shift=2)(torch.full((8, 1, 4, 4, 4), 7, dtype=torch.uint8), generator=generator())
    assert set(edge.unique().tolist()) == {0, 7}


def test_ranks_see_what_one_process_sees():
    split = Split(volumes(20, 1, 5, 5, 5), torch.arange(20))
    options = {"augmentation": VolumeAugmentation(True, True, 1), "shuffle": True}
    shape = Preprocessing.of(split.images)
    before = split.images.clone()
    whole = list(Batches(split, shape, 6, **options))
    for rank in range(2):
        for (x, y), (part, labels) in zip(
            whole, Batches(split, shape, 6, rank=rank, world_size=2, **options), strict=True
        ):
            assert torch.equal(x[rank::2], part)
            assert torch.equal(y[rank::2], labels)
    assert torch.equal(split.images, before)


def test_mean_and_std_of_volumes():
    images = volumes(30, 2, 4, 5, 6)
    scaled = images.double() / 255
    found = Preprocessing.of(images)
    assert found.mean == pytest.approx(scaled.mean((0, 2, 3, 4)).tolist(), abs=1e-12)
    normal = found.normalise(images)
    torch.testing.assert_close(normal.mean((0, 2, 3, 4)), torch.zeros(2), atol=1e-5, rtol=0)
    torch.testing.assert_close(normal.std((0, 2, 3, 4), correction=0), torch.ones(2))


def test_resizing_takes_the_centre_cube():
    given = torch.zeros(2, 1, 6, 4, 8, dtype=torch.uint8)
    given[:, :, 1:5, :, 2:6] = 100  # the centre cube; outside it stays 0
    assert resized(given, 2).eq(100).all()
    assert resized(given, 4).eq(100).all()
    assert resized(given, 9).eq(100).all()
    boxes = volumes(3, 1, 4, 4, 4)
    means = boxes.double().unfold(2, 2, 2).unfold(3, 2, 2).unfold(4, 2, 2).mean((5, 6, 7))
    assert (resized(boxes, 2).double() - means).abs().max() <= 0.5


def test_volumes_are_no_images_and_images_no_volumes(complaint):
    shape = Preprocessing.of(volumes(4, 1, 4, 4, 4))
    complaint(lambda: shape.normalise(volumes(4, 1, 4, 4)))
    images = Split(volumes(4, 1, 4, 4), torch.arange(4))
    complaint(
        lambda: list(Batches(images, Preprocessing.of(images.images), 2, augmentation=VolumeAugmentation(turn=True)))
    )
    complaint(lambda: VolumeAugmentation(shift=-1))
    complaint(lambda: VolumeAugmentation(up=3))


def test_modelnet10_as_it_is():
    home = os.environ.get("PGNAS_DATA")
    path = Path(home or "") / "modelnet10_voxels32.npz"
    if not home or not path.is_file():
        pytest.skip("set PGNAS_DATA to a folder with modelnet10_voxels32.npz")
    data = load_data(str(path), image_size=16)
    assert len(data.train) + len(data.select) + len(data.estimate) == 3964
    assert len(data.test) == 901
    assert data.train.shape == (1, 16, 16, 16)
    assert data.class_names[2] == "chair"
