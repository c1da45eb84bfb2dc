"""Each tab as a person uses it."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from vtprune.demo.examples import load_examples

both = pytest.mark.parametrize("visitor", ["desktop", "phone"], indirect=True)


@both
def test_the_first_view_tells_what_it_is(visitor: Any, address: str) -> None:
    page = visitor.open(address)
    assert visitor.kept() == 64
    assert visitor.text("#answers .question") == "what color is the diamond ?"
    assert visitor.text("#answers .full .text") == visitor.text("#answers .pruned .text") == "orange"
    assert page.locator("#answers .mark.right").count() == 2
    assert visitor.text("#answers .verdict") == "Same answer with 11% of the tokens"
    height = page.viewport_size["height"]
    for part in ("#answers", "#overlay svg"):
        assert page.locator(part).bounding_box()["y"] < 0.7 * height, f"{part} is below the first view"
    assert page.evaluate("document.documentElement.scrollWidth") <= page.viewport_size["width"]


@both
def test_look(visitor: Any, address: str) -> None:
    page = visitor.open(address)
    page.locator("#examples button").nth(5).click()
    page.wait_for_function("document.querySelector('#question textarea').value === 'which word is written ?'")
    assert page.locator("#film").count() == 0, "the embedded model takes no videos"
    visitor.pick("visionzip")
    visitor.set_budget(100)
    page.get_by_text("100 of 576 tokens stay (17%)").wait_for()
    page.locator("#ask").click()
    assert visitor.wait_for_answer("100 tokens, visionzip") == "wolf"
    assert visitor.kept() == 100
    assert visitor.text("#answers .full .text") == "wolf"
    costs = page.locator("#costs tbody tr").all_inner_texts()
    assert costs[0].split() == ["visual", "tokens", "576", "100", "17%"]
    assert [row.split("\t")[0] for row in costs] == [
        "visual tokens",
        "layers' mean",
        "prefill FLOPs",
        "KV memory",
        "prefill time",
    ]
    assert page.locator("#overlay rect.heat").count() == 0
    page.get_by_label("heat map of scores").check()
    page.wait_for_selector("#overlay rect.heat")
    assert page.locator("#overlay rect.heat").count() == 576
    page.get_by_label("merge groups").check()
    page.wait_for_selector("#overlay path.group")
    assert "Cells of one colour were merged into one token" in visitor.text("#overlay .caption")
    page.get_by_label("grid of all cells").check()
    page.wait_for_selector("#overlay path.lines")
    assert visitor.kept() == 100


def test_options_are_those_of_the_method(visitor: Any, address: str) -> None:
    page = visitor.open(address)
    page.get_by_text("More settings").click()
    visitor.pick("fastv")
    layer = page.locator("#option-fastv-layer")
    layer.wait_for()
    assert layer.input_value() == "2"
    layer.fill("99")
    page.get_by_text("layers are 0 to 7").wait_for()
    layer.fill("0")
    page.get_by_text("fastv: layer must be 1 or more, got '0'.").wait_for()
    page.locator("#ask").click()
    page.locator("#message [role=alert]").wait_for()
    assert "layer must be 1 or more" in visitor.text("#message")
    layer.fill("4")
    page.get_by_text("64 from layer 4 on; 320 on average").wait_for()
    page.locator("#ask").click()
    visitor.wait_for_answer("64 tokens, fastv(layer=4)")
    assert page.locator("#message .message").count() == 0
    assert visitor.kept() == 64


def test_compare(visitor: Any, address: str, tmp_path: Path) -> None:
    page = visitor.open(address)
    visitor.tab("Compare")
    visitor.pick("random", "stride", "visionzip", box="compared")
    visitor.set_budget(32)
    page.locator("#compare").click()
    page.wait_for_function("document.querySelectorAll('#gallery .card').length === 3")
    page.wait_for_function("!document.querySelector('#png button, button#png').disabled")
    assert sorted(page.locator("#gallery .card h3").all_inner_texts()) == ["random", "stride", "visionzip"]
    for card in page.locator("#gallery .card").all():
        assert card.locator("rect.kept").count() == 32
        assert card.locator(".mark").count() == 1
    same = [("same" in str(card.get_attribute("class"))) for card in page.locator("#gallery .card").all()]
    assert same == sorted(same, reverse=True)
    with page.expect_download() as download:
        page.locator("#png").click()
    download.value.save_as(tmp_path / "comparison.png")
    with Image.open(tmp_path / "comparison.png") as saved:
        assert saved.format == "PNG"
        assert saved.width > 2 * 384


@both
def test_sweep(visitor: Any, address: str) -> None:
    page = visitor.open(address)
    visitor.tab("Sweep the budget") if page.viewport_size["width"] > 400 else _from_menu(page, "Sweep the budget")
    page.locator("#sweep").click()
    page.wait_for_function("document.querySelectorAll('#plot .point').length === 10")
    page.wait_for_selector("#point .overlay svg")
    assert "answer" in visitor.text("#plot .flips")
    tokens = [label.split()[0] for label in page.locator("#plot .point").evaluate_all("p => p.map(e => e.ariaLabel)")]
    assert tokens[0] == "576"
    page.locator("#plot .point").nth(3).click()
    page.wait_for_function("document.querySelectorAll('#plot .point')[3].ariaPressed === 'true'")
    assert visitor.kept("#point") == int(tokens[3])
    page.locator("#plot .point").nth(9).focus()
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelectorAll('#plot .point')[9].ariaPressed === 'true'")
    assert visitor.kept("#point") == int(tokens[9])


def _from_menu(page: Any, name: str) -> None:
    """On a phone the tabs that find no room are in a menu."""
    page.locator(".overflow-menu > button").click()
    page.locator(".overflow-dropdown button").get_by_text(name).click()


def test_layers(visitor: Any, address: str) -> None:
    page = visitor.open(address)
    visitor.pick("pyramiddrop")
    page.locator("#ask").click()
    visitor.wait_for_answer("64 tokens, pyramiddrop")
    visitor.tab("Layers")
    assert page.locator("#stages").locator("xpath=..").get_by_role("slider").count() == 1
    counts = []
    for place in (3, 2, 1):
        page.get_by_text(f"Stage {place} of 3").wait_for()
        counts.append(visitor.kept("#stages"))
        page.locator("#earlier").click()
    assert counts[0] == 64
    assert counts == sorted(set(counts))
    page.locator("#later").click()
    page.get_by_text("Stage 2 of 3").wait_for()
    assert page.locator("#stages .bar").count() == 8


def test_keyboard_alone(visitor: Any, address: str) -> None:
    page = visitor.open(address)
    for _ in range(60):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#examples') !== null"):
            break
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.wait_for_function("document.querySelector('#question textarea').value === 'what shape is the purple one ?'")
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.closest('#question') !== null"):
            break
    page.keyboard.press("Enter")
    page.wait_for_function(
        "document.querySelector('#answers .question').innerText === 'what shape is the purple one ?'"
    )
    assert visitor.wait_for_answer("64 tokens, divprune") in ("diamond", "square", "circle", "cross", "heart", "ring")
    assert visitor.kept() == 64


def test_link_and_program(visitor: Any, address: str) -> None:
    page = visitor.open(address, "?method=fastv(layer%3D3)&budget=average%3A256&positions=pack&example=3")
    assert visitor.wait_for_answer("64 tokens, fastv(layer=3)") == "1"
    page.get_by_text("Python for this").click()
    link = page.locator("#link input, #link textarea").input_value()
    assert "method=fastv%28layer%3D3%29&budget=average%3A256&positions=pack" in link
    assert 'vtprune.FastV(layer=3), vtprune.Budget(average=256), positions="pack"' in visitor.text("#snippet")
    page.goto(link)
    page.wait_for_selector("#overlay svg")
    assert visitor.wait_for_answer("64 tokens, fastv(layer=3)") == "1"


def test_link_to_a_comparison(visitor: Any, address: str) -> None:
    page = visitor.open(address, "?budget=32&example=2&tab=compare&compare=random,pool")
    page.wait_for_function("document.querySelectorAll('#gallery .card').length === 2")
    page.get_by_text("Python for this").click()
    page.wait_for_function("document.querySelector('#link textarea, #link input').value.includes('random%2Cpool')")
    assert "for pruner in [" in visitor.text("#snippet")
    assert page.locator("#question textarea").input_value() == load_examples(3)[2].question


def test_link_with_nonsense(visitor: Any, address: str) -> None:
    page = visitor.open(address, "?method=nothing&budget=48")
    page.get_by_text("Some of the link was ignored").wait_for()


def test_uploads(visitor: Any, address: str, tmp_path: Path) -> None:
    """What is wrong with a file is said, and the next one works."""
    page = visitor.open(address)
    picture = Image.new("RGB", (200, 160), "navy")
    whole = io.BytesIO()
    picture.save(whole, "PNG")
    picture.convert("CMYK").save(tmp_path / "print.jpg")
    (tmp_path / "cut.png").write_bytes(whole.getvalue()[:60])
    (tmp_path / "notes.png").write_text("hello")
    picture.resize((1, 1)).save(tmp_path / "dot.png")
    picture.save(tmp_path / "film.gif", save_all=True, append_images=[Image.new("RGB", (200, 160), "red")])
    for name, words in {
        "cut.png": "cut.png is damaged",
        "notes.png": "notes.png is no picture",
        "dot.png": "each side needs at least 8",
        "print.jpg": "colours of print (CMYK)",
        "film.gif": "only the first one is looked at",
    }.items():
        page.get_by_label("Remove Image").click()
        page.locator("#picture input[type=file]").set_input_files(tmp_path / name)
        page.locator("#picture img").wait_for(state="attached")
        page.locator("#ask").click()
        page.locator("#message").get_by_text(words).wait_for()
        page.wait_for_function("!document.querySelector('#answers .cursor')")
    # Nobody knows what is true of a visitor's own picture, so that nothing is marked any more.
    visitor.wait("() => !document.querySelector('#answers .mark')")
    visitor.wait_for_answer("64 tokens, divprune")
    visitor.wait("() => document.querySelector('#message').innerText.includes('film.gif')")
    visitor.complaints.clear()


def test_without_a_picture_or_a_question(visitor: Any, address: str) -> None:
    page = visitor.open(address)
    page.locator("#question textarea").fill("")
    page.locator("#ask").click()
    page.locator("#message").get_by_text("Type a question").wait_for()
    page.locator("#question textarea").fill("what is it ?")
    page.get_by_label("Remove Image").click()
    page.locator("#ask").click()
    page.locator("#message").get_by_text("no picture yet").wait_for()


def test_several_pictures_in_one_prompt(visitor: Any, address: str, tmp_path: Path) -> None:
    page = visitor.open(address)
    for number, example in enumerate(load_examples(2)):
        example.picture.save(tmp_path / f"{number}.png")
    page.get_by_text("More settings").click()
    page.locator("#more-pictures input[type=file]").set_input_files([tmp_path / "0.png", tmp_path / "1.png"])
    page.locator("#more-pictures [aria-label='1.png']").wait_for()
    page.locator("#ask").click()
    visitor.wait_for_answer("192 tokens, divprune")
    assert page.locator("#overlay .overlay").count() == 3
    assert visitor.kept() == 3 * 64
    assert page.locator("#answers .mark").count() == 0


def test_video(visitor: Any, film_address: str, tmp_path: Path) -> None:
    frames = [Image.new("RGB", (112, 84), (10 * number, 90, 120)) for number in range(16)]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    (tmp_path / "notes.mp4").write_text("hello")
    visitor.address = film_address
    page = visitor.open(film_address)
    page.get_by_text("All 49 tokens stay").wait_for()
    page.locator("#film input[type=file]").set_input_files(tmp_path / "notes.mp4")
    page.get_by_text("notes.mp4 is no video that can be read").wait_for()
    page.locator("#film").get_by_label("Clear").click()
    page.locator("#film input[type=file]").set_input_files(tmp_path / "film.gif")
    page.get_by_text("49 of 560 tokens stay").wait_for()
    visitor.set_budget(30)
    page.locator("#ask").click()
    visitor.wait_for_answer("30 tokens, divprune")
    captions = page.locator("#overlay figcaption").all_inner_texts()
    assert len(captions) == 4
    assert sum(int(caption.split()[1]) for caption in captions) == visitor.kept() == 30


def test_stop(visitor: Any, address: str) -> None:
    page = visitor.open(address)
    visitor.tab("Sweep the budget")
    page.locator("#sweep").click()
    page.wait_for_selector("#plot .point")
    page.locator("#stop-sweep").click()
    page.locator("#message").get_by_text("Stopped.").wait_for()
    visitor.tab("Look")
    page.locator("#ask").click()
    page.wait_for_function("!document.querySelector('#message .message')")
    assert visitor.wait_for_answer("64 tokens, divprune") == "orange"


def test_two_visitors_at_once(visit: Any, address: str) -> None:
    """Each gets what they get alone."""
    chosen = {"fastv": 24, "pyramiddrop": 8}
    alone: dict[str, tuple[str, str]] = {}
    visitors = {method: visit({"width": 1280, "height": 800}) for method in chosen}
    for method, visitor in visitors.items():
        visitor.open(address)
        visitor.pick(method)
        visitor.set_budget(chosen[method])
        visitor.page.locator("#ask").click()
        alone[method] = visitor.wait_for_answer(f"{chosen[method]} tokens, {method}"), shown(visitor)
    for visitor in visitors.values():
        visitor.page.evaluate("document.querySelector('#answers .pruned h3').innerText = ''")
    for visitor in visitors.values():
        visitor.page.locator("#ask").click()
    for method, visitor in visitors.items():
        together = visitor.wait_for_answer(f"{chosen[method]} tokens, {method}"), shown(visitor)
        assert together == alone[method]
        assert visitor.kept() == chosen[method]
    assert alone["fastv"][1] != alone["pyramiddrop"][1]


def shown(visitor: Any) -> str:
    """Where the highlighted cells are."""
    cells = visitor.page.locator("#overlay rect.kept")
    return str(cells.evaluate_all("cells => cells.map(cell => [cell.x.baseVal.value, cell.y.baseVal.value])"))
