from __future__ import annotations

import os
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from pgnas.data import Augmentation, inspection, load_data
from pgnas.data.decoding import decode_images


def load(path, **options):
    return load_data(str(path), **options)


def pixels_of(path) -> torch.Tensor:
    with Image.open(path) as image:
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def test_images_of_one_size_stay_as_they_are(folder, tmp_path):
    data = load(folder(tmp_path))
    assert data.class_names == ("cat", "dog")
    assert data.train.images.shape[1:] == (3, 8, 10)
    assert [len(split) for split in (data.train, data.select, data.estimate, data.test)] == [12, 2, 2, 4]
    assert data.augmentation == Augmentation(crop=1, flip=True)
    seen = torch.cat([split.images for split in (data.train, data.select, data.estimate, data.test)])
    labels = torch.cat([split.labels for split in (data.train, data.select, data.estimate, data.test)])
    for label, name in enumerate(data.class_names):
        for path in (tmp_path / name).iterdir():
            match = (seen == pixels_of(path)).flatten(1).all(1)
            assert labels[match].tolist() == [label]


def test_splits_do_not_depend_on_the_order_of_the_file_system(folder, tmp_path, monkeypatch):
    first = load(folder(tmp_path)).fingerprint
    scandir = os.scandir

    class Backwards:
        def __init__(self, path):
            with scandir(path) as entries:
                self.entries = reversed(sorted(entries, key=lambda entry: entry.name))

        def __enter__(self):
            return self.entries

        def __exit__(self, *_):
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    assert load(tmp_path).fingerprint == first


@pytest.mark.parametrize(
    ("train", "test"), [("train", "test"), ("Training", "Testing"), ("train", "val"), ("train", "valid")]
)
def test_a_split_of_its_own(folder, tmp_path, train, test):
    folder(tmp_path / train)
    folder(tmp_path / test, ("dog",), 2)
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.test.labels.tolist() == [1, 1]
    assert torch.equal(data.test.images[0], pixels_of(tmp_path / test / "dog" / "000.png"))
    assert len(data.train) == 16
    assert data.notes == ()
    assert data.test.images.untyped_storage().nbytes() == data.test.images.numel()


@pytest.mark.parametrize("kind", ["folder:{}:stream=off", "folder:{}:stream=on"])
def test_val_beside_test_is_validation_in_two_halves(folder, tmp_path, kind, complaint):
    for name, count in (("train", 10), ("test", 1), ("val", 3), ("extra", 3)):
        folder(tmp_path / name, count=count)
    data = load_data(kind.format(tmp_path))
    assert [len(split) for split in (data.train, data.select, data.estimate, data.test)] == [20, 3, 3, 2]
    assert data.select.labels.tolist() != data.estimate.labels.tolist()  # an odd image goes to the halves in turn
    found = torch.cat([data.select.head(3), data.estimate.head(3)])
    for path in (tmp_path / "val").rglob("*.png"):
        assert (found == pixels_of(path)).flatten(1).all(1).sum() == 1
    assert data.notes[0].startswith("folder extra/ ignored")
    folder(tmp_path / "val", ("cow",), 1)
    assert "validation classes" in complaint(lambda: load_data(kind.format(tmp_path)))


def test_a_train_folder_alone_gives_up_a_test_split(folder, tmp_path):
    folder(tmp_path / "train")
    assert len(load(tmp_path).test) == 4


def test_train_and_valid_may_be_classes(folder, tmp_path):
    assert load(folder(tmp_path, ("invalid", "valid", "train"))).class_names == ("invalid", "train", "valid")


def test_a_class_may_have_sub_folders(folder, image, tmp_path):
    folder(tmp_path)
    image(tmp_path / "cat" / "more" / "x.png")
    data = load(tmp_path)
    assert sum(map(len, (data.train, data.select, data.estimate, data.test))) == 21


def test_other_files_are_ignored_and_counted(folder, image, tmp_path):
    folder(tmp_path)
    for name in ("README.md", "cat/Thumbs.db", "cat/.hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    image(tmp_path / ".cache" / "x.png")
    (tmp_path / "empty").mkdir()
    data = load(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert "folder empty/ ignored: no images in it" in data.notes
    assert "4 files ignored: hidden, not images, or in no class folder" in data.notes


def test_links_never_lead_in_circles(folder, tmp_path):
    folder(tmp_path / "real")
    root = tmp_path / "root"
    root.mkdir()
    (root / "cat").symlink_to(tmp_path / "real" / "cat")
    (root / "dog").symlink_to(tmp_path / "real" / "dog")
    (root / "up").symlink_to(root)
    (root / "out").symlink_to(tmp_path)
    (root / "self").symlink_to(root / "self")
    (tmp_path / "real" / "cat" / "again").symlink_to(tmp_path / "real")
    data = load(root)
    assert data.class_names == ("cat", "dog")
    assert sum(map(len, (data.train, data.select, data.estimate, data.test))) == 20
    assert sum("ignored" in note for note in data.notes) == 4


@pytest.mark.parametrize(("modes", "channels"), [(("L", "1", "LA", "I;16"), 1), (("L", "RGB"), 3), (("RGBA", "P"), 3)])
def test_grey_stays_one_channel_and_all_else_is_rgb(folder, tmp_path, modes, channels):
    for mode in modes:
        folder(tmp_path, (f"class {mode[0]}{len(mode)}", "other"), mode=mode)
    assert load(tmp_path).train.images.shape[1] == channels


def test_sixteen_bits_become_eight(tmp_path):
    wide = np.arange(0, 65536, 257, dtype=np.uint16).reshape(16, 16)
    Image.fromarray(wide).save(tmp_path / "x.png")
    decoded = decode_images(str(tmp_path), ["x.png"], None)
    assert torch.equal(decoded.images.flatten(), torch.arange(256, dtype=torch.uint8))


def test_a_transparent_palette_is_decoded_without_a_warning(tmp_path):
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 10, 20, 30])
    image.save(tmp_path / "x.png", transparency=bytes([0, 128]))
    decoded = decode_images(str(tmp_path), ["x.png"], None)
    assert decoded.images[0, :, 0, 0].tolist() == [10, 20, 30]


def test_mixed_sizes_become_224(folder, image, tmp_path):
    folder(tmp_path)
    image(tmp_path / "cat" / "x.png", size=(9, 9))
    data = load(tmp_path)
    assert data.train.images.shape[1:] == (3, 224, 224)
    assert any("of 2 sizes" in note for note in data.notes)


def test_resizing_takes_the_centre_square_with_antialiasing(tmp_path):
    stripes = np.zeros((64, 128), dtype=np.uint8)
    stripes[:, 32:96:2] = 200  # the centre square; outside it stays black
    Image.fromarray(stripes).save(tmp_path / "x.png")
    images = decode_images(str(tmp_path), ["x.png"], 8).images
    assert images.shape == (1, 1, 8, 8)
    assert (images.float() - 100).abs().max() < 20  # without antialiasing: 0 or 200


def spoil(path, kind: str) -> None:
    whole = path.read_bytes()
    path.unlink()
    if kind == "empty":
        path.touch()
    elif kind == "truncated":
        path.write_bytes(whole[: len(whole) // 2])
    elif kind == "text":
        path.write_text("not an image")
    elif kind == "postscript":
        path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n")
    elif kind == "pipe":
        os.mkfifo(path)
    elif kind == "lost link":
        path.symlink_to("nowhere")
    elif kind == "link to itself":
        path.symlink_to(path)
    elif kind == "float":
        Image.fromarray(np.zeros((8, 10), dtype=np.float32)).save(path, format="TIFF")


KINDS = ["empty", "truncated", "text", "postscript", "pipe", "lost link", "link to itself", "float"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [10, 50])
def test_a_broken_image_is_named_or_left_out(folder, tmp_path, complaint, kind, count):
    folder(tmp_path, count=count, size=(4, 4))
    whole = load(tmp_path)
    spoil(tmp_path / "dog" / "007.png", kind)
    for spec in (tmp_path, f"folder:{tmp_path}", f"folder:{tmp_path}:broken=refuse"):
        message = complaint(lambda spec=spec: load(spec))
        assert f"got 1 of {2 * count}: dog/007.png (" in message
        assert message.endswith("or leave them out: folder:PATH:broken=skip")
    data = load(f"folder:{tmp_path}:broken=skip")
    assert sum(map(len, (data.train, data.select, data.estimate, data.test))) == 2 * count - 1
    assert data.fingerprint != whole.fingerprint
    assert data.preprocessing.channels == 3
    assert any("1 image skipped" in note and "dog/007.png" in note for note in data.notes)


def test_left_out_images_are_left_out_of_their_own_split(folder, tmp_path):
    folder(tmp_path / "train")
    folder(tmp_path / "test", count=3)
    for path in (tmp_path / "train" / "cat" / "004.png", tmp_path / "test" / "dog" / "001.png"):
        spoil(path, "truncated")
    data = load(f"folder:{tmp_path}:broken=skip")
    assert data.test.labels.tolist() == [0, 0, 0, 1, 1]
    assert torch.equal(data.test.images[4], pixels_of(tmp_path / "test" / "dog" / "002.png"))
    assert sum(map(len, (data.train, data.select, data.estimate))) == 19
    assert any("2 images skipped" in note for note in data.notes)


@pytest.mark.parametrize("kind", ["empty", "truncated"])
def test_images_that_are_all_broken_are_no_data(folder, tmp_path, complaint, kind):
    folder(tmp_path)
    for path in tmp_path.glob("*/*.png"):
        spoil(path, kind)
    assert "must hold readable images" in complaint(lambda: load(f"folder:{tmp_path}:broken=skip"))


def test_a_huge_image_is_broken(folder, image, tmp_path, complaint, monkeypatch):
    folder(tmp_path, count=50, size=(4, 4))
    image(tmp_path / "dog" / "huge.png", size=(15, 10))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    filters = list(warnings.filters)
    assert "huge.png (more than 100 pixels)" in complaint(lambda: load(tmp_path))
    notes = load(f"folder:{tmp_path}:broken=skip").notes
    assert any("huge.png (more than 100 pixels)" in note for note in notes)
    image(tmp_path / "dog" / "huger.png", size=(30, 30))
    assert "huger.png (more than 100 pixels)" in complaint(lambda: load(tmp_path))
    assert warnings.filters == filters


def test_more_than_one_task_of_images(folder, tmp_path, monkeypatch):
    folder(tmp_path, count=50, size=(4, 4))
    whole = load(tmp_path)
    monkeypatch.setattr(inspection, "_CHUNK", 7)
    assert load(tmp_path).fingerprint == whole.fingerprint


def test_folders_that_are_no_data_set(folder, image, tmp_path, complaint):
    assert "class folders" in complaint(lambda: load(tmp_path))  # empty
    image(tmp_path / "flat" / "x.png")
    assert "class folders" in complaint(lambda: load(tmp_path / "flat"))
    folder(tmp_path / "one", ("cat",))
    assert "only 'cat'" in complaint(lambda: load(tmp_path / "one"))
    folder(tmp_path / "small", count=3)
    assert "class 'cat' needs at least 4 images" in complaint(lambda: load(tmp_path / "small"))
    folder(tmp_path / "untrained" / "test")
    assert "train" in complaint(lambda: load(tmp_path / "untrained"))
    folder(tmp_path / "unlabelled", ("train", "test"))
    assert "no class folders" in complaint(lambda: load(tmp_path / "unlabelled"))


def test_the_test_split_must_fit_the_training_split(folder, tmp_path, complaint):
    folder(tmp_path / "train")
    (tmp_path / "test" / "cat").mkdir(parents=True)
    assert "without images" in complaint(lambda: load(tmp_path))
    folder(tmp_path / "test", ("cow",), 1)
    assert "'cow'" in complaint(lambda: load(tmp_path))


def test_a_folder_that_may_not_be_read_is_named(folder, tmp_path, complaint, monkeypatch):
    folder(tmp_path)

    def denied(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", denied)
    assert "Permission denied" in complaint(lambda: load(tmp_path))


def test_names_that_are_no_unicode_can_be_printed(folder, tmp_path):
    strange = os.fsdecode(b"d\xf6g")
    try:
        folder(tmp_path, ("cat", strange))
    except OSError:
        pytest.skip("this file system wants Unicode names")
    assert load(tmp_path).class_names[1].encode() == "d\ufffdg".encode()
