"""Files of a report, each written whole or not at all."""

import os
import re
from collections.abc import Mapping
from pathlib import Path


def write_files(directory: str | os.PathLike, files: Mapping[str, bytes]) -> None:
    """Write files into a directory, which is made if it is not there; files that are there are replaced.

    All of them are written beside their places first and moved there when the last is complete: where the disk is full,
    the files of before stay as they were.

    Args:
        directory: where.
        files: contents by name.

    Raises:
        ValueError: it cannot be written.
    """
    directory = Path(directory)
    temporary = {name: directory / f".{name}.{os.getpid()}" for name in files}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        try:
            for name, path in temporary.items():
                path.write_bytes(files[name])
            for name, path in temporary.items():
                path.replace(directory / name)
        finally:
            for path in temporary.values():
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ValueError(f"directory={os.fspath(directory)!r} cannot be written: {error}") from error


def file_name(text: str) -> str:
    """A text as a part of a file's name: anything unusual becomes an underscore."""
    return re.sub(r"[^A-Za-z0-9.-]+", "_", text)
