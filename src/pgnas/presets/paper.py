"""The settings of the paper's experiments (Zhou et al., AAAI 2020), each with where it comes from."""

from __future__ import annotations

from collections.abc import Mapping

from pgnas.presets.preset import Preset, Setting
from pgnas.supernets import PAPER_SUPERNETS

Settings = Mapping[str, Setting]

_METHOD: Settings = {
    "streams": Setting("off", "paper", "gates at the inputs of layers alone"),
    "granularity": Setting("group", "paper", "one logit for each convolution and kernel size, and for each source"),
    "prior": Setting("paper", "paper", "Eq. 15 with c = l^2, as in the code"),
    "temperature": Setting(0.2, "paper", "the code on CIFAR has 2/3"),
    "initial_drop": Setting(0.1, "paper", "the code on CIFAR has 0.5"),
    "weight_decay": Setting(0.0, "code", "the prior's weight term is in its place"),
    "decide_at": Setting("never", "paper", "Algorithm 1: drawn and ranked once training is over"),
    "recalibrate": Setting("off", "paper", "candidates have the supernet's BatchNorm statistics"),
    "logit_lr": Setting(0.003, "ours", "Adam; the code trains logits like weights"),
    "warmup": Setting(0.0, "ours", "the paper mentions none"),
    "gate_inputs": Setting(False, "code", "the code on ImageNet; that on CIFAR gates the image too"),
}
_CIFAR: Settings = {
    "image_size": Setting(32, "paper", "as they are"),
    "augment": Setting("on", "paper", "random crop, flip and cutout"),
    "cutout": Setting(16, "paper"),
    "data_size": Setting(5e5, "paper", "ten times the images, for their augmentation"),
}
_COSINE: Settings = {
    "epochs": Setting(1800, "paper"),
    "batch_size": Setting(128, "paper"),
    "lr": Setting(0.01, "paper"),
    "schedule": Setting("cosine", "paper"),
}
_RESTARTS: Settings = {
    "epochs": Setting(630, "paper", "10 + 20 + 40 + 80 + 160 + 320: six whole cosines"),
    "batch_size": Setting(72, "code"),
    "lr": Setting(0.05, "paper"),
    "lr_floor": Setting(1e-4, "paper"),
    "schedule": Setting("sgdr", "paper", "the code changes the rate once an epoch, we at every step"),
    "restart_epochs": Setting(10.0, "paper"),
    "restart_growth": Setting(2.0, "paper"),
    "auxiliary_weight": Setting(0.4, "code"),
}
_IMAGENET: Settings = {
    "image_size": Setting(224, "ours", "as torchvision trains these networks"),
    "augment": Setting("auto", "ours", "random resized crop and flip, as torchvision trains these networks"),
    "data_size": Setting(1.2e6, "paper"),
    "lr": Setting(0.1, "paper"),
    "schedule": Setting("multistep", "paper"),
}


def _preset(supernet: str, name: str, data: str, length_scale_sq: float, *parts: Settings) -> Preset:
    paper = PAPER_SUPERNETS[supernet]
    own: dict[str, Setting] = {
        "model": Setting(paper.model, "paper", "docs/paper.md compares its parameters with the printed ones"),
        "exclude": Setting(paper.ungated, "code", "beside the layers that read the image"),
        "length_scale_sq": Setting(length_scale_sq, "paper"),
        "candidates": Setting(1500, "paper"),
    }
    merged = {**own, **_METHOD}
    for part in parts:
        merged.update(part)
    return Preset(f"paper/{name}", f"SupNet-{supernet} on {data}", merged, data)


def _data(name: str) -> Settings:
    return {"data": Setting(name, "paper")}


def _milestones(*epochs: float) -> Settings:
    return {"milestones": Setting(epochs, "paper")}


def _length(epochs: int, batch_size: int) -> Settings:
    return {"epochs": Setting(epochs, "paper"), "batch_size": Setting(batch_size, "paper")}


_CIFAR_100: Settings = {**_data("cifar100"), "candidates": Setting(5000, "paper")}
_VIDEO: Settings = {
    "length_scale_sq": Setting(100.0, "ours", "as SupNet-D-121; the paper gives none for video"),
    "candidates": Setting(1500, "ours", "the paper gives none for video"),
    "image_size": Setting(224, "ours", "the paper has 32 frames: --data clips:FOLDER:frames=32"),
    "augment": Setting("auto", "ours"),
    "epochs": Setting(50, "ours", "the paper starts from ImageNet's weights: --weights, see inflate_weights"),
    "batch_size": Setting(64, "ours"),
    "lr": Setting(0.01, "ours"),
    "schedule": Setting("multistep", "ours"),
    "milestones": Setting((25.0, 40.0), "ours"),
}

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        _preset("M", "cifar10-M", "CIFAR-10", 50.0, _CIFAR, _COSINE, _data("cifar10")),
        _preset("MI", "cifar10-MI", "CIFAR-10", 150.0, _CIFAR, _COSINE, _data("cifar10")),
        _preset("E", "cifar10-E", "CIFAR-10", 0.1, _CIFAR, _RESTARTS, _data("cifar10")),
        _preset("EI", "cifar10-EI", "CIFAR-10", 0.1, _CIFAR, _RESTARTS, _data("cifar10")),
        _preset("MI", "cifar100-MI", "CIFAR-100", 2500.0, _CIFAR, _COSINE, _CIFAR_100),
        _preset("R-50", "imagenet-R50", "ImageNet", 80.0, _IMAGENET, _length(90, 256), _milestones(30.0, 60.0)),
        _preset(
            "D-121", "imagenet-D121", "ImageNet", 100.0, _IMAGENET, _length(180, 300), _milestones(90.0, 140.0, 160.0)
        ),
        _preset("D3D-121", "video-D3D121", "clips (Something-Something v1)", 100.0, _VIDEO),
    )
}
"""By name. Data that has to be got by hand is not named in them: ImageNet presets and the video one need ``--data``."""
