from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

import pytest
from chromium import chromium
from made_results import TOKENS, make_results
from typer.testing import CliRunner

from vtprune.cli import app
from vtprune.eval.analysis import read_folder, read_folders
from vtprune.eval.leaderboard import overall, rankings
from vtprune.eval.report.cautions import cautions
from vtprune.eval.report.content import make_content
from vtprune.eval.report.examples import choose, dropped_cells, find_examples, kept_cells
from vtprune.eval.report.markdown import to_markdown
from vtprune.eval.report.page import to_html
from vtprune.eval.report.plot import AXES, need_plot, pareto
from vtprune.eval.report.rows import table_rows
from vtprune.eval.report.spreadsheet import to_csv
from vtprune.eval.report.write import write_report
from vtprune.eval.store import FAILED
from vtprune.eval.token_need import token_needs
from vtprune.eval.versus import versus

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

METHODS = ("random", "stride", "pool", "downsample", "divprune", "visionzip")
WIDE = {"width": 1280, "height": 900}
NARROW = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("results")
    make_results(folder, METHODS, (64, 32), tasks=("gqa", "pope"))
    return folder


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def look(browser: Browser) -> Iterator[Callable[[Path, dict[str, Any]], Page]]:
    """Opens a page from disk; it may neither complain nor ask for anything."""
    complaints: list[str] = []
    pages: list[Page] = []

    def asked(url: str) -> None:
        if not url.startswith(("file:", "data:")):
            complaints.append(f"asked for {url}")

    def enter(path: Path, size: dict[str, Any]) -> Page:
        page = browser.new_page(viewport={"width": size["width"], "height": size["height"]})
        pages.append(page)
        page.set_default_timeout(20_000)
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked(request.url))
        page.goto(path.as_uri())
        return page

    yield enter
    for page in pages:
        page.close()
    assert complaints == []


def row_of(text: str, *words: str) -> str:
    return next(line for line in text.splitlines() if all(word in line for word in words))


def test_differences_are_corrected_over_the_whole_table(results: Path) -> None:
    rows = table_rows(read_folder(results).sections[0])
    compared = [found for row in rows for found in (row.to_full, row.to_random) if found is not None]
    assert len(compared) == 12 + 10
    smallest = min(compared, key=lambda found: found.p or 1)
    assert smallest.corrected == pytest.approx(len(compared) * (smallest.p or 0))
    assert rows[0].to_full is None
    assert rows[0].flops == 1
    assert rows[1].to_random is None


def test_markdown(results: Path) -> None:
    text = to_markdown(make_content(read_folder(results)))
    assert text.startswith("# Visual-token pruning of embedded on gqa, pope\n")
    assert "## embedded on gqa" in text
    assert "| random (baseline) | 64 tokens per image |" in text
    rows = [line for line in text.split("## embedded on gqa")[1].splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:7]] == [
        *("full", "random (baseline)", "random (baseline)", "stride (baseline)", "stride (baseline)")
    ]
    assert row_of(text, "| full | all tokens |").count("576.0") == 3
    assert "exact McNemar" in text
    assert "paired t" in text
    assert "* command: vtprune sweep --made-up" in text
    assert "Retained, average over tasks" in text
    assert "### Tokens that a question needs" in text
    assert "None" not in text


def test_csv(results: Path) -> None:
    text = to_csv(make_content(read_folder(results)))
    rows = list(csv.DictReader(text.splitlines()))
    assert len(rows) == 2 * (1 + 2 * len(METHODS))
    full, random = rows[0], rows[1]
    assert (full["method"], float(full["tokens_true"]), full["to_full"]) == ("full", TOKENS, "")
    assert (random["baseline"], random["seeds"], random["to_full_test"]) == ("True", "0 1 2", "paired t")
    assert float(random["to_full"]) == pytest.approx(float(random["value"]) - float(full["value"]))
    assert float(random["prefill_seconds"]) == pytest.approx(0.00164)


def test_missing_baseline_is_said_loudly(tmp_path: Path) -> None:
    make_results(tmp_path, ("random", "stride", "divprune"), (64,), seeds=(0,))
    content = make_content(read_folder(tmp_path))
    loud = next(line for line in content.cautions if "MISSING BASELINE" in line)
    assert "MISSING BASELINE pool, downsample." in loud
    assert "--pruners pool,downsample" in loud
    assert any(
        "fewer than 3 seeds" in line and "random at 64 tokens per image (1)" in line for line in content.cautions
    )
    for document in (to_markdown(content), to_html(content)):
        assert document.index("MISSING BASELINE") < document.index("divprune")


def test_complete_results_need_no_caution(results: Path) -> None:
    assert cautions(read_folder(results)) == []


def test_cautions(tmp_path: Path) -> None:
    store = make_results(tmp_path, (*METHODS, "fastv"), (64,), prefill_seconds=None)
    store.add({**store.get("divprune-64-0-vtprune_scenes"), "key": "x", "status": FAILED, "error": "boom"})  # type: ignore[dict-item]
    store.add({**store.get("visionzip-64-0-vtprune_scenes"), "versions": {"vtprune": "0.2.0"}})  # type: ignore[dict-item]
    found = cautions(read_folder(tmp_path))
    assert ["1 cells failed: divprune at 64 tokens per image (boom)" in line for line in found].count(True) == 1
    assert any(
        "fastv at 64 tokens per image (192): all of them. Measure the baselines with --budgets 192" in f for f in found
    )
    assert any("prefill was not timed" in line for line in found)
    assert any("2 different versions" in line for line in found)


def test_a_method_that_keeps_everything_needs_no_baseline(tmp_path: Path) -> None:
    make_results(tmp_path, METHODS, (64,))
    make_results(tmp_path, ("flashvlm",), (TOKENS,), full=False)
    assert cautions(read_folder(tmp_path)) == []


NOTHING: dict[str, Any] = {"average_tokens": 0.0, "tokens_kept": 0.0}


def test_a_method_that_keeps_nothing_needs_no_baseline(tmp_path: Path) -> None:
    make_results(tmp_path, METHODS, (64,))
    make_results(tmp_path, ("drop-all",), (64,), full=False, **NOTHING)
    assert cautions(read_folder(tmp_path)) == []


@pytest.mark.parametrize("others", [(), ("stride",)])
def test_plots_show_who_keeps_nothing(tmp_path: Path, others: tuple[str, ...]) -> None:
    make_results(tmp_path, others, (64,))
    make_results(tmp_path, ("drop-all",), (64, 32), full=False, **NOTHING)
    section = read_folder(tmp_path).sections[0]
    needs = {need.label: need for need in token_needs(section)}
    for drawn in (pareto(section, AXES[0]), need_plot(needs["drop-all"])):
        assert drawn is not None
        tree = ElementTree.fromstring(drawn)
        places = [float(dot.attrib["cx"]) for dot in tree.iter("circle")]
        labels = {text.text: float(text.attrib["x"]) for text in tree.iter("text") if text.get("class") != "up"}
        assert places.count(labels["0"]) >= 2
        assert min(places) == labels["0"]


def test_the_same_caution_for_several_tasks_is_said_once(tmp_path: Path) -> None:
    make_results(tmp_path, ("random", "divprune"), (64,), tasks=("gqa", "pope"))
    assert [line.split(":")[0] for line in cautions(read_folder(tmp_path))] == ["embedded on gqa; embedded on pope"]


def test_no_full_model_and_no_answers(tmp_path: Path) -> None:
    make_results(tmp_path, METHODS, (64,), full=False, samples=False)
    content = make_content(read_folder(tmp_path))
    assert any("full model was not measured" in line for line in content.cautions)
    assert any("no score for single questions" in line for line in content.cautions)
    assert "divprune" in to_markdown(content)
    assert "divprune" in to_html(content)


def test_only_failures(tmp_path: Path) -> None:
    store = make_results(tmp_path, (), (64,), status=FAILED, error="boom")
    assert store.get("full-576-0-vtprune_scenes") is not None
    written = write_report([tmp_path], tmp_path / "report", examples=0)
    assert "boom" in written.html.read_text()
    assert "boom" in written.markdown.read_text()


@pytest.mark.parametrize("axis", AXES, ids=lambda axis: str(axis.key))
def test_plots_hold_every_entry(results: Path, axis: Any) -> None:
    section = read_folder(results).sections[0]
    drawn = pareto(section, axis)
    assert drawn is not None
    tree = ElementTree.fromstring(drawn)
    curves = tree.findall("g[@class='curve']")
    assert len(curves) == len(METHODS)
    for curve in curves:
        bars, dots = curve.find("path[@class='bars']"), curve.findall("circle")
        assert bars is not None
        assert len(dots) == bars.attrib["d"].count("V") == 2
        x, y = ([float(dot.attrib[name]) for dot in dots] for name in ("cx", "cy"))
        assert x[0] < x[1]
        assert all(0 < place < 400 for place in y)
    assert tree.find("g[@class='full']") is not None


def test_front_joins_what_nothing_beats(tmp_path: Path) -> None:
    values = {("a", 32): 0.5, ("a", 64): 0.6, ("b", 32): 0.4, ("b", 64): 0.7}

    def score(label: str, tokens: float, seed: int, question: int) -> float:
        name = {"stride": "a", "pool": "b"}.get(label)
        return float(name is None or question < 20 * values[name, int(tokens)])

    make_results(tmp_path, ("stride", "pool"), (64, 32), score=score, questions=20)
    drawn = pareto(read_folder(tmp_path).sections[0], AXES[0])
    assert drawn is not None
    tree = ElementTree.fromstring(drawn)
    front = tree.find("path[@class='front']")
    dots = {dot.findtext("title"): dot.attrib for dot in tree.iter("circle")}
    assert front is not None
    best = next(place for title, place in dots.items() if title and title.startswith("pool at 64"))
    first = next(place for title, place in dots.items() if title and title.startswith("stride at 32"))
    assert front.attrib["d"] == f"M{first['cx']} {first['cy']}H{best['cx']}V{best['cy']}"


def test_unknown_cost_has_no_plot(tmp_path: Path) -> None:
    make_results(tmp_path, ("stride",), (64,), prefill_seconds=None)
    section = read_folder(tmp_path).sections[0]
    assert [pareto(section, axis) is None for axis in AXES] == [False, False, True]


def test_plot_of_needs(results: Path) -> None:
    tree = ElementTree.fromstring(need_plot(token_needs(read_folder(results).sections[0])[0]))
    assert [len(tree.findall(f"g[@class='{kind}']/circle")) for kind in ("fixed", "oracle")] == [3, 3]


def test_cells() -> None:
    assert dropped_cells((2, 3), [0, 4]) == "M1 0h2v1h-2zM0 1h1v1h-1zM2 1h1v1h-1z"
    assert dropped_cells((1, 2), [0, 1]) == ""
    assert kept_cells((2, 3), [0, 4]) == "M0 0h1v1h-1zM1 1h1v1h-1z"


def test_examples_are_what_methods_disagree_on(tmp_path: Path) -> None:
    def score(label: str, tokens: float, seed: int, question: int) -> float:
        even = label in ("full", "stride", "divprune")
        return float(label == "full" if question < 5 else (even if question == 7 else label != "pool"))

    make_results(tmp_path, METHODS, (64,), score=score, questions=10, kinds=())
    section = read_folder(tmp_path).sections[0]
    assert choose(section, 2) == [7, 5]
    assert set(choose(section, 9)) == {5, 6, 7, 8, 9}


def test_examples_show_pictures_and_what_was_kept(tmp_path: Path, tiny: ModuleType, tiny_tasks: Path) -> None:
    """Tasks come from a folder; a method that makes new tokens has no cells."""

    def score(label: str, tokens: float, seed: int, question: int) -> float:
        return float(label in ("full", "stride", "pool"))

    make_results(tmp_path, METHODS, (64,), tasks=(tiny.TASK,), score=score, questions=4)
    found, reasons = find_examples(read_folder(tmp_path).sections, [tiny_tasks], 3)
    assert reasons == []
    assert len(found) == 3
    looks = {look.name: look for look in found[0].looks}
    assert next(iter(looks)) == "full model"
    assert found[0].target == "yes"
    assert found[0].question
    assert found[0].pictures[0].startswith("data:image/jpeg;base64,")
    assert (looks["stride"].is_right, looks["divprune"].is_right) == (True, False)
    assert looks["stride"].kept == [64]
    assert looks["pool"].dropped == [None]
    dropped = looks["stride"].dropped[0]
    assert dropped is not None
    assert 0 < dropped.count("M") < TOKENS


def test_examples_of_a_task_that_is_not_here(tmp_path: Path) -> None:
    make_results(tmp_path, METHODS, (64,), tasks=("nowhere",))
    found, reasons = find_examples(read_folder(tmp_path).sections)
    assert found == []
    assert reasons[0].startswith("No pictures of nowhere: ValueError: unknown task 'nowhere'")


def test_examples_of_a_task_that_has_changed(tmp_path: Path, tiny: ModuleType, tiny_tasks: Path) -> None:
    make_results(tmp_path, METHODS, (64,), tasks=(tiny.TASK,), questions=4, task_digest="older")
    found, reasons = find_examples(read_folder(tmp_path).sections, [tiny_tasks])
    assert found == []
    assert "its files have changed since the sweep" in reasons[0]


@pytest.mark.parametrize("size", [WIDE, NARROW], ids=["wide", "narrow"])
def test_page_of_five_cells(tmp_path: Path, look: Callable[[Path, dict[str, Any]], Page], size: dict[str, Any]) -> None:
    make_results(tmp_path, METHODS[:4], (64,), seeds=(0,))
    written = write_report([tmp_path], examples=2)
    page = look(written.html, size)
    assert page.evaluate("document.documentElement.scrollWidth") <= size["width"]
    assert page.locator("table.main tbody.first tr").count() == 5
    assert page.locator(".example").count() == 2
    assert page.evaluate("[...document.querySelectorAll('.looks use')].every(u => u.getBBox().width === 1)")


def test_page_of_five_hundred_cells(tmp_path: Path, look: Callable[[Path, dict[str, Any]], Page]) -> None:
    others = (*(f"fastv(layer={layer})" for layer in range(2, 6)), "divprune", "visionzip")
    make_results(tmp_path, (*METHODS[:4], *others), (256, 128, 64, 32), tasks=tuple(f"task{n}" for n in range(11)))
    records = (tmp_path / "results.jsonl").read_text().splitlines()
    assert len(records) > 500
    written = write_report([tmp_path], examples=0)
    assert written.html.stat().st_size < 5_000_000
    page = look(written.html, NARROW)
    assert page.locator("section.task").count() == 11
    assert page.locator("table.main tbody tr").count() == 11 * (1 + 4 * 10)
    assert page.evaluate("document.documentElement.scrollWidth") <= NARROW["width"]


def test_sorting_leaves_baselines_in_front(results: Path, tmp_path: Path, look: Callable[..., Page]) -> None:
    written = write_report([results], tmp_path, examples=0)
    page = look(written.html, WIDE)

    head = page.locator("section.task").first.locator("table.main th").nth(2)
    for expected in ("descending", "ascending"):
        head.locator("button").click()
        assert head.get_attribute("aria-sort") == expected
        for body in ("tbody:nth-of-type(1)", "tbody:nth-of-type(2)"):
            values = page.locator("section.task").first.locator(f"table.main {body} td:nth-child(3)")
            numbers = values.evaluate_all("all => all.map(c => Number(c.dataset.value))")
            assert numbers == sorted(numbers, reverse=expected == "descending")
            assert len(set(numbers)) > 1
    names = page.locator("section.task").first.locator("table.main tbody.first td.name").all_inner_texts()
    assert {name.split()[0] for name in names} == {"full", "random", "stride", "pool", "downsample"}


def test_filters_axes_and_legend(results: Path, tmp_path: Path, look: Callable[..., Page]) -> None:
    written = write_report([results], tmp_path, examples=0)
    section = look(written.html, WIDE).locator("section.task").first
    section.locator(".filter").fill("divp")
    section.locator(".budget").select_option("32 tokens per image")
    names = section.locator("table.main tbody tr:visible td.name").all_inner_texts()
    assert [name.strip() for name in names] == ["full model", "divprune"]
    assert section.locator("[data-axis=tokens] > svg").is_visible()
    section.locator(".choice button[data-axis=time]").click()
    assert section.locator("[data-axis=time] > svg").is_visible()
    assert not section.locator("[data-axis=tokens] > svg").is_visible()
    button = section.locator(".legend button", has_text="divprune")
    curve = section.locator(f"[data-axis=time] .curve[data-curve='{button.get_attribute('data-curve')}']")
    assert curve.is_visible()
    button.click()
    assert not curve.is_visible()


def test_text_of_others_is_no_markup(tmp_path: Path, look: Callable[..., Page]) -> None:
    evil = "<img src=x onerror=document.title='broken'>"
    make_results(tmp_path, METHODS, (64,), command=evil, metric=evil, model=evil.replace("/", ""))
    written = write_report([tmp_path], examples=0)
    page = look(written.html, WIDE)
    assert page.title().startswith("Visual-token")
    assert page.locator("img").count() == 0
    assert page.locator("dd", has_text=evil).count() == 1


def test_comparing_two_runs(tmp_path: Path) -> None:
    def better(label: str, tokens: float, seed: int, question: int) -> float:
        return float(question >= (10 if label == "divprune" else 0))

    def worse(label: str, tokens: float, seed: int, question: int) -> float:
        return float(question >= (30 if label == "divprune" else 0))

    make_results(tmp_path / "a", ("stride", "divprune", "pool"), (64,), score=worse)
    make_results(tmp_path / "b", ("stride", "divprune"), (64, 32), score=better, versions={"vtprune": "9"})
    found = versus(read_folder(tmp_path / "a"), read_folder(tmp_path / "b"))
    pairs = {pair.first.label: pair for pair in found.pairs}
    assert list(pairs) == ["full", "stride", "divprune"]
    difference = pairs["divprune"].difference
    assert difference is not None
    assert (difference.mean, difference.n, pairs["divprune"].changed) == (0.5, 40, 0.5)
    assert difference.p == pytest.approx(2 * 0.5**20)
    assert difference.corrected == pytest.approx(3 * 2 * 0.5**20)
    assert found.only_first == ["pool at 64 tokens per image on embedded, vtprune_scenes"]
    assert [name.split(" on ")[0] for name in found.only_second] == [
        *("stride at 32 tokens per image", "divprune at 32 tokens per image")
    ]
    assert any(line.startswith("versions differs") for line in found.notes)


def test_runs_of_other_questions_are_not_compared(tmp_path: Path) -> None:
    make_results(tmp_path / "a", ("stride",), (64,))
    make_results(tmp_path / "b", ("stride",), (64,), task_digest="other")
    with pytest.raises(ValueError, match="no method, budget and task in common"):
        versus(read_folder(tmp_path / "a"), read_folder(tmp_path / "b"))


def test_a_model_and_its_successor_are_compared(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_results(tmp_path / name, ("stride",), (64,), model=name)
    assert len(versus(read_folder(tmp_path / "one"), read_folder(tmp_path / "two")).pairs) == 2
    make_results(tmp_path / "two", ("stride",), (64,), model="three", fingerprint="third", tasks=("gqa",))
    with pytest.raises(ValueError, match="in common"):
        versus(read_folder(tmp_path / "one"), read_folder(tmp_path / "two"))


def test_leaderboard(tmp_path: Path) -> None:
    shares = {"full": 40, "random": 20, "stride": 15, "divprune": 30, "fastv": 35}

    def score(label: str, tokens: float, seed: int, question: int) -> float:
        return float(question < shares[label])

    make_results(tmp_path / "a", ("random", "stride"), (64,), tasks=("gqa", "pope"), score=score)
    make_results(tmp_path / "b", ("divprune", "fastv"), (64,), tasks=("gqa", "pope"), score=score, full=False)
    make_results(tmp_path / "c", ("pool",), (64,), tasks=("gqa",), score=lambda *_: 1.0, full=False)
    (table,) = rankings(read_folders([tmp_path / name for name in "abc"]))
    assert [(s.rank, s.row.label, s.row.average) for s in table.standings] == [
        *((1, "fastv", 0.875), (2, "divprune", 0.75), (3, "random", 0.5), (4, "stride", 0.375)),
        (None, "pool", 1.0),
    ]
    remarks = {standing.row.label: standing.remarks for standing in table.standings}
    assert remarks == {
        "fastv": "processes 3.0 x the tokens",
        "divprune": "",
        "random": "baseline",
        "stride": "baseline, below random",
        "pool": "baseline, not all tasks",
    }
    best = overall([table])[0]
    assert (best.label, best.mean_rank, best.over_random, best.costs_more) == ("fastv", 1, 0.375, 1)


def test_commands(results: Path, tmp_path: Path) -> None:
    run = CliRunner()
    report = run.invoke(app, ["report", str(results), "--output", str(tmp_path / "made"), "--examples", "0"])
    assert report.exit_code == 0
    assert sorted(path.name for path in (tmp_path / "made").iterdir()) == ["report.csv", "report.html", "report.md"]
    text = tmp_path / "compare.md"
    compared = run.invoke(app, ["compare", str(results), str(results), "--json", "--markdown", str(text)])
    assert compared.exit_code == 0
    assert {pair["difference"]["mean"] for pair in json.loads(compared.stdout)["pairs"]} == {0}
    assert "| gqa | divprune | 32 tokens per image |" in text.read_text()
    shown = run.invoke(app, ["compare", str(results), str(results)])
    assert "visionzip" in shown.stdout
    ranked = run.invoke(app, ["leaderboard", str(results), "--json"])
    assert [table["budget"] for table in json.loads(ranked.stdout)] == ["64 tokens per image", "32 tokens per image"]
    assert "All 2 tables" in run.invoke(app, ["leaderboard", str(results)]).stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["report", "nowhere"], "nowhere holds no results.jsonl"),
        (["report", "RESULTS", "--examples", "-1"], "examples must be at least 0, got -1"),
        (["report", "RESULTS", "--include-path", "nowhere"], "task folder nowhere does not exist"),
        (["compare", "RESULTS", "nowhere"], "nowhere holds no results.jsonl"),
        (["leaderboard", "nowhere"], "nowhere holds no results.jsonl"),
    ],
)
def test_refusals(results: Path, words: list[str], message: str) -> None:
    found = CliRunner().invoke(app, [str(results) if word == "RESULTS" else word for word in words])
    assert found.exit_code == 2
    assert message in " ".join(found.stderr.split())
    assert not Path("nowhere").exists()
