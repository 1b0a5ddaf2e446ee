"""The documents as a site: every page in the navigation, no link broken, nothing fetched."""

from __future__ import annotations

import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
import yaml
from runs import ROOT

SITE = ROOT / "build" / "site"
PAGES = [one for kind in ("*.md", "*.ipynb") for one in (ROOT / "docs").rglob(kind)]
FETCHED = {"script": "src", "img": "src", "iframe": "src", "link": "href"}
PLUGINS = [
    path
    for folder in ("methods", "transforms", "ranges", "formats")
    for path in sorted((ROOT / "harness" / folder).glob("[a-z]*.py"))
]


def named(nav: Any) -> Iterator[str]:
    if isinstance(nav, str):
        yield nav
    else:
        for one in nav.values() if isinstance(nav, dict) else nav:
            yield from named(one)


def test_every_page_is_in_the_navigation_once() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), yaml.BaseLoader)
    found = list(named(config["nav"]))
    assert len(found) == len(set(found))
    assert {path.relative_to(ROOT).as_posix() for path in PAGES} <= set(found)
    assert all((ROOT / one).is_file() for one in found)


class Page(HTMLParser):
    """What a built page names, fetches and links to, and its emphasised words."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.names, self.fetched, self.links = {""}, [], []
        self.text = path.read_text(encoding="utf-8")
        self.feed(self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.names |= {given.get("id") or "", given.get("name") or ""}
        if given.get(FETCHED.get(tag, "")) and given.get("rel") not in ("prev", "next"):
            self.fetched.append(given[FETCHED[tag]])
        if tag == "a" and given.get("href"):
            self.links.append(given["href"])


@pytest.fixture(scope="session")
def pages() -> dict[Path, Page]:
    if not (SITE / "index.html").is_file():
        pytest.skip("make docs builds the site")
    return {path: Page(path) for path in SITE.rglob("*.html") if path.name != "404.html"}


@pytest.mark.docs
def test_every_page_is_built(pages: dict[Path, Page]) -> None:
    assert {SITE / path.relative_to(ROOT).with_suffix(".html") for path in PAGES} <= set(pages)


@pytest.mark.docs
def test_nothing_is_fetched_from_elsewhere(pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for target in page.fetched:
            assert not urlsplit(target).netloc, f"{path}: {target}"
            assert (path.parent / unquote(urlsplit(target).path)).is_file(), f"{path}: {target}"
    for path in SITE.rglob("*.css"):
        assert not re.search(r"url\(.?https?:|@import", path.read_text(encoding="utf-8")), path


@pytest.mark.docs
def test_every_link_leads_somewhere(pages: dict[Path, Page]) -> None:
    count = 0
    for path, page in pages.items():
        for target in page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                assert parts.scheme == "https", f"{path}: {target}"
                continue
            aim = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert aim.is_file(), f"{path}: {target}"
            if aim in pages:
                assert unquote(parts.fragment) in pages[aim].names, f"{path}: {target}"
            count += 1
    assert count > 1000


@pytest.mark.docs
def test_the_reference_has_every_plugin_and_its_formulas(pages: dict[Path, Page]) -> None:
    for plugin in PLUGINS:
        page = pages[SITE / "docs" / "reference" / f"{plugin.parent.name}.html"]
        assert any(
            one.startswith(f"harness.{plugin.parent.name}.{plugin.stem}.") for one in page.names
        ), plugin
    for path, page in pages.items():
        if path.parent.name == "reference":
            words = set(re.findall(r"<em>(.*?)</em>", page.text, re.DOTALL))
            assert words <= {"required"}, path  # an asterisk of a formula would make others
            assert not re.search(r":(func|meth|class|mod|attr):", page.text), path


@pytest.mark.docs
def test_the_notebook_is_a_page_with_its_pictures(pages: dict[Path, Page]) -> None:
    page = pages[SITE / "docs" / "one_layer.html"]
    assert [one for one in page.fetched if one.startswith("one_layer")] == [
        f"one_layer_{number}.png" for number in (1, 2, 3, 4)
    ]


@pytest.mark.docs
def test_a_module_that_is_linked_to_is_shown(pages: dict[Path, Page]) -> None:
    assert "RowMethod" in pages[SITE / "harness" / "methods" / "base.py.html"].text
