"""Networks trained together: what they share and what not, turns, resuming, fronts whose points are trained so."""

from __future__ import annotations

import copy
import json
import shutil
from collections import Counter

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import pgnas
from pgnas import stages
from pgnas.cli import main
from pgnas.config import RunConfig
from pgnas.errors import ConfigError, RunFolderError
from pgnas.nn import extract_small
from pgnas.run_folder import RunFolder
from pgnas.stages import epochs as epochs_module
from pgnas.stages.engine import make_engine
from pgnas.stages.front import front
from pgnas.stages.front_settings import FrontSettings
from pgnas.stages.joint import JointPhase, Member, turns_of
from pgnas.stages.moments import to_tensors
from pgnas.stages.phases import NetworkPhase
from pgnas.stages.schedule import CosineSchedule
from pgnas.stages.status import status

from .forked import on_processes

pytestmark = pytest.mark.usefixtures("weights_alone")
SCHEDULE = CosineSchedule(0.05, 100, 0, floor=0.05)


@pytest.fixture(scope="module")
def engine():
    return make_engine("cpu", "fp32")


@pytest.fixture(scope="module")
def supernet():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1), nn.BatchNorm2d(4),
        nn.ReLU(), nn.Flatten(), nn.Linear(64, 3),
    )  # fmt: skip
    return pgnas.supernet(network, torch.randn(2, 2, 4, 4), "channel")


def network_phase(network, engine, name="train", optimizer="sgd"):
    return NetworkPhase(
        network, name=name, engine=engine, schedule=SCHEDULE, loss=F.cross_entropy, weight_decay=5e-4,
        optimizer=optimizer,
    )  # fmt: skip


def make_joint(supernet, engine, kept, turns=(1, 1, 1), optimizer="sgd"):
    """A phase over the sub-networks that keep these units."""
    weights = {name: p.detach().clone() for name, p in supernet.body.named_parameters()}
    members = []
    for index, units in enumerate(kept):
        small = extract_small(supernet, supernet.gates.architecture(units))
        phase = network_phase(small.module, engine, str(index), optimizer)
        members.append(Member.of(str(index), phase, small, weights, turns=turns[index]))
    return JointPhase(members, weights, engine=engine, schedule=SCHEDULE, seed=5)


def units_of(supernet, *kept):
    """The units with these numbers, bool (U,)."""
    units = torch.zeros(supernet.gates.units, dtype=torch.bool)
    units[list(kept)] = True
    return units


def batch(step):
    generator = torch.Generator().manual_seed(step)
    return (torch.randn(16, 2, 4, 4, generator=generator),), torch.randint(3, (16,), generator=generator)


def train(phase, steps):
    phase.network.train()
    for step in steps:
        phase.prepare_step(step)
        phase.step(*batch(step), step)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_one_network_alone_is_trained_as_ever(supernet, engine, optimizer):
    everything = torch.ones(supernet.gates.units, dtype=torch.bool)
    joint = make_joint(supernet, engine, [everything], optimizer=optimizer)
    small = extract_small(supernet, supernet.gates.architecture(everything))
    alone = network_phase(small.module, engine, optimizer=optimizer)
    train(joint, range(4))
    train(alone, range(4))
    trained = alone.network.state_dict()
    assert trained.keys() == joint.members[0].small.module.state_dict().keys()
    for name, value in joint.members[0].small.module.state_dict().items():
        assert torch.equal(value, trained[name]), name
    for name, value in joint.shared.items():
        if name not in joint.members[0].own:
            assert torch.equal(value, trained[name]), name


def test_a_step_changes_what_its_network_keeps_and_nothing_else(supernet, engine):
    small, large = units_of(supernet, 0, 1, 2, 6, 7), units_of(supernet, 0, 1, 2, 3, 4, 6, 7, 8)
    joint = make_joint(supernet, engine, [small, large])
    first = next(step for step in range(2) if joint.member(step).name == "0")
    before = {name: value.clone() for name, value in joint.shared.items()}
    train(joint, [first])
    member = joint.members[0]
    for name, value in joint.shared.items():
        moved = value != before[name]
        kept = torch.zeros_like(value)
        if name in member.shared:
            member.small.put_(name, kept, torch.ones_like(member.shared[name]))
        assert not moved[kept == 0].any(), name
        if name in member.shared and value.ndim > 1:
            assert moved[kept == 1].float().mean() > 0.9, name
    train(joint, [1 - first])  # the larger network goes on from there
    joint.hand_out()
    for member in joint.members:
        for name, parameter in member.shared.items():
            assert torch.equal(parameter, member.small.take(name, joint.shared[name]))


def test_each_network_has_its_own_normalisation(supernet, engine):
    everything = torch.ones(supernet.gates.units, dtype=torch.bool)
    joint = make_joint(supernet, engine, [everything, everything.clone()])
    assert set(joint.members[0].own) == {f"{layer}.{leaf}" for layer in ("1", "4") for leaf in ("weight", "bias")}
    train(joint, range(6))
    joint.hand_out()
    first, second = (member.small.module.state_dict() for member in joint.members)
    for name in first:
        is_norm = name.split(".")[0] in ("1", "4")
        is_counter = name.endswith("num_batches_tracked")
        assert torch.equal(first[name], second[name]) == (not is_norm or is_counter), name


def test_all_have_their_turn_equally_often_in_changing_order(supernet, engine):
    everything = torch.ones(supernet.gates.units, dtype=torch.bool)
    joint = make_joint(supernet, engine, [everything] * 3)
    turns = [joint.member(step).name for step in range(60)]
    assert all(Counter(turns[at : at + 3]) == Counter("012") for at in range(0, 60, 3))
    assert len({tuple(turns[at : at + 3]) for at in range(0, 60, 3)}) > 3


def test_each_network_has_about_as_much_of_the_compute_as_the_others(supernet, engine):
    assert turns_of([0.8, 0.65, 0.5, 0.35, 0.2]) == [1, 1, 2, 2, 4]
    assert turns_of([0.5]) == [1]
    assert turns_of([0.9, 0.3, 0.03]) == [1, 3, 4]  # at most four
    everything = torch.ones(supernet.gates.units, dtype=torch.bool)
    joint = make_joint(supernet, engine, [everything] * 3, turns=(1, 2, 4))
    turns = [joint.member(step).name for step in range(70)]
    assert all(Counter(turns[at : at + 7]) == {"0": 1, "1": 2, "2": 4} for at in range(0, 70, 7))
    assert len({tuple(turns[at : at + 7]) for at in range(0, 70, 7)}) > 7


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_saved_state_goes_on_as_if_nothing_had_been(supernet, engine, optimizer):
    kept = [units_of(supernet, 0, 1, 6), units_of(supernet, 0, 1, 2, 3, 6, 7)]
    whole, begun, resumed = (make_joint(supernet, engine, kept, optimizer=optimizer) for _ in range(3))
    train(whole, range(6))
    train(begun, range(3))
    resumed.load_state(copy.deepcopy(begun.state()))
    train(resumed, range(3, 6))
    for phase in (whole, resumed):
        phase.hand_out()
    for one, other in zip(whole.members, resumed.members, strict=True):
        wanted, weights = one.phase.network.state_dict(), other.phase.network.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in wanted.items())
        momenta = [to_tensors(m.whole_moments(p.shared)) for m, p in ((one, whole), (other, resumed))]
        assert momenta[0].keys() == momenta[1].keys()
        assert {key.rpartition(":")[2] for key in momenta[0]} == whole.shared.keys()
        assert all(torch.equal(value, momenta[1][name]) for name, value in momenta[0].items())


JOINT = FrontSettings(caps=("60%", "35%"), epochs=4, start="joint")


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    out = tmp_path_factory.mktemp("searched") / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out=str(out), epochs=2, candidates=3,
        max_macs="80%", decide_at="never", batch_size=64, logit_lr=0.5, lr_floor=0.03,
    )  # fmt: skip
    stages.run(config, until="search")
    return out


@pytest.fixture(scope="module")
def made(searched, tmp_path_factory):
    out = shutil.copytree(searched, tmp_path_factory.mktemp("made") / "run")
    return out, front(out, JOINT)


def facts_of(out, cap, stage):
    return json.loads((out / "front" / f"macs-{cap}pct" / "stages.json").read_text())[stage]["facts"]


def test_points_are_trained_together_to_the_end(made):
    out, result = made
    together = [facts_of(out, cap, "joint") for cap in (60, 35)]
    for facts in together:
        assert facts["caps"] == ["60%", "35%"]
        assert facts["epochs"] == together[0]["epochs"] > 0
        assert 0 < facts["spent"] < 4
    shared = [load_file(out / "front" / f"macs-{cap}pct" / "joint.safetensors") for cap in (60, 35)]
    assert torch.equal(shared[0]["classifier.bias"], shared[1]["classifier.bias"])
    for point, tensors in zip(reversed(result.points), shared, strict=True):
        assert point["spent"] <= 4 + 1  # but for the search's last epoch
        found = load_file(out / point["folder"] / "found.safetensors")
        assert found.keys() == tensors.keys()
        assert all(torch.equal(value, tensors[name]) for name, value in found.items())
        report = (out / point["folder"] / "report.html").read_text()
        shared_for = f"trained together with shared weights in {together[0]['epochs']} epochs, one a step."
        assert f"The networks for 60% and 35% were {shared_for}" in report
        values = json.loads((out / point["folder"] / "result.json").read_text())
        assert values["found"]["epochs"] == facts_of(out, point["cap"].rstrip("%"), "joint")["passes"]
        assert values["seconds"]["joint"] > 0
    # In a round the smaller one has more steps; all of them together are the epochs.
    passes = [facts["passes"] for facts in together]
    assert passes[0] < passes[1]
    assert sum(passes) == pytest.approx(together[0]["epochs"])
    assert not list((out / "checkpoints").glob("joint*"))
    ended = status(out)  # of the run, which ended with its search
    assert (ended.state, ended.stage) == ("partial", None)
    assert str(ended.resume).startswith("pgnas run ")


def test_the_learning_rate_falls_to_nothing_in_the_last_step_together(searched, tmp_path, monkeypatch):
    out, rates = shutil.copytree(searched, tmp_path / "run"), []
    prepare = JointPhase.prepare_step

    def prepared(phase, step):
        prepare(phase, step)
        rates.append(phase.weights.param_groups[0]["lr"])

    monkeypatch.setattr(JointPhase, "prepare_step", prepared)
    front(out, JOINT)
    assert rates[0] == pytest.approx(0.075)  # of 0.1, a third of the cosine behind it
    assert 0 < rates[-1] < 1e-3 * rates[0]
    assert rates == sorted(rates, reverse=True)


def test_a_front_killed_amid_training_together_ends_as_the_whole_one(searched, made, tmp_path, monkeypatch):
    again = shutil.copytree(searched, tmp_path / "run")
    saved, seen = RunFolder.save_checkpoint, []

    def killed(folder, name, *rest):
        if name.startswith("joint") and seen:
            raise KeyboardInterrupt
        seen.extend([name] * name.startswith("joint"))
        return saved(folder, name, *rest)

    monkeypatch.setattr(RunFolder, "save_checkpoint", killed)
    with pytest.raises(KeyboardInterrupt):
        front(again, JOINT)
    monkeypatch.undo()
    stopped = status(again)
    assert (stopped.state, stopped.stage) == ("interrupted", "joint")
    assert stopped.resume == JOINT.command(again)
    assert list((again / "checkpoints").glob("joint*"))
    begun = []
    backward = epochs_module._Epoch._backward

    def counted(epoch, batch, step):
        begun.extend([step] * epoch._phase.name.startswith("joint"))
        return backward(epoch, batch, step)

    monkeypatch.setattr(epochs_module._Epoch, "_backward", counted)
    front(again, JOINT)
    assert min(begun) > 0
    for cap in (60, 35):
        for name in ("joint.safetensors", "found.safetensors", "momentum.safetensors"):
            both = [(run / "front" / f"macs-{cap}pct" / name).read_bytes() for run in (again, made[0])]
            assert both[0] == both[1]


def test_a_front_killed_while_networks_are_handed_out_ends_as_the_whole_one(searched, made, tmp_path, monkeypatch):
    again = shutil.copytree(searched, tmp_path / "run")
    marked, seen = RunFolder.mark_done, []

    def killed(folder, name, seconds, **facts):
        if name == "joint" and seen:
            raise KeyboardInterrupt
        seen.extend([name] * (name == "joint"))
        marked(folder, name, seconds, **facts)

    monkeypatch.setattr(RunFolder, "mark_done", killed)
    with pytest.raises(KeyboardInterrupt):
        front(again, JOINT)
    monkeypatch.undo()
    front(again, JOINT)
    for cap in (60, 35):
        assert facts_of(again, cap, "joint") == facts_of(made[0], cap, "joint")
        both = [(run / "front" / f"macs-{cap}pct" / "found.safetensors").read_bytes() for run in (again, made[0])]
        assert both[0] == both[1]


def test_other_company_is_refused_before_anything_is_made(made, capsys):
    out, _ = made
    with pytest.raises(RunFolderError, match="trained together with other caps"):
        front(out, FrontSettings(caps=("60%", "50%", "35%"), epochs=4, start="joint"))
    assert not (out / "front" / "macs-50pct").exists()
    with pytest.raises(ConfigError, match="needs epochs"):
        FrontSettings(caps=("50%",), epochs=0, start="joint")
    assert main(["front", str(out), "--caps", "50%", "--epochs", "0", "--start", "joint"]) == 2
    assert "--start joint" in capsys.readouterr().err


def test_two_processes_train_points_together(searched, tmp_path):
    out = shutil.copytree(searched, tmp_path / "run")
    wanted = FrontSettings(caps=("60%", "35%"), epochs=3, start="joint")
    first, second = on_processes(tmp_path, lambda processes: front(out, wanted).points, seconds=240)
    assert first == second
    assert [facts_of(out, cap, "joint")["epochs"] > 0 for cap in (60, 35)] == [True, True]
    assert not list((out / "checkpoints").glob("joint*"))
