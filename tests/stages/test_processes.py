"""Several processes: one posterior, the gradients of the whole batch, one process's scores, one folder, one error."""

from __future__ import annotations

import copy
import functools
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional as F

import pgnas
from pgnas.bayes import PaperPrior
from pgnas.config import RunConfig
from pgnas.data import Batches, load_data
from pgnas.errors import ConfigError, DataError, PgnasError, RunError, RunFolderError, StorageError
from pgnas.processes import Processes
from pgnas.progress import SilentReporter
from pgnas.run_folder import RunFolder, SharedFolder
from pgnas.stages import run
from pgnas.stages.candidates import Candidate, rank
from pgnas.stages.engine import Engine, make_engine
from pgnas.stages.epochs import digest, run_epochs
from pgnas.stages.front import front
from pgnas.stages.front_settings import FrontSettings
from pgnas.stages.phases import PosteriorPhase, PosteriorSettings
from pgnas.stages.racing import make_race, run_race
from pgnas.stages.schedule import cosine_schedule
from pgnas.stages.training import NoStore, Score, evaluate

from .forked import on_processes


@functools.cache
def digits():
    return load_data("digits")


def make_engine_of(processes, **options):
    return Engine(Accelerator(cpu=True), processes, **options)


def make_supernet(norm=False):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6) if norm else nn.Identity(), nn.ReLU()]
    layers += [nn.Conv2d(6, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)]
    return pgnas.supernet(nn.Sequential(*layers), torch.randn(2, 1, 8, 8), "channel", initial_drop=0.3)


def make_phase(supernet, engine, steps=100):
    return PosteriorPhase(
        supernet,
        PosteriorSettings(PaperPrior(50.0), 1000.0, {"macs": 0.5}, steps),
        engine=engine,
        schedule=cosine_schedule(0.05, steps),
        loss=F.cross_entropy,
    )


def search(processes, norm=False, epochs=2, spoil=None, store=None):
    """A short search on digits: the rows, and the digest and tensors of the state."""
    data = digits()
    share = {"rank": processes.rank, "world_size": processes.world_size}
    loader = Batches(data.train, data.preprocessing, 256, shuffle=True, seed=1, drop_last=True, **share)
    supernet, store = make_supernet(norm), store or NoStore()
    phase = make_phase(supernet, make_engine_of(processes), epochs * len(loader))
    if spoil is not None:
        spoil(processes, phase, loader)
    held_out = Batches(data.select, data.preprocessing, 64)
    run_epochs(
        phase, loader, epochs=range(epochs), seed=3, store=store, progress=SilentReporter(),
        validate=lambda: evaluate(supernet, held_out, engine=phase.engine, loss=F.cross_entropy),
    )  # fmt: skip
    values = {name: value.tolist() for name, value in supernet.state_dict().items()}
    return store.rows, digest(phase.state()), values


@pytest.mark.parametrize("norm", [False, True])
def test_all_processes_end_with_the_same_posterior(tmp_path, norm):
    (rows, state, values), (other_rows, other_state, _) = on_processes(tmp_path, lambda p: search(p, norm))
    assert (state, rows) == (other_state, other_rows)
    alone_rows, _, alone = search(Processes(), norm)
    if not norm:  # then two processes do what one does, up to the order of sums
        for name, value in alone.items():
            torch.testing.assert_close(torch.tensor(values[name]), torch.tensor(value), rtol=1e-3, atol=1e-5)
    for row, wanted in zip(rows, alone_rows, strict=True):
        assert row["loss"] == pytest.approx(wanted["loss"], rel=0.05 if norm else 1e-4)


def test_a_process_that_drifts_away_is_noticed(tmp_path):
    def drift(processes, phase, loader):
        if processes.is_first:
            with torch.no_grad():
                phase.supernet.gates.unit_logits[0] += 1e-6

    errors = on_processes(tmp_path, lambda p: search(p, spoil=drift))
    for error in errors:
        assert isinstance(error, RunError)
        assert "must be the same on every process" in str(error)


@pytest.mark.parametrize("rank", [0, 1])
def test_an_error_on_one_process_ends_all_with_it(tmp_path, rank):
    def spoil(processes, phase, loader):
        def fail(batch):
            raise DataError("image 7", "must be readable", remedy="remove it")

        if processes.rank == rank:
            object.__setattr__(phase.engine, "batch", fail)

    first, second = on_processes(tmp_path, lambda p: search(p, spoil=spoil))
    assert type(first) is type(second) is DataError
    assert str(first) == str(second) == "image 7 must be readable; remove it"


class Kept(NoStore):
    """Keeps the newest checkpoint in memory."""

    def __init__(self):
        super().__init__()
        self.saved, self.step = None, 0

    def load(self, phase):
        return copy.deepcopy(self.saved)

    def save(self, phase, state, step):
        self.saved, self.step = copy.deepcopy(state), step


@pytest.mark.parametrize("pressed", [(0,), (1,), (0, 1)])
def test_ctrl_c_on_any_process_stops_all_after_the_same_step_and_nothing_is_lost(tmp_path, pressed):
    def press(processes, phase, loader):
        batch, calls = phase.engine.batch, itertools.count(1)

        def interrupted(values):
            if next(calls) == 2 and processes.rank in pressed:
                signal.raise_signal(signal.SIGINT)
            return batch(values)

        object.__setattr__(phase.engine, "batch", interrupted)

    def work(processes):
        store = Kept()
        with pytest.raises(KeyboardInterrupt):
            search(processes, spoil=press, store=store)
        stopped = store.step
        return stopped, search(processes, store=store)

    first, second = on_processes(tmp_path, work)
    assert first == second
    (tmp_path / "store").unlink()
    assert first == (2, on_processes(tmp_path, search)[0])


def test_an_error_that_pgnas_cannot_explain_ends_the_others_with_a_line(tmp_path):
    def work(processes):
        with processes.together():
            if processes.rank == 1:
                raise ZeroDivisionError("1 / 0")

    first, second = on_processes(tmp_path, work)
    assert isinstance(first, RunError)
    assert "process 1 failed, got ZeroDivisionError: 1 / 0" in str(first)
    assert isinstance(second, ZeroDivisionError)


def test_a_process_that_dies_does_not_leave_the_others_waiting(tmp_path):
    def work(processes):
        processes.agree()
        if processes.rank == 1:
            os._exit(9)
        processes.agree()

    start = time.monotonic()
    first, second = on_processes(tmp_path, work)
    assert isinstance(first, RunError)
    assert "ended, or did not answer in time" in str(first)
    assert second is None
    assert time.monotonic() - start < 25


def test_scores_are_those_of_one_process_to_the_bit(tmp_path):
    data = digits()

    def score(processes):
        held_out = Batches(data.select, data.preprocessing, 50)
        found = evaluate(make_supernet(), held_out, engine=make_engine_of(processes), loss=F.cross_entropy)
        return found.metric, found.loss, found.count

    alone = score(Processes())
    assert on_processes(tmp_path, score, count=3) == [alone] * 3


def test_candidates_are_ranked_in_their_order_whoever_scored_them(tmp_path):
    supernet = make_supernet()
    rng = torch.Generator().manual_seed(0)
    drawn = [supernet.sample(generator=rng) for _ in range(7)]
    candidates = [Candidate(a, supernet.count(a), False, 0) for a in drawn]

    def work(processes):
        scored = 0

        def score(network):
            nonlocal scored
            scored += 1
            return Score(1 / 3 + sum(float(p.detach().sum()) for p in network.parameters()), 0.1, 5)

        rows = [c.to_row() for c in rank(supernet, candidates, score, processes=processes)]
        return rows, scored

    alone, _ = work(Processes())
    (rows, scored), (other_rows, other_scored) = on_processes(tmp_path, work)
    assert rows == other_rows == alone
    assert (scored, other_scored) == (4, 3)


def test_one_folder_is_written_by_the_first_and_read_by_all(tmp_path):
    config = RunConfig(model="m", data="digits", out=str(tmp_path / "run"), lr=0.3)
    state = {"weight": torch.arange(3.0), "epoch": 2}

    def work(processes):
        mine = config if processes.is_first else RunConfig(model="other", data="d", out=str(tmp_path / "absent"))
        with SharedFolder.share(processes, lambda: RunFolder.create_or_resume(mine)) as folder:
            folder.save_checkpoint("search", state, 2)
            folder.save_tensors("x.safetensors", {"x": torch.ones(2) * (processes.rank + 1)}, {"by": "first"})
            folder.append_metrics({"epoch": 1, "rank": processes.rank})
            folder.mark_done("search", 1.0, rank=processes.rank)
            folder.write_json("a.json", {"a": processes.rank})
            loaded, tensors = folder.load_checkpoint("search"), folder.load_tensors("x.safetensors")
            found = {
                "weight": loaded["weight"].tolist(), "x": tensors[0]["x"].tolist(), "by": tensors[1],
                "rows": folder.read_metrics(), "facts": folder.stage_facts("search"), "config": folder.config.lr,
                "none": folder.load_checkpoint("train"), "json": folder.read_json("a.json", stage="search"),
            }  # fmt: skip
            return found, folder.writes

    (first, writes), (second, also_writes) = on_processes(tmp_path, work)
    assert first == second
    assert (writes, also_writes) == (True, False)
    assert first == {
        "weight": [0.0, 1.0, 2.0], "x": [1.0, 1.0], "by": {"by": "first"}, "rows": [{"epoch": 1, "rank": 0}],
        "facts": {"rank": 0}, "config": 0.3, "none": None, "json": {"a": 0},
    }  # fmt: skip
    assert not (tmp_path / "absent").exists()


def test_a_folder_in_the_way_and_a_full_disk_are_the_same_error_on_all(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("mine")
    config = RunConfig(model="m", data="digits", out=str(tmp_path / "run"))
    errors = on_processes(tmp_path, lambda p: SharedFolder.share(p, lambda: RunFolder.create_or_resume(config)))
    assert [type(e) for e in errors] == [RunFolderError] * 2
    assert str(errors[0]) == str(errors[1])

    def full(*_):
        raise StorageError("metrics.jsonl", "needs more room than the disk has left")

    def work(processes):
        free = RunConfig(model="m", data="digits", out=str(tmp_path / "free"))
        with SharedFolder.share(processes, lambda: RunFolder.create_or_resume(free)) as folder:
            monkeypatch.setattr(RunFolder, "append_line", full)
            folder.append_metrics({"epoch": 1})

    (tmp_path / "store").unlink()
    errors = on_processes(tmp_path, work)
    assert [type(e) for e in errors] == [StorageError] * 2


def test_statistics_become_the_mean_and_other_buffers_the_first_process_s(tmp_path):
    def work(processes):
        network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
        network[1].running_mean.fill_(processes.rank + 1.0)
        network[1].num_batches_tracked.fill_(5)
        network.register_buffer("constant", torch.tensor(0.1 + processes.rank))
        make_engine_of(processes).average_statistics(network)
        return {name: b.tolist() for name, b in network.named_buffers()}

    first, second = on_processes(tmp_path, work)
    assert first == second
    assert first["1.running_mean"] == [1.5, 1.5]
    assert first["1.num_batches_tracked"] == 5
    assert first["constant"] == pytest.approx(0.1)


def test_gradients_are_averaged_in_buckets_of_every_type(tmp_path, monkeypatch):
    monkeypatch.setattr("pgnas.processes.BUCKET_BYTES", 40)

    def work(processes):
        tensors = [torch.full((size,), float(processes.rank)).to(kind) for size in (3, 11, 1) for kind in KINDS]
        tensors.append(torch.full((2, 3, 4, 4), float(processes.rank)).contiguous(memory_format=torch.channels_last))
        processes.average_(tensors)
        return [bool((t == 0.5).all()) for t in tensors]

    assert on_processes(tmp_path, work) == [[True] * 7] * 2


KINDS = (torch.float32, torch.float64)


def test_synchronised_batch_norm_shares_its_tensors_and_goes_as_it_came():
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    norm, names = network[1], list(network.state_dict())
    engine = Engine(Accelerator(cpu=True), sync_batch_norm=True)
    with engine.synchronised(network):
        assert type(network[1]) is nn.SyncBatchNorm
        assert network[1].weight is norm.weight
        assert list(network.state_dict()) == names
        network[1].running_mean.add_(1)
        network.eval()
    assert network[1] is norm
    assert not norm.training
    assert norm.running_mean.tolist() == [1, 1]
    with pytest.raises(ConfigError, match="needs CUDA"):
        make_engine("cpu", sync_batch_norm=True)


def test_errors_cross_with_their_kind_and_their_words(tmp_path):
    def work(processes):
        def fail():
            raise ConfigError("--lr", "must be small", value=3, remedy="lower it")

        try:
            processes.from_first(fail)
        except PgnasError as error:
            return str(error), error.exit_code, processes.from_first(lambda: [1, None, 0.1])

    first, second = on_processes(tmp_path, work)
    assert first == second == ("--lr must be small, got 3; lower it", 2, [1, None, 0.1])


@pytest.mark.parametrize("ranking", ["halving", "elimination"])
def test_two_processes_race_as_one_does(tmp_path, ranking):
    supernet, generator, found = make_supernet(), torch.Generator().manual_seed(0), {}
    while len(found) < 12:
        drawn = supernet.sample(generator=generator)
        found[drawn.digest] = Candidate(drawn, supernet.count(drawn), False, 0)
    candidates = list(found.values())

    def judge(network, images):
        right = torch.rand(100, generator=torch.Generator().manual_seed(sum(p.numel() for p in network.parameters())))
        return (right[images] < 0.6).float(), 0.5

    def race(processes):
        kept = []
        raced = run_race(
            make_race(ranking, candidates, 100, budget=0.4, error=0.05, seed=1), supernet, candidates, judge,
            processes=processes, keep=lambda state: kept.append(sorted(state)),
        )  # fmt: skip
        return raced.result.winner, raced.result.passes, len(kept) > 1

    assert on_processes(tmp_path, race) == [race(Processes())] * 2


def test_a_process_that_does_not_see_the_folder_takes_part_in_every_stage(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()

    def work(processes):
        os.chdir(tmp_path / ("one" if processes.is_first else "two"))
        config = RunConfig(
            model="multibranch-resnet:width=4,stages=1,blocks=1", data="digits", out="run", epochs=2, candidates=2,
            max_macs="60%", device="cpu", batch_size=256, decide_at="50%",
        )  # fmt: skip
        result = run(config)
        made = front("run", FrontSettings(caps=("40%", "60%"), epochs=1))
        return result["found"]["macs"], [point["cap"] for point in made.points]

    first, second = on_processes(tmp_path, work, seconds=120)
    assert first == second
    assert first[1] == ["40%", "60%"]
    assert not list((tmp_path / "two").iterdir())


LEAVES = """
import os, pathlib
import torch
from pgnas import processes

if __name__ == "__main__":
    joined = processes.join()
    import torch._dynamo  # whose functions have the group of that moment as a default
    joined.average_([torch.ones(3)])
    processes._part()
    names = [pathlib.Path(f"/proc/self/task/{task}/comm").read_text() for task in os.listdir("/proc/self/task")]
    print("left:", sum("gloo" in name for name in names))
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed in /proc, which is not there")
def test_no_thread_of_the_group_outlives_it(tmp_path):
    """One that is still at work while the interpreter ends aborts the process."""
    script = tmp_path / "leaves.py"
    script.write_text(LEAVES)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["left: 0"] * 2
