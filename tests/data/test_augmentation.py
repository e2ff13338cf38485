from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pgnas.data import Augmentation


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def naive(images: torch.Tensor, augmentation: Augmentation, seed: int, fill: torch.Tensor | None) -> torch.Tensor:
    """Pixel by pixel, from the definition."""
    count, channels, height, width = images.shape
    draws = augmentation.draw(count, height, width, generator=generator(seed))
    out = torch.zeros_like(images)
    for n in range(count):
        top = int(draws.top[n]) - augmentation.crop if draws.top is not None else 0
        left = int(draws.left[n]) - augmentation.crop if draws.left is not None else 0
        for i in range(height):
            for j in range(width):
                column = width - 1 - j if draws.mirrored is not None and draws.mirrored[n] else j
                y, x = i + top, column + left
                if 0 <= y < height and 0 <= x < width:
                    out[n, :, i, j] = images[n, :, y, x]
                if draws.hole_row is not None and draws.hole_column is not None:
                    first_row = int(draws.hole_row[n]) - augmentation.cutout // 2
                    first_column = int(draws.hole_column[n]) - augmentation.cutout // 2
                    rows, columns = (range(start, start + augmentation.cutout) for start in (first_row, first_column))
                    if i in rows and j in columns:
                        out[n, :, i, j] = torch.zeros(channels) if fill is None else fill
    return out


@settings(max_examples=40, deadline=None)
@given(
    st.tuples(st.integers(0, 4), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)),
    st.builds(Augmentation, crop=st.integers(0, 3), flip=st.booleans(), cutout=st.integers(0, 4)),
    st.integers(0, 1000),
    st.booleans(),
    st.sampled_from([torch.uint8, torch.float32]),
)
def test_the_batch_is_the_same_as_image_by_image(shape, augmentation, seed, filled, dtype):
    images = torch.randint(1, 256, shape, generator=generator(seed)).to(dtype)
    before = images.clone()
    fill = torch.arange(100, 100 + shape[1]) if filled else None
    out = augmentation(images, generator=generator(seed), fill=fill)
    assert torch.equal(out, naive(images, augmentation, seed, fill))
    assert out.dtype == dtype
    assert torch.equal(images, before)
    assert out.numel() == 0 or out.data_ptr() != images.data_ptr()


def test_draws_are_uniform_over_what_they_may_be():
    draws = Augmentation(crop=1, flip=True, cutout=2).draw(6000, 4, 5, generator=generator())
    for part, size in (
        (draws.top, 3),
        (draws.left, 3),
        (draws.mirrored, 2),
        (draws.hole_row, 4),
        (draws.hole_column, 5),
    ):
        share = torch.bincount(part.long(), minlength=size) / 6000
        assert share.shape == (size,)
        assert (share - 1 / size).abs().max() < 0.04


def test_every_image_of_a_batch_has_its_own_noise():
    out = Augmentation(crop=2)(torch.arange(1, 65).view(1, 1, 8, 8).repeat(64, 1, 1, 1), generator=generator())
    assert len({tuple(image.flatten().tolist()) for image in out}) > 15


@pytest.mark.parametrize("field", ["crop", "cutout"])
def test_negative_pixels_are_refused(complaint, field):
    assert field in complaint(lambda: Augmentation(**{field: -1}))
