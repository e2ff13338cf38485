"""A search that sheds: the same training, cheaper; resumed through a shedding; a budget is spent and not exceeded."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import pgnas
from pgnas import stages
from pgnas.amounts import Budget
from pgnas.architecture import Architecture
from pgnas.bayes import GibbsPrior
from pgnas.config import PEAK_LR, RunConfig
from pgnas.errors import ConfigError
from pgnas.nn import ShedSupernet
from pgnas.nn.gate import CLOSED
from pgnas.progress import SilentReporter
from pgnas.stages.engine import make_engine
from pgnas.stages.epochs import digest, run_epochs
from pgnas.stages.phases import PosteriorPhase, PosteriorSettings
from pgnas.stages.schedule import CosineSchedule
from pgnas.stages.shedding import Pace, Shedder, SheddingRule, Spending, affordable
from pgnas.stages.training import NoStore
from pgnas.supernets import build_model

STEPS, EPOCHS = 4, 6
EAGER = SheddingRule(keep=0.5, epochs=1, saving=0.0, moments=2)


@pytest.fixture(scope="module")
def engine():
    return make_engine("cpu", "fp32")


def make_supernet():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 3),
    )  # fmt: skip
    supernet = pgnas.supernet(network, torch.randn(2, 2, 4, 4), initial_drop=0.3, temperature=0.5)
    with torch.no_grad():
        supernet.gates.unit_logits += torch.randn(supernet.gates.units)
    return supernet


def make_phase(engine, rule=EAGER, budget=None, averaging=0.0, optimizer="sgd"):
    supernet = make_supernet()
    settings = PosteriorSettings(
        GibbsPrior(), 5000.0, {"macs": 0.4}, STEPS * EPOCHS, averaging=averaging, optimizer=optimizer
    )
    peak = 0.5 * PEAK_LR[optimizer]
    full = supernet.count(supernet.open()).macs
    return PosteriorPhase(
        supernet, settings, engine=engine, schedule=CosineSchedule(peak, STEPS * EPOCHS, 2), loss=F.cross_entropy,
        shedder=None if rule is None else Shedder.of(supernet, rule, examples=64.0),
        spending=Spending(full, STEPS, STEPS * EPOCHS, EPOCHS, budget),
    )  # fmt: skip


def loader():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(64, 2, 4, 4, generator=generator)
    return list(zip(x.split(16), torch.randint(3, (64,), generator=generator).split(16), strict=True))


def train(phase, epochs, store=None):
    store = store or NoStore()
    run_epochs(phase, loader(), epochs=epochs, seed=0, store=store, progress=SilentReporter())
    return store


class Kept(NoStore):
    """Keeps every checkpoint, as a file would; can be told to forget the later ones."""

    def __init__(self):
        super().__init__()
        self.states = []

    def save(self, phase, state, step):
        self.states.append(copy.deepcopy(dict(state)))

    def load(self, phase):
        return copy.deepcopy(self.states[-1]) if self.states else None


@pytest.mark.parametrize(("averaging", "optimizer"), [(0.0, "sgd"), (5.0, "sgd"), (0.0, "adamw")])
def test_training_goes_on_as_if_nothing_had_left(engine, averaging, optimizer):
    """Against a phase whose gates are closed at the same moments and whose channels all stay."""
    more = {"averaging": averaging, "optimizer": optimizer}
    shed, whole = make_phase(engine, **more), make_phase(engine, rule=None, **more)
    closings = [state["phase"]["shedder"]["closed"] for state in train(shed, range(EPOCHS), Kept()).states]
    whole.spending, whole.finish_epoch = None, lambda epoch: whole.whole.gates.close_(closings[epoch - 1])
    train(whole, range(EPOCHS))
    assert isinstance(shed.supernet, ShedSupernet)
    assert 0 < closings[0].sum() < closings[-1].sum() < shed.whole.gates.units
    open_ = ~shed.whole.gates.closed
    torch.testing.assert_close(shed.whole.gates.unit_logits[open_], whole.whole.gates.unit_logits[open_])
    moments = [phase.logits["logits"].state[phase.whole.gates.unit_logits]["exp_avg_sq"] for phase in (shed, whole)]
    torch.testing.assert_close(moments[0][open_], moments[1][open_])
    left, kept = shed.supernet, shed.moments()
    assert kept.keys() == ({"momentum_buffer"} if optimizer == "sgd" else {"exp_avg", "exp_avg_sq", "step"})
    ones = left.put(left.take({n: torch.ones_like(p) for n, p in whole.whole.body.named_parameters()}))
    shed.settle()
    whole.settle()
    everything = dict(whole.whole.body.named_parameters())
    for name, value in shed.whole.body.named_parameters():
        torch.testing.assert_close(value[ones[name] == 1], everything[name][ones[name] == 1], rtol=1e-3, atol=1e-5)
        for slot, values in whole.moments().items():
            expected = values[name] * (1 if slot == "step" else ones[name])
            torch.testing.assert_close(kept[slot][name], expected, rtol=1e-3, atol=1e-5)
    x = torch.cat([batch for batch, _ in loader()])
    with torch.no_grad():
        torch.testing.assert_close(shed.whole.eval()(x), whole.whole.eval()(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("averaging", "optimizer"), [(0.0, "sgd"), (5.0, "sgd"), (0.0, "adamw")])
def test_a_search_resumed_through_a_shedding_is_the_same(engine, averaging, optimizer):
    more = {"averaging": averaging, "optimizer": optimizer}
    straight = make_phase(engine, **more)
    store = train(straight, range(EPOCHS), Kept())
    assert straight.shedder.moments == EAGER.moments
    assert store.states[0]["phase"]["shedder"]["closed"].any()
    expected = digest([straight.logits["logits"].state_dict(), straight.moments()])
    straight.settle()
    for kept in (1, 2, EPOCHS - 1):
        resumed, again = make_phase(engine, **more), Kept()
        again.states = store.states[:kept]
        train(resumed, range(EPOCHS), again)
        assert resumed.spending == straight.spending
        assert digest([resumed.logits["logits"].state_dict(), resumed.moments()]) == expected
        resumed.settle()
        assert digest(resumed.whole.state_dict()) == digest(straight.whole.state_dict())


def test_gates_leave_when_they_have_been_low_for_long_enough_and_it_pays():
    supernet = make_supernet()
    with torch.no_grad():
        supernet.gates.unit_logits.fill_(3.0)
        supernet.gates.unit_logits[:6] = -4.0
    units = supernet.gates.units
    patient = Shedder.of(supernet, SheddingRule(epochs=2), examples=10.0)
    assert patient.after_epoch(5) is None
    closed = patient.after_epoch(4)
    assert closed.tolist() == [True] * 6 + [False] * (units - 6)
    supernet.gates.close_(closed)
    assert patient.after_epoch(3) is None  # nothing new
    late, small, poor = (Shedder.of(make_supernet(), rule, examples=10.0) for rule in (
        SheddingRule(epochs=1), SheddingRule(epochs=1, saving=0.99), SheddingRule(epochs=1, worth=1e12),
    ))  # fmt: skip
    for shedder in (late, small, poor):
        shedder.whole = supernet
    supernet.gates.closed.fill_(False)
    assert late.after_epoch(0) is None
    assert small.after_epoch(5) is None
    assert poor.after_epoch(5) is None
    assert late.after_epoch(5) is not None


@pytest.mark.parametrize("granularity", ["channel", "product"])
def test_what_is_paid_for_is_what_is_left_where_operations_are_chosen(granularity):
    """An option that is hardly ever chosen stays all the same: it may be the only one left."""
    built = build_model("nats-topology:channels=4,cells=1", in_channels=3, num_classes=10, image_size=(8, 8), seed=0)
    ties, generator = built.ties_without(()), torch.Generator().manual_seed(0)
    supernet = pgnas.supernet(built.module, torch.randn(2, 3, 8, 8), granularity, tie=ties)
    with torch.no_grad():
        for parameter in supernet.gates.parameters():
            parameter.copy_(4 * torch.randn(parameter.shape, generator=generator))
    for leave in (lambda shedder: shedder.after_epoch(10), lambda shedder: shedder.closed_at_start()):
        whole = copy.deepcopy(supernet)
        shedder = Shedder.of(whole, SheddingRule(saving=0.0), examples=1.0)
        closed = leave(shedder)
        assert not closed[whole.gates.free :].any()
        whole.gates.close_(closed)
        assert shedder.macs == ShedSupernet(whole).counts.macs < whole.count(whole.open()).macs
        assert shedder.after_epoch(10) is None  # nothing more to leave


def test_nothing_sheds_where_nothing_is_learned_about_the_gates():
    settings = {"model": "tiny", "data": "digits", "out": "out", "budget": "4"}
    assert RunConfig(**settings).sheds
    assert not RunConfig(**settings, fixed_drop=0.96).sheds


def test_a_budget_is_spent_on_more_epochs_and_the_schedule_ends_with_it(engine):
    phase = make_phase(engine, budget=float(EPOCHS))
    store = train(phase, range(EPOCHS))
    assert len(store.rows) > EPOCHS
    assert phase.spending.spent <= EPOCHS + 1e-6
    assert EPOCHS - phase.spending.spent < phase.shedder.macs / phase.spending.full
    spent = sum(row["left"] for row in store.rows)
    assert phase.spending.spent == pytest.approx(spent)
    rates = [row["lr"] for row in store.rows]
    assert rates[1:] == sorted(rates[1:], reverse=True)
    assert phase.place(STEPS * len(store.rows)) == pytest.approx(STEPS * EPOCHS)
    places = [phase.place(step) for step in range(STEPS * len(store.rows))]
    assert places == sorted(places)


def test_what_a_budget_pays_for():
    assert affordable(12.0, 1.0) == 12
    assert affordable(9.0, 0.4) == 22
    assert affordable(0.3, 0.4) == 0
    assert affordable(-1.0, 0.4) == 0
    pace = Pace(epoch=3, position=30.0, stop=8, end=100.0, steps=7)
    assert pace.at(21) == 30.0
    assert pace.at(56) == 100.0


def test_a_search_has_an_epoch_even_if_its_budget_pays_for_less(engine):
    phase = make_phase(engine, budget=0.5)
    phase.spending.plan(0, phase.shedder.macs)
    assert phase.stop(EPOCHS) == 1
    phase.spending.after_epoch(phase.shedder.macs)
    phase.spending.plan(1, phase.shedder.macs)
    assert phase.stop(EPOCHS) == 1


@pytest.mark.parametrize(
    ("text", "value", "is_time"), [("12", 12, False), ("7.5", 7.5, False), ("30min", 30, True), ("2h", 120, True)]
)
def test_budgets_as_users_write_them(text, value, is_time):
    assert Budget.parse(text, subject="--budget") == Budget(value, is_time)


@pytest.mark.parametrize(
    "settings",
    [
        {"budget": "0.5"},
        {"budget": "soon"},
        {"budget": "-3"},
        {"budget": "0min"},
        {"budget": "4", "epochs": 4},
        {"shed": "maybe"},
        {"shed": "on", "fixed_drop": 0.1},
    ],
)
def test_what_makes_no_sense_is_refused(tmp_path, settings):
    with pytest.raises(ConfigError, match=r"--budget|--shed"):
        RunConfig(model="tiny", data="digits", out=str(tmp_path), **settings)


@pytest.fixture(scope="module")
def shed_run(tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "shed"
    config = RunConfig(
        model="multibranch-resnet:width=6,blocks=1,stages=2", data="digits", out=str(out), budget="8", decide_at="50%",
        candidates=5, max_macs="40%", logit_lr=0.5, batch_size=64,
    )  # fmt: skip
    return config, stages.run(config, until="train")


def test_a_run_that_sheds_reports_in_the_full_networks_names(shed_run):
    config, result = shed_run
    facts = json.loads((result.path / "stages.json").read_text())
    searched, trained = facts["search"]["facts"], facts["train"]["facts"]
    assert searched["sheddings"] >= 1
    assert searched["left"] < 0.9
    rows = [json.loads(line) for line in (result.path / "metrics.jsonl").read_text().splitlines()]
    shares = [row["left"] for row in rows if row["stage"] == "search"]
    assert len(shares) == searched["epochs"]
    assert sum(shares) <= 4.0
    assert searched["epochs"] > searched["spent"]
    averaged = 8 * 64 / 3 / (20 * 64)  # a forward of 8 of an epoch's 20 batches, for the statistics of averaged weights
    assert searched["spent"] == pytest.approx(sum(shares) + averaged)
    posterior = load_file(result.path / "posterior.safetensors")
    network = pgnas.supernet(
        build_model(config.model, in_channels=1, num_classes=10, image_size=(8, 8), seed=0).module,
        torch.randn(2, 1, 8, 8),
        streams=True,
    )
    network.load_state_dict(posterior)
    architecture = Architecture.from_json(json.loads((result.path / "architecture.json").read_text()))
    counts = network.count(architecture)
    total = searched["spent"] + trained["epochs"] * counts.macs / network.count(network.open()).macs
    assert 7.0 < total <= 8.0
    assert (counts.params, counts.macs) == (result["found"]["params"], result["found"]["macs"])
    for line in (result.path / "candidates.jsonl").read_text().splitlines():
        row = json.loads(line)
        assert network.count(Architecture.from_json(row["architecture"])).macs == row["macs"]
    assert result["supernet"]["spent"] == searched["spent"]


def test_a_time_becomes_epochs_once(tmp_path):
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1", data="digits", out=str(tmp_path / "run"), budget="0.02min",
        candidates=2, batch_size=256,
    )  # fmt: skip
    first = stages.run(config, until="search")
    budget = json.loads((first.path / "stages.json").read_text())["budget"]["facts"]["seconds_a_step"]
    assert 0 < budget < 10
    stages.run(config, until="extract")
    assert json.loads((first.path / "stages.json").read_text())["budget"]["facts"]["seconds_a_step"] == budget


def test_what_another_search_has_closed_leaves_before_the_first_step_and_nothing_changes(engine):
    phases = [make_phase(engine, rule=SheddingRule(), budget=9.0), make_phase(engine, rule=None)]
    for phase in phases:
        with torch.no_grad():
            phase.whole.gates.unit_logits[::3] = CLOSED
    shed, whole = phases
    before = shed.spending.stop
    shed.shed_closed()
    whole.shed_closed()  # does not shed: nothing happens
    assert isinstance(shed.supernet, ShedSupernet)
    assert shed.supernet.counts.macs == shed.shedder.macs < whole.spending.full
    assert shed.spending.stop > before
    (x, y), noise = loader()[0], torch.rand(16, whole.whole.gates.units)
    torch.testing.assert_close(shed.loss((x,), y, 0, noise=noise), whole.loss((x,), y, 0, noise=noise))
    open_ = make_phase(engine, budget=3.0)
    with torch.no_grad():
        open_.whole.gates.unit_logits.fill_(3.0)
    open_.shed_closed()
    assert open_.supernet is open_.whole
