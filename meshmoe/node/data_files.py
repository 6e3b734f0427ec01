"""Finds profiles and topology files: a path, or the name of one that ships with meshmoe."""

from __future__ import annotations

from pathlib import Path

from meshmoe.core.errors import ConfigError

_PACKAGE = Path(__file__).resolve().parents[1]


def read_data_file(kind: str, name: str, flag: str) -> tuple[str, str]:
    """Read a profile or topology file.

    Args:
        kind: ``nodes`` or ``topology``.
        name: A path, or the name of a shipped file without its ending.
        flag: What named it, for messages.

    Returns:
        Its text, and its name for messages.

    Raises:
        ConfigError: There is none, or it cannot be read.
    """
    path = Path(name)
    shipped = {file.stem: file for file in _shipped(kind)}
    try:
        if name in shipped and not path.is_file():  # a directory of that name does not hide it
            path = shipped[name]
        return path.read_text(encoding="utf-8"), path.name
    except FileNotFoundError:
        known = f"a path, or one of {', '.join(sorted(shipped))}" if shipped else "a path"
        raise ConfigError(f"{flag}: there is no file {name}: give {known}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ConfigError(f"{flag}: cannot read {path}: {reason}") from None


def shipped_names(kind: str) -> list[str]:
    """Names of the files of a kind that ship with meshmoe."""
    return [file.stem for file in _shipped(kind)]


def _shipped(kind: str) -> list[Path]:
    """Beside the package in a checkout, inside it where it was installed from a wheel."""
    for directory in (_PACKAGE.parent / kind, _PACKAGE / "data" / kind):
        if directory.is_dir():
            return sorted(directory.glob("*.toml"))
    return []
