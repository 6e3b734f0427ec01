"""Getting a checkpoint from a hub that speaks Hugging Face's protocol, by the library huggingface_hub.

The configuration comes first, so that a model which cannot be served is refused before gigabytes are read. Of the rest
only what a node uses is fetched: configuration, tokenizer, and the safetensors files that the index names;
repositories often hold the same weights again in other formats. What was begun is resumed: unfinished files stay
beside the finished ones, under names with the digest of their content, and the missing range is asked for.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meshmoe.core.errors import CheckpointError
from meshmoe.core.units import format_size
from meshmoe.model.unit_names import MODEL_FILES

if TYPE_CHECKING:
    from meshmoe.model.checkpoint import Checkpoint

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
_SHA256 = re.compile(r"[0-9a-f]{64}")
SPARE_BYTES = 256 << 20
"""Left free on the disk, so that fetching a model does not stop the box."""


@dataclass(frozen=True)
class HubFile:
    """A file to fetch."""

    name: str
    size_bytes: int


@dataclass(frozen=True)
class HubModel:
    """What is to be fetched of a repository.

    Attributes:
        name: ``owner/name``.
        commit: Its revision, fixed once, so that all files are of the same.
        files: Without ``config.json``, which is there already.
        skipped_bytes: What the repository holds beside them.
    """

    name: str
    commit: str
    files: tuple[HubFile, ...]
    skipped_bytes: int

    @property
    def size_bytes(self) -> int:
        """Of all files."""
        return sum(file.size_bytes for file in self.files)


def look_up(name: str, revision: str | None, directory: Path) -> HubModel:
    """Fetch the configuration, and find out what else is needed.

    Args:
        name: ``owner/name`` on the hub.
        revision: Branch, tag or commit; None for the main branch.
        directory: Where the checkpoint is to be.

    Raises:
        CheckpointError: There is no such model, or it is not one that can be served; the message says why.
    """
    from huggingface_hub import HfApi

    with in_words(name):
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
        sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
        commit = str(info.sha)
        if "config.json" not in sizes:
            raise CheckpointError(f"{name} has no config.json: it is not a checkpoint in Hugging Face's layout")
        fetch_one(name, commit, "config.json", directory)
        _require_experts(name, directory)
        weights = _weight_files(name, commit, sizes, directory)
    wanted = [file for file in sizes if file in MODEL_FILES and file != "config.json"] + weights
    total_bytes = sum(sizes.values())
    needed_bytes = sum(sizes[file] for file in wanted) + sizes["config.json"]
    files = tuple(HubFile(file, sizes[file]) for file in wanted)
    return HubModel(name, commit, files, total_bytes - needed_bytes)


def fetch(model: HubModel, directory: Path) -> Checkpoint:
    """Fetch what is missing, with the library's progress bars on a terminal.

    Raises:
        CheckpointError: The disk is too small, the hub cannot be reached, or what came is not a checkpoint.
    """
    _require_room(model, directory)
    with in_words(model.name):
        for file in model.files:
            target = directory / file.name
            if not (target.is_file() and target.stat().st_size == file.size_bytes):
                fetch_one(model.name, model.commit, file.name, directory)
    from meshmoe.model.checkpoint import Checkpoint

    return Checkpoint.open(directory)


def _require_experts(name: str, directory: Path) -> None:
    """Refuse a model that this software could not serve."""
    from meshmoe.model.architecture import Architecture  # needs torch, which a misspelled name does not
    from meshmoe.model.config_file import load_config

    Architecture(load_config(directory), name)


def _weight_files(name: str, commit: str, sizes: dict[str, int], directory: Path) -> list[str]:
    if INDEX in sizes:
        fetch_one(name, commit, INDEX, directory)
        try:
            named: dict[str, Any] = json.loads((directory / INDEX).read_text(encoding="utf-8"))["weight_map"]
            shards = sorted(set(map(str, named.values())))
        except (ValueError, KeyError, AttributeError):
            raise CheckpointError(f"{name}: {INDEX} is not an index of weights") from None
    elif SINGLE in sizes:
        return [SINGLE]
    else:
        raise CheckpointError(f"{name} has no safetensors weights: other formats are not read")
    missing = [shard for shard in shards if shard not in sizes or "/" in shard or not shard.endswith(".safetensors")]
    if missing:
        raise CheckpointError(f"{name}: its index names {missing[0]!r}, which is not there")
    return [INDEX, *shards]


def fetch_one(name: str, commit: str, file: str, directory: Path) -> None:
    """Fetch one file, going on where an earlier process ended; it gets its name when its content is certain."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not listed

    url = hf_hub_url(name, file, revision=commit)
    metadata = get_hf_file_metadata(url)
    etag = metadata.etag or commit
    # Another revision has another name, so that two never mix.
    part = directory / f".{file}.{hashlib.sha256(etag.encode()).hexdigest()[:16]}.part"
    with part.open("ab") as out:
        http_get(
            metadata.location,
            out,
            resume_size=out.tell(),
            headers=build_hf_headers() if metadata.location == url else {},  # no key for other hosts
            expected_size=metadata.size,
            displayed_filename=file,
        )
    if _SHA256.fullmatch(etag):  # of large files the hub tells the digest
        with part.open("rb") as whole:
            digest = hashlib.file_digest(whole, "sha256").hexdigest()
        if digest != etag:
            part.unlink()
            raise CheckpointError(f"{name}: {file} arrived damaged and was deleted: the same command fetches it again")
    part.replace(directory / file)


def _require_room(model: HubModel, directory: Path) -> None:
    def there(file: HubFile) -> int:
        path = directory / file.name
        return path.stat().st_size if path.is_file() else 0

    lacking = sum(max(0, file.size_bytes - there(file)) for file in model.files)
    free = shutil.disk_usage(directory).free
    if lacking + SPARE_BYTES > free:
        raise CheckpointError(
            f"{model.name} needs {format_size(lacking)} more, the disk of {directory} has {format_size(free)} free: "
            "give another place with --to"
        )


@contextmanager
def in_words(name: str) -> Iterator[None]:
    """Around whatever talks to the hub."""
    import httpx2  # the HTTP library of huggingface_hub 2
    from huggingface_hub import errors

    try:
        yield
    except errors.GatedRepoError:
        raise CheckpointError(
            f"{name} is given only to those who agreed to its terms: agree on its page, then `hf auth login`"
        ) from None
    except errors.RepositoryNotFoundError:
        raise CheckpointError(f"there is no model {name} on the hub, or it is private (`hf auth login`)") from None
    except errors.RevisionNotFoundError:
        raise CheckpointError(f"{name} has no such revision: leave --revision out for the main branch") from None
    except errors.HFValidationError:
        raise CheckpointError(f"{name!r} is not the name of a model: write it like Qwen/Qwen3-30B-A3B") from None
    except (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.FileMetadataError, httpx2.HTTPError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"{name} cannot be fetched now: {reason}: the same command goes on later") from None
    except OSError as error:
        raise CheckpointError(f"{name} cannot be fetched: {error.strerror or error}") from None
