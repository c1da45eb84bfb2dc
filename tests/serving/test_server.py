"""The server over HTTP: answers under load are those of single requests, and bad requests leave it standing."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

pytest.importorskip("vllm.entrypoints", reason="vLLM has an environment of its own, which .ci/vllm makes")

import httpx
from serving.servers import answer, as_url, body, server

from vtprune.eval.embedded import load_questions
from vtprune.eval.embedded.scenes import render

TEXT = 16
"""Tokens of a short prompt beside those of its picture, at least."""
OPTIONS: tuple[Any, ...] = (
    None,
    {"budget": 192},
    {"pruner": "visionzip"},
    {"pruner": "random(seed=3)", "budget": 16},
    {"pruner": "pool", "budget": 0.25},
    {"budget": 1.0},
)
PLAIN = ["--no-enable-prefix-caching", "--no-enable-chunked-prefill", "--max-num-batched-tokens", "2048"]
CHUNKED = ["--enable-prefix-caching", "--enable-chunked-prefill", "--max-num-batched-tokens", "96"]


@pytest.fixture(scope="module", params=["plain", "cached-and-chunked"])
def address(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    more = PLAIN if request.param == "plain" else CHUNKED
    log = tmp_path_factory.mktemp("server") / "log"
    with server(log, ["--pruner", "divprune", "--budget", "64"], ["--trust-request-mm-kwargs", *more]) as found:
        yield found


@pytest.fixture(scope="module")
def bodies() -> list[dict[str, Any]]:
    """Requests with pictures of many sizes, some with two, some seen before under another question or budget."""
    rng = random.Random("requests")
    held_out = load_questions()
    scenes = [render(one.scene) for one in held_out[:12]]
    urls = [as_url(scene.resize((rng.randrange(64, 400), rng.randrange(64, 400)))) for scene in scenes]
    found = []
    for _ in range(24):
        pictures = rng.sample(urls, k=rng.choice((1, 1, 1, 2)))
        found.append(body(rng.choice(held_out).question, pictures, rng.choice(OPTIONS), tokens=6))
    return found


def ask(address: str, request: dict[str, Any]) -> httpx.Response:
    return httpx.post(f"{address}/v1/chat/completions", json=request, timeout=300)


def asked_at_once(address: str, requests: Sequence[dict[str, Any]]) -> list[tuple[str, int]]:
    with ThreadPoolExecutor(16) as pool:
        return [answer(reply) for reply in pool.map(lambda request: ask(address, request), requests)]


def test_load_gives_the_answers_of_single_requests(address: str, bodies: list[dict[str, Any]]) -> None:
    order = random.Random("order").choices(range(len(bodies)), k=200)
    together = asked_at_once(address, [bodies[number] for number in order])
    assert len(together) == 200
    singly = {number: answer(ask(address, bodies[number])) for number in sorted(set(order))}
    assert together == [singly[number] for number in order]


def test_each_request_has_its_own_budget(address: str) -> None:
    held_out = load_questions()[0]
    url = as_url(render(held_out.scene))
    lengths = [answer(ask(address, body(held_out.question, [url], options)))[1] for options in OPTIONS]
    text = lengths[0] - 64
    assert text >= TEXT - 8
    assert [length - text for length in lengths] == [64, 192, 64, 16, 144, 576]


PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk"
    "+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
BAD: dict[str, tuple[list[str], Any, str]] = {
    "unknown pruner": ([PICTURE], {"pruner": "nope"}, "unknown pruner 'nope'"),
    "budget of nothing": ([PICTURE], {"budget": 0}, "at least 1, got 0"),
    "ratio above one": ([PICTURE], {"budget": 1.5}, "in (0, 1], got 1.5"),
    "no object": ([PICTURE], "divprune", "must be an object"),
    "text-aware pruner": ([PICTURE], {"pruner": "cdpruner"}, "cdpruner looks at the question"),
    "pruner inside the decoder": ([PICTURE], {"pruner": "fastv"}, "one block table for all layers"),
    "adaptive budget": ([PICTURE], {"pruner": "prumerge", "budget": "adaptive"}, "an adaptive budget"),
    "no picture": ([""], None, "is empty"),
    "corrupt picture": (["data:image/png;base64,bm9uc2Vuc2U="], None, "Failed to load image"),
    "half a picture": ([PICTURE[:82]], None, "oad image"),
    "too many pictures": ([PICTURE] * 4, None, "At most 3 image(s)"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_requests(address: str, name: str) -> None:
    urls, options, message = BAD[name]
    reply = ask(address, body("is there a star ?", urls, options))
    assert 400 <= reply.status_code < 500, reply.text
    assert message in reply.json()["error"]["message"]
    assert httpx.get(f"{address}/health", timeout=30).status_code == 200


def test_bad_requests_among_good_ones(address: str, bodies: list[dict[str, Any]]) -> None:
    bad = [body("is there a star ?", urls, options) for urls, options, _ in BAD.values()]
    mixed = [request for pair in zip(bodies[: len(bad)], bad, strict=True) for request in pair]
    with ThreadPoolExecutor(8) as pool:
        replies = list(pool.map(lambda request: ask(address, request), mixed))
    assert all(400 <= reply.status_code < 500 for reply in replies[1::2])
    assert [answer(reply) for reply in replies[::2]] == [
        answer(ask(address, request)) for request in bodies[: len(bad)]
    ]
