"""Files of a report, each written whole or not at all."""

import os
import re
from collections.abc import Mapping
from pathlib import Path


def write_files(directory: str | os.PathLike, files: Mapping[str, bytes]) -> None:
    """Write files into a directory, which is made if it is not there; a file that is there is replaced in one move.

    Args:
        directory: where.
        files: contents by name.

    Raises:
        ValueError: it cannot be written.
    """
    directory = Path(directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            _write_whole(directory / name, content)
    except OSError as error:
        raise ValueError(f"directory={os.fspath(directory)!r} cannot be written: {error}") from error


def file_name(text: str) -> str:
    """A text as a part of a file's name: anything unusual becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)


def _write_whole(path: Path, content: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
