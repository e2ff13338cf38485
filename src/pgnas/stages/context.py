"""What every stage of a run needs: its folder, data, network, supernet and engine, each made once and only if asked."""

from __future__ import annotations

import hashlib
import math
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pgnas import nn as pnn
from pgnas.amounts import Budget
from pgnas.architecture import Architecture
from pgnas.config import RunConfig
from pgnas.data import Batches, DataSet, Examples, Preprocessing, StreamedSplit, evaluates_a_crop, load_data
from pgnas.errors import RunFolderError
from pgnas.nn import Counts, Supernet
from pgnas.nn.copying import copied
from pgnas.processes import Processes
from pgnas.progress import Progress
from pgnas.run_folder import RunFolder
from pgnas.run_folder.tensors import load_tensors
from pgnas.seeds import derive_seed
from pgnas.stages.candidates import Caps
from pgnas.stages.engine import Engine, make_engine, worth_compiling
from pgnas.stages.epochs import run_epochs
from pgnas.stages.noting import FolderProgress
from pgnas.stages.recipe import AUGMENTATION_FACTOR, Recipe, auxiliary_loss, calibration_batches, prior_of
from pgnas.stages.shedding import require_sheddable
from pgnas.stages.timings import FolderTimings, Timings, step_seconds
from pgnas.stages.training import Phase, Score, Store, accuracy
from pgnas.supernets import BuiltModel, build_model, load_state, load_weights, require_outputs

EVALUATION_BATCH = 500
SMALL_DATA_STEPS = 1_000
"""Small data sets are trained for at least this many steps unless ``--epochs`` says otherwise."""
START_NAME = "start.safetensors"
"""In a run folder: the posterior, of another search, with which this run's begins."""
HANDED_IN = "python:"
"""Begins the ``model`` or ``data`` setting of a run whose network or data was handed in as a Python object."""


class Context:
    """A run at work.

    Args:
        folder: Its folder, open for writing.
        progress: Where to report.
        processes: Those that work on it; None: this one alone.
        model: The network, if it was handed in as an object.
        data: The data, if it was handed in as an object.
    """

    progress: Progress

    def __init__(
        self,
        folder: RunFolder,
        progress: Progress,
        *,
        model: nn.Module | None = None,
        data: DataSet | None = None,
        processes: Processes | None = None,
    ) -> None:
        self.folder, self.progress = folder, FolderProgress(progress, folder)
        self.processes = processes or Processes()
        self._model, self._data = model, data
        self._data_notes: tuple[str, ...] = ()

    @property
    def config(self) -> RunConfig:
        """The settings."""
        return self.folder.config

    @cached_property
    def engine(self) -> Engine:
        """Where to compute."""
        return make_engine(
            self.config.device,
            self.config.precision,
            processes=self.processes,
            accumulate=self.config.accumulate,
            sync_batch_norm=self.config.sync_batch_norm,
        )

    @cached_property
    def data(self) -> DataSet:
        """The data; checked to be the same as when the run began."""
        if self._data is None and self.config.data.startswith(HANDED_IN):
            raise RunFolderError(
                str(self.folder.path), "was run from Python on data in memory", remedy="hand them in again as data=..."
            )
        streamed = self.folder.stage_facts("data").get("streamed")
        with self.processes.together():
            data = self._data or load_data(
                self.config.data,
                image_size=self.config.image_size,
                data_seed=self.config.data_seed,
                augment=self.config.augment,
                cutout=self.config.cutout,
                streamed=streamed if isinstance(streamed, bool) else None,
            )
        facts = {"cropped": evaluates_a_crop(data.test), "streamed": isinstance(data.train, StreamedSplit)}
        self._note_once("data", data.fingerprint, **facts)
        halves = f"{len(data.select)} and {len(data.estimate)}"  # of which broken ones may have been left out
        self.processes.require_same("the number of validation images", halves)
        for note in data.notes:
            self.progress.note(f"data: {note}")
        self._data_notes = data.notes
        return replace(data, notes=())  # told: runs that follow on the same data need not repeat them

    @property
    def data_notes(self) -> tuple[str, ...]:
        """What there is to know about how the data was read; none if another run has told it."""
        self.data  # noqa: B018  (loads them)
        return self._data_notes

    @cached_property
    def built(self) -> BuiltModel:
        """The full network with its starting weights."""
        shape = self.data.preprocessing
        if self._model is not None:
            built = BuiltModel(copied(self._model), shape.channels)  # what is handed in is never changed
            require_outputs(self._model, shape.shape, len(self.data.class_names))
        elif self.config.model.startswith(HANDED_IN):
            raise RunFolderError(
                str(self.folder.path),
                "was run from Python on a network object",
                remedy="hand it in again from Python: run, predict, front, evaluate and finetune take model=...",
            )
        else:
            with self.processes.together():
                built = build_model(
                    self.config.model,
                    in_channels=shape.channels,
                    num_classes=len(self.data.class_names),
                    image_size=shape.size,
                    seed=derive_seed(self.config.seed, "weights"),
                )
        notes = list(built.notes)
        if self.config.weights is not None:
            with self.processes.together():
                tensors, _ = load_tensors(Path(self.config.weights))
                notes += load_weights(built.module, tensors, source=self.config.weights, replaced=built.head)
        for note in notes:
            self.progress.note(f"model: {note}")
        return replace(built, notes=tuple(notes))

    @property
    def example(self) -> Tensor:
        """Two normalised training images as the network reads them."""
        images = self.data.preprocessing.normalise(self.data.train.head(2))
        return images.expand(-1, self.built.in_channels, *images.shape[2:]).contiguous()

    @cached_property
    def full(self) -> Counts:
        """Parameters and multiply-adds of the network as handed in; layers called as functions count as well.

        Auxiliary heads, which only its training has, do not count.
        """
        counted = self.supernet.count(self.supernet.open())
        if self.supernet.has_heads:
            return counted
        return Counts(pnn.measure(self.built.module, (self.example,)).params, counted.macs)

    @cached_property
    def begun(self) -> bool:
        """Whether the search goes on from a posterior that another has learned."""
        return bool(self.processes.from_first(self.folder.file(START_NAME).exists))

    @cached_property
    def supernet(self) -> Supernet:
        """The supernet at its start, on the device: new, or as another search has left it."""
        paper = self.config.prior_name == "paper"
        made = pnn.supernet(
            self.built.module,
            self.example,
            self.config.granularity,
            initial_drop=self.config.initial_drop or (0.1 if paper else 0.02),
            temperature=self.config.temperature or (0.2 if paper else 0.5),
            exclude=self.config.exclude,
            gate_inputs=self.config.gate_inputs,
            channels_per_gate=self.config.channels_per_gate,
            tie=self.built.ties_without(self.config.exclude),
            streams=self.config.gates_streams,
        )
        if self.config.shed == "on":
            require_sheddable(made)
        if self.config.fixed_drop is not None:
            made.gates.fix_(1 - self.config.fixed_drop)
        if self.begun:
            load_state(made, self.folder.load_tensors(START_NAME)[0], source=str(self.folder.file(START_NAME)))
        self.engine.place(made)
        if self.config.max_latency is not None:
            made.device_costs = self.timings.of(made, training=False)
        return made

    @cached_property
    def timings(self) -> Timings:
        """What the network's operations take on this device."""
        return FolderTimings(
            self.folder,
            source=self.config.device_costs,
            latency_batch=self.config.latency_batch,
            processes=self.processes,
        )

    @cached_property
    def recipe(self) -> Recipe:
        """How the search is done."""
        images = len(self.data.train)
        return Recipe(
            self.config,
            self.engine,
            auxiliary_loss(F.cross_entropy, self.config.auxiliary_weight),
            accuracy,
            self.full,
            self.epochs,
            self.steps_an_epoch,
            self.steps_an_epoch * min(self.config.batch_size, images),
            self.config.data_size
            or float(images if self.data.augmentation.is_identity else AUGMENTATION_FACTOR * images),
            prior_of(self.config),
            self.timings,
            None if self.config.max_latency is None else self.supernet.measured().network,
            self.budget,
        )

    @property
    def caps(self) -> Caps:
        """The caps as counts and seconds."""
        return self.recipe.caps

    @cached_property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        if self.config.epochs is not None:
            return self.config.epochs
        if self.budget is not None:
            return max(1, round(self.budget))
        return min(100, max(20, math.ceil(SMALL_DATA_STEPS / self.steps_an_epoch)))

    @cached_property
    def budget(self) -> float | None:
        """Epochs of the full network that the run may cost; a time becomes one by a step timed at the start."""
        if self.config.budget is None:
            return None
        budget = Budget.parse(self.config.budget, subject="--budget")
        if not budget.is_time:
            return budget.value
        known = self.folder.stage_facts("budget").get("seconds_a_step")
        if known is None:
            loss = auxiliary_loss(F.cross_entropy, self.config.auxiliary_weight)
            batch = next(iter(self.train_batches()))
            known = self.processes.from_first(lambda: step_seconds(self.supernet, batch, self.engine, loss))
            self.folder.mark_done("budget", 0.0, seconds_a_step=known)
        return max(1.0, 60 * budget.value / (float(str(known)) * self.steps_an_epoch))

    @cached_property
    def steps_an_epoch(self) -> int:
        """Optimiser steps an epoch."""
        return len(self.train_batches())

    def train_batches(self) -> Batches:
        """The training images, shuffled and augmented: this process's share of every batch."""
        return self._train_batches(rank=self.processes.rank, world_size=self.processes.world_size)

    def _train_batches(self, **share: int) -> Batches:
        augmentation, size = self.data.augmentation, self.config.batch_size
        return self._batches(self.data.train, size, augmentation=augmentation, shuffle=True, drop_last=True, **share)

    def calibration_batches(self) -> list[tuple[Tensor, Tensor]]:
        """The first few training batches of epoch 0, whole, for BatchNorm statistics."""
        return calibration_batches(self._train_batches())

    def ranking_calibration(self) -> list[tuple[Tensor, Tensor]] | None:
        """The batches on which the ranking re-estimated BatchNorm; None if it did not."""
        return self.calibration_batches() if self.folder.stage_facts("sample").get("recalibrated") else None

    def held_out(self, split: Examples) -> Batches:
        """Batches of a held-out split."""
        return self._batches(split, EVALUATION_BATCH)

    def score(self, network: nn.Module, split: Examples) -> Score:
        """Accuracy and loss of a network on one split."""
        return self.recipe.score(network, self.held_out(split))

    def compile_choice(self, stage: str, planned_macs: float) -> bool:
        """Whether a stage compiles its network; decided once and recorded, so that a resumed run does the same."""
        known = self.folder.stage_facts(f"{stage}.compile").get("compiled")
        if isinstance(known, bool):
            return known
        device = self.engine.device
        compiled, reason = self.processes.from_first(lambda: worth_compiling(self.config.compile, planned_macs, device))
        self.progress.note(f"{stage}: {reason}")
        self.folder.mark_done(
            f"{stage}.compile", 0.0, compiled=compiled, reason=reason, threads=torch.get_num_threads()
        )
        return bool(compiled)

    @cached_property
    def posterior(self) -> Supernet:
        """The supernet as it was when the architecture was decided."""
        self.folder.require("posterior.safetensors", stage="search")
        tensors, _ = self.folder.load_tensors("posterior.safetensors")
        load_state(self.supernet, tensors, source=str(self.folder.file("posterior.safetensors")))
        return self.supernet

    @cached_property
    def architecture(self) -> Architecture:
        """The chosen architecture."""
        value = self.folder.read_json("architecture.json", stage="sample")
        return Architecture.from_json(value, subject=str(self.folder.file("architecture.json")))

    @cached_property
    def found(self) -> Counts:
        """Parameters and multiply-adds of the chosen architecture's network."""
        return self.supernet.count(self.architecture)

    def train(self, phase: Phase, epochs: range, store: Store) -> None:
        """Train a phase on the training images, watched on the selection half of validation."""
        run_epochs(
            phase,
            self.train_batches(),
            epochs=epochs,
            seed=self.config.seed,
            store=store,
            progress=self.progress,
            validate=lambda: self.score(phase.network, self.data.select),
        )

    def _batches(self, split: Examples, size: int, **options: Any) -> Batches:
        shape, channels = self.data.preprocessing, self.built.in_channels
        if channels != shape.channels:
            split = split.widened(channels)
            shape = self.network_preprocessing
        return Batches(
            split, shape, size, seed=derive_seed(self.config.seed, "batches"), device=self.engine.device, **options
        )

    @property
    def network_preprocessing(self) -> Preprocessing:
        """What an image must go through before the network."""
        shape, channels = self.data.preprocessing, self.built.in_channels
        if channels == shape.channels:
            return shape
        return replace(shape, channels=channels, mean=shape.mean * channels, std=shape.std * channels)

    def _note_once(self, what: str, fingerprint: str, **facts: object) -> None:
        known = self.folder.stage_facts(what).get("fingerprint")
        if known is None:
            self.folder.mark_done(what, 0.0, fingerprint=fingerprint, **facts)
            known = self.folder.stage_facts(what).get("fingerprint")
        error = None
        if known != fingerprint:
            error = RunFolderError(
                str(self.folder.path),
                f"was begun with other {what}",
                remedy=f"use the {what} of then, or another --out",
            )
        self.processes.agree(error)


def state_digest(module: nn.Module) -> str:
    """A digest of a module's tensors, to notice that another one was handed in."""
    digest = hashlib.sha256()
    for name, value in module.state_dict().items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
