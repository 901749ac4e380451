"""Reports: every module renders every capture, says the summary's numbers and nothing of its own."""

import copy
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from tracekit import errors, registry, reports
from tracekit.reports._section import interval

NAMES = registry.names("tracekit.reports")
MAGIC = {
    "html": b"<!doctype html>",
    "json": b"{",
    "md": b"# tracekit: ",
    "png": b"\x89PNG",
    "svg": b"<?xml",
    "txt": b"POLICIES",
}


class Page(HTMLParser):
    """Balance of tags, text of cells, and whatever would be fetched or run."""

    VOID = frozenset({"meta", "br", "img", "link", "hr", "input"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.fetched: list[str] = []
        self.cells: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        if tag in ("td", "th"):
            self.cells.append("")
        for name, value in attrs:
            local = (value or "").startswith("#") or not value
            if name in ("src", "href", "xlink:href", "action", "data") and not local:
                self.fetched.append(str(value))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th"):
            self.cells[-1] += data


@pytest.mark.parametrize("name", NAMES)
def test_every_report_renders_every_capture(name: str, capture: str, replayed: Callable[..., Any]) -> None:
    document = replayed(capture).document
    before = json.dumps(document)
    assert reports.render(document, name).startswith(MAGIC.get(name, b""))
    assert json.dumps(document) == before, "a report changes nothing"


@pytest.mark.parametrize("name", NAMES)
def test_the_same_document_gives_the_same_bytes(name: str, replayed: Callable[..., Any]) -> None:
    document = replayed("demo").document
    assert reports.render(document, name) == reports.render(copy.deepcopy(document), name)


def test_html_needs_nothing_else(capture: str, replayed: Callable[..., Any]) -> None:
    text = reports.render(replayed(capture).document, "html").decode()
    page = Page(text)
    assert page.open == []
    assert "svg" in page.tags
    assert page.tags.isdisjoint({"script", "link", "img", "iframe", "object"})
    assert page.fetched == []
    assert "@import" not in text
    assert "url(http" not in text
    assert text.count("<svg") == 1, "one plot"


HOSTILE = '<script>alert("1")</script> & | $x_1$ \\frac{'


def hostile(document: dict[str, Any]) -> dict[str, Any]:
    document = copy.deepcopy(document)
    document["trace"]["source"]["name"] = HOSTILE
    document["trace"]["machine"]["release"] = HOSTILE
    document["policies"][0]["reason"] = HOSTILE
    document["policies"][0]["calls"][0]["call"] = f"mark:{HOSTILE}"
    return document


def test_html_escapes(replayed: Callable[..., Any]) -> None:
    page = Page(reports.render(hostile(replayed("demo").document), "html").decode())
    assert "script" not in page.tags
    assert HOSTILE in page.cells
    assert any("mark:" not in cell and HOSTILE in cell for cell in page.cells)


@pytest.mark.parametrize("name", NAMES)
def test_strange_names_are_only_names(name: str, replayed: Callable[..., Any]) -> None:
    reports.render(hostile(replayed("demo").document), name)


def tables(markdown: str) -> list[list[list[str]]]:
    found: list[list[list[str]]] = [[]]
    for line in markdown.split("\n"):
        if line.startswith("|"):
            assert line.endswith("|")
            found[-1].append([cell.strip() for cell in line[1:-1].split("|")])
        elif found[-1]:
            found.append([])
    return [table for table in found if table]


def test_md_tables_are_well_formed(capture: str, replayed: Callable[..., Any]) -> None:
    for document in (replayed(capture).document, hostile(replayed(capture).document)):
        for header, rule, *rows in tables(reports.render(document, "md").decode()):
            assert set(rule) == {"---"}
            assert all(len(row) == len(header) for row in (rule, *rows))


def table_of(markdown: str, title: str) -> list[list[str]]:
    section = markdown.split(f"## {title}\n")[1].split("\n## ", maxsplit=1)[0]
    return tables(section)[0][2:]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def test_md_says_the_numbers_of_the_summary(capture: str, replayed: Callable[..., Any]) -> None:
    document = replayed(capture).document
    markdown = reports.render(document, "md").decode()
    policies = {policy["spec"]: policy for policy in document["policies"]}
    for spec, ratio, saved, note in table_of(markdown, "Policies"):
        policy = policies[spec]
        if policy["judgeable"]:
            assert ratio == interval(policy["ratio"])
            assert saved == interval(policy["time_ns"]["saving"], 1e6)
            assert note == (policy["reason"] or "")
        else:
            assert policy["reason"] in note
            assert policy["record"] is None or policy["record"] in markdown
    for spec, operation, traced, after in table_of(markdown, "Operations"):
        assert policies[spec]["operations"][operation] == {"traced": number(traced), "policy": number(after)}
    shown = [row for row in table_of(markdown, "Operations") if row[0] == "as_traced"]
    assert len(shown) == len(policies["as_traced"]["operations"])
    judged = [policy for policy in document["policies"] if policy["judgeable"] and policy["name"] != "as_traced"]
    calls = [(policy["spec"], call) for policy in judged for call in policy["calls"]]
    rows = table_of(markdown, "Calls") if calls else []
    assert len(rows) == len(calls)
    for (spec, call), (of, name, n, traced, ratio, note) in zip(calls, rows, strict=True):
        assert (of, name.removesuffix(" (nested)"), number(n)) == (spec, call["call"], call["n"])
        assert (traced == "–") == (call["traced_ns"] is None)
        assert traced == "–" or float(traced) == pytest.approx(call["traced_ns"] / 1e6, abs=1e-3)
        assert ratio == interval(call["ratio"])
        assert note == (call["reason"] or "")
    assert document["note"] in markdown
    assert document["fidelity"] in markdown
    for line in document["costs"]["how"]:
        assert line in markdown


def test_every_page_says_that_replay_is_open_loop(replayed: Callable[..., Any]) -> None:
    for name in ("html", "json", "md", "txt"):
        assert b"Replay is open-loop" in reports.render(replayed("demo").document, name), name


def test_harm_is_shown(replayed: Callable[..., Any]) -> None:
    """forkmig-copied: the counter as posted leaves entries behind that fork copied."""
    document = replayed("forkmig-copied").document
    posted = document["policies"][-1]
    kinds = ("unsafe", "losses", "open", "exposed")
    found = {(kind, what): n for kind in kinds for what, n in posted[kind].items() if n}
    assert found, "this capture was made for it"
    rows = {
        (kind, what): number(n)
        for spec, kind, what, n in table_of(reports.render(document, "md").decode(), "Harm")
        if spec == posted["spec"]
    }
    assert rows == found


def test_svg_is_a_picture_of_every_judged_policy(replayed: Callable[..., Any]) -> None:
    svg = reports.render(replayed("demo").document, "svg")
    ET.fromstring(svg)
    assert svg.count(b"counter_early_exit") == 2
    assert re.search(rb"<dc:date>", svg) is None, "no date, so that equal documents give equal files"


def test_a_ratio_is_written_with_its_interval() -> None:
    assert interval(None) == "–"
    assert interval({"low": 0.25, "median": 0.5, "high": 0.75}) == "0.500 (0.250 – 0.750)"
    assert interval({"low": -1.5e6, "median": 0, "high": 2e6}, 1e6) == "0.000 (-1.500 – 2.000)"


def test_the_suffix_chooses(replayed: Callable[..., Any], tmp_path: Path) -> None:
    document = replayed("demo").document
    for name in NAMES:
        reports.write(document, tmp_path / f"r.{name}")
    assert json.loads((tmp_path / "r.json").read_text()) == document
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"r.{name}" for name in NAMES]
    with pytest.raises(errors.UsageError, match="not among the reports: html, json, md"):
        reports.write(document, tmp_path / "r.doc")
    with pytest.raises(errors.UsageError, match="its suffix says what to write"):
        reports.write(document, tmp_path / "r")
    with pytest.raises(errors.OutputError):
        reports.write(document, tmp_path / "r.md" / "r.md")
    with pytest.raises(errors.OutputError):
        reports.write(document, tmp_path / "absent" / "r.md")
