"""Data sets as uint8 tensors in memory, split reproducibly, with batched augmentation.

    data = load_data("digits", data_seed=0)
    for x, y in Batches(data.train, data.preprocessing, 128, augmentation=data.augmentation, shuffle=True):
        ...

A new source of data is one file in this folder with one ``@register(name, description)``, imported below.
"""

from pgnas.data import digits as _digits
from pgnas.data import torchvision_sets as _torchvision_sets
from pgnas.data.augmentation import Augmentation, Draws
from pgnas.data.batches import Batches
from pgnas.data.dataset import DataSet, Preprocessing, Split
from pgnas.data.loading import load_data
from pgnas.data.sources import RawData, Source, register, registered_sources

__all__ = [
    "Augmentation",
    "Batches",
    "DataSet",
    "Draws",
    "Preprocessing",
    "RawData",
    "Source",
    "Split",
    "load_data",
    "register",
    "registered_sources",
]

del _digits, _torchvision_sets  # imported for their registrations
