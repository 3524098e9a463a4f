"""Data: sources of samples, and the content-addressed shards that are cut from them."""

from trainpool.data.cache import default_cache, prepare, whole
from trainpool.data.images import ImageFolderSource
from trainpool.data.named import NAMES, NamedData, named
from trainpool.data.shards import Manifest, Shard, cut, load
from trainpool.data.sources import ArraySource, DatasetSource, Source, as_source

__all__ = [
    "NAMES",
    "ArraySource",
    "DatasetSource",
    "ImageFolderSource",
    "Manifest",
    "NamedData",
    "Shard",
    "Source",
    "as_source",
    "cut",
    "default_cache",
    "load",
    "named",
    "prepare",
    "whole",
]
