"""Measures how long requests to `serve.py` take.

    python examples/serve_load.py --users=1,2,3 --items=260,1196 --clients=1,8 --seconds=5

Each client is a thread that asks again as soon as it has an answer, for a user and for a new user
in turn.
"""

import argparse
import itertools
import random
import threading
import time

import httpx
import numpy as np


def ask(url: str, given: argparse.Namespace, seed: int, end: float, found: list[float]) -> None:
    """One client, until the end; adds the seconds of each request."""
    draw = random.Random(seed)
    with httpx.Client(base_url=url, timeout=30) as client:
        for number in itertools.count(seed):
            start = time.perf_counter()
            if start > end:
                return
            if number % 2:
                answer = client.get("/recommend", params={"user": draw.choice(given.users)})
            else:
                items = draw.sample(given.items, min(len(given.items), draw.randint(1, 20)))
                answer = client.post("/recommend", json={"items": items})
            answer.raise_for_status()
            found.append(time.perf_counter() - start)


def main() -> None:
    """Prints a line for each number of clients."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--users", type=lambda text: text.split(","), required=True)
    parser.add_argument("--items", type=lambda text: text.split(","), required=True)
    parser.add_argument("--clients", type=lambda text: list(map(int, text.split(","))), default=[1])
    parser.add_argument("--seconds", type=float, default=5.0)
    given = parser.parse_args()
    print(httpx.get(f"{given.url}/health").json()["model"])
    for clients in given.clients:
        found: list[float] = []
        end = time.perf_counter() + given.seconds
        threads = [
            threading.Thread(target=ask, args=(given.url, given, seed, end, found))
            for seed in range(clients)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        p50, p99 = np.percentile(found, [50, 99]) * 1000
        print(
            f"{clients} clients: p50 {p50:.1f} ms, p99 {p99:.1f} ms, "
            f"{len(found) / given.seconds:.0f} requests a second"
        )


if __name__ == "__main__":
    main()
