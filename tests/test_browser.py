"""The report in a real browser: nothing sticks out, nothing runs, nothing is complained about.

Skipped where no Chromium is installed; that text is escaped is also tested without
(tests/test_report.py).
"""

from __future__ import annotations

import html as html_escapes
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from markupsafe import escape

from lab import host
from lab.report import html
from tests import records
from tests.test_report import STORIES, hostile, on_disk

pytestmark = pytest.mark.fake
PHONE = 390
# What a guest prints to be run: each leaves a word in the title, and a line in the console.
RUNS = "document.title='it ran'; console.error('it ran')"
ATTACKS = (
    f"<script>{RUNS}</script>",
    f'"><img src=x onerror="{RUNS}">',
    f'\'><svg onload="{RUNS}">',
    f"</pre></style></title><script>{RUNS}</script>",
    f'<iframe srcdoc="<script>parent.{RUNS}</script>">',
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chromium:
    """A browser with a profile of its own, offline."""

    folder: Path

    def run(self, *arguments: str) -> host.Completed:
        return host.run(
            [
                "chromium",
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--hide-scrollbars",
                "--enable-logging=stderr",
                f"--user-data-dir={self.folder / 'profile'}",
                *arguments,
            ],
            timeout_s=100,
            leash=True,
        )

    def open(self, text: str) -> tuple[str, list[str]]:
        """The page's title after it was loaded, and what the browser's console said of it."""
        page = self.folder / "page.html"
        page.write_text(text, encoding="utf-8")
        done = self.run("--dump-dom", page.as_uri())
        title = re.search(r"<title>(.*?)</title>", done.text, re.DOTALL)
        assert title, done.text[:300]
        said = re.findall(r"CONSOLE[:(].*", done.stderr.decode("utf-8", "replace"))
        return html_escapes.unescape(title[1]), said

    def width_needed(self, text: str, width: int) -> int:
        """How wide the page gets in a frame of that width; more means that it scrolls sideways."""
        frame = self.folder / "frame.html"
        frame.write_text(
            f"<iframe id=f width={width} height=900 style='border:0' "
            f'srcdoc="{html_escapes.escape(text)}"></iframe><script>onload = () => {{'
            "const page = document.getElementById('f').contentDocument;"
            "page.querySelectorAll('details').forEach(d => d.open = true);"
            "document.title = 'needs ' + page.documentElement.scrollWidth;}</script>"
        )
        dom = self.run("--dump-dom", frame.as_uri()).text
        found = re.search(r"<title>needs (\d+)</title>", dom)
        assert found, dom[:300]
        return int(found[1])


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Chromium]:
    if shutil.which("chromium") is None:
        pytest.skip("chromium is not installed: apt-get install chromium")
    yield Chromium(folder=tmp_path)


@pytest.mark.parametrize("name", ["use-after-free", "flaky", "hostile"])
@pytest.mark.parametrize("width", [PHONE, 1280])
def test_nothing_sticks_out(chromium: Chromium, name: str, width: int) -> None:
    text = html.page(STORIES[name](), on_disk(STORIES[name](), chromium.folder / "run"))
    assert chromium.width_needed(text, width) == width


def test_a_page_that_sticks_out_is_noticed(chromium: Chromium) -> None:
    wide = "<!DOCTYPE html><body><div style='width:900px'>wide</div>"
    assert chromium.width_needed(wide, PHONE) > PHONE


def test_the_browser_has_nothing_to_complain_about(chromium: Chromium) -> None:
    record = records.use_after_free()
    title, said = chromium.open(html.page(record, on_disk(record, chromium.folder)))
    assert title == "REGRESSED · demo · kernel patch lab"
    assert said == []


def test_what_a_guest_prints_is_not_run(chromium: Chromium) -> None:
    """Not even without the policy that forbids scripts: the escaping alone must hold."""
    evil = " ".join(ATTACKS)
    record = hostile(evil)
    page = html.page(record, on_disk(record, chromium.folder / "run", evil))
    assert page.count(str(escape(ATTACKS[0]))) > 10
    bare, dropped = re.subn(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page)
    assert dropped == 1
    for text in (page, bare):
        title, said = chromium.open(text)
        assert title.startswith("REGRESSED")
        assert said == []


def test_a_script_that_runs_is_noticed(chromium: Chromium) -> None:
    """And the policy of the page forbids it, should the escaping ever fail."""
    page = html.page(records.clean(), None)
    bare = re.sub(r"<meta http-equiv=\"Content-Security-Policy\"[^>]*>", "", page)
    title, said = chromium.open(bare.replace("</main>", f"{ATTACKS[0]}</main>"))
    assert title == "it ran" and any("it ran" in line for line in said)
    title, said = chromium.open(page.replace("</main>", f"{ATTACKS[0]}</main>"))
    assert title.startswith("CLEAN") and said and not any('it ran"' in line for line in said)


def test_a_box_of_the_matrix_opens_what_is_folded(chromium: Chromium) -> None:
    many = tuple(f"xfstests/ext4-4k/generic/{n:03}" for n in range(20))
    page = chromium.folder / "page.html"
    page.write_text(html.page(records.run(records.well, records.well, cases=many), None))
    for fragment, opened in (("", 0), ("#case-7", 1)):
        dom = chromium.run("--dump-dom", f"{page.as_uri()}{fragment}").text
        assert 'id="case-7"' in dom
        assert len(re.findall(r'<details class="consoles" open', dom)) == opened


def test_light_and_dark_differ(chromium: Chromium) -> None:
    (chromium.folder / "page.html").write_text(html.page(records.corrupting(), None))
    pictures = []
    for scheme in ("0", "1"):
        picture = chromium.folder / f"{scheme}.png"
        chromium.run(
            f"--blink-settings=preferredColorScheme={scheme}",
            "--window-size=1280,900",
            f"--screenshot={picture}",
            (chromium.folder / "page.html").as_uri(),
        )
        pictures.append(picture.read_bytes())
    assert all(picture.startswith(b"\x89PNG") for picture in pictures)
    assert pictures[0] != pictures[1]
