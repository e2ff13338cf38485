"""Data sets split reproducibly, as uint8 in memory or read from disk while they are used, with batched augmentation.

    data = load_data("digits", data_seed=0)
    for x, y in Batches(data.train, data.preprocessing, 128, augmentation=data.augmentation, shuffle=True):
        ...

A new source of data is one file in this folder with one ``@register(name, description)`` or ``@register_path(name,
description)``, imported below.
"""

from pgnas.data import arrays as _arrays
from pgnas.data import clips as _clips
from pgnas.data import digits as _digits
from pgnas.data import folder as _folder
from pgnas.data import torchvision_sets as _torchvision_sets
from pgnas.data.augmentation import Augmentation, Draws
from pgnas.data.batches import Batches
from pgnas.data.dataset import DataSet
from pgnas.data.loading import load_data
from pgnas.data.loose import evaluates_a_crop, image_files, read_images
from pgnas.data.pipelines import ResizedCrop
from pgnas.data.preprocessing import Preprocessing
from pgnas.data.sources import RawData, Request, Source, register, register_path, registered_sources
from pgnas.data.splits import Examples, Split
from pgnas.data.streaming import StreamedSplit
from pgnas.data.volumes import VolumeAugmentation

__all__ = [
    "Augmentation",
    "Batches",
    "DataSet",
    "Draws",
    "Examples",
    "Preprocessing",
    "RawData",
    "Request",
    "ResizedCrop",
    "Source",
    "Split",
    "StreamedSplit",
    "VolumeAugmentation",
    "evaluates_a_crop",
    "image_files",
    "load_data",
    "read_images",
    "register",
    "register_path",
    "registered_sources",
]

del _arrays, _clips, _digits, _folder, _torchvision_sets  # imported for their registrations
