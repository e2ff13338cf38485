from __future__ import annotations

import json

import pytest
import torch

from pgnas.data import Preprocessing, Split
from pgnas.data.resizing import resized
from pgnas.data.splits import fingerprint_of


def random_images(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_mean_and_std_are_those_of_the_pixels():
    images = random_images(1500, 3, 4, 5)
    scaled = images.double() / 255
    found = Preprocessing.of(images)
    assert (found.channels, found.height, found.width) == (3, 4, 5)
    assert found.mean == pytest.approx(scaled.mean((0, 2, 3)).tolist(), abs=1e-12)
    assert found.std == pytest.approx(scaled.std((0, 2, 3), correction=0).tolist(), abs=1e-9)


def test_normalise_is_the_formula():
    images = random_images(6, 3, 4, 5)
    preprocessing = Preprocessing(3, 4, 5, (0.1, 0.5, 0.9), (0.2, 0.3, 0.4))
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in (preprocessing.mean, preprocessing.std))
    torch.testing.assert_close(preprocessing.normalise(images), (images / 255 - mean) / std)


def test_constant_images_stay_finite():
    images = torch.full((4, 1, 2, 2), 7, dtype=torch.uint8)
    assert torch.equal(Preprocessing.of(images).normalise(images).round(), torch.zeros(4, 1, 2, 2))


def test_preprocessing_survives_json(complaint):
    preprocessing = Preprocessing.of(random_images(4, 3, 2, 2))
    assert Preprocessing.from_dict(json.loads(json.dumps(preprocessing.to_dict()))) == preprocessing
    complaint(lambda: Preprocessing.from_dict({"channels": 3}))
    complaint(lambda: Preprocessing.from_dict({**preprocessing.to_dict(), "mean": [0.5]}))


def test_images_of_another_kind_are_refused(complaint):
    preprocessing = Preprocessing.of(random_images(4, 3, 2, 2))
    complaint(lambda: preprocessing.normalise(random_images(4, 1, 2, 2)))
    complaint(lambda: preprocessing.normalise(torch.zeros(4, 3, 2, 2)))
    complaint(lambda: Split(random_images(4, 3, 2, 2), torch.arange(3)))


def test_the_fingerprint_notices_every_image_label_and_name():
    split = Split(random_images(20, 3, 8, 8), torch.arange(20))
    first = fingerprint_of("ab", [split])
    assert first == fingerprint_of("ab", [Split(split.images.clone(), split.labels.clone())])
    assert first != fingerprint_of("ac", [split])
    for i in range(20):
        images = split.images.clone()
        images[i] = 255 - images[i]
        labels = split.labels.clone()
        labels[i] += 1
        assert first != fingerprint_of("ab", [Split(images, split.labels)])
        assert first != fingerprint_of("ab", [Split(split.images, labels)])


def test_resizing_takes_the_centre_square():
    images = torch.zeros(300, 1, 4, 10, dtype=torch.uint8)
    images[..., 3:7] = 200
    assert torch.equal(resized(images, 8), torch.full((300, 1, 8, 8), 200, dtype=torch.uint8))
    assert torch.equal(resized(images, 4), torch.full((300, 1, 4, 4), 200, dtype=torch.uint8))
    assert resized(images, None) is images
