"""The page: nothing from outside, safe whatever a name holds, plain tables without JavaScript; its script at work."""

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from zoo.leaderboard.board import Figure, Row, comparable, load_board
from zoo.leaderboard.page import document
from zoo.leaderboard.render import cell_text, views

EVIL = "</script><script>alert(1)</script><!-- <script> \u2028 &amp; \"'"


def row(place: str, value: float, **changed: Any) -> Row:
    common: dict[str, Any] = {
        "method": f"Method {place}",
        "paper": "Paper",
        "table": "1",
        "dataset": "Toy",
        "split": "test",
    }
    common |= {"protocol": "coco", "version": 1, "status": "reported", "n": 10}
    return Row(**({"id": place, "figures": {"bleu_4": Figure(value, printed=str(value))}} | common | changed))


MEASURED = {"bleu_4": Figure(0.25, ci95=(0.2, 0.35)), "meteor": Figure(0.5)}
ROWS = [
    row("a", 0.2),
    row("b", 0.3, doubts=("mixes two runs",), notes=("as printed",)),
    row("c", 0.25, status="reproduced", table=None, figures=MEASURED),
    row("d", 0.9, n=11),
    row("e", 0.4, dataset="Other"),
    row("f", 0.4, phantom=True),
]


class Plain(HTMLParser):
    """The page as a browser without JavaScript shows it: tables of cells, and every address in it."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.inside = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "action", "data", "srcset")]
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("th", "td"):
            self.tables[-1][-1].append("")
        self.inside = tag if tag in ("script", "style") else self.inside

    def handle_endtag(self, tag: str) -> None:
        self.inside = "" if tag == self.inside else self.inside

    def handle_data(self, data: str) -> None:
        if self.tables and self.tables[-1] and self.tables[-1][-1] and not self.inside:
            self.tables[-1][-1][-1] += data


def parsed(page: str) -> Plain:
    plain = Plain()
    plain.feed(page)
    return plain


@pytest.fixture(scope="module")
def page() -> str:
    return document(load_board())


def test_nothing_comes_from_outside(page: str) -> None:
    plain = parsed(page)
    assert all(address.startswith("#") for address in plain.addresses), plain.addresses
    assert not {"link", "img", "iframe", "object", "embed", "base", "form"} & set(plain.tags)
    assert "@import" not in page
    assert "url(" not in page
    script = page.split("<script>")[1]
    assert not re.search(r"fetch|XMLHttpRequest|import\(|https?:", script)
    assert "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'" in page


def test_names_and_notes_cannot_leave_their_place() -> None:
    evil = row(
        EVIL,
        0.5,
        method=EVIL,
        paper=EVIL,
        group=EVIL,
        subset=EVIL,
        marks=EVIL,
        dataset=EVIL,
        doubts=(EVIL,),
        what=EVIL,
        status="reproduced",
    )
    page = document([evil, row("a", 0.2)])
    assert "alert(1)</script>" not in page
    assert page.count("<script") == 2
    assert page.count("</script>") == 2
    data = json.loads(page.split('id="rows">')[1].split("</script>")[0])
    assert EVIL in data
    assert data[EVIL]["identity"]["dataset"] == EVIL
    assert "\u2028" not in page.split('id="rows">')[1].split("</script>")[0]
    assert html.escape(EVIL) in page


def test_without_javascript_every_figure_stands_in_a_plain_table(page: str) -> None:
    board = load_board()
    found = parsed(page).tables
    shown = views(board)
    assert len(found) == len(shown)
    for table, view in zip(found, shown, strict=True):
        head, *body = table
        assert head[:3] == ["method", "status", "n"]
        assert len(body) == len(view.rows)
        for cells, own in zip(body, view.rows, strict=True):
            assert cells[0].startswith(own.method)
            for cell, column in zip(cells[3:], view.columns, strict=True):
                expected = cell_text(own, column).split(" ")[0]
                assert cell.startswith(expected)
    assert all(html.escape(" ".join(doubt.split())) in page for own in board for doubt in own.doubts)


def test_intervals_are_drawn_on_their_columns_range() -> None:
    page = document(ROWS[:3])
    (cell,) = re.findall(r'<td class="number" data-key="bleu_4" data-v="0.25".*?</td>', page)
    # The column spans 0.2 … 0.35 on 4 … 96 %.
    assert '<i class="interval" style="left:4.0%;width:92.0%">' in cell
    assert '<b style="left:34.67%">' in cell
    assert "[0.200, 0.350]" in cell
    (reported,) = re.findall(r'<td class="number" data-key="bleu_4" data-v="0.3".*?</td>', page)
    assert "<i" not in reported
    assert 'title="printed 0.3"' in reported


def rendered(page: str, path: Path, state: str = "") -> str:
    """The page's document after its script has run, in the state that the address names."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs chromium, to run the page's script")
    path.write_text(page)
    command = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        f"--user-data-dir={path.parent / 'profile'}",
        "--dump-dom",
    ]
    done = subprocess.run([*command, f"{path.as_uri()}#{state}"], capture_output=True, text=True, timeout=120)
    assert 'class="js"' in done.stdout, done.stderr[-500:]
    return done.stdout


def rows_of(dom: str) -> dict[str, str]:
    """Row id → the row's HTML, in the order of the tables."""
    return {
        match[2]: match[0] for match in re.finditer(r'<tr class="([^"]*)" data-row="([^"]+)".*?</tr>', dom, re.DOTALL)
    }


def visible(dom: str) -> list[str]:
    return [own for own, text in rows_of(dom).items() if 'hidden=""' not in text.split(">")[0]]


def test_a_reference_greys_exactly_what_must_not_be_compared_and_says_why(tmp_path: Path) -> None:
    dom = rendered(document(ROWS), tmp_path / "page.html", "reference=a")
    shown = rows_of(dom)
    assert set(shown) == {own.id for own in ROWS}
    for own in ROWS:
        classes = re.search(r'class="([^"]*)"', shown[own.id])
        assert classes is not None
        assert ("other" in classes[1].split()) == (not comparable(ROWS[0], own)), own.id
        assert ("chosen" in classes[1].split()) == (own.id == "a")
    assert "other number of studies: 11, not 10" in shown["d"]
    assert "Not comparable with the reference: other dataset: Other, not Toy." in dom
    assert "Not comparable with the reference: other kind of data: phantom, not patients." in dom
    assert '<span class="delta">+0.1000</span>' in shown["b"]
    assert "delta" not in shown["d"]
    assert "show their distance: 2. Grey rows, which may not: 3." in dom


def test_sorting_and_filters_follow_the_address(tmp_path: Path) -> None:
    page = document(ROWS)
    dom = rendered(page, tmp_path / "page.html", "sort=bleu_4&order=descending&phantom=no&dataset=Toy")
    assert visible(dom) == ["d", "b", "c", "a"]
    dom = rendered(page, tmp_path / "page.html", "sort=meteor&order=ascending&phantom=no&dataset=Toy")
    assert visible(dom) == ["c", "a", "b", "d"], "rows without the figure stay behind, in the paper's order"
    dom = rendered(page, tmp_path / "page.html", "phantom=no&dataset=Toy&method=method%20B&status=reported")
    assert visible(dom) == ["b"]
    assert re.search(r'<p class="nothing" hidden="">', dom)
    nothing = rendered(page, tmp_path / "page.html", "status=recomputed")
    assert re.search(r'<p class="nothing">', nothing)
