"""JAX's fatal messages become one line, and all other output is copied unchanged."""

import os
import subprocess
import sys
import threading

import pytest

from cadc_jax.runtime import last_words

LOST = """\
E1124 14:51:37.1 12 coordination_service_agent.cc:289] Polled an error from coordination service.
F1124 14:51:37.2 12 client.h:80] Terminating process because of fatal errors. absl::Status: \
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
3
The tasks have crashed.
*** Check failure stack trace: ***
    @     0x7f8931640634  absl::LogMessage::SendToLog()
"""
WARNING = LOST.splitlines()[0] + "\n"


def copied(text):
    """What the program writes to stderr when `text` is its whole input."""
    command = [sys.executable, "-I", "-S", last_words.__file__, "30"]
    done = subprocess.run(command, input=text, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 0
    return done.stderr


@pytest.mark.parametrize("text", ["a\nb\n", "no newline at the end", "", WARNING])
def test_output_without_a_fatal_message_is_copied(text):
    assert copied(text) == text


def test_the_connections_that_gloo_reports_are_left_out():
    assert copied("a\n[Gloo] Rank 0 is connected\nb\n") == "a\nb\n"


def test_a_fatal_message_of_many_lines_becomes_one_line():
    before, error, *rest = copied("before\n" + LOST).split("\n")
    assert before == "before" and rest == [""]
    assert error.startswith("cadc: error: process 3 has ended or cannot be reached (no heartbeat")


def test_a_message_that_no_abort_follows_is_copied_while_the_process_runs(monkeypatch):
    monkeypatch.setattr(last_words, "_HOLD_SECONDS", 0.1)
    (reader, source), (output, writer) = os.pipe(), os.pipe()
    copying = threading.Thread(target=last_words.copy, args=(reader, writer, "30"))
    copying.start()
    try:
        os.write(source, WARNING.encode())
        assert os.read(output, 1 << 16) == WARNING.encode()
    finally:
        os.close(source)
        copying.join(timeout=60)
        for descriptor in (reader, writer, output):
            os.close(descriptor)


@pytest.mark.parametrize(
    "text, meaning",
    [
        (LOST, "process 3 has ended or cannot be reached (no heartbeat for 30 s)"),
        ("UNAVAILABLE: Task 12 heartbeat timeout", "process 12 has ended or cannot be reached"),
        ("DEADLINE_EXCEEDED: RegisterTask() timed out", "not all processes have joined in time"),
        ("UNAVAILABLE: Socket closed", "process 0 has ended or cannot be reached"),
        ("something\n  else", "something else"),
    ],
)
def test_the_causes_of_an_abort_are_told_apart(text, meaning):
    line = last_words.verdict(text, "30")
    assert line.startswith(meaning) and "\n" not in line


def test_an_unknown_message_is_cut():
    assert last_words.verdict("x" * 1000, "30") == "x" * 500
