"""The report's page in a browser: read, sorted, followed to a record, enlarged, printed, and by who cannot see it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.base import AXE_FILE_PATH
from playwright.sync_api import Browser, Page
from report_records import RUNS, comm_record, plan_of, record_all
from sweep_records import PROVENANCE, plan_blocks

from fourminutes.report import make_report

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a plan with every kind of record."""
    folder = tmp_path_factory.mktemp("page")
    plan = plan_of(RUNS, **plan_blocks())
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        record_all(plan)
        return (folder / make_report(plan)).resolve()


class Opened:
    """The page, and what the browser said and asked for while it was open."""

    def __init__(self, page: Page, report: Path) -> None:
        self.page = page
        self.requests: list[str] = []
        self.errors: list[str] = []
        page.on("request", lambda request: self.requests.append(request.url))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.errors.append(message.text) if message.type == "error" else None)
        page.goto(report.as_uri())


@pytest.fixture
def opened(browser: Browser, report: Path, request: pytest.FixtureRequest) -> Iterator[Opened]:
    """The page in a fresh context; parametrize it indirectly with the context's options."""
    context = browser.new_context(**{"viewport": DESKTOP, **getattr(request, "param", {})})
    yield Opened(context.new_page(), report)
    context.close()


def test_it_asks_for_nothing_and_complains_of_nothing(opened: Opened, report: Path) -> None:
    assert opened.requests == [report.as_uri()]
    assert opened.errors == []


def column(page: Page, table: str, number: int) -> list[str]:
    """The sort values of a column, from top to bottom."""
    cells = page.locator(f"#table-{table} tbody tr > :nth-child({number})")
    return [cell or "" for cell in cells.evaluate_all("cells => cells.map(cell => cell.dataset.sort)")]


@pytest.mark.parametrize("keyboard", [False, True], ids=["click", "keyboard"])
def test_a_table_is_sorted_by_its_numbers(opened: Opened, keyboard: bool) -> None:
    page = opened.page
    heading = page.locator("#table-allreduce thead th", has_text="median ms")
    number = 1 + heading.evaluate("heading => heading.cellIndex")
    before = [float(value) for value in column(page, "allreduce", number)]
    button = heading.get_by_role("button")
    for order in ("ascending", "descending"):
        if keyboard:
            button.focus()
            page.keyboard.press("Enter")
        else:
            button.click()
        assert heading.get_attribute("aria-sort") == order
        after = [float(value) for value in column(page, "allreduce", number)]
        assert after == sorted(before, reverse=order == "descending")
    assert before != sorted(before)


def test_a_number_is_followed_to_its_record_and_the_command_that_made_it(opened: Opened) -> None:
    page = opened.page
    run = next(iter(RUNS))
    page.locator("#table-runs tbody").get_by_role("link", name=run).click()
    record = page.locator("details", has=page.locator(f"#record-made-{run}"))
    command = record.locator("dt", has_text="command").locator("+ dd")
    assert command.is_visible()
    assert command.inner_text() == PROVENANCE.command
    assert record.locator("summary code").inner_text() == f"results/made/runs/{run}.json"


def test_the_arms_of_a_claim_lead_to_their_records(opened: Opened) -> None:
    row = opened.page.locator("#table-claims tbody tr").first
    links = row.get_by_role("link").evaluate_all("links => links.map(link => [link.textContent, link.hash])")
    assert links == [["lars-512", "#sweep-lars-512"], ["sgd-512", "#sweep-sgd-512"]]


def compared(page: Page) -> dict[str, list[str]]:
    """The visible rows of the comparison: what, and the visible runs' values."""
    rows = page.locator("#table-compare tr:visible").evaluate_all(
        "rows => rows.map(row => [...row.cells].filter(cell => !cell.hidden).map(cell => cell.textContent))"
    )
    return {what: values for what, *values in rows}


def test_the_chosen_runs_are_compared_by_what_differs_among_them_alone(opened: Opened) -> None:
    page = opened.page
    names = list(RUNS)
    assert compared(page)["what"] == names
    assert compared(page)["optimizer.kind"] == ["sgd", "lars", "lars"]
    page.get_by_role("checkbox", name=names[0]).press("Space")
    both = compared(page)
    assert both["what"] == names[1:]
    assert both["batch.global_batch"] == ["512", "1024"]
    assert "optimizer.kind" not in both
    assert both["top-1, %"] == ["80.0", "80.0"]
    settings = [row for row in both if "." in row or row == "processes"]
    assert page.get_by_role("status").inner_text() == f"2 runs, {len(settings)} settings differ"
    page.get_by_role("checkbox", name=names[0]).check()
    page.get_by_role("checkbox", name=names[2]).uncheck()
    assert "reduce.trace_step" not in compared(page)
    page.get_by_role("checkbox", name=names[1]).uncheck()
    assert page.get_by_role("status").inner_text() == "Choose two runs or more."


@pytest.mark.parametrize("table", ["allreduce", "data", "ledger", "scaling", "sweeps", "validation"])
def test_every_measured_or_predicted_row_leads_to_a_record_that_is_there(opened: Opened, table: str) -> None:
    page = opened.page
    links = page.locator(f"#table-{table} tbody tr > :first-child a")
    assert links.count() == page.locator(f"#table-{table} tbody tr").count() > 0
    for target in set(links.evaluate_all("links => links.map(link => link.hash)")):
        assert page.locator(target).locator("dt", has_text="command").count() == 1


def test_a_figure_fills_the_window_and_goes_back(opened: Opened) -> None:
    page = opened.page
    drawing, zoom = page.locator("#figure-allreduce .drawing"), page.locator("dialog.zoom")
    drawing.focus()
    page.keyboard.press("Enter")
    assert zoom.is_visible()
    box = zoom.locator("svg").bounding_box()
    assert box is not None
    assert box["width"] > 0.9 * DESKTOP["width"] - 64
    page.keyboard.press("Escape")
    assert not zoom.is_visible()
    drawing.click()
    assert zoom.is_visible()
    zoom.get_by_role("button", name="Close").click()
    assert not zoom.is_visible()


PHONES = pytest.mark.parametrize("opened", [{"viewport": PHONE}], indirect=True)


@PHONES
def test_a_phone_scrolls_tables_and_never_the_page_sideways(opened: Opened) -> None:
    root = "document.documentElement"
    assert opened.page.evaluate(f"{root}.scrollWidth <= {root}.clientWidth")


@PHONES
def test_a_figure_is_larger_on_a_phone_when_it_fills_the_window(opened: Opened) -> None:
    drawing = opened.page.locator("#figure-allreduce .drawing")
    before = drawing.locator("svg").bounding_box()
    drawing.click()
    after = opened.page.locator("dialog.zoom svg").bounding_box()
    assert before is not None
    assert after is not None
    assert after["width"] > 1.2 * before["width"]
    assert after["height"] < PHONE["height"]


LOOKS = pytest.mark.parametrize(
    "opened",
    [
        {"color_scheme": "light"},
        {"color_scheme": "dark"},
        {"color_scheme": "light", "viewport": PHONE},
    ],
    indirect=True,
    ids=["light", "dark", "phone"],
)


@LOOKS
def test_axe_finds_nothing_serious(opened: Opened) -> None:
    opened.page.locator("details").evaluate_all("all => all.forEach(details => details.open = true)")
    found = axe(opened.page)
    serious = [
        (one["id"], [node["target"] for node in one["nodes"][:3]])
        for one in found["violations"]
        if one["impact"] in ("serious", "critical")
    ]
    assert serious == []
    assert len(found["passes"]) > 20


def axe(page: Page) -> dict[str, Any]:
    """What axe-core says of the page. Its script goes in as an evaluation, which the page's policy does not forbid."""
    page.evaluate(Path(AXE_FILE_PATH).read_text(encoding="utf-8"))
    answer: str = page.evaluate("async () => JSON.stringify(await axe.run())")
    found: dict[str, Any] = json.loads(answer)
    return found


WITHOUT_SCRIPTS = pytest.mark.parametrize("opened", [{"java_script_enabled": False}], indirect=True)


@WITHOUT_SCRIPTS
def test_without_scripts_all_runs_stand_side_by_side_and_a_link_opens_its_record(opened: Opened) -> None:
    page = opened.page
    assert page.get_by_role("checkbox").count() == 0
    headings = page.locator("#table-compare thead th")
    assert headings.all_inner_texts() == ["what", *RUNS]
    headings.get_by_role("link").first.click()
    command = page.locator(":target dt", has_text="command").locator("+ dd")
    command.wait_for(state="visible")
    assert command.inner_text() == PROVENANCE.command


@WITHOUT_SCRIPTS
def test_without_scripts_all_tables_and_figures_are_there_to_read(opened: Opened) -> None:
    page = opened.page
    assert page.locator("main table").count() >= 10
    for name in ("runs", "allreduce", "results", "steps"):
        assert page.locator(f"#table-{name} tbody tr").first.is_visible()
    for name in ("accuracy", "time-split", "efficiency"):
        assert page.locator(f"#figure-{name} svg").is_visible()
    assert page.locator("#table-allreduce tbody tr").count() == len(comm_record().timings)


def test_it_prints_with_its_records(opened: Opened, tmp_path: Path) -> None:
    ledger = opened.page.locator("#table-ledger tbody tr").first
    assert not ledger.is_visible()
    opened.page.pdf(path=tmp_path / "report.pdf", format="A4")
    printed = (tmp_path / "report.pdf").read_bytes()
    assert printed.startswith(b"%PDF")
    assert printed.count(b"/Type /Page\n") + printed.count(b"/Type /Page ") >= 3
    assert ledger.is_visible()
