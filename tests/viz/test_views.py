"""The list of views: one entry is all that names a view, and a slide shows one of them."""

from __future__ import annotations

import re

import pytest

from viz.explorer_page import FOLDER, explorer_css


def listed_views() -> list[str]:
    return re.findall(r'name: "(\w+)"', (FOLDER / "views" / "index.js").read_text())


def test_only_the_list_and_the_tour_name_a_view():
    views = listed_views()
    assert len(views) == len(set(views)) == 8
    for module in ("mount", "workspace", "current", "playback", "keys", "state"):
        source = (FOLDER / f"{module}.js").read_text()
        named = re.findall(r"\bviews?\.(\w+)", source)
        assert not set(named) & set(views), module
    assert "data-view" not in explorer_css()


@pytest.mark.browser
@pytest.mark.parametrize(
    ("view", "shown"),
    [
        ("compare", {".stage"}),
        ("clusters", {".tiles", ".placebar"}),
        ("masks", {".board", ".placebar"}),
        ("gain", {".metrics"}),
        ("tradeoff", {".chart"}),
        ("nonsense", {".head", ".stage", ".tiles", ".board", ".placebar", ".metrics", ".chart"}),
    ],
)
def test_a_slide_shows_one_view(view, shown, trace, open_page):
    page = open_page(trace, f"?embed=1&view={view}#run=1", fresh=True, reduced_motion="reduce")
    parts = (".head", ".stage", ".tiles", ".board", ".placebar", ".metrics", ".chart")
    assert {part for part in parts if page.locator(part).is_visible()} == shown
    assert page.get_by_role("button", name="Take the tour").is_hidden()
