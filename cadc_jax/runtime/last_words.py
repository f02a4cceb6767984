"""Copies stdin to stderr, and makes one line of what JAX says when it aborts a process.

A program of its own, run by `distributed`, without any other module: it must start at once, and
still be there when the process that writes to it is not.
"""

import os
import re
import select
import sys

_ENGINE = re.compile(rb"[EFW]\d{4} .*(coordination_service|client\.h:|distributed_runtime)")
_FATAL = re.compile(rb"F\d{4} ")
_HOLD_SECONDS = 20
_ADVICE = "the run ends; that process's log says more; a new run goes on from the finished stages"


def verdict(text: str, heartbeat_seconds: str) -> str:
    """What the last words of JAX's coordination service mean, in one line."""
    for pattern in (r"stopped sending heartbeats\):\s*(\d+)", r"[Tt]ask (\d+) heartbeat timeout"):
        lost = re.search(pattern, text)
        if lost:
            gone = f"process {lost[1]} has ended or cannot be reached"
            return f"{gone} (no heartbeat for {heartbeat_seconds} s): {_ADVICE}"
    if "RegisterTask" in text:
        return (
            "not all processes have come together in time (--join_seconds): --coordinator must be "
            "the address of process 0, reachable from all hosts, and all --num_processes must run"
        )
    if "Failed to send RPC" in text or "Socket closed" in text:
        return f"process 0 has ended or cannot be reached: {_ADVICE}"
    return " ".join(text.split())[:500]


def copy(reader: int, writer: int, heartbeat_seconds: str) -> None:
    """Copies lines until the end, but holds back what the engine says on its way to an abort."""
    rest, fatal = b"", False
    held: list[bytes] = []
    while True:
        ready, _, _ = select.select([reader], [], [], _HOLD_SECONDS if held and not fatal else None)
        block = os.read(reader, 1 << 16) if ready else b""
        if ready and not block:
            break
        if not ready:  # it was no last word
            os.write(writer, b"".join(held))
            held = []
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if held or _ENGINE.match(line):
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
