from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from pgnas.data import Batches, ResizedCrop, load_data


def write_clip(folder, frames: int, seed: int, *, size=(12, 10)) -> None:
    """Frame i is as bright as its number, 10 (i + 1), with some noise in its blue."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    for i in range(frames):
        pixels = np.full((size[1], size[0], 3), 10 * (i + 1), dtype=np.uint8)
        pixels[..., 2] = rng.integers(0, 256, size[::-1])
        Image.fromarray(pixels).save(folder / f"frame_{i + 1}.png")


def write_clips(root, lengths=(4, 12), count=6):
    for name, frames in zip(("left", "right"), lengths, strict=True):
        for i in range(count):
            write_clip(root / name / f"clip {i}", frames, 100 * frames + i)
    return root


def load(path, options="frames=4", **settings):
    return load_data(f"clips:{path}:{options}", **settings)


def shown(clip: torch.Tensor) -> list[int]:
    """Which frames these are."""
    return [round(value / 10) - 1 for value in clip[0].float().mean((1, 2)).tolist()]


def test_a_clip_is_channels_frames_rows_columns(tmp_path):
    data = load(write_clips(tmp_path))
    assert data.train.shape == data.preprocessing.shape == (3, 4, 10, 12)
    assert data.class_names == ("left", "right")
    assert sum(len(split) for split in (data.train, data.select, data.estimate, data.test)) == 12
    ((x, y),) = Batches(data.train, data.preprocessing, 20, augmentation=data.augmentation, workers=0)
    assert x.shape == (6, 3, 4, 10, 12)
    assert torch.equal(y, data.train.labels)
    assert load(tmp_path, "frames=1").train.shape == (3, 1, 10, 12)
    assert load_data(f"clips:{tmp_path}").train.shape == (3, 16, 10, 12)


def test_evaluation_takes_the_middle_of_each_segment_in_the_order_of_numbers(tmp_path):
    data = load(write_clips(tmp_path))
    for clip, label in zip(data.train.head(len(data.train)), data.train.labels, strict=True):
        assert shown(clip) == ([1, 4, 7, 10] if label else [0, 1, 2, 3])
    short = load(tmp_path, "frames=8").train
    assert shown(short.head(1)[0]) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_training_takes_any_frame_of_each_segment(tmp_path):
    data = load(write_clips(tmp_path, lengths=(8, 8)), "frames=2", augment="auto")
    iterable = Batches(data.train, data.preprocessing, 20, augmentation=data.augmentation, workers=0)
    mean, std = (torch.tensor(part).view(3, 1, 1, 1) for part in (data.preprocessing.mean, data.preprocessing.std))
    seen = set()
    for epoch in range(12):
        iterable.set_epoch(epoch)
        for x, _ in iterable:
            mean, std = (
                torch.tensor(part).view(3, 1, 1, 1) for part in (data.preprocessing.mean, data.preprocessing.std)
            )
            for clip in (x * std + mean) * 255:
                first, second = shown(clip)
                assert 0 <= first < 4 <= second < 8
                seen |= {first, second}
    assert seen == set(range(8))


def test_frames_of_a_clip_share_crop_mirror_and_hole(tmp_path):
    still = np.random.default_rng(0).integers(0, 256, (20, 24, 3), dtype=np.uint8)
    for name in ("left", "right"):
        for i in range(6):
            (tmp_path / name / str(i)).mkdir(parents=True)
            for frame in range(3):
                Image.fromarray(still).save(tmp_path / name / str(i) / f"{frame}.png")
    data = load(tmp_path, "frames=3", augment="on", image_size=12)
    assert data.augmentation == ResizedCrop(least_area=0.4, flip=True, cutout=6)
    ((x, _),) = Batches(data.train, data.preprocessing, 20, augmentation=data.augmentation, workers=0)
    assert torch.equal(x, x[:, :, :1].expand_as(x))
    assert not torch.equal(x[0], x[1])
    assert not load(tmp_path, "frames=3").augmentation.flip  # left is not right


def test_workers_change_nothing(tmp_path):
    data = load(write_clips(tmp_path), image_size=8)
    passes = [
        list(Batches(data.train, data.preprocessing, 4, augmentation=data.augmentation, shuffle=True, workers=workers))
        for workers in (0, 2)
    ]
    for (x, y), (x_too, y_too) in zip(*passes, strict=True):
        assert torch.equal(x, x_too)
        assert torch.equal(y, y_too)


def test_splits_of_its_own(tmp_path):
    write_clips(tmp_path / "train")
    write_clips(tmp_path / "val", count=1)
    data = load(tmp_path)
    assert len(data.test) == 2
    assert len(data.train) + len(data.select) + len(data.estimate) == 12


def test_a_clip_with_a_broken_frame_is_refused_or_left_out(tmp_path, complaint):
    write_clips(tmp_path)
    (tmp_path / "left" / "clip 2" / "frame_3.png").write_bytes(b"no image")
    told = complaint(lambda: load(tmp_path))
    assert "clip 2/frame_3.png" in told
    assert "clips:PATH:broken=skip" in told
    data = load(tmp_path, "frames=4,broken=skip")
    assert sum(len(split) for split in (data.train, data.select, data.estimate, data.test)) == 11


def test_bad_clips_are_refused(tmp_path, complaint, folder):
    folder(tmp_path / "images")
    assert "a folder for each clip" in complaint(lambda: load(tmp_path / "images"))
    folder(tmp_path / "split" / "train")
    assert "a folder for each clip" in complaint(lambda: load(tmp_path / "split"))
    write_clips(tmp_path / "clips")
    for frames in ("0", "-1", "many", "9999", ""):
        assert "1..1024" in complaint(lambda frames=frames: load(tmp_path / "clips", f"frames={frames}"))
    Image.new("RGB", (5, 5)).save(tmp_path / "clips" / "left" / "clip 0" / "frame_1.png")
    assert "one size" in complaint(lambda: load(tmp_path / "clips"))
