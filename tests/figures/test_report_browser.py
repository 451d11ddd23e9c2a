"""The page in a real browser: what is chosen, what is read aloud, and that nothing is fetched."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import shutil
from importlib.resources import files

import pytest
from report_runs import HOSTILE, NAMES, make_run

import planescope as ps

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="needs the browser Chromium (Debian's package chromium)"
)

FIGURES = ("mass", "cosines", "portrait", "dynamics", "resets", "relation")
WIDTHS = (360, 800, 1400)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Pages of a run, of two runs, and of a checkpoint without filters."""
    folder = tmp_path_factory.mktemp("pages")
    first = make_run(folder / "first")
    second = make_run(folder / "second", names=NAMES[:2], seed=1, resets=False)
    ps.report(first).save(folder / "run.html")
    ps.report(first, second).save(folder / "two.html")
    ps.report(first, follows=True).save(folder / "follows.html")
    ps.measure("tests/parity/lenet-epoch-12.tar").save(folder / "lenet.json")
    ps.report(folder / "lenet.json").save(folder / "loaded.html")
    host = f"<!doctype html><title>notebook</title>{ps.report(first)._repr_html_()}"
    (folder / "notebook.html").write_text(host, encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    # As root, which a container often is, Chromium's own sandbox does not start.
    sandbox = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=sandbox)
        yield browser
        browser.close()


@pytest.fixture
def show(browser, folder):
    """Open a page offline; at the end nothing was asked for, said on the console, or thrown."""
    contexts, troubles = [], []

    def on_console(message):
        troubles.append(message.text)

    def show(name="run.html", *, width=1400, scheme="light", **options):
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, **options
        )
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("console", on_console)
        page.on("pageerror", lambda error: troubles.append(str(error)))
        page.on("dialog", lambda dialog: troubles.append(dialog.message))
        page.on("request", lambda request: asked(request.url))
        page.goto((folder / name).as_uri())
        if name != "notebook.html":
            drawn(page)
        return page

    def asked(url):
        if not url.startswith((folder.as_uri(), "data:", "blob:", "about:srcdoc")):
            troubles.append(url)

    show.troubles = troubles
    yield show
    for context in contexts:
        context.close()
    assert troubles == []


def drawn(page) -> None:
    """Wait until every figure shows what is chosen now."""
    page.wait_for_selector("html[data-drawn=true]", state="attached")


def caption(page, figure: str) -> str:
    drawn(page)
    return page.locator(f"#{figure}-caption").inner_text()


def assert_chosen(page, index: int) -> None:
    """A layer is chosen in every place that shows a choice."""
    drawn(page)
    label = page.locator("#choose-layer option").nth(index).inner_text().split("  ", 1)[-1].strip()
    assert page.locator("#choose-layer").input_value() == str(index)
    checked = page.locator('.strip [aria-checked="true"]')
    assert checked.count() == 1
    assert checked.get_attribute("aria-label").startswith(label)
    assert page.locator(".facts dd").first.inner_text() == label
    assert page.locator("#layers tr.chosen th").inner_text() == label
    for figure in ("mass", "cosines", "portrait", "dynamics"):
        assert label in caption(page, figure), figure
    assert page.locator('[data-figure="resets"] .plot').evaluate("p => p.layout.shapes[0].y0") == (
        index - 0.5
    )


def click_row(page, figure: str, row: int) -> None:
    """Click into a row of a figure, where nothing is drawn."""
    plot = page.locator(f'[data-figure="{figure}"] .plot')
    plot.scroll_into_view_if_needed()
    spot = plot.evaluate(
        """(plot, row) => {
            const { xaxis, yaxis } = plot._fullLayout;
            return { x: xaxis._offset + 0.83 * xaxis._length, y: yaxis._offset + yaxis.d2p(row) };
        }""",
        row,
    )
    box = plot.bounding_box()
    page.mouse.move(box["x"] + spot["x"] - 3, box["y"] + spot["y"])
    page.mouse.move(box["x"] + spot["x"], box["y"] + spot["y"])
    page.wait_for_timeout(100)  # Plotly looks for what is under a pointer at most so often
    plot.click(position=spot)


# Choosing


def test_choosing_a_layer_anywhere_chooses_it_everywhere(show):
    page = show()
    assert_chosen(page, 3)  # the one whose normals agree most
    page.locator(".strip button").nth(2).click()
    assert_chosen(page, 2)
    page.select_option("#choose-layer", "0")
    assert_chosen(page, 0)
    page.click("#next-layer")
    assert_chosen(page, 1)
    page.locator("#layers tbody tr").nth(4).locator("button").click()
    assert_chosen(page, 4)
    click_row(page, "mass", 1)
    assert_chosen(page, 1)
    click_row(page, "cosines", 3)
    assert_chosen(page, 3)
    click_row(page, "resets", 2)
    assert_chosen(page, 2)


def test_the_slider_moves_every_figure_through_the_epochs(show):
    page = show()
    slider = page.locator("#dynamics input[type=range]")
    assert caption(page, "mass").count("epoch 5") == 1
    slider.focus()
    for _ in range(3):
        slider.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "epoch 0"
    assert page.locator("#bar output").inner_text() == "0"
    for figure in ("strip", "mass", "cosines", "portrait", "dynamics"):
        assert "epoch 0" in caption(page, figure), figure
    assert "at epoch 0" in page.locator("#table-count").inner_text()
    assert page.locator('[data-figure="mass"] .plot').evaluate("p => p.data.length") == 6


def test_another_network_keeps_the_layer_of_that_name(show):
    page = show("two.html")
    page.locator(".strip button").nth(1).click()
    page.select_option("#choose-network", "1")
    drawn(page)
    assert page.locator(".strip button").count() == 2
    assert page.locator(".facts dd").first.inner_text() == NAMES[1]
    assert "planescope reset" in caption(page, "resets")
    assert not page.locator("#relation").is_visible()
    assert "first: " in caption(page, "comparison")


# The table


def column(page, index: int) -> list[str]:
    return page.locator(f"#layers tbody tr > :nth-child({index + 1})").all_inner_texts()


def test_the_table_is_sorted_by_its_headings(show):
    page = show()
    heading = page.locator("#layers thead th", has_text="negative mass")
    index = page.locator("#layers thead th").all_inner_texts().index("negative mass")
    before = column(page, index)
    for direction in ("ascending", "descending"):
        heading.locator("button").click()
        assert heading.get_attribute("aria-sort") == direction
        in_order = sorted(before, key=float, reverse=direction == "descending")
        assert column(page, index) == in_order
    heading.locator("button").click()
    assert heading.get_attribute("aria-sort") == "none"
    assert column(page, index) == before


def test_the_table_is_searched_and_copied_as_it_stands(show):
    page = show(permissions=["clipboard-read", "clipboard-write"])
    page.fill("#search", "FEATURES.")
    assert column(page, 0) == ["features.0", "features.2", "features.10"]
    assert page.locator("#table-count").inner_text().startswith("3 of 5 layers")
    page.click("#copy")
    page.locator("#copy", has_text="Copied").wait_for()
    head, *rows = csv.reader(io.StringIO(page.evaluate("navigator.clipboard.readText()")))
    assert head[0] == "layer"
    assert [row[0] for row in rows] == ["features.0", "features.2", "features.10"]
    page.fill("#search", "nothing has this name")
    assert page.locator("#layers tbody tr").count() == 0


# Keyboard


def test_everything_is_reached_by_keyboard(show):
    page = show()
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    page.keyboard.press("Enter")
    reached = set()
    for _ in range(80):
        page.keyboard.press("Tab")
        reached.add(
            page.evaluate(
                """() => {
                    const { activeElement: at } = document;
                    return at.id || at.getAttribute("role") || at.textContent.trim() || at.tagName;
                }"""
            )
        )
    assert {"radio", "SVG", "PNG", "Numbers", "How to read it", "search", "copy"} <= reached
    assert {"choose-score", "features.0", "negative mass"} <= reached


def test_arrow_keys_choose_among_the_layers(show):
    page = show()
    page.locator('.strip [aria-checked="true"]').focus()
    page.keyboard.press("Home")
    assert_chosen(page, 0)
    page.keyboard.press("ArrowRight")
    assert_chosen(page, 1)
    page.keyboard.press("End")
    assert_chosen(page, 4)
    assert page.evaluate("document.activeElement.getAttribute('aria-checked')") == "true"
    assert page.locator('.strip button[tabindex="0"]').count() == 1  # one stop on the way by Tab
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"


# For every reader


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["run.html", "two.html", "loaded.html"])
def test_axe_finds_nothing_that_keeps_readers_out(show, name, scheme):
    page = show(name, width=360 if name == "two.html" else 1400, scheme=scheme)
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    page.wait_for_timeout(50)  # tables of numbers are made when they are opened
    page.evaluate((files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8"))
    found = page.evaluate("axe.run()")
    assert len(found["passes"]) > 20
    worst = [
        (each["id"], each["nodes"][0]["html"])
        for each in found["violations"]
        if each["impact"] in ("serious", "critical")
    ]
    assert worst == []


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_wider_than_the_window(show, width):
    page = show("two.html", width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    for figure in FIGURES:
        plot = page.locator(f'[data-figure="{figure}"] .plot')
        assert plot.bounding_box()["width"] <= width
        assert plot.evaluate("p => p.querySelector('svg').clientWidth") <= width


def test_each_figure_has_words_and_numbers(show):
    page = show()
    for figure in FIGURES:
        plot = page.locator(f'[data-figure="{figure}"] .plot')
        assert plot.get_attribute("role") == "img"
        title = page.locator(f"#{figure}-title").inner_text()
        assert plot.get_attribute("aria-label") == f"{title}. {caption(page, figure)}"
    page.evaluate("for (const part of document.querySelectorAll('details')) part.open = true")
    tables = {
        figure: page.locator(f'[data-figure="{figure}"] .numbers tbody tr').count()
        for figure in ("strip", *FIGURES)
    }
    layers = dict.fromkeys(("strip", "mass", "cosines", "resets", "relation"), 5)
    # The portrait has a row a filter of the chosen layer, dynamics a row an epoch.
    assert tables == layers | {"portrait": 16 + 8 * 3, "dynamics": 4}


def test_dark_and_light_follow_the_system_until_the_reader_chooses(show):
    page = show(scheme="dark")

    def shown() -> tuple[str, str]:
        drawn(page)
        paper = page.evaluate("getComputedStyle(document.body).backgroundColor")
        plot = page.locator('[data-figure="mass"] .plot')
        return paper, plot.evaluate("plot => plot.layout.paper_bgcolor")

    dark, light = ("rgb(21, 22, 26)", "#15161a"), ("rgb(253, 253, 251)", "#fdfdfb")
    assert shown() == dark
    page.emulate_media(color_scheme="light")
    page.wait_for_selector("html[data-theme=light]", state="attached")
    assert shown() == light
    page.click("#theme")  # automatic, then light, then dark
    page.click("#theme")
    assert page.locator("#theme").inner_text() == "Colours: dark"
    assert shown() == dark
    page.reload()
    assert shown() == dark


def test_paper_is_white_and_has_no_controls(show):
    page = show(scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    # At once: a browser does not wait before it prints.
    colors = page.evaluate(
        """() => {
            dispatchEvent(new Event("beforeprint"));
            return [...document.querySelectorAll(".plot")].map((plot) => {
                const svg = plot.querySelector("svg");
                return [svg.style.background, svg.clientWidth];
            });
        }"""
    )
    assert colors == [["rgb(253, 253, 251)", 680]] * len(FIGURES)
    drawn(page)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(253, 253, 251)"
    assert not page.locator("#bar").is_visible()
    assert page.locator("#mass svg").first.is_visible()
    assert page.pdf()[:5] == b"%PDF-"


@pytest.mark.parametrize(("form", "magic"), [("SVG", b"<svg"), ("PNG", b"\x89PNG")])
def test_figures_are_saved(show, form, magic):
    page = show()
    for figure in ("strip", "mass", "portrait", "resets"):
        with page.expect_download() as download:
            page.locator(f'[data-figure="{figure}"] .tools button', has_text=form).click()
        content = download.value.path().read_bytes()
        assert content.startswith(magic)
        assert len(content) > 500
        assert download.value.suggested_filename.endswith(f".{form.lower()}")


# What comes from files


def test_names_from_files_are_shown_as_text(show):
    page = show()
    page.locator(".strip button").nth(2).click()
    drawn(page)
    assert page.locator("#layers tbody th").nth(2).inner_text() == HOSTILE
    assert HOSTILE in caption(page, "portrait")
    ticks = page.locator('[data-figure="mass"] .ytick').all_text_contents()
    assert HOSTILE in ticks
    assert "<b>a</b> & %{x} \N{REPLACEMENT CHARACTER}.1" in ticks
    assert page.evaluate("document.querySelectorAll('script').length") == 4  # Plotly's runs too
    assert page.evaluate("document.querySelectorAll('b, .ytick a').length") == 0


TRYING = """async () => {
    const refused = [];
    document.addEventListener("securitypolicyviolation", (event) => {
        refused.push(event.effectiveDirective);
    });
    await fetch("https://example.org/").catch(() => {});
    const script = document.createElement("script");
    script.textContent = "window.ran = true";
    const image = new Image();
    image.src = "https://example.org/image.png";
    document.body.append(script, image);
    await new Promise((resume) => setTimeout(resume, 200));
    return [refused.sort(), window.ran ?? null];
}"""


def test_the_policy_stops_what_would_be_fetched_or_run(show):
    """Nothing on the page tries; this does, and the browser refuses."""
    assert show().evaluate(TRYING) == [["connect-src", "img-src", "script-src-elem"], None]
    assert any("Content Security Policy" in trouble for trouble in show.troubles)
    show.troubles.clear()


# Where it is shown


def test_a_notebook_shows_the_page(show):
    page = show("notebook.html")
    frame = page.frame_locator("iframe")
    frame.locator("html[data-drawn=true]").wait_for(state="attached")
    frame.locator(".strip button").nth(1).click()
    assert frame.locator(".facts dd").first.inner_text() == NAMES[1]


def test_a_page_that_follows_a_training_comes_back_to_what_was_chosen(show):
    page = show("follows.html")
    page.locator(".strip button").nth(1).click()
    # It may be loading itself again at any moment, which ends what is being evaluated.
    for expression in ("scrollTo(0, 900)", "window.before = true"):
        between_loads(lambda text=expression: page.evaluate(text))
    page.wait_for_function("() => window.before === undefined", timeout=30_000)
    between_loads(lambda: assert_chosen(page, 1))
    assert between_loads(lambda: page.evaluate("scrollY")) == 900


def between_loads(look):
    from playwright.sync_api import Error

    for _ in range(10):
        with contextlib.suppress(Error):
            return look()
    return look()


def test_a_saved_measurement_says_what_it_lacks(show):
    page = show("loaded.html")
    assert "report on the checkpoint itself" in caption(page, "portrait")
    assert "boxes span the quartiles" in caption(page, "cosines")
    assert re.search(r"planescope reset --trained", caption(page, "resets"))
    assert not page.locator("#relation").is_visible()
    assert page.locator("#dynamics").count() == 0
    contents = json.loads(page.locator("#contents").text_content())
    assert contents["networks"][0]["epochs"] == [None]
