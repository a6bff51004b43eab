"""Jobs of several processes: wrong flags, and the runtime's message about a lost process as one line."""

import os
import signal
import subprocess
import sys
import threading

import pytest

from spa_jax.errors import SpaError
from spa_jax.runs import peer_messages, peers
from spa_jax.runs.peer_messages import gone_line, relay

POLLED = b"E1126 13:40:05.805141   22726 coordination_service_agent.cc:289] Polled an error from coordination service\n"
FATAL = (
    b"F1126 13:40:05.805646   22737 client.h:80] Terminating process because the JAX distributed service detected "
    b"fatal errors. This most likely indicates that another task died. absl::Status: UNAVAILABLE: "
)
SILENT = FATAL + b"The following tasks are unhealthy (stopped sending heartbeats):\n%s\nThe tasks have crashed. Check\n"
LEADER = FATAL + b"Failed to send RPC to coordination service. Either the leader task was preempted/died.\n"
STACK = b"*** Check failure stack trace: ***\n    @     0x7f8ec1640634  absl::Flush()\nFatal Python error: Aborted\n"


def relayed(*chunks):
    """What `relay` makes of chunks that are written one after the other."""
    (source, into), (out, target) = os.pipe(), os.pipe()
    thread = threading.Thread(target=relay, args=(source, target))
    thread.start()
    for chunk in chunks:
        os.write(into, chunk)
    os.close(into)
    thread.join()
    os.close(target)
    with open(out, "rb") as file:
        return file.read().decode()


@pytest.mark.parametrize(
    ("message", "which"),
    [
        (SILENT % b"1", "process 1 is gone"),
        (SILENT % b"/job:jax_worker/replica:0/task:12", "process 12 is gone"),
        (SILENT % b"10\n2", "processes 2, 10 are gone"),
        (LEADER, "process 0 is gone"),
    ],
)
def test_the_message_of_the_runtime_becomes_one_line(message, which):
    before = b"spa step 3/36\n"
    for chunks in ((before + POLLED + message + STACK,), (before, POLLED, message, STACK)):
        first, line, end = relayed(*chunks).split("\n")
        assert (first, end) == ("spa step 3/36", "")
        assert line.startswith(which) and "the same command goes on" in line


def test_processes_that_did_not_join_are_one_line_too():
    message = FATAL + b"DEADLINE_EXCEEDED: Deadline Exceeded\n\nRPC: /xla.coordination.RegisterTask\n"
    assert relayed(message, STACK).startswith("the processes of the job did not all join in time")


def test_other_text_passes_as_it_is():
    fatal = b"F1126 13:40:05.805646   22737 pool.cc:80] Check failed: size > 0\n" + STACK
    text = b"line\n\xff\xfe" + POLLED + b"later\n" + fatal
    assert gone_line(text) is None
    assert relayed(POLLED, b"later\n", fatal) == (POLLED + b"later\n" + fatal).decode()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("127.0.0.1:1", 2, None), "--distributed needs --process_index too"),
        ((None, 2, 0), "--distributed needs --coordinator too"),
        (("127.0.0.1", 2, 0), "--coordinator=127.0.0.1 must be HOST:PORT"),
        (("127.0.0.1:1", 2, 2), r"--process_index=2 must be in 0\.\.1 for --num_processes=2"),
        (("127.0.0.1:1", 0, 0), "--num_processes=0"),
    ],
)
def test_wrong_flags_are_named_before_anything_is_joined(given, message):
    with pytest.raises(SpaError, match=message):
        peers.join(*given, timeout=1)


def test_only_errors_of_a_lost_connection_wait_for_the_runtime(monkeypatch):
    waits = []
    monkeypatch.setattr(peers.time, "sleep", waits.append)
    monkeypatch.setattr(peers.jax.distributed, "is_initialized", lambda: True)
    peers.outlast(ValueError("radius=-1 must be 0 or larger"))
    assert waits == []
    peers.outlast(ValueError("UNKNOWN: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:31113"))
    assert waits and waits[0] > peers.HEARTBEAT


def test_the_program_outlasts_a_signal_to_all_processes_of_a_job():
    program = subprocess.Popen(
        [sys.executable, "-S", peer_messages.__file__], stdin=subprocess.PIPE, stderr=subprocess.PIPE
    )
    program.stdin.write(b"first\n")
    program.stdin.flush()
    assert program.stderr.readline() == b"first\n"
    program.send_signal(signal.SIGTERM)
    assert program.communicate(b"saved\n")[1] == b"saved\n"
    assert program.returncode == 0
