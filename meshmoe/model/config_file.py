"""Reading ``config.json``, which may come from a peer: nothing in it is run, downloaded, or believed beyond reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from meshmoe.core.errors import CheckpointError
from meshmoe.model.unit_names import LAYERS_MAX

_MESSAGE_CHARS = 300


def load_config(directory: Path) -> Any:
    """Read a model's configuration with transformers.

    Args:
        directory: Holds ``config.json``.

    Returns:
        A transformers configuration.

    Raises:
        CheckpointError: The file is missing, is not JSON, names an unknown architecture or one that brings its own
            code, asks for code from elsewhere, describes a quantised model, or has impossible values.
    """
    path = directory / "config.json"
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise CheckpointError(
            f"{directory} has no config.json: give the directory of a Hugging Face checkpoint"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not valid JSON ({brief(error)}); download it again") from error
    family = content.get("model_type") if isinstance(content, dict) else None
    if not isinstance(family, str):
        raise CheckpointError(f"{path} names no model_type; give the directory of a Hugging Face checkpoint")
    if family not in CONFIG_MAPPING:
        own_code = " (it brings code of its own, which is never run)" if "auto_map" in content else ""
        raise CheckpointError(
            f"{path}: transformers {transformers.__version__} does not know the architecture {family!r}{own_code}; "
            "update transformers, or choose another model"
        )
    _check_values(path, content)
    try:
        return transformers.AutoConfig.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # whatever a family's configuration makes of bad values
        raise CheckpointError(f"{path} cannot be used: {brief(error)}") from error


def brief(error: Exception) -> str:
    """An error of a library as part of a one-line message."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= _MESSAGE_CHARS else text[:_MESSAGE_CHARS] + "..."


def _check_values(path: Path, content: dict[str, Any]) -> None:
    for key, value in _entries(content):
        if "layers" in key and isinstance(value, int) and value > LAYERS_MAX:
            raise CheckpointError(f"{path}: {key} is {value}, but no model has more than {LAYERS_MAX} layers")
        if key.endswith("_implementation") and isinstance(value, str) and not value.isidentifier():
            raise CheckpointError(f"{path}: {key} asks for {value!r}, code from elsewhere; remove the entry")
        if key == "quantization_config" and value:
            method = value.get("quant_method", "of an unknown kind") if isinstance(value, dict) else value
            raise CheckpointError(
                f"{path.parent} is quantised ({method}), and experts are only computed from plain weights; "
                "load it with transformers, dequantise it, and save it as BF16"
            )


def _entries(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """All entries, also of nested configurations."""
    for key, value in content.items():
        yield key, value
        if isinstance(value, dict):
            yield from _entries(value)
