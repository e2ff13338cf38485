"""The training loop: resuming, divergence, BatchNorm re-estimation, scores."""

from __future__ import annotations

import copy
import signal

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from pgnas.errors import DivergedError
from pgnas.progress import SilentReporter
from pgnas.stages.engine import make_engine
from pgnas.stages.epochs import run_epochs
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.training import NoStore, Score, accuracy, evaluate, recalibrate


@pytest.fixture(scope="module")
def engine():
    return make_engine("cpu", "fp32")


def make_network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2), nn.Flatten(), nn.Linear(128, 3)
    )


def make_loader(batches=4, size=8, scale=1.0):
    generator = torch.Generator().manual_seed(1)
    xs = [torch.randn(size, 1, 4, 4, generator=generator) * scale for _ in range(batches)]
    return [(x, (x.mean((1, 2, 3)) * 20).long().clamp(-1, 1) + 1) for x in xs]


def make_phase(network, engine, loader, epochs, lr=0.05):
    schedule = cosine_schedule(lr, epochs * len(loader))
    return NetworkPhase(
        network, name="train", engine=engine, schedule=schedule, loss=F.cross_entropy, weight_decay=1e-3
    )


class Memory(NoStore):
    """Keeps checkpoints; stops the run after a number of steps, as a kill would."""

    def __init__(self, stop_after=None, amid_epochs=False):
        super().__init__()
        self.saved, self.stop_after, self.amid_epochs = {}, stop_after, amid_epochs

    def load(self, phase):
        return copy.deepcopy(self.saved.get(phase))

    def save(self, phase, state, step):
        self.saved[phase] = copy.deepcopy(dict(state))
        if self.stop_after is not None and step >= self.stop_after:
            raise KeyboardInterrupt

    def due(self):
        return self.amid_epochs

    def rewind(self, phase, epoch):
        self.rows = [r for r in self.rows if r["epoch"] <= epoch]


def train(network, engine, store, epochs=4):
    loader = make_loader()
    phase = make_phase(network, engine, loader, epochs)
    run_epochs(phase, loader, epochs=range(epochs), seed=3, store=store, progress=SilentReporter())
    return network


@pytest.mark.parametrize(("killed_after", "amid_epochs"), [(4, False), (12, False), (1, True), (7, True), (14, True)])
def test_a_resumed_training_is_the_uninterrupted_one(engine, killed_after, amid_epochs):
    whole_store = Memory()
    whole = train(make_network(), engine, whole_store)
    store = Memory(stop_after=killed_after, amid_epochs=amid_epochs)
    with pytest.raises(KeyboardInterrupt):
        train(make_network(), engine, store)
    assert store.saved["train"]["epoch"] * 4 + store.saved["train"]["batch"] == killed_after
    store.stop_after = None
    torch.manual_seed(99)  # whatever the resuming process has drawn before must not matter
    resumed = train(make_network(seed=5), engine, store)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert store.rows == whole_store.rows


class Interrupting(list):
    """Batches; while the given one is fetched for the first time, Ctrl-C is pressed."""

    def __init__(self, batches, at, presses=1, then=None):
        super().__init__(batches)
        self.at, self.presses, self.then = at, presses, then

    def __iter__(self):
        for batch in list(super().__iter__()):
            if self.at == 0 and self.presses:
                while self.presses:
                    self.presses -= 1
                    signal.raise_signal(signal.SIGINT)
                if self.then is not None:
                    raise self.then
            self.at -= 1
            yield batch


@pytest.mark.parametrize(("at", "then"), [(0, None), (3, None), (5, None), (6, RuntimeError("a worker ended"))])
def test_ctrl_c_saves_and_a_resumed_training_is_the_uninterrupted_one(engine, at, then):
    whole_store, store = Memory(), Memory()
    whole = train(make_network(), engine, whole_store)
    loader = Interrupting(make_loader(), at, then=then)
    phase = make_phase(make_network(), engine, loader, 4)
    with pytest.raises(KeyboardInterrupt):
        run_epochs(phase, loader, epochs=range(4), seed=3, store=store, progress=SilentReporter())
    behind = at if then else at + 1  # the step at hand is done unless its batch never came
    assert store.saved["train"]["epoch"] * 4 + store.saved["train"].get("batch", 0) == behind
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    resumed = train(make_network(seed=5), engine, store)
    for name, value in whole.state_dict().items():
        assert torch.equal(value, resumed.state_dict()[name]), name
    assert store.rows == whole_store.rows


def test_a_second_ctrl_c_does_not_wait(engine):
    store, loader = Memory(), Interrupting(make_loader(), 2, presses=2)
    phase = make_phase(make_network(), engine, loader, 4)
    with pytest.raises(KeyboardInterrupt):
        run_epochs(phase, loader, epochs=range(4), seed=3, store=store, progress=SilentReporter())
    assert store.saved == {}
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_who_handles_ctrl_c_otherwise_keeps_doing_so(engine):
    heard = []
    before = signal.signal(signal.SIGINT, lambda *_: heard.append(True))
    try:
        train(make_network(), engine, Memory(), epochs=1)
        loader = Interrupting(make_loader(), 1)
        run_epochs(
            make_phase(make_network(), engine, loader, 1), loader, epochs=range(1), seed=3, store=Memory(),
            progress=SilentReporter(),
        )  # fmt: skip
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [True]


class Told(SilentReporter):
    """Remembers what it was told last."""

    def advance(self, done, total, **fields):
        self.last = (done, total, fields)


def test_the_last_that_is_told_of_an_epoch_is_what_was_measured_after_it(engine):
    loader, store, told = make_loader(), Memory(), Told()
    scores = iter([Score(0.25, 1.0, 8), Score(0.5, 0.9, 8)])
    run_epochs(
        make_phase(make_network(), engine, loader, 2), loader, epochs=range(2), seed=3, store=store, progress=told,
        validate=lambda: next(scores),
    )  # fmt: skip
    assert told.last == (8, 8, {"epoch": 2, "loss": store.rows[-1]["loss"], "accuracy": 0.5})


def test_training_leaves_the_callers_random_state_alone(engine):
    network = make_network()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    train(network, engine, NoStore())
    assert torch.equal(torch.rand(3), expected)


def test_a_loss_that_becomes_nan_stops_the_run(engine):
    network, loader = make_network(), make_loader()
    loader[2] = (loader[2][0] * float("nan"), loader[2][1])
    phase = make_phase(network, engine, loader, 2)
    with pytest.raises(DivergedError, match="epoch 1"):
        run_epochs(phase, loader, epochs=range(2), seed=0, store=NoStore(), progress=SilentReporter())


def test_the_schedule_warms_up_and_ends_near_zero():
    schedule = cosine_schedule(0.1, 200)
    rates = [schedule.at(step) for step in range(200)]
    assert max(rates) == pytest.approx(0.1)
    assert rates[0] < 0.02
    assert rates[-1] < 1e-4
    peak = rates.index(max(rates))
    assert sorted(rates[: peak + 1]) == rates[: peak + 1]
    assert sorted(rates[peak:], reverse=True) == rates[peak:]


def test_recalibration_is_the_plain_average_over_batches(engine):
    network, loader = make_network().eval(), make_loader()
    before = copy.deepcopy(network.state_dict())
    outputs = [network[0](x) for x, _ in loader]
    assert recalibrate(network, loader, engine=engine)
    means = torch.stack([o.mean((0, 2, 3)) for o in outputs]).mean(0)
    variances = torch.stack([o.var((0, 2, 3)) for o in outputs]).mean(0)
    torch.testing.assert_close(network[1].running_mean, means)
    torch.testing.assert_close(network[1].running_var, variances)
    assert not network.training
    assert network[1].momentum == 0.1
    for name, value in network.state_dict().items():
        assert "running" in name or "tracked" in name or torch.equal(value, before[name]), name


def test_recalibration_without_batch_norm_says_so(engine):
    assert not recalibrate(nn.Linear(2, 2), [(torch.zeros(1, 2), torch.zeros(1))], engine=engine)


def test_a_score_is_the_mean_over_examples_and_not_over_batches(engine):
    network = make_network().train()
    loader = make_loader(2, 8)
    loader[1] = (loader[1][0][:3], loader[1][1][:3])
    score = evaluate(network, loader, engine=engine, loss=F.cross_entropy)
    assert network.training
    network.eval()
    x, y = torch.cat([x for x, _ in loader]), torch.cat([y for _, y in loader])
    with torch.no_grad():
        assert score.count == 11
        assert score.metric == pytest.approx(float(accuracy(network(x), y).mean()))
        assert score.loss == pytest.approx(float(F.cross_entropy(network(x), y)), rel=1e-5)
