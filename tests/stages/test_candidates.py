"""Drawing under caps, repairing, ranking."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

import pgnas
from pgnas import stages
from pgnas.config import RunConfig
from pgnas.errors import ConfigError
from pgnas.nn import extract
from pgnas.nn.shaping import Shaper
from pgnas.nn.stopwatch import measure_device
from pgnas.stages.candidates import Candidate, best, ordered, rank
from pgnas.stages.fitting import Fitter, closed_but_reading, draw
from pgnas.stages.training import Score


@pytest.fixture
def supernet():
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 3),
    )  # fmt: skip
    made = pgnas.supernet(network, torch.randn(2, 1, 6, 6))
    with torch.no_grad():
        made.gates.unit_logits.normal_(generator=torch.Generator().manual_seed(1))
    return made


def generator():
    return torch.Generator().manual_seed(0)


def test_candidates_are_distinct_start_with_the_mode_and_repeat_with_the_seed(supernet):
    drawn = draw(supernet, 20, {}, generator=generator())
    assert len({c.architecture for c in drawn}) == len(drawn) == 20
    assert drawn[0].is_mode
    assert drawn[0].architecture == supernet.mode()
    assert sum(c.is_mode for c in drawn) == 1
    again = draw(supernet, 20, {}, generator=generator())
    assert [c.architecture for c in again] == [c.architecture for c in drawn]


@pytest.mark.parametrize("share", [0.05, 0.3, 0.6])
def test_no_candidate_is_over_the_cap_on_its_extracted_network(supernet, share):
    full = supernet.count(supernet.open())
    caps = {"macs": int(share * full.macs), "params": int(2 * share * full.params)}
    for candidate in draw(supernet, 10, caps, generator=generator()):
        real = pgnas.measure(pgnas.extract(supernet, candidate.architecture), (torch.randn(1, 1, 6, 6),))
        assert real == candidate.counts
        assert real.macs <= caps["macs"]
        assert real.params <= caps["params"]


def test_a_fit_closes_the_least_probable_units_and_no_more_than_needed(supernet):
    everything = supernet.open()
    caps = {"macs": int(0.5 * supernet.count(everything).macs)}
    candidate = Fitter(supernet, caps, Shaper(supernet)).fit(everything)
    closed, fitting = candidate.repaired, candidate.architecture
    before, after = supernet.gates.mask(everything), supernet.gates.mask(fitting)
    logits = supernet.gates.logits()
    assert int((before & ~after).sum()) == closed
    assert logits[before & ~after].max() <= logits[after].min()
    assert supernet.count(fitting).macs <= caps["macs"]
    one_more = after.clone()
    one_more[torch.where(before & ~after, logits, -torch.inf).argmax()] = True
    assert supernet.count(supernet.gates.architecture(one_more)).macs > caps["macs"]


def test_a_decided_posterior_gives_fewer_candidates(supernet):
    with torch.no_grad():
        supernet.gates.unit_logits.copy_(supernet.gates.unit_logits.sign() * 60)
    drawn = draw(supernet, 20, {}, generator=generator())
    assert [c.architecture for c in drawn] == [supernet.mode()]


def test_ranking_scores_the_extracted_network_with_the_supernets_weights(supernet):
    x = torch.randn(5, 1, 6, 6)
    supernet.eval()
    drawn = draw(supernet, 4, {}, generator=generator())

    def score(network):
        with torch.no_grad():
            return Score(float(network(x).sum()), 0.0, 5)

    for candidate in rank(supernet, drawn, score):
        with supernet.fixed(candidate.architecture), torch.no_grad():
            assert candidate.score.metric == pytest.approx(float(supernet(x).sum()), rel=1e-4)


def test_the_best_has_the_highest_score_then_the_lowest_loss(supernet):
    drawn = draw(supernet, 3, {}, generator=generator())
    scores = [Score(0.5, 1.0, 9), Score(0.7, 1.0, 9), Score(0.7, 0.9, 9)]
    scored = [Candidate(c.architecture, c.counts, c.is_mode, 0, s) for c, s in zip(drawn, scores, strict=True)]
    assert best(scored) is scored[2]
    assert Candidate.from_row(scored[1].to_row()) == scored[1]


def test_the_best_by_loss_has_the_lowest_loss_then_the_highest_score(supernet):
    drawn = draw(supernet, 3, {}, generator=generator())
    scores = [Score(0.9, 1.0, 9), Score(0.6, 0.8, 9), Score(0.7, 0.8, 9)]
    scored = [Candidate(c.architecture, c.counts, c.is_mode, 0, s) for c, s in zip(drawn, scores, strict=True)]
    assert best(scored, by="loss") is scored[2]
    assert ordered(scored, by="loss") == [scored[2], scored[1], scored[0]]


def test_a_fit_does_not_depend_on_the_fit_before(supernet):
    caps = {"macs": int(0.4 * supernet.count(supernet.open()).macs)}
    fitter = Fitter(supernet, caps, Shaper(supernet))
    samples = [supernet.open(), supernet.mode(), *(supernet.sample(generator=generator()) for _ in range(4))]
    one_by_one = [Fitter(supernet, caps, Shaper(supernet)).fit(sample) for sample in samples]
    assert [fitter.fit(sample) for sample in samples] == one_by_one


@pytest.mark.parametrize("round_to", [2, 4])
def test_candidates_under_a_cap_have_round_numbers_of_channels(supernet, round_to):
    caps = {"macs": int(0.4 * supernet.count(supernet.open()).macs)}
    for candidate in draw(supernet, 6, caps, generator=generator(), shaper=Shaper(supernet, round_to=round_to)):
        assert candidate.counts.macs <= caps["macs"]
        assert all(len(kept) % round_to == 0 for kept in candidate.architecture.kept.values())


@pytest.mark.parametrize("round_to", [2, 4])
@pytest.mark.parametrize("share", [0.2, 0.35, 0.5, 0.7])
def test_rounding_closes_nothing_that_the_cap_has_room_for(supernet, share, round_to):
    everything, shaper = supernet.open(), Shaper(supernet, round_to=round_to)
    caps = {"macs": int(share * supernet.count(everything).macs)}
    candidate = Fitter(supernet, caps, shaper).fit(everything)
    kept = supernet.gates.mask(candidate.architecture)
    assert candidate.repaired == int((~kept).sum()) > 0
    logits = supernet.gates.logits().detach()
    for group in supernet.gates.group_of_unit.unique():
        closed = ~kept & (supernet.gates.group_of_unit == group)
        if closed.any():
            more = kept.clone()
            more[torch.where(closed, logits, -torch.inf).argmax()] = True
            opened = supernet.gates.architecture(shaper.shape(more))
            assert supernet.count(opened).macs > caps["macs"]


def test_a_latency_cap_is_kept_by_the_prediction(supernet):
    supernet.device_costs = measure_device(supernet.graph)
    cap = 0.7 * supernet.latency(supernet.open())
    for candidate in draw(supernet, 4, {"latency": cap}, generator=generator()):
        assert candidate.latency == supernet.latency(candidate.architecture) <= cap
        assert Candidate.from_row({**replace(candidate, score=Score(0, 0, 1)).to_row()}).latency == candidate.latency


@pytest.fixture
def chooser():
    """Two choices between a cheap and two dear operations, the dear ones likelier, and a layer with channels."""
    torch.manual_seed(0)

    def edge():
        return pgnas.OneOf({"skip": nn.Identity(), "one": nn.Conv2d(6, 6, 1), "three": nn.Conv2d(6, 6, 3, padding=1)})

    network = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), edge(), nn.ReLU(), edge(), nn.Flatten(), nn.Linear(216, 3))

    def build(granularity):
        made = pgnas.supernet(network, torch.randn(2, 1, 6, 6), granularity)
        with torch.no_grad():
            made.gates.choice_logits.copy_(torch.tensor([0.0, 2.0, 3.0, -1.0, 2.9, 3.0]))
        return made

    return build


def test_operations_are_exchanged_by_the_least_loss_of_probability_for_what_is_saved(chooser):
    supernet = chooser("operation")
    dear = supernet.mode()
    assert [dear.kept[name] for name in ("1", "3")] == [(2,), (2,)]
    between = {"1": (2,), "3": (1,)}  # 2.9 instead of 3.0 is the cheapest exchange for a saving of 8/9 of a convolution
    target = supernet.count(type(dear)(dear.sizes, between)).macs
    candidate = Fitter(supernet, {"macs": target}, Shaper(supernet)).fit(dear)
    assert (candidate.architecture.kept, candidate.repaired) == (between, 1)
    cheapest = supernet.count(type(dear)(dear.sizes, {"1": (0,), "3": (0,)})).macs
    drawn = draw(supernet, 9, {"macs": cheapest}, generator=generator())
    assert [c.architecture.kept for c in drawn] == [{"1": (0,), "3": (0,)}]
    Fitter(supernet, {"macs": cheapest}, Shaper(supernet)).require_reachable()
    with pytest.raises(ConfigError, match="cheapest operations"):
        Fitter(supernet, {"macs": cheapest - 1}, Shaper(supernet)).require_reachable()
    with pytest.raises(ConfigError, match="cheapest operations"):
        draw(supernet, 9, {"macs": cheapest - 1}, generator=generator())


def test_channels_are_closed_where_no_cheaper_operation_is_left(chooser):
    supernet = chooser("channel")
    skips = {**supernet.open().kept, "1": (0,), "3": (0,)}
    cap = supernet.count(type(supernet.mode())(supernet.gates.sizes, skips)).macs - 100
    for candidate in draw(supernet, 6, {"macs": cap}, generator=generator()):
        assert candidate.counts.macs <= cap
        assert all(len(candidate.architecture.kept[name]) == 1 for name in ("1", "3"))


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.side, self.fc = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.fc((x + self.side(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_a_cap_below_what_has_no_gate_is_refused_and_one_at_it_is_met(kind):
    supernet = pgnas.supernet(Residual(), torch.randn(2, 1, 6, 6), exclude=["fc"])
    least = getattr(
        supernet.count(supernet.gates.architecture(torch.zeros(supernet.gates.units, dtype=torch.bool))), kind
    )
    assert least > 0
    for candidate in draw(supernet, 6, {kind: least}, generator=generator()):
        assert getattr(candidate.counts, kind) <= least
    for refused in (
        lambda caps: draw(supernet, 6, caps, generator=generator()),
        lambda caps: Fitter(supernet, caps, Shaper(supernet)).require_reachable(),
    ):
        with pytest.raises(ConfigError, match=f"--max-{kind} must leave room for layers without gates, .* {least:,}"):
            refused({kind: least - 1})


def test_a_run_that_cannot_meet_its_cap_is_refused_before_the_search(tmp_path):
    out = tmp_path / "run"
    config = RunConfig(
        model="multibranch-resnet:width=4,blocks=1,stages=1", data="digits", out=str(out), max_macs="4%",
        exclude=("blocks.*.skip.*", "classifier"),
    )  # fmt: skip
    with pytest.raises(ConfigError, match="--max-macs must leave room"):
        stages.run(config)
    assert not out.exists()


def test_a_cap_that_leaves_no_room_for_round_numbers_of_channels_is_refused_before_the_search(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    out, settings = tmp_path / "run", {"max_macs": "50%", "epochs": 1, "candidates": 2}
    with pytest.raises(ConfigError, match=r"--max-macs must leave room .* 16 channels .* lower --round-to"):
        pgnas.run(model=network, data="digits", out=out, round_to=16, **settings)
    assert not out.exists()
    found = pgnas.run(model=network, data="digits", out=out, round_to=8, **settings)
    assert 0 < found["found"]["macs"] <= found["full"]["macs"] / 2


def test_closing_in_turn_leaves_what_reading_depends_on():
    def reads(kept):  # (0 or 1) and (2 or 3) and 4
        return bool((kept[0] | kept[1]) & (kept[2] | kept[3]) & kept[4])

    for order in ([0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [1, 3, 5, 0, 2, 4]):
        left = closed_but_reading(torch.ones(6, dtype=torch.bool), torch.tensor(order), reads)
        first, second = (next(unit for unit in reversed(order) if unit in pair) for pair in ((0, 1), (2, 3)))
        assert left.nonzero()[:, 0].tolist() == sorted([first, second, 4])


@pytest.mark.parametrize("granularity", ["channel", "group", "product"])
@pytest.mark.parametrize("caps", [{}, {"macs": 0.5}, {"macs": 0.06}, {"params": 0.1}])
def test_a_posterior_that_would_close_everything_keeps_what_reads_the_input(granularity, caps):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.Tanh(), nn.Conv2d(8, 8, 1), nn.Tanh(), nn.Conv2d(8, 6, 3), nn.Tanh(), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip
    supernet = pgnas.supernet(network, torch.randn(2, 1, 6, 6), granularity, initial_drop=0.9)
    with torch.no_grad():
        for parameter in supernet.gates.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator()))
    full = supernet.count(supernet.open())
    limits = {kind: share * getattr(full, kind) for kind, share in caps.items()}
    assert supernet.count(supernet.mode()).macs == 0
    found = draw(supernet, 8, limits, generator=generator())
    for candidate in found:
        counts = supernet.count(candidate.architecture)
        assert counts == candidate.counts
        assert counts.macs > 0
        assert all(getattr(counts, kind) <= limit for kind, limit in limits.items())
    image = torch.randn(4, 1, 6, 6)
    assert extract(supernet, found[0].architecture)(image).std(0).max() > 0


def test_a_cap_below_one_channel_a_layer_is_refused(supernet):
    least = supernet.count(type(supernet.mode())(supernet.gates.sizes, dict.fromkeys(supernet.gates.sizes, (0,))))
    Fitter(supernet, {"macs": least.macs}, Shaper(supernet)).require_reachable()
    for refused in (
        lambda caps: draw(supernet, 6, caps, generator=generator()),
        lambda caps: Fitter(supernet, caps, Shaper(supernet)).require_reachable(),
    ):
        with pytest.raises(ConfigError, match=f"a channel of what is between, {least.macs:,}"):
            refused({"macs": least.macs - 1})
