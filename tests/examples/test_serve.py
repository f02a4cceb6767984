"""The example service, over HTTP on this machine."""

import concurrent.futures
import importlib.util
import threading
import time

import pytest

from cadc_jax.serving import recommend, trained
from cadc_jax.serving.online import Recommender, Shapes
from tests.program import ROOT

httpx = pytest.importorskip("httpx")
uvicorn = pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


def example(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def shop(ranking_run):
    return trained.open_trained(ranking_run, arm="cadc_frozen")


@pytest.fixture(scope="module")
def client(shop):
    """A client of the service, which runs in a thread."""
    serve = example("serve")
    recommender = Recommender(shop, Shapes(users=4, items=5, k=6))
    serve.warm_up(recommender)
    config = uvicorn.Config(serve.make_app(recommender), port=0, log_level="critical")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    port = server.servers[0].sockets[0].getsockname()[1]
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client
    server.should_exit = True
    thread.join()


def shown(text):
    """The items of a table for people."""
    return [line.split()[1] for line in text.splitlines()[3:]]


def items(answer):
    assert answer.status_code == 200, answer.text
    return [entry["item"] for entry in answer.json()["items"]]


def test_it_is_well_and_says_what_it_serves(client):
    answer = client.get("/health").json()
    assert answer["status"] == "ok" and "cadc_frozen" in answer["model"]


def test_a_user_gets_what_the_command_shows(client, shop):
    answer = client.get("/recommend", params={"user": "ann07", "k": 4})
    assert items(answer) == shown(recommend.show(shop, "ann07", 4))
    first = answer.json()["items"][0]
    assert first["title"] == f"Product {first['item']}" and isinstance(first["score"], float)


def test_a_new_user_gets_what_the_command_shows(client, shop):
    answer = client.post("/recommend", json={"items": ["3", 17], "k": 4})
    assert items(answer) == shown(recommend.show_new(shop, "3,17", 4))


def test_similar_items_are_those_of_the_command(client, shop):
    answer = client.get("/similar", params={"item": "3", "k": 4})
    assert items(answer) == shown(recommend.show_similar(shop, "3", 4))


def test_requests_at_the_same_time_do_not_mix(client):
    users = [f"ann{number:02}" for number in range(40)]

    def ask(user):
        return items(client.get("/recommend", params={"user": user, "k": 3}))

    alone = list(map(ask, users))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, users)) == alone


@pytest.mark.parametrize(
    ("method", "path", "given", "status", "message"),
    [
        ("GET", "/recommend?user=bob", None, 404, "user 'bob': not among the 40 users"),
        ("GET", "/recommend", None, 400, "user: is missing; write /recommend?user=ID"),
        ("GET", "/recommend?user=ann07&k=7", None, 400, "k: must be a number from 1 to 6"),
        ("GET", "/recommend?user=ann07&k=x", None, 400, "k: must be a number from 1 to 6"),
        ("GET", "/similar?item=999", None, 404, "item '999': not among the 60 items"),
        ("GET", "/similar", None, 400, "item: is missing"),
        ("POST", "/recommend", {"items": ["3", "999"]}, 404, "item '999': not among"),
        ("POST", "/recommend", {"items": ["3", "3"]}, 400, "item '3': is there twice"),
        ("POST", "/recommend", {"items": []}, 400, "items: give 1 to 5 of them, not 0"),
        ("POST", "/recommend", {"items": list("123456")}, 400, "give 1 to 5 of them, not 6"),
        ("POST", "/recommend", {"items": "3"}, 400, "items: must be a list of item ids"),
        ("POST", "/recommend", {"items": [True]}, 400, "items: must be a list of item ids"),
        ("POST", "/recommend", {"items": ["3"], "k": 0}, 400, "k: must be a number"),
        ("POST", "/recommend", ["3"], 400, "the request is no JSON object"),
        ("POST", "/recommend", {"items": ["3"], "x": "y" * 70_000}, 413, "more than 65,536 bytes"),
        ("PUT", "/recommend", {}, 405, "Method Not Allowed"),
        ("GET", "/nothing", None, 404, "Not Found"),
    ],
)
def test_what_cannot_be_answered_is_an_error_in_a_line(
    client, method, path, given, status, message
):
    answer = client.request(method, path, json=given)
    assert answer.status_code == status
    text = answer.json()["error"]
    assert message in text and "\n" not in text


def test_a_body_that_is_no_json_is_an_error_too(client):
    answer = client.post("/recommend", content=b"{items")
    assert answer.status_code == 400 and answer.json() == {"error": "the request is no JSON"}
