"""What lies in a folder of classes: ``root/<class>/...``, or ``root/train/<class>/...`` beside ``root/test/...``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from pgnas.data.decoding import EXTENSIONS
from pgnas.data.inspection import counted, shown
from pgnas.data.sources import require_two_classes
from pgnas.errors import DataError

_TRAIN = ("train", "training")
_TEST = ("test", "testing", "val", "valid", "validation")  # the first that is there


@dataclass(frozen=True, eq=False)
class ClassFiles:
    """The images of a folder.

    Attributes:
        class_names: The names of the classes of train, sorted.
        paths: Relative to the root, those of train first; sorted by class and name.
        labels: (N,) int64, the class of each.
        trained: How many of them are training images.
        has_test: Whether there is a test split, which the others are then.
        depth: How many folders a path has above that of its class: 1 with ``train/``, else 0.
        notes: On what was passed over.
    """

    class_names: tuple[str, ...]
    paths: list[str]
    labels: Tensor
    trained: int
    has_test: bool
    depth: int
    notes: tuple[str, ...]


def class_files(root: str) -> ClassFiles:
    """Find the images below ``root``.

    A folder ``train`` that holds folders is the training split, and so is the first of ``test``, ``val``, ``valid`` and
    ``validation`` the test split; otherwise the folders in ``root`` are the classes. The images of a class may lie in
    sub-folders. Classes and files are sorted by name: the order of the file system plays no role.

    Raises:
        DataError: There are no images, or test classes that train does not have.
    """
    scan = _scan(root)
    train_files, test_files = scan.files["train"], scan.files.get("test", [])
    if not train_files:
        remedy = f"put images ({', '.join(EXTENSIONS)}) in one sub-folder a class"
        raise DataError(f"folder {shown(root)}", "must hold images in class folders", value="none", remedy=remedy)
    names = sorted({name for name, _ in train_files})
    require_two_classes(f"folder {shown(root)}", [shown(name) for name in names])  # before minutes of decoding
    unknown = sorted({name for name, _ in test_files} - set(names))
    if unknown:
        listed = ", ".join(repr(shown(name)) for name in unknown[:5])
        raise DataError(
            f"folder {shown(root)}",
            "must not have test classes that train does not have",
            value=listed,
            remedy="add training images of them or remove them",
        )
    if "test" in scan.files and not test_files:
        remedy = "add test images or remove that folder"
        raise DataError(f"folder {shown(root)}", "has a test folder without images", remedy=remedy)
    number = {name: label for label, name in enumerate(names)}
    labels = torch.tensor([number[name] for name, _ in train_files + test_files], dtype=torch.int64)
    paths = [path for _, path in train_files + test_files]
    ignored = f"{counted(scan.ignored, 'file')} ignored: hidden, not images, or in no class folder"
    notes = [*scan.notes, ignored] if scan.ignored else scan.notes
    return ClassFiles(
        class_names=tuple(map(shown, names)),
        paths=paths,
        labels=labels,
        trained=len(train_files),
        has_test=bool(test_files),
        depth=scan.depth,
        notes=tuple(notes),
    )


@dataclass
class _Scan:
    """What was found, and what was passed over on the way.

    Attributes:
        root: The folder that the user named.
        files: Per split, (class, path relative to ``root``) of each image.
        ignored: Number of files passed over: hidden, of another kind, or in no class folder.
        notes: On folders passed over.
        depth: 1 if the classes lie in ``train``, else 0.
    """

    root: str
    files: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    ignored: int = 0
    notes: list[str] = field(default_factory=list)
    depth: int = 0


def _scan(root: str) -> _Scan:
    scan = _Scan(root)
    folders = _folders(scan, "")
    splits = {name.lower(): name for name in folders if _is_split(scan, name)}
    train = next((splits[name] for name in _TRAIN if name in splits), None)
    tests = [splits[name] for name in _TEST if name in splits]
    if train is None:
        if tests or (folders and all(name.lower() in _TRAIN + _TEST for name in folders)):
            found = f"class folders in {shown(tests[0])}/ only" if tests else "no class folders"
            remedy = "put the training images in train/<class>/"
            raise DataError(f"folder {shown(root)}", "must have class folders in train/", value=found, remedy=remedy)
        scan.files["train"] = _classes(scan, "", folders)
        return scan
    scan.depth = 1
    used = [train, *tests[:1]]
    scan.notes += [f"folder {shown(name)}/ ignored: {shown(train)}/ is there" for name in folders if name not in used]
    for split, name in zip(("train", "test"), used, strict=False):
        scan.files[split] = _classes(scan, name, _folders(scan, name))
    return scan


def _is_split(scan: _Scan, name: str) -> bool:
    """Whether a folder called train or the like holds classes; "train" with nothing but images may be a class."""
    if name.lower() not in _TRAIN + _TEST:
        return False
    with _readable(scan, name) as entries:
        return any(os.path.isdir(entry.path) and not entry.name.startswith(".") for entry in entries)


def _classes(scan: _Scan, parent: str, names: Sequence[str]) -> list[tuple[str, str]]:
    found = []
    for name in names:
        paths = _images_below(scan, os.path.join(parent, name))
        if not paths:
            scan.notes.append(f"folder {shown(os.path.join(parent, name))}/ ignored: no images in it")
        found += [(name, path) for path in paths]
    return found


def _folders(scan: _Scan, parent: str) -> list[str]:
    """The class or split folders in ``parent``, sorted; a link that leads back up is none."""
    names = []
    for entry in _entries(scan, parent):
        if not os.path.isdir(entry.path):
            scan.ignored += 1
        elif entry.is_symlink() and _leads_up(entry.path):
            scan.notes.append(f"link {shown(os.path.join(parent, entry.name))} ignored: it leads back up")
        else:
            names.append(entry.name)
    return names


def _images_below(scan: _Scan, folder: str) -> list[str]:
    """Paths, relative to the root, of the images in ``folder`` and its real sub-folders, sorted."""
    found = []
    for entry in _entries(scan, folder):
        path = os.path.join(folder, entry.name)
        if os.path.isdir(entry.path):  # unlike entry.is_dir(), not an OSError for a link to itself
            if entry.is_symlink():  # could lead anywhere, up to the classes themselves and round in circles
                scan.notes.append(f"link {shown(path)} ignored: links to folders are not followed inside a class")
            else:
                found += _images_below(scan, path)
        elif _is_image(entry.name):
            found.append(path)
        else:
            scan.ignored += 1
    return found


def _entries(scan: _Scan, folder: str) -> list[os.DirEntry[str]]:
    """What is in ``folder``, hidden files and folders left out and counted, sorted by name."""
    with _readable(scan, folder) as entries:
        listed = sorted(entries, key=lambda entry: entry.name)
    visible = [entry for entry in listed if not entry.name.startswith(".")]
    scan.ignored += len(listed) - len(visible)
    return visible


@contextmanager
def _readable(scan: _Scan, folder: str) -> Iterator[Iterator[os.DirEntry[str]]]:
    path = os.path.join(scan.root, folder)
    try:
        with os.scandir(path) as entries:
            yield entries
    except OSError as error:
        remedy = "check its permissions"
        raise DataError(f"folder {shown(path)}", "must be readable", value=error.strerror, remedy=remedy) from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(EXTENSIONS)


def _leads_up(path: str) -> bool:
    target = os.path.realpath(path)
    here = os.path.realpath(os.path.dirname(path))
    return os.path.commonpath([target, here]) == target
