"""Jobs of several processes: joining one, and ending with one line when another process of it is gone."""

import os
import re
import sys
import time
import traceback

import jax

from spa_jax.errors import SpaError
from spa_jax.runs import peer_messages

HEARTBEAT = 30
"""Seconds without a sign of life after which the runtime takes a process for gone, and ends the others."""

_FLAGS = ("--coordinator", "--num_processes", "--process_index")
_LOST = re.compile("gloo|nccl|connection (closed|reset)|socket closed|coordination service", re.IGNORECASE)


def join(coordinator: str | None, num_processes: int | None, index: int | None, timeout: int) -> None:
    """Join a job of several processes.

    Args:
        coordinator: "HOST:PORT" of process 0; None, with the next two: as the cluster says (Slurm, Open MPI, TPU).
        num_processes: of the job.
        index: of this process, in 0..num_processes - 1.
        timeout: seconds to wait for the other processes; the runtime then ends this one, see `peer_messages`.

    Raises:
        SpaError: some of the three are missing or break a rule, or the cluster is unknown.
    """
    _check(coordinator, num_processes, index)
    _replace_messages()
    try:
        jax.distributed.initialize(
            coordinator,
            num_processes,
            index,
            cluster_detection_method="deactivate" if coordinator else None,
            initialization_timeout=timeout,
            heartbeat_timeout_seconds=HEARTBEAT,
        )
    except ValueError as error:
        raise SpaError(f"--distributed: no cluster was found; give {', '.join(_FLAGS)} ({error})") from error


def _check(coordinator: str | None, num_processes: int | None, index: int | None) -> None:
    if coordinator is None or num_processes is None or index is None:
        given = zip(_FLAGS, (coordinator, num_processes, index), strict=True)
        missing = [flag for flag, value in given if value is None]
        if len(missing) < len(_FLAGS):
            raise SpaError(f"--distributed needs {', '.join(missing)} too, or none of {', '.join(_FLAGS)} on a cluster")
        return
    if not re.fullmatch(r".+:\d+", coordinator):
        raise SpaError(f"--coordinator={coordinator} must be HOST:PORT, the address of process 0")
    if not 0 <= index < num_processes:
        raise SpaError(f"--process_index={index} must be in 0..{num_processes - 1} for --num_processes={num_processes}")


def _replace_messages() -> None:
    """From here on, what is written to standard error passes `peer_messages`."""
    reader, writer = os.pipe()
    program = [sys.executable, "-S", peer_messages.__file__]
    os.posix_spawn(program[0], program, os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, reader, 0)], setpgroup=0)
    os.dup2(writer, sys.stderr.fileno())


def outlast(error: Exception) -> None:
    """After an error that a lost process may have caused, wait for the runtime to name it, which ends this one."""
    if jax.distributed.is_initialized() and _LOST.search(str(error)):
        time.sleep(HEARTBEAT + 15)


def leave(status: int) -> None:
    """End this process; in a job at once, so that the others see it gone instead of waiting for it."""
    if jax.distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def leave_with_traceback() -> None:
    """In a job, print the traceback of the error that is being handled and `leave`."""
    if jax.distributed.is_initialized():
        traceback.print_exc()
        leave(1)
