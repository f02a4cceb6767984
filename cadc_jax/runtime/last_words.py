"""Copies stdin to stderr, and replaces JAX's messages before an abort by one line.

A program of its own, which `distributed` starts. It imports only a few standard modules, since it
must start at once, and it outlives the process whose output it copies.
"""

import os
import re
import select
import sys

_JAX_MESSAGE = re.compile(rb"[EFW]\d{4} .*(coordination_service|client\.h:|distributed_runtime)")
_FATAL = re.compile(rb"F\d{4} ")
_HOLD_SECONDS = 20
_ADVICE = "the run ends; see the log of that process; a new run continues from the finished stages"


def verdict(text: str, heartbeat_seconds: str) -> str:
    """What a fatal message of JAX's coordination service means, in one line.

    Args:
      text: all lines of the message.
      heartbeat_seconds: time without heartbeats after which a process counts as gone.
    """
    for pattern in (r"stopped sending heartbeats\):\s*(\d+)", r"[Tt]ask (\d+) heartbeat timeout"):
        lost = re.search(pattern, text)
        if lost:
            gone = f"process {lost[1]} has ended or cannot be reached"
            return f"{gone} (no heartbeat for {heartbeat_seconds} s): {_ADVICE}"
    if "RegisterTask" in text:
        return (
            "not all processes have joined in time (--join_seconds): --coordinator must be the "
            "address of process 0, reachable from all hosts, and all --num_processes must run"
        )
    if "Failed to send RPC" in text or "Socket closed" in text:
        return f"process 0 has ended or cannot be reached: {_ADVICE}"
    return " ".join(text.split())[:500]


def copy(reader: int, writer: int, heartbeat_seconds: str) -> None:
    """Copies lines until the end of the input; JAX's messages are held back in case it aborts.

    Held lines are copied after all if no fatal message follows within some seconds.

    Args:
      reader: file descriptor of the input.
      writer: file descriptor of the output.
      heartbeat_seconds: as for `verdict`.
    """
    rest, fatal = b"", False
    held: list[bytes] = []
    while True:
        ready, _, _ = select.select([reader], [], [], _HOLD_SECONDS if held and not fatal else None)
        block = os.read(reader, 1 << 16) if ready else b""
        if ready and not block:
            break
        if not ready:  # the process did not abort
            os.write(writer, b"".join(held))
            held = []
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if held or _JAX_MESSAGE.match(line):
                held.append(line + b"\n")
                fatal = fatal or bool(_FATAL.match(line))
            elif not line.startswith(b"[Gloo]"):
                os.write(writer, line + b"\n")
    text = b"".join(held) + rest
    if fatal:
        text = (
            f"cadc: error: {verdict(text.decode(errors='replace'), heartbeat_seconds)}\n".encode()
        )
    os.write(writer, text)


if __name__ == "__main__":
    copy(0, 2, sys.argv[1])
