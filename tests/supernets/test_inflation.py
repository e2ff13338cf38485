"""From a DenseNet for images to one for clips."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from pgnas.supernets import build_model, inflate_weights
from pgnas.supernets.densenet import DenseNet3d

SPEC = "growth=4,blocks=2-2,stem=7x7"


def networks() -> tuple[nn.Module, nn.Module]:
    images = build_model(f"densenet:{SPEC}", in_channels=3, num_classes=5, image_size=(16, 16), seed=0).module
    clips = build_model(f"densenet3d:{SPEC}", in_channels=3, num_classes=5, image_size=(3, 16, 16), seed=1).module
    with torch.no_grad():
        for name, tensor in images.state_dict().items():
            if "running_mean" in name or name.endswith("bias"):
                tensor.normal_()
    return images.double().eval(), clips.double().eval()


@torch.no_grad()
@pytest.mark.parametrize("old_names", [False, True])
def test_at_first_a_clip_is_the_mean_of_its_frames(old_names: bool) -> None:
    """Over time the identity, and the classifier is linear: a clip has the mean of its frames' logits."""
    images, clips = networks()
    weights: dict[str, Tensor] = images.state_dict()
    if old_names:  # as in torchvision's downloadable files
        weights = {re.sub(r"(layer\d+\.(?:norm|conv))([12])", r"\1.\2", name): t for name, t in weights.items()}
    clips.load_state_dict(inflate_weights(weights))
    x = torch.randn(2, 3, 5, 16, 16, dtype=torch.float64)
    frames = torch.stack([images(x[:, :, t]) for t in range(5)]).mean(0)
    assert torch.allclose(clips(x), frames, rtol=1e-10, atol=1e-12)


def test_what_lies_behind_a_frame_matters_once_time_is_trained() -> None:
    images, clips = networks()
    clips.load_state_dict(inflate_weights(images.state_dict()))
    x = torch.randn(1, 3, 4, 16, 16, dtype=torch.float64)
    clips(x).sum().backward()
    time = [p.grad for name, p in clips.named_parameters() if ".time." in name]
    assert len(time) == 4
    assert all(grad is not None and grad[:, :, 0].abs().max() > 0 for grad in time)


def test_weights_are_carried_over_not_shared_with_the_network() -> None:
    images, _ = networks()
    before = {name: tensor.clone() for name, tensor in images.state_dict().items()}
    clips = DenseNet3d(images)
    with torch.no_grad():
        for tensor in (*clips.parameters(), *clips.buffers()):
            tensor.zero_()
    assert all(torch.equal(tensor, before[name]) for name, tensor in images.state_dict().items())
