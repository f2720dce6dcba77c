"""The matrix: declared, compared, drawn as text, JUnit and a page."""

from __future__ import annotations

from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from netbox.errors import UsageError
from netbox.packet.reachability import expectation, junit, page, text
from netbox.packet.reachability.values import Cell, Column, Explanation, Matrix

WEB, DB, PING = Column("web", "tcp", 80), Column("db", "tcp", 5432), Column("db")
NAMES = Column("db", "udp", 53)


def cell(source: str, column: Column, reachable: bool, expected: bool | None = None) -> Cell:
    why = None if reachable else Explanation("they share no network", "netbox network connect back web")
    return Cell(
        source, column, "open" if reachable else "filtered", reachable, "SYN-ACK" if reachable else "nothing", 0.0002, why, expected
    )


def matrix(*cells: Cell, compared: bool = False) -> Matrix:
    sources = tuple(dict.fromkeys(item.source for item in cells))
    columns = tuple(sorted(dict.fromkeys(item.column for item in cells), key=lambda column: column.target))
    return Matrix(sources, columns, cells, 1_700_000_000.0, 1.25, compared)


PLAIN = matrix(cell("web", DB, False), cell("web", PING, True), cell("db", WEB, True))


class TestExpectation:
    def test_the_last_line_that_fits_decides(self) -> None:
        statements = expectation.parse("* -> * no\n\nweb -> db:5432 yes  # the application\n* → * icmp yes\n")
        assert expectation.expected(statements, "web", DB) is True
        assert expectation.expected(statements, "lan", DB) is False
        assert expectation.expected(statements, "lan", PING) is True

    def test_a_port_without_a_protocol_is_tcp(self) -> None:
        (statement,) = expectation.parse("web -> db:53 yes")
        assert statement.fits("web", Column("db", "tcp", 53))
        assert not statement.fits("web", NAMES)
        (statement,) = expectation.parse("web -> db:53/udp yes")
        assert statement.fits("web", NAMES)

    def test_any_port_is_no_icmp(self) -> None:
        (statement,) = expectation.parse("* -> db:* no")
        assert statement.fits("web", NAMES)
        assert statement.fits("web", DB)
        assert not statement.fits("web", PING)

    def test_what_nothing_is_said_about(self) -> None:
        assert expectation.expected(expectation.parse("web -> db yes"), "lan", DB) is None

    def test_named_ports_become_columns(self) -> None:
        statements = expectation.parse("* -> d?:5432 yes\nlan -> db icmp yes\nlan -> other:1 no\n* -> *:* no")
        assert expectation.columns(statements, ["db", "web"]) == [DB, PING]
        assert expectation.sources(statements) == {"lan"}

    @pytest.mark.parametrize(
        "line", ["web db yes", "web -> db", "web -> db maybe", "web -> db:70000 yes", "web -> db:0 yes", "web -> db:x no"]
    )
    def test_nonsense(self, line: str) -> None:
        with pytest.raises(UsageError, match="line 2"):
            expectation.parse(f"# first\n{line}\n")

    def test_an_empty_file(self) -> None:
        with pytest.raises(UsageError, match="declares nothing"):
            expectation.parse("# nothing\n")

    @given(st.lists(st.tuples(st.sampled_from(["web", "db", "lan"]), st.sampled_from([WEB, DB, PING, NAMES]), st.booleans()), min_size=1))
    def test_what_is_rendered_says_the_same_when_read(self, items: list[tuple[str, Column, bool]]) -> None:
        unique = {(source, column): reachable for source, column, reachable in items}
        cells = [cell(source, column, reachable) for (source, column), reachable in unique.items()]
        statements = expectation.parse(expectation.render(matrix(*cells)))
        for item in cells:
            assert expectation.expected(statements, item.source, item.column) is item.reachable


class TestMatrix:
    def test_differences(self) -> None:
        compared = matrix(cell("web", DB, False, True), cell("web", PING, True, True), cell("lan", DB, True, None), compared=True)
        assert [(str(item.cell.column), item.what) for item in compared.differences] == [
            ("db:5432", "declared reachable, and it is not"),
            ("db:5432", "no line of the file speaks of it"),
        ]
        assert PLAIN.differences == []
        assert compared.summary == "3 pairs, 2 reachable, 1 not, in 1.2 s; 2 not as declared"

    def test_json(self) -> None:
        document = PLAIN.to_json()
        assert document["sources"] == ["web", "db"]
        assert document["cells"][0]["why"] == "they share no network"
        assert document["cells"][1]["port"] is None


class TestText:
    def test_a_table(self) -> None:
        assert text.table(PLAIN, 100).splitlines() == [
            "       db           web",
            "from   5432  icmp   80",
            "web    ✗     ✓      ·",
            "db     ·     ·      ✓",
        ]

    def test_what_is_too_wide_goes_on_below(self) -> None:
        assert text.table(PLAIN, 22, text.ASCII).splitlines() == [
            "       db",
            "from   5432  icmp",
            "web    no    yes",
            "db     -     -",
            "",
            "       web",
            "from   80",
            "web    -",
            "db     yes",
        ]

    def test_a_difference_is_marked(self) -> None:
        shown = text.table(matrix(cell("web", DB, False, True), cell("lan", DB, True, True), compared=True), 80)
        assert "✗!" in shown
        assert "✓!" not in shown

    def test_reasons(self) -> None:
        assert text.reasons(PLAIN, PLAIN.unreachable).splitlines() == [
            "web → db:5432: filtered, nothing",
            "    they share no network",
            "    to mend it: netbox network connect back web",
        ]


class TestDocuments:
    def test_junit(self) -> None:
        root = ElementTree.fromstring(junit.render(matrix(cell("web", DB, False, True), cell("web", PING, True, True), compared=True)))
        (suite,) = root
        assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
        failed, passed = suite
        assert (failed.get("name"), failed[0].tag) == ("web -> db:5432", "failure")
        assert "they share no network" in (failed[0].text or "")
        assert passed[0].tag == "system-out"

    def test_a_page_needs_nothing_else_and_escapes(self) -> None:
        evil = Column("<script>alert(1)</script>", "tcp", 1)
        shown = page.render(matrix(cell("web", DB, False), cell("web", evil, False)), '<svg id="drawing"></svg>')
        tags: list[tuple[str, dict[str, str | None]]] = []

        class Reader(HTMLParser):
            def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
                tags.append((tag, dict(attrs)))

        Reader().feed(shown)
        names = [tag for tag, _ in tags]
        assert "script" not in names
        assert "link" not in names
        assert names.count("svg") == 1
        assert not [attributes for _, attributes in tags if "src" in attributes]
        links = [attributes["href"] for tag, attributes in tags if tag == "a"]
        anchors = [f"#{attributes['id']}" for tag, attributes in tags if tag == "section"]
        assert sorted(map(str, links)) == sorted(anchors)
        assert len(links) == 2
