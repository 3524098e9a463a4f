"""The cache: data sets are cut once. `shards/` holds the slices, `manifests/` says which belong together."""

import hashlib
from pathlib import Path

import msgspec

from trainpool import wire
from trainpool.data.shards import Manifest, Progress, cut, path_of
from trainpool.data.sources import Source
from trainpool.errors import DataError

__all__ = ["default_cache", "prepare", "whole"]

FORMAT = 1  # raised when the same source would be cut differently: old manifests are then not found


def default_cache() -> Path:
    """The user's cache folder, where the operating system wants it."""
    import platformdirs

    return platformdirs.user_cache_path("trainpool")


def prepare(
    source: Source,
    count: int,
    *,
    cache: Path,
    seed: int = 0,
    skew: float | None = None,
    shuffle: bool = True,
    progress: Progress | None = None,
) -> tuple[Manifest, Path]:
    """The manifest of a source's shards and the folder that holds them; cut unless they are there (see `cut`).

    Raises:
        ConfigError, DataError: as `cut`.
    """
    folder = cache / "shards"
    place = None
    if source.fingerprint is not None:
        wanted = msgspec.json.encode([FORMAT, source.fingerprint, count, seed, skew, shuffle])
        place = cache / "manifests" / f"{hashlib.sha256(wanted).hexdigest()}.json"
        manifest = stored(place, folder)
        if manifest is not None:
            return msgspec.structs.replace(manifest, name=source.name), folder
    manifest = cut(source, count, folder=folder, seed=seed, skew=skew, shuffle=shuffle, progress=progress)
    if place is not None:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            wire.write(place, msgspec.json.encode(manifest))
        except OSError as error:
            raise DataError(f"cannot write {place}: {error.strerror}") from error
    return manifest, folder


def whole(source: Source, cache: Path, progress: Progress | None = None) -> tuple[Manifest, Path]:
    """`prepare` with a single shard in the source's own order, as test data are kept."""
    return prepare(source, 1, cache=cache, shuffle=False, progress=progress)


def stored(place: Path, folder: Path) -> Manifest | None:
    """The manifest at `place` if it is readable and the files of all its shards are there in full length."""
    try:
        manifest = msgspec.json.decode(place.read_bytes(), type=Manifest)
        complete = all(path_of(folder, shard.id).stat().st_size == shard.bytes for shard in manifest.shards)
    except (OSError, msgspec.MsgspecError, DataError):
        return None
    return manifest if complete else None
