"""One run at a time in a directory: a lock that ends with the process that holds it, however that ends."""

import contextlib
import datetime
import errno
import fcntl
import os
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import jax

from spa_jax.errors import CheckpointError, SpaError
from spa_jax.parallel import all_processes_agree

_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class WorkdirInUse(SpaError):
    """Another run lives in the directory."""


@contextlib.contextmanager
def sole_run(workdir: str | os.PathLike) -> Iterator[None]:
    """Keep every other run out of a directory while this one lives.

    The lock is `flock` on `<workdir>/.lock`. The kernel drops it when the process ends, after `kill -9` too; the file
    stays and means nothing by itself. Of several processes of one job, process 0 locks for all of them. Reading needs
    no lock: a model can be evaluated while it is trained.

    A file system that machines share must carry `flock` between them: NFS does on Linux, Lustre if mounted with
    `flock`. On one that has no locks at all a warning says so, and the run goes on without.

    Args:
        workdir: an existing directory.

    Raises:
        WorkdirInUse: another run holds the lock; names its process, machine and start.
        CheckpointError: the lock file cannot be written.
    """
    with contextlib.ExitStack() as held:
        owner = _lock(Path(workdir) / ".lock", held) if jax.process_index() == 0 else None
        if not all_processes_agree(owner is None):
            by = owner or "a process of another job"
            raise WorkdirInUse(
                f"workdir={os.fspath(workdir)!r} is in use by another run ({by}); wait for it or stop it"
            )
        yield


def _lock(path: Path, held: contextlib.ExitStack) -> str | None:
    """Lock the file until `held` is closed; None, or who has locked it already."""
    try:
        file = held.enter_context(path.open("a+", encoding="utf-8"))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _sign(file)
    except BlockingIOError:
        file.seek(0)
        return file.read(200) or "a process that has just begun"
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise CheckpointError(f"{path} cannot be written: {error}") from error
        warnings.warn(f"{path} cannot be locked ({error}): make sure that only one run uses it", stacklevel=4)
    return None


def _sign(file: IO[str]) -> None:
    now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
    file.truncate(0)
    file.write(f"process {os.getpid()} on {platform.node()}, since {now}")
    file.flush()
