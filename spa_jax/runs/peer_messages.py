"""The runtime's message about a process of a job that is gone, as one line.

Run as a program it copies standard input to standard error with that line in the place of the message. It has to be a
program of its own because the runtime aborts the process right after its message. It imports the standard library only.
"""

import os
import re
import select
import signal
import sys

_ABOUT_THE_JOB = re.compile(rb"^[WEF]\d{4} .*(coordination_service|preemption_sync_manager|client\.h:)", re.MULTILINE)
_FATAL = re.compile(rb"^F\d{4} .*Terminating process because the JAX distributed service", re.MULTILINE)
_SILENT = re.compile(r"stopped sending heartbeats\):(.*?)The tasks have crashed", re.DOTALL)
_SETTLED = 2.0


def gone_line(message: bytes) -> str | None:
    """The line for the runtime's message, or None where the message is not about a process that is missing."""
    if not _FATAL.search(message):
        return None
    if b"RegisterTask" in message:
        return "the processes of the job did not all join in time; start all of them, and see --join_timeout"
    silent = _SILENT.search(message.decode(errors="replace"))
    indices = sorted(set(re.findall(r"(\d+)\s*$", silent[1], re.MULTILINE)), key=int) if silent else ["0"]
    which = f"process {indices[0]} is" if len(indices) == 1 else f"processes {', '.join(indices)} are"
    return f"{which} gone, so this one ends too; the same command goes on from the last checkpoint"


def relay(source: int, target: int) -> None:
    """Copy a file descriptor to another until its end; messages of the runtime about the job wait until it is clear."""
    held = b""
    while True:
        if held and not _FATAL.search(held) and not select.select([source], [], [], _SETTLED)[0]:
            os.write(target, held)
            held = b""
        chunk = os.read(source, 1 << 16)
        if not chunk:
            break
        held += chunk
        begin = _ABOUT_THE_JOB.search(held)
        end = begin.start() if begin else len(held)
        os.write(target, held[:end])
        held = held[end:]
    line = gone_line(held)
    os.write(target, held if line is None else f"{line}\n".encode())


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):  # clusters send them to every process; this one ends with its writer
        signal.signal(number, signal.SIG_IGN)
    relay(sys.stdin.fileno(), sys.stderr.fileno())
