"""Devices, number formats and compilation: the one place that knows where the arithmetic happens."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import send_to_device
from torch import Tensor, nn

from pgnas.config import Device, Precision, Switch
from pgnas.errors import ConfigError
from pgnas.processes import Processes, join
from pgnas.seeds import derive_seed

COMPILE_WORTH_MACS = 2e12
"""Planned forward multiply-adds from which ``torch.compile`` repays its warm-up (a minute) on a desktop CPU.

A fixed count and not a timing, so that the same run makes the same decision again.
"""
COMPILE_WORTH_MACS_GPU = 2e14


@dataclass(frozen=True)
class Engine:
    """Where and how a run computes.

    Attributes:
        accelerator: Hugging Face Accelerate's handle on devices and number formats.
        processes: The processes that train together.
        accumulate: Parts in which a process works through its share of a batch; their gradients are summed.
        sync_batch_norm: Whether BatchNorm sees the batches of all processes as one in training.
    """

    accelerator: Accelerator
    processes: Processes = field(default_factory=Processes)
    accumulate: int = 1
    sync_batch_norm: bool = False

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        device: torch.device = self.accelerator.device
        return device

    def place(self, module: nn.Module) -> nn.Module:
        """Move a module to the device, images' weights in channels-last order (faster convolutions); it is changed."""
        module.to(self.device)
        for p in module.parameters():
            if p.ndim == 4:
                p.data = p.data.contiguous(memory_format=torch.channels_last)
        return module

    def batch(self, batch: Any) -> tuple[tuple[Tensor, ...], Any]:
        """A loader's batch as (inputs, targets) on the device; the last item is the targets."""
        *inputs, targets = send_to_device(batch, self.device, non_blocking=True)
        if len(inputs) == 1 and isinstance(inputs[0], tuple | list):
            inputs = list(inputs[0])
        placed = [x.contiguous(memory_format=torch.channels_last) if x.ndim == 4 else x for x in inputs]
        return tuple(placed), targets

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        """The number format of the forward pass."""
        context: contextlib.AbstractContextManager[None] = self.accelerator.autocast()
        return context

    def new_scaler(self) -> torch.amp.GradScaler | None:
        """What scales a phase's losses, so that small gradients survive fp16; None for other number formats."""
        return torch.amp.GradScaler(self.device.type) if self.accelerator.mixed_precision == "fp16" else None

    @contextlib.contextmanager
    def synchronised(self, network: nn.Module) -> Iterator[None]:
        """If asked for, let a network's BatchNorm see the batches of all processes as one inside the block.

        Its layers are replaced for that time by ones with the same parameters and statistics, the same tensors.
        """
        found = network.named_modules(remove_duplicate=False) if self.sync_batch_norm else ()
        plain = {name: m for name, m in found if isinstance(m, nn.modules.batchnorm._BatchNorm)}
        synced: dict[nn.Module, nn.Module] = {norm: _synchronised(norm) for norm in set(plain.values())}
        for name, norm in plain.items():
            network.set_submodule(name, synced[norm])
        try:
            yield
        finally:
            for name, norm in plain.items():
                network.set_submodule(name, norm.train(synced[norm].training))

    def average_gradients(self, loss: Tensor, parameters: Sequence[Tensor]) -> Tensor:
        """Average the gradients over the processes, in place; the average loss."""
        mean = loss.detach().clone()
        self.processes.average_([mean, *(p.grad for p in parameters if p.grad is not None)])
        return mean

    def average_statistics(self, network: nn.Module) -> None:
        """Make what each process gathered of its own images the same on all.

        BatchNorm's running statistics become their means: each has seen its share of every batch. Other buffers become
        those of the first process.
        """
        if not self.processes.communicates:
            return
        norms = [m for m in network.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        means = [b for norm in norms for b in norm.buffers(recurse=False) if b.is_floating_point()]
        averaged = {id(b) for b in means}
        self.processes.average_(means)
        self.processes.copy_first_([b for b in network.buffers() if id(b) not in averaged])

    def own_randomness(self) -> None:
        """From here on, what a network draws (dropout) differs from process to process."""
        if self.processes.rank:
            torch.manual_seed(derive_seed(torch.initial_seed(), "rank", self.processes.rank))


def make_engine(
    device: Device = "auto",
    precision: Precision = "auto",
    *,
    processes: Processes | None = None,
    accumulate: int = 1,
    sync_batch_norm: bool = False,
) -> Engine:
    """The engine for a device and a number format.

    Args:
        device: Where to compute.
        precision: Number format of the forward pass.
        processes: Those that train together; None: those that this one was launched with.
        accumulate: Parts in which a batch is worked through.
        sync_batch_norm: Whether BatchNorm sees the batches of all processes as one in training.

    Raises:
        ConfigError: The device is not there, or cannot compute in that format or together with others.
        RunError: The other processes cannot be reached.
    """
    processes = processes or join()
    found = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device != "auto" and not found[device]:
        there = ", ".join(name for name, is_there in found.items() if is_there)
        raise ConfigError("--device", f"must be there (here: {there})", value=device, remedy="choose one that is")
    kind = device if device != "auto" else next(name for name in ("cuda", "mps", "cpu") if found[name])
    if precision == "auto":
        precision = "bf16" if kind == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if precision == "fp16" and kind == "cpu":
        raise ConfigError("--precision fp16", "needs a GPU", value="cpu", remedy="use bf16 or fp32")
    if sync_batch_norm and kind != "cuda":
        raise ConfigError(
            "--sync-batch-norm", "needs CUDA", value=kind, remedy="leave it out: running statistics are averaged anyway"
        )
    if processes.world_size > 1 and kind == "mps":
        raise ConfigError("--device mps", "works with one process", value=processes.world_size, remedy="start one")
    mixed = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}[precision]
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != mixed:
        AcceleratorState._reset_state()  # Accelerate would refuse a second number format in one program
    return Engine(Accelerator(cpu=kind == "cpu", mixed_precision=mixed), processes, accumulate, sync_batch_norm)


def compile_worth(device: torch.device) -> float:
    """Planned forward multiply-adds from which ``torch.compile`` repays its warm-up."""
    return COMPILE_WORTH_MACS if device.type == "cpu" else COMPILE_WORTH_MACS_GPU


def worth_compiling(switch: Switch, planned_macs: float, device: torch.device) -> tuple[bool, str]:
    """Whether to compile a network's training step, and the reason in words.

    Args:
        switch: The user's choice.
        planned_macs: Forward multiply-adds planned: those of an example times examples to be seen.
        device: Where it runs.
    """
    if switch != "auto":
        return switch == "on", f"torch.compile {switch}, as asked"
    if device.type == "mps":
        return False, "torch.compile off on mps"
    if device.type == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        return False, "torch.compile off: no C++ compiler found"
    worth = compile_worth(device)
    verdict = "repays" if planned_macs >= worth else "does not repay"
    return (
        planned_macs >= worth,
        f"the planned work, {planned_macs:.1e} multiply-adds, {verdict} torch.compile's warm-up",
    )


def _synchronised(norm: nn.Module) -> nn.Module:
    made: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(norm)  # type: ignore[no-untyped-call]
    return made


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Leave the caller's global random state as it was."""
    with torch.random.fork_rng():
        yield


def seed_step(seed: int, *place: int | str) -> None:
    """Seed the global generators for one step, so that a resumed step draws what it would have drawn."""
    torch.manual_seed(derive_seed(seed, *place))


def parameter_groups(parameters: Sequence[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Optimiser groups: decay on matrices and kernels, none on biases and BatchNorm."""
    decayed = [p for p in parameters if p.ndim > 1]
    plain = [p for p in parameters if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
