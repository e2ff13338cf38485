from __future__ import annotations

import logging
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pgnas.data import Augmentation, Batches, ResizedCrop, Split, StreamedSplit, fetching, load_data, memory, pipelines
from pgnas.data.packed import PackedPaths
from pgnas.errors import RunError

CROPS = ResizedCrop(least_area=0.3, cutout=4)


@pytest.fixture
def mixed(folder, tmp_path):
    """Two classes of ten images each, of two sizes."""
    folder(tmp_path / "set", ("cat",), size=(24, 20))
    return folder(tmp_path / "set", ("dog",), size=(20, 30))


def load(path, options="stream=on", **settings):
    return load_data(f"folder:{path}:{options}", **{"image_size": 16, **settings})


def every_one(path) -> StreamedSplit:
    """All 20 images of ``mixed``, numbered by their labels."""
    train = load(path).train
    return replace(train, examples=torch.arange(20), labels=torch.arange(20))


def batches(split, size=6, **options) -> Batches:
    return Batches(split, split.measured(), size, **{"workers": 0, **options})


def drawn(iterable, epoch=0, first_step=0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    iterable.set_epoch(epoch, first_step=first_step)
    return list(iterable)


def assert_equal(left, right):
    for (x, y), (x_too, y_too) in zip(left, right, strict=True):
        assert torch.equal(x, x_too)
        assert torch.equal(y, y_too)


def test_what_does_not_fit_in_memory_stays_on_disk(mixed, monkeypatch):
    assert isinstance(load_data(str(mixed), image_size=16).train, Split)
    monkeypatch.setattr(memory, "available_memory", lambda: 20_000)
    data = load_data(str(mixed), image_size=16)
    for split in (data.train, data.select, data.estimate, data.test):
        assert isinstance(split, StreamedSplit)
        assert sum(len(y) for _, y in batches(split)) == len(split)
    assert any("read from disk" in note for note in data.notes)
    assert data.fingerprint == load(mixed).fingerprint
    assert isinstance(load(mixed, "stream=off", image_size=4).train, Split)


def test_splits_are_those_of_images_in_memory_and_disjoint(mixed):
    streamed, in_memory = load(mixed), load(mixed, "stream=off")
    parts = [(getattr(streamed, name), getattr(in_memory, name)) for name in ("train", "select", "estimate", "test")]
    for on_disk, kept in parts:
        assert torch.equal(on_disk.labels, kept.labels)
    assert sorted(i for split, _ in parts for i in split.examples.tolist()) == list(range(20))
    assert streamed.class_names == in_memory.class_names == ("cat", "dog")


def test_the_number_of_workers_changes_nothing(mixed):
    split = every_one(mixed)
    options = {"augmentation": CROPS, "shuffle": True, "seed": 3, "drop_last": True}
    alone = drawn(batches(split, workers=0, **options), epoch=1)
    for workers in (1, 3):
        assert_equal(alone, drawn(batches(split, workers=workers, **options), epoch=1))


def test_a_run_resumed_within_an_epoch_draws_what_it_would_have_drawn(mixed):
    split = every_one(mixed)
    options = {"augmentation": CROPS, "shuffle": True}
    whole = drawn(batches(split, **options), epoch=2)
    assert_equal(whole[2:], drawn(batches(split, **options), epoch=2, first_step=2))


def test_what_becomes_of_an_example_does_not_depend_on_its_batch(mixed):
    split = every_one(mixed)
    one = {int(y): x for x, y in drawn(batches(split, 1, augmentation=CROPS, shuffle=True), epoch=1)}
    for x, y in drawn(batches(split, 7, augmentation=CROPS), epoch=1):
        for image, label in zip(x, y.tolist(), strict=True):
            assert torch.equal(image, one[label][0])


@pytest.mark.parametrize("drop_last", [False, True])
def test_an_epoch_has_every_example_once_and_ranks_partition_it(mixed, drop_last):
    split = every_one(mixed)
    options = {"augmentation": CROPS, "shuffle": True, "drop_last": drop_last}
    whole = drawn(batches(split, **options))
    seen = [label for _, y in whole for label in y.tolist()]
    assert len(set(seen)) == len(seen) == (18 if drop_last else 20)
    for rank in range(3):
        assert_equal(
            [(x[rank::3], y[rank::3]) for x, y in whole], drawn(batches(split, rank=rank, world_size=3, **options))
        )


def test_epochs_seeds_and_examples_differ(mixed):
    split = every_one(mixed)
    same = replace(split, examples=torch.zeros(8, dtype=torch.int64), labels=torch.arange(8))
    first = torch.cat([x for x, _ in drawn(batches(split, 20, augmentation=CROPS))])
    assert not torch.equal(first, drawn(batches(split, 20, augmentation=CROPS), epoch=1)[0][0])
    assert not torch.equal(first, drawn(batches(split, 20, augmentation=CROPS, seed=1))[0][0])
    ((x, _),) = drawn(batches(same, 8))
    assert all(torch.equal(image, x[0]) for image in x)  # without augmentation


def test_half_the_examples_are_mirrored_and_crops_stay_inside(tmp_path):
    ramp = np.tile(np.linspace(50, 200, 40).astype(np.uint8), (40, 1))
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(40):
            Image.fromarray(ramp).save(tmp_path / name / f"{i}.png")
    data = load(tmp_path)
    assert data.train.shape == (1, 16, 16)
    plain = [x for x, _ in Batches(data.train, data.preprocessing, 64, augmentation=data.augmentation, workers=0)]
    x = torch.cat(plain)
    slopes = x[..., -1].mean((1, 2)) - x[..., 0].mean((1, 2))
    assert 0.25 < (slopes < 0).float().mean() < 0.75
    assert slopes.abs().unique().numel() > 10  # parts of many sizes
    lowest, highest = data.preprocessing.normalise(
        torch.tensor([50, 200], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 1, 16, 16)
    )
    assert x.min() >= lowest.min()
    assert x.max() <= highest.max()


def test_neither_generators_nor_filters_of_warnings_change(mixed):
    import warnings

    split, state, filters = every_one(mixed), torch.get_rng_state(), list(warnings.filters)
    for workers in (0, 2):
        drawn(batches(split, augmentation=CROPS, shuffle=True, workers=workers))
        assert torch.equal(torch.get_rng_state(), state)
        assert warnings.filters == filters


def test_evaluation_is_that_of_torchvision(mixed):
    from torchvision import transforms

    train = load(mixed, image_size=14).train
    standard = transforms.Compose([transforms.Resize(16), transforms.CenterCrop(14), transforms.PILToTensor()])
    for example, image in zip(train.examples, train.head(len(train)), strict=True):
        with Image.open(train.files.chosen(int(example), None)[0]) as stored:
            assert (standard(stored).int() - image.int()).abs().max() <= 1


def test_images_stored_in_the_size_wanted_are_evaluated_as_they_are(folder, tmp_path):
    folder(tmp_path, size=(11, 9))
    streamed, in_memory = (load(tmp_path, f"stream={stream}", image_size=None) for stream in ("on", "off"))
    assert torch.equal(streamed.train.head(12), in_memory.train.images)
    assert streamed.preprocessing == in_memory.preprocessing  # fewer than 1,024 images: all of them
    ((x, _),) = Batches(streamed.train, streamed.preprocessing, 12, augmentation=streamed.augmentation, workers=0)
    assert x.shape == (12, 3, 9, 11)


def test_pixels_come_with_channels_last(mixed):
    for x, _ in batches(every_one(mixed), augmentation=CROPS):
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_settings_of_augmentation(mixed):
    assert load(mixed).augmentation == ResizedCrop(flip=True)
    assert load(mixed, augment="on").augmentation == ResizedCrop(flip=True, cutout=8)
    assert load(mixed, augment="off").augmentation.is_identity


def test_a_hole_is_nearly_zero_after_normalisation(mixed):
    split = every_one(mixed)
    ((x, _),) = drawn(batches(split, 20, augmentation=ResizedCrop(cutout=64)))
    assert x.abs().max() <= 0.51 / 255 / min(split.measured().std)  # the mean, rounded to eight bits


def test_kinds_of_augmentation_do_not_mix(mixed, complaint):
    complaint(lambda: drawn(batches(every_one(mixed), augmentation=Augmentation(crop=1))))
    kept = load(mixed, "stream=off").train
    complaint(lambda: drawn(batches(kept, augmentation=ResizedCrop())))
    complaint(lambda: ResizedCrop(least_area=0))


def test_grey_images_may_be_widened(folder, tmp_path):
    grey = load(folder(tmp_path, mode="L")).train
    wide = grey.widened(3)
    assert grey.shape == (1, 16, 16)
    assert wide.shape == (3, 16, 16)
    assert torch.equal(wide.head(5), grey.head(5).expand(-1, 3, -1, -1))


def test_held_out_examples_that_fit_are_decoded_once(mixed, monkeypatch):
    data = load(mixed)
    monkeypatch.setenv(fetching.WORKERS, "0")
    first = drawn(Batches(data.select, data.preprocessing, 2))
    assert_equal(first, drawn(Batches(replace(data.select, often=False), data.preprocessing, 2)))
    monkeypatch.setattr(pipelines, "open_image", lambda path, mode: pytest.fail("decoded again"))
    assert_equal(first, drawn(Batches(data.select, data.preprocessing, 2)))


def test_memory_is_bounded_by_the_batch(tmp_path, monkeypatch):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for i in range(30):
            Image.new("RGB", (256, 256), (i, 2 * i, 3 * i)).save(tmp_path / name / f"{i}.png")
    monkeypatch.setattr(memory, "available_memory", lambda: 2**20)
    monkeypatch.setenv(fetching.WORKERS, "0")
    data = load_data(str(tmp_path))
    iterable = Batches(data.train, data.preprocessing, 4, augmentation=data.augmentation, shuffle=True)
    image = 3 * 256 * 256
    tracemalloc.start()
    seen = sum(len(y) for _, y in iterable)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seen == 44
    assert 4 * image <= peak < 12 * image


def test_the_fingerprint_notices_names_labels_and_contents(mixed):
    first = load(mixed).fingerprint
    assert load(mixed).fingerprint == first != load(mixed, data_seed=1).fingerprint
    Image.new("RGB", (24, 20)).save(mixed / "cat" / "000.png")
    changed = load(mixed).fingerprint
    (mixed / "cat" / "000.png").rename(mixed / "cat" / "0000.png")
    assert len({first, changed, load(mixed).fingerprint}) == 3


def cut_short(path) -> None:
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) - len(whole) // 3])


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "gif", "bmp", "tif", "ppm"])
def test_a_truncated_image_is_found_before_the_work_begins(mixed, complaint, suffix):
    bad = mixed / "cat" / f"bad.{suffix}"
    with Image.open(mixed / "cat" / "007.png") as image:
        image.copy().save(bad)
    assert len(load(mixed).train)
    cut_short(bad)
    message = complaint(lambda: load(mixed))
    assert f"cat/bad.{suffix}" in message
    assert "broken=skip" in message
    data = load(mixed, "stream=on,broken=skip")
    assert sum(len(split) for split in (data.train, data.select, data.estimate, data.test)) == 20
    assert any("1 image skipped" in note and bad.name in note for note in data.notes)


def test_bytes_after_the_end_of_an_image_are_no_damage(mixed, image):
    with Image.open(mixed / "cat" / "007.png") as stored:
        stored.copy().save(mixed / "cat" / "x.jpg")
    with (mixed / "cat" / "x.jpg").open("ab") as file:
        file.write(b"trailing bytes")
    assert any("21 images" in note for note in load(mixed).notes)


@pytest.mark.parametrize("workers", [0, 2])
def test_an_image_that_breaks_later_is_named_or_left_out(mixed, complaint, caplog, workers):
    data = {skip: load(mixed, f"stream=on,broken={skip}") for skip in ("refuse", "skip")}
    bad = data["skip"].train.files.chosen(int(data["skip"].train.examples[3]), None)[0]
    cut_short(type(mixed)(bad))
    shape = data["skip"].preprocessing
    message = complaint(lambda: list(Batches(data["refuse"].train, shape, 5, workers=workers)))
    assert bad in message
    with caplog.at_level(logging.WARNING):
        seen = list(Batches(data["skip"].train, shape, 5, workers=workers))
    assert [len(y) for _, y in seen] == [4, 5, 2]
    assert bad in caplog.text
    labels = data["skip"].train.labels
    assert torch.equal(torch.cat([y for _, y in seen]), torch.cat([labels[:3], labels[4:]]))


def test_a_held_out_image_that_only_decoding_finds_broken_is_left_out_for_good(mixed, caplog):
    before = load(mixed, "stream=on,broken=skip")
    bad = before.select.files.chosen(int(before.select.examples[0]), None)[0]
    whole = Path(bad).read_bytes()
    middle = whole.index(b"IDAT") + 20  # the header and the end are as they were
    Path(bad).write_bytes(whole[:middle] + bytes([whole[middle] ^ 0xFF]) + whole[middle + 1 :])
    with caplog.at_level(logging.WARNING):
        data = load(mixed, "stream=on,broken=skip")
    assert bad in caplog.text
    assert len(data.select) == len(before.select) - 1
    assert torch.equal(data.select.labels, before.select.labels[1:])
    seen = list(Batches(data.select.take(torch.arange(len(data.select))), data.preprocessing, 2))
    often = list(Batches(data.select, data.preprocessing, 2))
    assert torch.equal(torch.cat([x for x, _ in seen]), torch.cat([x for x, _ in often]))
    assert torch.equal(torch.cat([y for _, y in often]), data.select.labels)


class Dies(fetching.Fetch):
    def __getitems__(self, wanted):
        os._exit(1)


def test_a_worker_that_dies_is_one_clear_error(mixed, monkeypatch):
    split = every_one(mixed)
    iterable = batches(split, workers=1)
    monkeypatch.setattr("pgnas.data.streaming.Fetch", Dies)
    with pytest.raises(RunError, match="PGNAS_WORKERS"):
        drawn(iterable)


def test_the_number_of_workers(monkeypatch, complaint):
    monkeypatch.delenv(fetching.WORKERS, raising=False)
    monkeypatch.setattr(fetching, "_processors", lambda: 12)
    assert fetching.default_workers() == 8
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert fetching.default_workers() == 3
    monkeypatch.setenv(fetching.WORKERS, "0")
    assert fetching.default_workers() == 0
    monkeypatch.setenv(fetching.WORKERS, "many")
    assert fetching.WORKERS in complaint(fetching.default_workers)


def test_an_abandoned_epoch_leaves_no_worker(mixed):
    import gc
    import multiprocessing

    gc.collect()  # what a failed pass of another test left in its error
    iterator = iter(batches(every_one(mixed), 2, workers=2))
    next(iterator)
    assert len(multiprocessing.active_children()) == 2
    iterator.close()
    assert not multiprocessing.active_children()


def test_packed_paths_are_the_paths():
    paths = ["", "cat/1.png", "ö", os.fsdecode(b"d\xf6g"), "x" * 300]
    packed = PackedPaths(paths)
    assert [packed[i] for i in range(len(packed))] == paths
    with pytest.raises(IndexError):
        packed[5]
