"""The endpoint that programs use, and what the app does with files of all kinds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import httpx
import pytest
from broken_files import broken_file

from vtprune.demo.examples import load_examples

client = pytest.importorskip("gradio_client")


@pytest.fixture(scope="module")
def program(address: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A program that talks to the app."""
    return client.Client(address, verbose=False, download_files=tmp_path_factory.mktemp("got"))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """The first example as a file."""
    load_examples(1)[0].picture.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def resident() -> int:
    """Memory of this process, where the app runs, in KiB."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0])


def test_the_call_that_the_readme_shows(program: Any, scene: Path) -> None:
    found = program.predict(
        client.handle_file(str(scene)), "what color is the diamond ?", "fastv(layer=3)", "64", "", api_name="/ask"
    )
    assert found["full"]["answer"] == found["pruned"]["answer"] == "orange"
    assert found["tokens"] == 576
    assert [stage["layer"] for stage in found["stages"]] == [3]
    assert len(found["stages"][0]["kept"][0]) == found["pruned"]["tokens"] == 64
    assert found["pruned"]["prefill_flops"] < found["full"]["prefill_flops"]


def test_only_that_endpoint_is_offered(program: Any) -> None:
    endpoints = program.view_api(return_format="dict")["named_endpoints"]
    assert list(endpoints) == ["/ask"]
    assert [each["parameter_name"] for each in endpoints["/ask"]["parameters"]] == [
        "picture",
        "question",
        "method",
        "budget",
        "positions",
    ]


@pytest.mark.parametrize(
    ("entered", "words"),
    [
        ({"method": "nothing"}, "nothing"),
        ({"method": "visionzip(contextual=7)"}, "contextual must be"),
        ({"budget": "-3"}, "-3"),
        ({"positions": "both"}, "both"),
        ({"question": " "}, "Type a question"),
    ],
)
def test_what_cannot_be_is_said(program: Any, scene: Path, entered: dict[str, str], words: str) -> None:
    values = {"question": "what color is the diamond ?"} | entered
    with pytest.raises(Exception, match=words):
        program.predict(picture=client.handle_file(str(scene)), **values, api_name="/ask")


@pytest.mark.parametrize("kind", ["declared", "bare", "text"])
def test_only_uploads_are_opened(address: str, scene: Path, kind: str) -> None:
    """A call without the client, which would upload the file first."""
    call = f"{address}gradio_api/call/ask"
    picture: Any = {"path": str(scene), "meta": {"_type": "gradio.FileData"}}
    if kind == "bare":
        del picture["meta"]
    if kind == "text":
        picture = str(scene)
    made = httpx.post(call, json={"data": [picture, "what ?", "divprune", "64", ""]})
    if made.status_code == 200:
        said = httpx.get(f"{call}/{made.json()['event_id']}", timeout=30).text
        assert "event: error" in said
        assert "complete" not in said
    else:
        assert made.status_code in (400, 403, 422)


def test_two_hundred_broken_uploads(program: Any, scene: Path, tmp_path: Path) -> None:
    """Each gets a message, memory stays where it is, and the app still answers."""
    rng = random.Random(7)
    before = 0
    for start in range(0, 200, 20):
        waiting = {}
        for number in range(start, start + 20):
            name, data = broken_file(rng, number, always=True)
            (tmp_path / name).write_bytes(data)
            waiting[name] = program.submit(client.handle_file(str(tmp_path / name)), "what ?", api_name="/ask")
        for name, job in waiting.items():
            with pytest.raises(client.exceptions.AppError) as error:
                job.result(timeout=60)
            assert name in str(error.value)
            assert str(tmp_path) not in str(error.value)
        if start == 40:
            before = resident()
    assert resident() - before < 40_000
    found = program.predict(client.handle_file(str(scene)), "what color is the diamond ?", api_name="/ask")
    assert found["pruned"]["answer"] == "orange"
