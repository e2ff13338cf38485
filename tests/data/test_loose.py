"""Loose images become what the data set made of the same files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from pgnas.data import Preprocessing, evaluates_a_crop, image_files, load_data, read_images
from pgnas.errors import DataError


@pytest.fixture
def folder(tmp_path):
    """Two classes of photographs of mixed sizes."""
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(8):
            pixels = rng.integers(0, 255, (20 + number, 30 - number, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{number}.png")
    return tmp_path


@pytest.mark.parametrize("stream", ["on", "off"])
def test_an_image_is_read_as_the_run_evaluates_it(folder, stream):
    data = load_data(f"folder:{folder}:stream={stream}", image_size=16)
    assert evaluates_a_crop(data.test) == (stream == "on")
    files = image_files([folder])
    found = read_images(files, data.preprocessing, cropped=evaluates_a_crop(data.test))
    wanted = data.train.head(len(data.train))
    rows = {image.numpy().tobytes() for image in found}
    assert {image.contiguous().numpy().tobytes() for image in wanted} <= rows
    assert len(rows) == len(files) == 16


def test_a_grey_network_reads_colours_as_grey(folder):
    grey = Preprocessing(1, 8, 8, (0.5,), (0.5,))
    assert read_images(image_files([folder / "a"]), grey).shape == (8, 1, 8, 8)


def test_files_come_as_named_and_folders_sorted(folder):
    one = str(folder / "b" / "3.png")
    assert image_files([one, folder / "a"]) == [one, *(str(folder / "a" / f"{i}.png") for i in range(8))]


def test_hidden_files_of_a_folder_are_left_out(folder):
    (folder / "a" / "._0.png").write_bytes(b"what a Mac leaves behind")
    (folder / ".thumbnails").mkdir()
    (folder / ".thumbnails" / "0.png").write_bytes(b"no image")
    assert len(image_files([folder])) == 16


def test_an_image_of_the_networks_aspect_ratio_is_read_whole(tmp_path):
    pixels = np.zeros((24, 32, 3), dtype=np.uint8)
    pixels[:, :4], pixels[:, -4:] = 255, 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    Image.fromarray(np.pad(pixels, ((8, 8), (0, 0), (0, 0)))).save(tmp_path / "high.png")
    for name in ("wide", "high"):  # of the second the bars above and below are cut off
        (found,) = read_images([str(tmp_path / f"{name}.png")], Preprocessing(3, 12, 16, (0.5,) * 3, (0.5,) * 3))
        assert found.shape == (3, 12, 16)
        assert (found[:, 1:-1, [0, -1]] > 200).all()
        assert (found[:, :, 4:-4] == 0).all()


def test_volumes_are_not_read_from_images(folder):
    with pytest.raises(DataError, match="volumes or clips"):
        read_images(image_files([folder]), Preprocessing(1, 8, 8, (0.5,), (0.5,), depth=8))


def test_what_is_broken_beyond_its_header_is_found(folder):
    path = folder / "a" / "0.png"
    path.write_bytes(path.read_bytes()[:-400])
    for cropped in (False, True):
        with pytest.raises(DataError, match=r"1 of 16: .*0\.png"):
            read_images(image_files([folder]), Preprocessing(3, 8, 8, (0.5,) * 3, (0.5,) * 3), cropped=cropped)
    assert torch.is_tensor(read_images([str(folder / "a" / "1.png")], Preprocessing(3, 8, 8, (0.5,) * 3, (0.5,) * 3)))


def test_a_network_of_other_channels_is_said_and_no_image_blamed(folder):
    with pytest.raises(DataError, match="4 channels wanted, files of images have 1 or 3"):
        read_images(image_files([folder]), Preprocessing(4, 8, 8, (0.5,) * 4, (0.5,) * 4))
