from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgnas.amounts import Amount
from pgnas.config import RunConfig, field_names
from pgnas.config_file import format_settings, make_config, parse_settings, read_settings
from pgnas.errors import ConfigError

NEEDED = {"model": "m", "data": "d", "out": "o"}

texts = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
configs = st.builds(
    RunConfig,
    model=texts,
    data=texts,
    out=texts,
    weights=st.none() | texts,
    epochs=st.none() | st.integers(1, 1000),
    batch_size=st.integers(2, 4096),
    lr=st.floats(1e-9, 10) | st.integers(1, 10).map(float),
    granularity=st.sampled_from(["channel", "group", "product"]),
    max_macs=st.none() | st.sampled_from(["40%", "2M", "350k"]),
    decide_at=st.none() | st.sampled_from(["never", "25%"]),
    temperature=st.none() | st.floats(0.01, 10),
    baseline=st.lists(st.sampled_from(["full", "uniform"]), unique=True).map(tuple),
    exclude=st.lists(texts).map(tuple),
    gate_inputs=st.booleans(),
    warmup=st.none() | st.floats(0, 100),
    seed=st.integers(0, 2**32 - 1),
)


@given(configs)
def test_settings_survive_toml(config: RunConfig) -> None:
    assert make_config(parse_settings(format_settings(config), subject="config.toml")) == config


@given(configs)
def test_toml_leaves_out_what_is_unset(config: RunConfig) -> None:
    written = parse_settings(format_settings(config), subject="config.toml")
    assert set(written) == {name for name in field_names() if getattr(config, name) is not None}


@given(st.integers(1, 100), st.integers(1, 10**9))
def test_a_share_never_exceeds_the_whole(percent: int, full: int) -> None:
    count = Amount.parse(f"{percent}%", subject="--max-macs").of(full)
    assert full * percent / 100 - 1 < count <= full


@given(st.integers(1, 999), st.sampled_from(["", "k", "K", "M", "G"]))
def test_a_count_does_not_depend_on_the_network(number: int, unit: str) -> None:
    amount = Amount.parse(f"{number}{unit}", subject="--max-params")
    assert amount.of(1) == amount.of(10**9) == number * 1000 ** " kmg".index(unit.lower() or " ")


@pytest.mark.parametrize("text", ["", "0", "0.4", "0%", "101%", "-3", "40 percent", "nan", "1e6", "%"])
def test_other_amounts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="--max-macs"):
        RunConfig(**NEEDED, max_macs=text)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("epochs", 0),
        ("batch_size", 1),
        ("lr", 0.0),
        ("lr", math.nan),
        ("lr", math.inf),
        ("weight_decay", -1e-9),
        ("prior_drop", 1.0),
        ("initial_drop", 0.0),
        ("seed", -1),
        ("device", "gpu"),
        ("granularity", "layer"),
        ("baseline", ("full", "half")),
        ("prior", "gibbs"),  # without a cap
        ("decide_at", "100%"),
        ("decide_at", "5"),
        ("schedule", "step"),
        ("milestones", (3.0,)),  # without --schedule multistep
        ("lr_floor", 0.2),
        ("data_size", 0.0),
        ("restart_growth", 0.5),
        ("exclude", ("stem\udc80",)),  # bytes of a command line that are no UTF-8
    ],
)
def test_an_error_names_the_flag_and_the_remedy(setting: str, value: object) -> None:
    with pytest.raises(ConfigError) as caught:
        RunConfig(**NEEDED, **{setting: value})
    assert caught.value.subject.startswith("--" + setting.replace("_", "-"))
    assert caught.value.remedy


def test_a_cap_chooses_the_prior_and_the_decision() -> None:
    free, capped = RunConfig(**NEEDED), RunConfig(**NEEDED, max_macs="40%")
    assert (free.prior_name, free.decision_share()) == ("paper", None)
    assert (capped.prior_name, capped.decision_share()) == ("gibbs", 0.25)


@pytest.mark.parametrize("milestones", [(), (0.0, 3.0), (3.0, 3.0), (4.0, 3.0), (math.nan,)])
def test_milestones_must_grow(milestones: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="--milestones"):
        RunConfig(**NEEDED, schedule="multistep", milestones=milestones)


def test_whole_numbers_in_a_toml_list_become_numbers() -> None:
    text = 'schedule = "multistep"\nmilestones = [30, 60.5]\ngate_inputs = true'
    config = make_config(NEEDED, parse_settings(text, subject="config.toml"))
    assert (config.milestones, config.gate_inputs) == ((30.0, 60.5), True)
    assert all(type(value) is float for value in config.milestones)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig(**NEEDED).epochs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("epochs = ", "valid TOML"),
        ("epochs = 'many'", "epochs must be a whole number"),
        ("epochs = true", "epochs must be a whole number"),
        ("epochs = 3.5", "epochs must be a whole number"),
        ("lr = '0.1'", "lr must be a number"),
        ("model = 3", "model must be a string"),
        ("augment = true", "augment must be one of 'auto', 'on', 'off'"),
        ("baseline = 'full'", "baseline must be a list"),
        ("baseline = ['half']", "baseline must be a list"),
        ("epoch = 3", "did you mean epochs?"),
        ("max-macs = '40%'", "did you mean max_macs?"),
        ("gate_inputs = 1", "gate_inputs must be true or false"),
        ("milestones = ['a']", "milestones must be a list, each a number"),
        ("xyz = 1", "the settings are model, data, out"),
        ("[run]\nepochs = 3", "known settings only"),
    ],
)
def test_a_bad_toml_says_where_and_what(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        read_settings(path)
    assert words in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_or_binary_toml(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="readable file"):
        read_settings(tmp_path / "none.toml")
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        read_settings(tmp_path / "binary.toml")


def test_later_layers_win_and_required_settings_are_named() -> None:
    assert make_config(NEEDED, {"epochs": 3}, {"epochs": 4}).epochs == 4
    with pytest.raises(ConfigError, match="needs --model, --data"):
        make_config({"out": "o"})


@pytest.mark.parametrize("ranking", ["halving", "elimination"])
def test_races_go_by_accuracy(ranking: str) -> None:
    with pytest.raises(ConfigError, match="--rank-by"):
        RunConfig(**NEEDED, ranking=ranking, rank_by="loss")
    with pytest.raises(ConfigError, match="--rank-by"):
        RunConfig(**NEEDED, rank_by="size")


def test_a_later_layer_wins_over_what_it_cannot_stand_beside() -> None:
    preset = NEEDED | {"epochs": 600, "schedule": "multistep", "milestones": (30.0, 60.0)}
    assert make_config(preset, {"budget": "12"}).epochs is None
    assert make_config(preset, {"budget": "12"}, {"epochs": 5}).budget is None
    assert make_config(preset, {"schedule": "cosine"}).milestones == ()
    with pytest.raises(ConfigError, match="takes the place of --epochs"):
        make_config(preset, {"budget": "12", "epochs": 5})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("budget", 12, "12"), ("max_macs", 2_000, "2000"), ("seed", np.int64(3), 3), ("lr", np.float64(2), 2.0),
        ("lr", 1, 1.0), ("weights", Path("w.safetensors"), "w.safetensors"), ("exclude", "stem*, fc", ("stem*", "fc")),
        ("exclude", ["stem*"], ("stem*",)), ("baseline", "full", ("full",)), ("model", np.array(["a"])[0], "a"),
        ("data", Path("a/b"), "a/b"),
    ],
)  # fmt: skip
def test_python_code_may_write_what_means_the_same(name: str, value: object, expected: object) -> None:
    found = RunConfig(**(NEEDED | {name: value}))
    assert getattr(found, name) == expected
    assert type(getattr(found, name)) is type(expected)
    assert make_config(parse_settings(format_settings(found), subject="x")) == found


def test_milestones_as_whole_numbers_are_those_of_the_file() -> None:
    lists: list[Any] = [[30, 60], np.array([30, 60]), np.array([30.0, 60.0])]
    for milestones in lists:
        found = RunConfig(model="m", data="d", out="o", schedule="multistep", milestones=milestones)
        assert found.milestones == (30.0, 60.0)
        assert make_config(parse_settings(format_settings(found), subject="x")) == found


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("epochs", "5", "--epochs must be a whole number, got '5'"),
        ("epochs", 2.5, "--epochs must be a whole number"),
        ("image_size", 32.0, "--image-size must be a whole number"),
        ("gate_inputs", 1, "--gate-inputs must be true or false"),
        ("max_macs", 0.4, "--max-macs"),
        ("decide_at", 0.25, "--decide-at"),
        ("exclude", 3, "--exclude must be a list, each a string"),
        ("model", None, "--model must be a string"),
        ("device", ["cpu"], "--device must be one of 'auto', 'cpu'"),
        ("seed", True, "--seed must be a whole number"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: object, words: str) -> None:
    with pytest.raises(ConfigError, match=f"^{re.escape(words)}"):
        RunConfig(**(NEEDED | {name: value}))
