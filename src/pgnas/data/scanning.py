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
_TEST = ("test", "testing")
_VALIDATION = ("val", "valid", "validation")  # test, where there is no other
_HELD_OUT = _TEST + _VALIDATION


@dataclass(frozen=True, eq=False)
class ClassFiles:
    """The images of a folder.

    Attributes:
        class_names: The names of the classes of train, sorted.
        paths: Relative to the root, those of train first, then test, then validation; sorted by class and name.
        labels: (N,) int64, the class of each.
        counts: How many of them are train, test and validation; 0 for what is not there.
        depth: How many folders a path has above that of its class: 1 with ``train/``, else 0.
        notes: On what was passed over.
    """

    class_names: tuple[str, ...]
    paths: list[str]
    labels: Tensor
    counts: tuple[int, int, int]
    depth: int
    notes: tuple[str, ...]


def class_files(root: str) -> ClassFiles:
    """Find the images below ``root``.

    A folder ``train`` that holds folders is the training split; otherwise the folders in ``root`` are the classes.
    Beside it the first of ``test``, ``testing``, ``val``, ``valid`` and ``validation`` is the test split, and ``val``
    (or one of its other names) the validation split where there is ``test``, too. The images of a class may lie in
    sub-folders. Classes and files are sorted by name: the order of the file system plays no role.

    Raises:
        DataError: There are no images, or test classes that train does not have.
    """
    scan = _scan(root)
    parts = [scan.files.get(part, []) for part in ("train", "test", "validation")]
    if not parts[0]:
        remedy = f"put images ({', '.join(EXTENSIONS)}) in one sub-folder a class"
        raise DataError(f"folder {shown(root)}", "must hold images in class folders", value="none", remedy=remedy)
    names = sorted({name for name, _ in parts[0]})
    require_two_classes(f"folder {shown(root)}", [shown(name) for name in names])  # before minutes of decoding
    for part in ("test", "validation"):
        if part in scan.files:
            _check_held_out(root, part, {name for name, _ in scan.files[part]}, set(names))
    number = {name: label for label, name in enumerate(names)}
    files = [file for part in parts for file in part]
    ignored = f"{counted(scan.ignored, 'file')} ignored: hidden, not images, or in no class folder"
    notes = [*scan.notes, ignored] if scan.ignored else scan.notes
    return ClassFiles(
        class_names=tuple(map(shown, names)),
        paths=[path for _, path in files],
        labels=torch.tensor([number[name] for name, _ in files], dtype=torch.int64),
        counts=(len(parts[0]), len(parts[1]), len(parts[2])),
        depth=scan.depth,
        notes=tuple(notes),
    )


def _check_held_out(root: str, part: str, names: set[str], trained: set[str]) -> None:
    if not names:
        remedy = f"add {part} images or remove that folder"
        raise DataError(f"folder {shown(root)}", f"has a {part} folder without images", remedy=remedy)
    if names - trained:
        raise DataError(
            f"folder {shown(root)}",
            f"must not have {part} classes that train does not have",
            value=", ".join(repr(shown(name)) for name in sorted(names - trained)[:5]),
            remedy="add training images of them or remove them",
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
    tests = [splits[name] for name in _HELD_OUT if name in splits]
    if train is None:
        if tests or (folders and all(name.lower() in _TRAIN + _HELD_OUT for name in folders)):
            found = f"class folders in {shown(tests[0])}/ only" if tests else "no class folders"
            remedy = "put the training images in train/<class>/"
            raise DataError(f"folder {shown(root)}", "must have class folders in train/", value=found, remedy=remedy)
        scan.files["train"] = _classes(scan, "", folders)
        return scan
    scan.depth = 1
    used = [train, *tests[:1], *_own_validation(splits)]
    scan.notes += [f"folder {shown(name)}/ ignored: {shown(train)}/ is there" for name in folders if name not in used]
    for split, name in zip(("train", "test", "validation"), used, strict=False):
        scan.files[split] = _classes(scan, name, _folders(scan, name))
    return scan


def _own_validation(splits: dict[str, str]) -> list[str]:
    """The validation folder, if there is one that is not needed for test."""
    if not any(name in splits for name in _TEST):
        return []
    return [splits[name] for name in _VALIDATION if name in splits][:1]


def _is_split(scan: _Scan, name: str) -> bool:
    """Whether a folder called train or the like holds classes; "train" with nothing but images may be a class."""
    if name.lower() not in _TRAIN + _HELD_OUT:
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
