"""``pgnas.search`` on a task that is not classification of images."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import pgnas
from pgnas.bayes import GibbsPrior
from pgnas.errors import ConfigError, DataError


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 3, 16, generator=generator)
    return TensorDataset(x, x[:, 0].mean(1, keepdim=True) * 3 - x[:, 1].amax(1, keepdim=True))


def negative_squared_error(outputs, targets):
    return -(outputs - targets).square().mean(1)


def make_supernet():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv1d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv1d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 1),
    )  # fmt: skip
    return pgnas.supernet(network, torch.zeros(2, 3, 16))


def search(**settings):
    torch.manual_seed(1)
    train, val = torch.utils.data.random_split(data(), [192, 64], torch.Generator().manual_seed(0))
    loaders = DataLoader(train, 32, shuffle=True), DataLoader(val, 64)
    chosen = {"epochs": 12, "lr": 0.02, "candidates": 8, "max_macs": "50%", **settings}
    supernet = make_supernet()
    return (
        supernet,
        loaders,
        pgnas.search(
            supernet, *loaders, loss=nn.functional.mse_loss, metric=negative_squared_error, device="cpu", **chosen
        ),
    )


def test_regression_on_series_with_a_metric_of_its_own():
    supernet, (_, val), result = search()
    for name, value in make_supernet().state_dict().items():
        assert torch.equal(supernet.state_dict()[name], value), name  # what was handed in is not changed
    assert supernet.training
    assert result.counts.macs <= 0.5 * result.full.macs
    x, y = next(iter(val))
    with torch.no_grad():
        predicted = result.model(x)
    assert result.score.metric == pytest.approx(float(negative_squared_error(predicted, y).mean()), rel=1e-4)
    variance = float(y.var())
    assert -result.score.metric < 0.7 * variance  # it learned something
    assert result.candidates[0].is_mode
    assert len(result.history) == 12
    assert pgnas.measure(result.model, (x[:1],)) == result.counts
    small = pgnas.extract(result.supernet, result.supernet.sample())
    with torch.no_grad():
        assert small(x).shape == y.shape


def test_a_search_that_sheds_returns_the_whole_supernet():
    supernet, (_, val), result = search(shed=True, decide_at="never", logit_lr=0.3)
    assert result.history[-1]["left"] < 0.9
    assert result.history[0]["left"] == 1
    assert result.supernet.gates.sizes == supernet.gates.sizes
    assert result.supernet.count(result.architecture) == result.counts
    x, _ = next(iter(val))
    with torch.no_grad(), result.supernet.eval().fixed(result.architecture) as fixed:
        torch.testing.assert_close(fixed(x), result.model(x), rtol=1e-4, atol=1e-4)


def test_the_same_seed_finds_the_same_network():
    (_, _, a), (_, _, b) = search(), search()
    assert a.architecture == b.architecture
    for name, value in a.model.state_dict().items():
        assert torch.equal(value, b.model.state_dict()[name]), name


@pytest.mark.parametrize("norms", [True, False])
def test_a_search_draws_nothing_from_the_callers_generator(norms):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv1d(3, 8, 3, padding=1),
        nn.BatchNorm1d(8),
        nn.ReLU(),
        nn.AdaptiveMaxPool1d(1),
        nn.Flatten(),
        nn.Linear(8, 1),
    )  # fmt: skip
    supernet, loader = pgnas.supernet(network, torch.zeros(2, 3, 16)), DataLoader(data(), 32, shuffle=True)
    found = []
    for caller in (5, 6):
        torch.manual_seed(caller)
        expected = torch.random.get_rng_state()
        result = pgnas.search(
            supernet, loader, DataLoader(data(), 64), loss=nn.functional.mse_loss, metric=negative_squared_error,
            device="cpu", epochs=3, lr=0.01, candidates=3, decide_at="50%", recalibrate_norms=norms,
        )  # fmt: skip
        assert torch.equal(torch.random.get_rng_state(), expected)
        found.append((result.score, [c.score for c in result.candidates], [row["loss"] for row in result.history]))
    assert found[0] == found[1]


def test_examples_are_counted_whatever_the_targets_are(monkeypatch):
    counted = []

    def recipe(*values):
        counted.append(values[7:9])
        raise KeyboardInterrupt

    monkeypatch.setattr("pgnas.stages.search_api.Recipe", recipe)
    generator = torch.Generator().manual_seed(0)
    both = [(torch.randn(32, 3, 16, generator=generator), (torch.zeros(32), torch.zeros(32))) for _ in range(2)]
    named = [(x, {"class": a, "size": b}) for x, (a, b) in both]
    for loader in (both, named, [((x, x), a) for x, (a, _) in both]):
        with pytest.raises(KeyboardInterrupt):
            pgnas.search(make_supernet(), loader, loader, loss=nn.functional.mse_loss, epochs=1)
    assert counted == [(64, 640)] * 3


def test_bad_settings_and_loaders_are_refused():
    supernet = make_supernet()
    loader = DataLoader(data(), 32)
    with pytest.raises(DataError, match="length"):
        pgnas.search(supernet, (b for b in loader), loader, loss=nn.functional.mse_loss)
    with pytest.raises(DataError, match="at least one batch"):
        pgnas.search(supernet, [], loader, loss=nn.functional.mse_loss)
    with pytest.raises(ConfigError, match="GibbsPrior needs a cost to weigh"):
        pgnas.search(supernet, loader, loader, epochs=1, prior=GibbsPrior())
    with pytest.raises(ConfigError, match="max-macs"):
        pgnas.search(supernet, loader, loader, loss=nn.functional.mse_loss, max_macs="400%")


def test_operations_are_chosen_and_what_is_found_trains_on():
    """Under a cap that only the operations without weights meet."""
    torch.manual_seed(0)
    edge = pgnas.OneOf({"none": None, "skip": nn.Identity(), "conv": nn.Conv1d(16, 16, 3, padding=1)})
    branch = pgnas.AnyOf([nn.AvgPool1d(3, 1, 1)])
    network = nn.Sequential(
        nn.Conv1d(3, 16, 3, padding=1), edge, nn.ReLU(), branch, nn.AdaptiveMaxPool1d(1), nn.Flatten(), nn.Linear(16, 1)
    )
    supernet = pgnas.supernet(network, torch.zeros(2, 3, 16), "operation", temperature=1.0)
    train, val = torch.utils.data.random_split(data(), [192, 64], torch.Generator().manual_seed(0))
    loaders = DataLoader(train, 32), DataLoader(val, 64)
    result = pgnas.search(
        supernet, *loaders, loss=nn.functional.mse_loss, metric=negative_squared_error, device="cpu", epochs=8, lr=0.02,
        max_macs="70%", decide_at="50%", weights_first=1, candidates=6,
    )  # fmt: skip
    assert result.counts.macs <= 0.7 * result.full.macs
    assert result.architecture.kept["1"] != (2,)  # the convolution is over the cap
    assert len(result.architecture.kept["1"]) == 1
    assert isinstance(result.model, nn.Module)
    assert not [m for m in result.model.modules() if isinstance(m, pgnas.OneOf | pgnas.AnyOf)]
    assert result.model(torch.zeros(3, 3, 16)).shape == (3, 1)


class Outputs(nn.Module):
    """A classifier whose outputs are wrapped."""

    def __init__(self, wrap):
        super().__init__()
        self.a, self.fc, self.wrap = nn.Conv1d(3, 4, 3), nn.Linear(4, 2), wrap

    def forward(self, x):
        return self.wrap(self.fc(self.a(x).relu().mean(2)))


def search_classes(wrap, **settings):
    torch.manual_seed(0)
    x = torch.randn(48, 3, 16)
    loader = DataLoader(TensorDataset(x, (x[:, 0].mean(1) > 0).long()), 16)
    supernet = pgnas.supernet(Outputs(wrap), torch.zeros(2, 3, 16))
    return pgnas.search(supernet, loader, loader, epochs=1, candidates=2, device="cpu", **settings)


def dict_loss(outputs, targets):
    return nn.functional.cross_entropy(outputs["logits"], targets)


def dict_accuracy(outputs, targets):
    return (outputs["logits"].argmax(1) == targets).float()


WRAPPED = {
    "a dict, loss": (lambda y: {"logits": y}, {}, "loss", "dict"),
    "a dict, metric": (lambda y: {"logits": y}, {"loss": dict_loss}, "metric", "dict"),
    "a tuple, loss": (lambda y: (y, y.sum()), {}, "loss", "tuple"),
    "a tuple, metric": (
        lambda y: (y, y.sum()),
        {"loss": lambda outputs, targets: nn.functional.cross_entropy(outputs[0], targets)},
        "metric",
        "tuple",
    ),
}


@pytest.mark.parametrize("kind", WRAPPED)
def test_outputs_that_are_no_logits_need_a_loss_and_a_metric_of_their_own(kind):
    wrap, settings, setting, found = WRAPPED[kind]
    with pytest.raises(ConfigError) as caught:
        search_classes(wrap, **settings)
    assert str(caught.value) == (
        f"pgnas.search setting '{setting}' must be given for a network whose output is not one tensor of logits, "
        f"got a {found}; pass loss= and metric=, functions of (outputs, targets)"
    )


def test_outputs_that_are_no_logits_are_scored_by_functions_of_their_own():
    plain = search_classes(lambda y: y)
    wrapped = search_classes(lambda y: {"logits": y}, loss=dict_loss, metric=dict_accuracy)
    assert wrapped.score == plain.score
    assert wrapped.architecture == plain.architecture
