"""A page in Chromium as a reader has it, and how long it takes to open."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psutil

PATIENCE = 60_000  # ms: the machine may be busy; the one test of speed has its own limit


class Reader:
    """A page, and everything it complained about or asked the network for."""

    def __init__(self, browser: Any, **options: Any) -> None:
        self.context = browser.new_context(
            **{"viewport": {"width": 1280, "height": 1700}} | options
        )
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda said: self.complaints.append(said.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request.url))

    def open(self, path: Path, fragment: str = "") -> None:
        self.page.goto("about:blank")
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector("body[data-ready]")

    def again(self) -> None:
        """Brings the page back to first sight without the seconds that a new start takes."""
        self.page.evaluate(
            """() => { document.getElementById("run").close();
            document.getElementById("compare").close();
            document.getElementById("columns").hidePopover(); location.hash = "first" }"""
        )
        self.settle()

    def settle(self) -> None:
        """Waits for the frame that shows what was chosen."""
        self.page.evaluate(
            """() => new Promise(done => setTimeout(
            () => requestAnimationFrame(() => requestAnimationFrame(done)), 20))"""
        )

    def names(self) -> list[str]:
        """The runs of the table, from top to bottom."""
        self.settle()
        rows = self.page.locator("#table tbody tr[data-run]")
        return rows.evaluate_all("rows => rows.map(row => row.dataset.run)")

    def column(self, key: str) -> list[str]:
        """The cells of a column, from top to bottom."""
        self.settle()
        return self.page.evaluate(
            """key => { const heads = [...document.querySelectorAll("thead button")];
            const place = heads.findIndex(head => head.dataset.sort === key) + 2;
            return [...document.querySelectorAll(`#table tbody tr > :nth-child(${place})`)]
            .map(cell => cell.textContent) }""",
            key,
        )

    def drawn(self, figure: str) -> set[str]:
        """The runs that a figure shows, once it shows the last change."""
        self.page.locator(f"#{figure}").scroll_into_view_if_needed()
        self.settle()
        self.page.wait_for_function(
            """id => { const { drawn, turn } = document.getElementById(id).dataset;
            return Boolean(drawn) && drawn === turn }""",
            arg=figure,
        )
        return set(
            self.page.evaluate(
                """id => document.getElementById(id).data
                .flatMap(trace => trace.customdata ?? []).filter(Boolean)""",
                figure,
            )
        )


def opened(chromium: str, path: Path, title: str, profile: Path) -> float:
    """Seconds from opening a tab of a running browser to the page saying that it is ready.

    Nothing is attached to the page, since debugging slows it several times over; its title tells
    when it is ready. Where other work holds the processor up, the processor time of the whole
    browser counts instead: on an idle machine the page can't take longer.
    """
    words = ["--no-sandbox", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    process = subprocess.Popen([chromium, "--headless", *words], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr
        said = (re.search(r"ws://([^/]+)/", line) for line in process.stderr)
        host = next(found[1] for found in said if found)

        def ask(what: str, method: str = "GET") -> Any:
            request = urllib.request.Request(f"http://{host}/json/{what}", method=method)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        spent, start = processor_time(process.pid), time.monotonic()
        ask("new?" + quote(path.as_uri(), safe=""), "PUT")
        while all(tab["title"] != title for tab in ask("list")):
            assert time.monotonic() - start < 60, "the page is never ready"
            time.sleep(0.02)
        return min(time.monotonic() - start, processor_time(process.pid) - spent)
    finally:
        # Debian's command is a shell script, which would leave its browser behind.
        whole = psutil.Process(process.pid)
        for one in (*whole.children(recursive=True), whole):
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        process.wait()


def processor_time(pid: int) -> float:
    """Seconds that a process and its children have used so far."""
    whole = psutil.Process(pid)
    times = [one.cpu_times() for one in (whole, *whole.children(recursive=True))]
    return sum(one.user + one.system for one in times)
