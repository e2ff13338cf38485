"""PGNAS and its peers: same base network, data, cap, seeds and training compute.

    PGNAS_DATA=folder python -m bench.peers.run cell --method pgnas --network resnet --seed 0
    PGNAS_DATA=folder python -m bench.peers.run all           # every missing cell in turn, for as long as it runs
    python -m bench.peers.run table                           # from the results that are there

The folder holds CIFAR-10 as cifar10.tar or unpacked as cifar10/{train,test}/<class>/<image>, read at 16x16. See
README.md beside this file.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from bench.ablation import small_cifar
from bench.cifar16 import find_cifar
from bench.peers.cells import Cell, read_results
from bench.peers.methods import COMPARED, METHODS
from bench.peers.networks import NETWORKS
from bench.peers.table import write_tables
from bench.peers.working import Work, work_on

CLASSES = 10


def main() -> None:
    """Do what the command line asks for."""
    arguments = _parser().parse_args()
    arguments.command(arguments)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("cell", help="one cell")
    one.add_argument("--method", required=True, choices=list(METHODS))
    one.add_argument("--network", required=True, choices=list(NETWORKS))
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(command=do_one)
    every = commands.add_parser("all", help="every missing cell, seed by seed")
    every.add_argument("--methods", nargs="+", default=list(COMPARED), choices=METHODS)
    every.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    every.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    every.add_argument("--limit", type=int, help="at most so many cells")
    every.set_defaults(command=do_all)
    for command in (one, every):
        _add_shared(command)
    table = commands.add_parser("table", help="tables and plots of the results that are there")
    table.set_defaults(command=lambda arguments: print(write_tables(read_results(arguments.out), arguments.out)))
    for command in (one, every, table):
        command.add_argument("--out", type=Path, default=Path("runs/bench/peers"))
    return parser


def _add_shared(command: argparse.ArgumentParser) -> None:
    command.add_argument("--cap", help="instead of the network's own: resnet 40%% of MACs, vgg 10%% of parameters")
    command.add_argument("--start", default="scratch", choices=("scratch", "trained"))
    command.add_argument("--epochs", type=int, default=20, help="compute in all, in epochs of the full network")
    command.add_argument("--extra", type=int, nargs="+", default=[1, 3, 10], help="epochs after a trained start")
    command.add_argument("--dense-share", default="50%", help="share in which a pruner trains the full network")
    command.add_argument("--candidates", type=int, default=64, help="sub-networks that a search ranks")
    command.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="of the forward pass")
    command.add_argument("--images", type=int, help="only so many images of CIFAR-10, held-out ones included: a trial")
    command.add_argument("--data", choices=("cifar10", "digits"), default="cifar10", help="digits: a trial")
    command.add_argument("--compile", choices=("auto", "on", "off"), default="auto")


def do_one(arguments: argparse.Namespace) -> None:
    """Do one cell."""
    cell = _cell(arguments, method=arguments.method, network=arguments.network, seed=arguments.seed)
    work_on(cell, _work(arguments))
    print(cell.result(arguments.out))


def do_all(arguments: argparse.Namespace) -> None:
    """Do the cells whose result is missing, seed by seed, so that the first seed's table is whole early.

    A cell that fails is told, and the others are done. Exit code 1 then.
    """
    missing = [cell for cell in _cells(arguments) if not cell.result(arguments.out).is_file()]
    failed = []
    for number, cell in enumerate(missing[: arguments.limit], 1):
        print(f"cell {number} of {len(missing)}: {cell.name}")
        try:
            work_on(cell, _work(arguments))
        except Exception:
            traceback.print_exc()
            failed.append(cell.name)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def _cells(arguments: argparse.Namespace) -> Iterator[Cell]:
    for seed, network, method in itertools.product(arguments.seeds, arguments.networks, arguments.methods):
        if arguments.start == "scratch" or METHODS[method].finding_trained is not None:
            yield _cell(arguments, method=method, network=network, seed=seed)


def _cell(arguments: argparse.Namespace, *, method: str, network: str, seed: int) -> Cell:
    data = arguments.data if arguments.images is None else f"{arguments.data}x{arguments.images}"
    return Cell(
        method=method,
        network=network,
        cap=arguments.cap or NETWORKS[network].cap,
        seed=seed,
        start=arguments.start,
        epochs=arguments.epochs,
        data=data,
        dense_share=arguments.dense_share,
        candidates=arguments.candidates,
        precision=arguments.precision,
    )


def _work(arguments: argparse.Namespace) -> Work:
    digits = arguments.data == "digits"
    if digits:
        data = "digits"
    elif arguments.images is None:
        data = str(find_cifar(arguments.out))
    else:
        data = str(small_cifar(arguments.out, arguments.images // CLASSES))
    return Work(arguments.out, data, 1 if digits else 3, arguments.compile, tuple(arguments.extra))


if __name__ == "__main__":
    main()
