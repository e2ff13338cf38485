"""The paper's presets: complete, valid, and what the paper says."""

from __future__ import annotations

import pytest

from pgnas.config import RunConfig, field_names
from pgnas.config_file import make_config
from pgnas.errors import ConfigError
from pgnas.presets import PRESETS, changes, parse_scale, preset_named, scaled
from pgnas.stages.recipe import schedule_of
from pgnas.supernets import build_model

NEEDED = {"data": "digits", "out": "o"}


def config_of(name: str, share: float | None = None) -> RunConfig:
    values = PRESETS[name].values()
    return make_config(NEEDED, values if share is None else scaled(values, share))


def test_the_eight_experiments_have_names() -> None:
    names = "cifar10-M cifar10-MI cifar10-E cifar10-EI cifar100-MI imagenet-R50 imagenet-D121 video-D3D121"
    assert set(PRESETS) == {f"paper/{name}" for name in names.split()}
    with pytest.raises(ConfigError, match="did you mean paper/cifar10-M"):
        preset_named("paper/cifar10M", PRESETS)


@pytest.mark.parametrize(
    ("name", "epochs", "lr", "batch", "scale_sq", "candidates", "data_size"),
    [
        ("cifar10-M", 1800, 0.01, 128, 50, 1500, 5e5),
        ("cifar10-MI", 1800, 0.01, 128, 150, 1500, 5e5),
        ("cifar10-E", 630, 0.05, 72, 0.1, 1500, 5e5),
        ("cifar10-EI", 630, 0.05, 72, 0.1, 1500, 5e5),
        ("cifar100-MI", 1800, 0.01, 128, 2500, 5000, 5e5),
        ("imagenet-R50", 90, 0.1, 256, 80, 1500, 1.2e6),
        ("imagenet-D121", 180, 0.1, 300, 100, 1500, 1.2e6),
    ],
)
def test_the_printed_settings(name, epochs, lr, batch, scale_sq, candidates, data_size) -> None:  # type: ignore[no-untyped-def]
    config = config_of(f"paper/{name}")
    found = (config.epochs, config.lr, config.batch_size, config.length_scale_sq, config.candidates, config.data_size)
    assert found == (epochs, lr, batch, scale_sq, candidates, data_size)
    assert (config.temperature, config.initial_drop, config.granularity, config.prior_name) == (
        0.2,
        0.1,
        "group",
        "paper",
    )
    assert config.weight_decay == 0.0
    assert config.decision_share() is None
    assert config.cutout == (16 if "cifar" in name else None)


@pytest.mark.parametrize("name", PRESETS)
def test_every_value_has_a_source_and_video_owns_up_to_ours(name: str) -> None:
    settings = PRESETS[name].settings
    assert set(settings) <= set(field_names())
    assert {setting.source for setting in settings.values()} <= {"paper", "code", "ours"}
    if name == "paper/video-D3D121":
        unstated = {"length_scale_sq", "candidates", "epochs", "lr", "schedule", "milestones", "batch_size"}
        assert {key for key in unstated if settings[key].source != "ours"} == set()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("share", [0.01, 0.06, 0.5])
def test_a_shrunk_preset_is_smaller_and_valid_and_its_rate_has_the_same_shape(name: str, share: float) -> None:
    full, small = config_of(name), config_of(name, share)
    assert small.epochs is not None
    assert full.epochs is not None
    assert 2 <= small.epochs < full.epochs
    assert 16 <= small.candidates < full.candidates
    assert small.data_size is None
    # both with 100 steps for an n-th of the run: the same rates
    steps = 20 * full.epochs
    rates = [schedule_of(config, steps, steps / config.epochs) for config in (full, small)]
    for step in range(0, steps, 37):
        assert rates[1].at(step) == pytest.approx(rates[0].at(step), abs=2e-3 * full.lr)
    untouched = {"lr", "batch_size", "length_scale_sq", "temperature", "schedule", "exclude", "prior"}
    assert not untouched & {
        change.name for change in changes(PRESETS[name].values(), scaled(PRESETS[name].values(), share))
    }


@pytest.mark.parametrize("name", PRESETS)
def test_shrunk_networks_can_be_built_and_get_smaller(name: str) -> None:
    sizes = []
    for share in (0.01, 0.5):
        config = config_of(name, share)
        assert config.image_size is not None
        size = (config.image_size,) * 2
        built = build_model(
            config.model, in_channels=3, num_classes=10, image_size=(2, *size) if "video" in name else size, seed=0
        )
        sizes.append(sum(p.numel() for p in built.module.parameters()))
    assert sizes[0] < sizes[1]


@pytest.mark.parametrize("text", ["0%", "100%", "2", "half"])
def test_a_scale_is_a_share(text: str) -> None:
    with pytest.raises(ConfigError, match="--scale"):
        parse_scale(text)
