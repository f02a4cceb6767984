"""A web service that recommends by a trained model, with raw ids in and out.

    pip install -e '.[serve]' -c constraints.txt
    python examples/serve.py --from=workdir/movielens_1m --port=8000

    curl 'localhost:8000/recommend?user=42&k=3'
    curl localhost:8000/recommend -d '{"items": ["260", "1196"], "k": 3}'
    curl 'localhost:8000/similar?item=260&k=3'
    curl localhost:8000/health

Requests that come while others are computed are answered together, as one batch of a fixed shape:
only the first one, at the start, compiles. What cannot be answered is {"error": "one line"} with
status 400, or 404 for an id that no training row has.
"""

import argparse
import asyncio
import concurrent.futures
import contextlib
import json
import pathlib
from collections.abc import AsyncIterator

import numpy as np
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cadc_jax.data.table import read_titles
from cadc_jax.errors import CadcError, ConfigError
from cadc_jax.serving.online import Recommender, Shapes
from cadc_jax.serving.raw_ids import UnknownIdError
from cadc_jax.serving.trained import open_trained

MOST_BYTES = 1 << 16  # of a request
SHOWN = 10  # items, if a request does not say how many


class Batches:
    """Answers requests together: all that wait, up to a batch, whenever the last one is done."""

    def __init__(self, recommender: Recommender):
        self.recommender = recommender
        self.waiting: asyncio.Queue = asyncio.Queue()
        self.pool = concurrent.futures.ThreadPoolExecutor(1)

    async def best(self, one: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Scores [k] and ids [k] of a user, or of a new one with these items."""
        answer = asyncio.get_running_loop().create_future()
        await self.waiting.put((one, answer))
        return await answer

    async def run(self) -> None:
        """Never ends."""
        loop = asyncio.get_running_loop()
        while True:
            batch = [await self.waiting.get()]
            while len(batch) < self.recommender.shapes.users and not self.waiting.empty():
                batch.append(self.waiting.get_nowait())
            asked = [one for one, _ in batch]
            try:
                scores, ids = await loop.run_in_executor(self.pool, self.recommender.best, asked)
            except Exception as error:  # goes to those who asked; the service continues
                for _, answer in batch:
                    if not answer.done():
                        answer.set_exception(error)
                continue
            for place, (_, answer) in enumerate(batch):
                if not answer.done():  # its client may have gone
                    answer.set_result((scores[place], ids[place]))


class Service:
    """The answers to requests."""

    def __init__(self, recommender: Recommender):
        self.recommender = recommender
        self.titles = read_titles(recommender.trained.prepared, "items")
        self.batches = Batches(recommender)

    async def for_user(self, request: Request) -> Response:
        """GET /recommend?user=ID&k=N."""
        k = self.number(request.query_params.get("k"))
        user = self.recommender.users.known_id_of(self.parameter(request, "user"))
        return self.answer(k, *await self.batches.best(user))

    async def for_items(self, request: Request) -> Response:
        """POST /recommend {"items": [ID, ...], "k": N}."""
        given = await self.body(request)
        k = self.number(given.get("k"))
        raws = given.get("items")
        if not isinstance(raws, list) or not all(type(raw) in (str, int) for raw in raws):
            raise ConfigError("items: must be a list of item ids")
        most = self.recommender.shapes.items
        own = self.recommender.items.known_ids_of(list(map(str, raws)), most)
        return self.answer(k, *await self.batches.best(own))

    async def similar(self, request: Request) -> Response:
        """GET /similar?item=ID&k=N."""
        k = self.number(request.query_params.get("k"))
        item = self.recommender.items.known_id_of(self.parameter(request, "item"))
        loop, items = asyncio.get_running_loop(), np.array([item])
        found = await loop.run_in_executor(self.batches.pool, self.recommender.similar, items)
        return self.answer(k, *(x[0] for x in found))

    async def health(self, request: Request) -> Response:
        """GET /health."""
        return JSONResponse({"status": "ok", "model": str(self.recommender.trained)})

    def answer(self, k: int, scores: np.ndarray, ids: np.ndarray) -> Response:
        """The best k items as JSON; there may be fewer left."""
        there = np.flatnonzero(ids[:k] > 0)
        raws = self.recommender.items.of(ids[there])
        items = [
            {"item": str(raw), "score": float(score)}
            for raw, score in zip(raws, scores[there], strict=True)
        ]
        if self.titles is not None:
            for entry, number in zip(items, ids[there], strict=True):
                entry["title"] = str(self.titles[int(number)])
        return JSONResponse({"items": items})

    def number(self, given: object) -> int:
        """k, from 1 to what the program was compiled for; SHOWN if it is not given."""
        most = self.recommender.shapes.k
        if given is None:
            return min(SHOWN, most)
        if type(given) in (str, int) and str(given).isdecimal() and 1 <= int(given) <= most:
            return int(given)
        raise ConfigError(f"k: must be a number from 1 to {most}")

    def parameter(self, request: Request, name: str) -> str:
        """A parameter of the address."""
        if not request.query_params.get(name):
            raise ConfigError(f"{name}: is missing; write {request.url.path}?{name}=ID")
        return request.query_params[name]

    async def body(self, request: Request) -> dict:
        """The JSON object that a request brings."""
        text = b""
        async for part in request.stream():
            text += part
            if len(text) > MOST_BYTES:
                raise HTTPException(413, f"the request has more than {MOST_BYTES:,} bytes")
        try:
            given = json.loads(text)
        except ValueError:
            raise ConfigError("the request is no JSON") from None
        if not isinstance(given, dict):
            raise ConfigError("the request is no JSON object")
        return given


def refused(request: Request, error: Exception) -> Response:
    """An error in one line."""
    status = 404 if isinstance(error, UnknownIdError) else 400
    text = str(error)
    if isinstance(error, HTTPException):
        status, text = error.status_code, error.detail
    return JSONResponse({"error": " ".join(text.split())}, status)


def make_app(recommender: Recommender) -> Starlette:
    """The web application."""
    service = Service(recommender)

    @contextlib.asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        task = asyncio.create_task(service.batches.run())
        yield
        task.cancel()
        service.batches.pool.shutdown()

    routes = [
        Route("/recommend", service.for_user, methods=["GET"]),
        Route("/recommend", service.for_items, methods=["POST"]),
        Route("/similar", service.similar),
        Route("/health", service.health),
    ]
    return Starlette(
        routes=routes,
        lifespan=running,
        exception_handlers={CadcError: refused, HTTPException: refused},
    )


def warm_up(recommender: Recommender) -> None:
    """Compiles what requests need. Models that take no new users say so when they are asked."""
    item = np.array([1], np.int32)
    recommender.best([1])
    with contextlib.suppress(CadcError):
        recommender.best([item])
    with contextlib.suppress(CadcError):
        recommender.similar(item)


def main() -> None:
    """Serves until it is stopped."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="source", required=True, help="work folder or data set")
    parser.add_argument("--workdir", help="of a data set: where 'cadc train' ran")
    parser.add_argument("--arm", help="such as cadc_frozen or mf_alone; default: the best")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    given = parser.parse_args()
    workdir = pathlib.Path(given.workdir) if given.workdir else None
    try:
        trained = open_trained(pathlib.Path(given.source), workdir, arm=given.arm)
    except CadcError as error:
        parser.exit(1, f"serve: error: {error}\n")
    recommender = Recommender(trained, Shapes())
    warm_up(recommender)
    print(f"serving {trained}", flush=True)
    uvicorn.run(make_app(recommender), host=given.host, port=given.port, log_level="warning")


if __name__ == "__main__":
    main()
