"""The demo as a person meets it: the app with the embedded model, and Debian's Chromium."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from chromium import chromium
from transformers import AutoProcessor

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

DESKTOP = {"width": 1280, "height": 800}
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where the app is served."""
    pytest.importorskip("gradio")
    folder = tmp_path_factory.mktemp("gradio")
    patch = pytest.MonkeyPatch()
    patch.setenv("GRADIO_TEMP_DIR", str(folder))
    from vtprune.demo.app import launch

    with patch.context():
        yield launch(device="cpu", block=False)
    patch.undo()


@pytest.fixture(scope="session")
def film_folder(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random model that takes videos."""
    folder: Path = tiny.save_tiny_qwen(tmp_path_factory.mktemp("tiny-qwen"))
    processor = AutoProcessor.from_pretrained(folder)
    picture = "{% if part['type'] == 'image' %}"
    place = (
        "{% if part['type'] == 'video' %} <|vision_start|><|video_pad|><|vision_end|>{% elif part['type'] == 'image' %}"
    )
    assert processor.chat_template.count(picture) == 1
    processor.chat_template = processor.chat_template.replace(picture, place)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def film_address(film_folder: Path, address: str) -> str:
    """Where an app is served whose model takes videos."""
    from vtprune.demo.app import launch

    return launch(str(film_folder), device="cpu", block=False)


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


class Visitor:
    """Somebody who looks at the page.

    Args:
        browser: Their browser.
        address: The app.
        size: Of the window.
    """

    def __init__(self, browser: Browser, address: str, size: dict[str, int]) -> None:
        self.address = address
        self.context = browser.new_context(viewport={"width": size["width"], "height": size["height"]})
        self.page: Page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self._note("error", str(error)))
        self.page.on("request", lambda request: self._check(request.url))
        self.page.set_default_timeout(20_000)

    def _note(self, kind: str, text: str) -> None:
        if kind == "error":
            self.complaints.append(text)

    def _check(self, url: str) -> None:
        if not url.startswith((self.address, "data:", "blob:")):
            self.complaints.append(f"asked elsewhere: {url}")

    def open(self, address: str, query: str = "") -> Page:
        """Opens the page and waits until it shows something."""
        self.page.goto(f"{address}{query}")
        self.page.wait_for_selector("#overlay .overlay svg", state="attached")
        return self.page

    def tab(self, name: str) -> None:
        """Goes to a tab."""
        self.page.get_by_role("tab", name=name).click()

    def pick(self, *methods: str, box: str = "methods") -> None:
        """Chooses methods instead of those chosen before."""
        self.page.locator(f"#{box} .token-remove.remove-all").click()
        entry = self.page.locator(f"#{box} input")
        for method in methods:
            entry.click()
            entry.fill(method)
            self.page.locator(f"[role=option][aria-label='{method}']").click()
        self.page.keyboard.press("Escape")

    def set_budget(self, tokens: int) -> None:
        """Types a number into the box beside the slider."""
        entry = self.page.locator("#budget input[type=number]")
        entry.fill(str(tokens))
        entry.press("Tab")

    def text(self, selector: str) -> str:
        """What is read there."""
        return self.page.locator(selector).inner_text()

    def kept(self, where: str = "#overlay") -> int:
        """Highlighted cells."""
        return self.page.locator(f"{where} rect.kept").count()

    def wait(self, condition: str, argument: Any = None) -> None:
        """Waits for something to become true in the page."""
        self.page.wait_for_function(condition, arg=argument)

    def wait_for_answer(self, title: str) -> str:
        """Waits until the pruned model has answered under that title, and gives the answer."""
        self.wait(
            """title => {
              const found = document.querySelector('#answers .pruned');
              return found && !found.querySelector('.cursor') && found.querySelector('h3').innerText === title;
            }""",
            title,
        )
        return self.text("#answers .pruned .text")


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Callable[[dict[str, int]], Visitor]]:
    """Lets in visitors, none of whom may have seen an error in the end."""
    visitors: list[Visitor] = []

    def enter(size: dict[str, int]) -> Visitor:
        visitors.append(Visitor(browser, address, size))
        return visitors[-1]

    yield enter
    for visitor in visitors:
        visitor.context.close()
    assert [visitor.complaints for visitor in visitors] == [[] for _ in visitors]


@pytest.fixture(params=["desktop"])
def visitor(visit: Callable[[dict[str, int]], Visitor], request: pytest.FixtureRequest) -> Visitor:
    """Somebody at a desk, or with a phone where the test says so."""
    return visit(PHONE if request.param == "phone" else DESKTOP)
