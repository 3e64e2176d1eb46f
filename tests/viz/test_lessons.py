"""Worksheets: every number is that of its trace, and every link opens what it says."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, urlsplit

import pytest

from svg2.trace.file import load_trace
from tests.tree import ROOT
from viz.lessons import HOME, LESSONS, filled, worksheets

TEXTS = {path.name: path.read_text() for path in sorted(LESSONS.glob("*.md"))}
TRACES = ROOT / "assets" / "traces"
LINK = re.compile(rf'\[([^\]]+)\]\({re.escape(HOME)}#(\S+) "([^"]+)"\)')
LINKS = list(dict.fromkeys(link for text in TEXTS.values() for link in LINK.findall(text)))
KEPT = next(
    found[1]
    for text in TEXTS.values()
    if (found := re.search(r"<!--(red-ball/2/kept@\S+?)-->", text))
)
ALLOWED = {"20 dB", "25 dB", "30 dB", "35 dB", "40 dB"}  # the scale of the page, of no trace


def prose(text: str) -> str:
    """The text without numbers of traces, comments and addresses."""
    text = re.sub(r"<!--[^>]+-->.*?<!--/-->", "…", text)
    return re.sub(r"\([^)]*\)", "", text)


@pytest.mark.parametrize("name", TEXTS)
def test_every_number_is_that_of_its_trace(name: str) -> None:
    assert filled(TEXTS[name]) == TEXTS[name]
    assert TEXTS[name].count("<!--/-->") >= 5
    found = re.findall(r"\d[\d,.]*\s*(?:dB|%|×|s\b|tokens|pairs)", prose(TEXTS[name]))
    assert set(found) <= ALLOWED, "numbers that no trace is asked for"


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("<!--red-ball/2/psnr_db-->99.9 dB<!--/-->", r"3\d\.\d dB"),
        ("<!--red-ball/6/least-->1<!--/-->", "15"),
        ("<!--red-ball/1/pairs-->?<!--/-->", r"\d\d,\d{3},\d{3}"),
        (f"<!--{KEPT}-->100 %<!--/-->", r"\d(\.\d)? %"),
    ],
)
def test_a_wrong_number_is_mended(wrong: str, right: str) -> None:
    assert re.fullmatch(f"{wrong.split('-->')[0]}-->{right}<!--/-->", filled(wrong))


@pytest.mark.parametrize(
    "unknown", ["red-ball/99/psnr_db", "red-ball/2/colour", "red-ball/2/kept@3/1/1"]
)
def test_what_no_trace_holds_is_refused(unknown: str) -> None:
    with pytest.raises(ValueError, match=r"red-ball|Run 2"):
        filled(f"<!--{unknown}-->1<!--/-->")


def test_all_three_are_on_the_page_with_links_that_stay_there() -> None:
    shown = worksheets()
    assert len(shown) == len(TEXTS) == 3
    for title, text in shown.items():
        assert title.startswith("Worksheet ")
        assert "](#trace=" in text
        assert "localhost" not in text
        assert "<!--" not in text
        assert "README" not in text


def test_every_link_of_a_worksheet_has_a_name_and_says_its_run() -> None:
    assert len(LINKS) >= 12
    assert len(re.findall(re.escape(HOME), "".join(TEXTS.values()))) == sum(
        len(LINK.findall(text)) for text in TEXTS.values()
    )


@pytest.fixture(scope="module")
def ready_made():
    """Ready-made traces by name, each read once."""
    known = {}

    def trace(name: str):
        if name not in known:
            known[name] = load_trace(TRACES / f"{name}.npz")
        return known[name]

    return trace


@pytest.mark.browser
@pytest.mark.parametrize(("text", "fragment", "run"), LINKS)
def test_every_link_opens_what_it_says(text, fragment, run, ready_made, open_page) -> None:
    wanted = {name: values[0] for name, values in parse_qs(fragment).items()}
    page = open_page(ready_made(wanted["trace"]), f"#{fragment}", reduced_motion="reduce")
    assert page.locator(".lab > .notice").is_hidden()  # nothing of the link is missing
    shown = page.evaluate("() => explorer.selection()")
    for name in ("run", "step", "layer", "head", "frame"):
        if name in wanted:
            assert shown[name] + 1 == int(wanted[name])
    for name in ("compare", "axis"):
        assert shown[name] == wanted.get(name, shown[name])
    name = page.locator(".runs [aria-pressed=true]").inner_text()
    assert name == run or name.startswith(f"{run} · ")
    assert urlsplit(page.url).fragment
    assert page.locator(f"[data-view={wanted['view']}]").is_visible()
