"""The little Markdown that data cards are written in, as HTML: headings, paragraphs, lists, tables, bold, code."""

import html
import re
from collections.abc import Iterator


def to_html(text: str) -> str:
    """HTML of the text; every character of it is escaped, so that it can bring no markup of its own."""
    found: list[str] = []
    for number, part in enumerate(re.split(r"^```.*$", text.replace("\r\n", "\n"), flags=re.MULTILINE)):
        if number % 2:
            found.append(f"<pre>{html.escape(part.strip(chr(10)))}</pre>")
        else:
            blocks = re.split(r"\n\s*\n|(?<=\n)(?=#)", part)
            found += [element for block in blocks if block.strip() for element in _block(block.strip("\n"))]
    return "\n".join(found)


def _block(block: str) -> Iterator[str]:
    lines = block.split("\n")
    if heading := re.match(r"(#+)\s+(.*)", lines[0]):
        level = min(len(heading[1]) + 2, 6)
        yield f"<h{level}>{_inline(heading[2])}</h{level}>"
        if len(lines) > 1:
            yield from _block("\n".join(lines[1:]).strip("\n"))
    elif len(lines) > 1 and lines[0].startswith("|") and re.fullmatch(r"[|\-: ]+", lines[1]):
        yield _table([_cells(line) for line in (lines[0], *lines[2:])])
    elif all(re.match(r"\s*([-*]|\d+\.)\s|\s{2,}", line) for line in lines):
        items = re.split(r"(?:^|\n)\s*(?:[-*]|\d+\.)\s+", block)[1:]
        yield "<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>"
    else:
        yield f"<p>{_inline(block)}</p>"


def _cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def _table(rows: list[list[str]]) -> str:
    """The first row is the head; columns of numbers are set to the right."""
    numbers = [all(re.fullmatch(r"[-+\d.,% ]+", cell) for cell in column) for column in zip(*rows[1:], strict=False)]
    marks = [" class=number" if number else "" for number in numbers] + [""] * len(rows[0])
    return f"<table>{_row(rows[0], 'th', marks)}{''.join(_row(row, 'td', marks) for row in rows[1:])}</table>"


def _row(cells: list[str], tag: str, marks: list[str]) -> str:
    parts = [f"<{tag}{mark}>{_inline(cell)}</{tag}>" for cell, mark in zip(cells, marks, strict=False)]
    return f"<tr>{''.join(parts)}</tr>"


def _inline(text: str) -> str:
    text = html.escape(text)
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", text)
    return re.sub(r"\*\*([^*]+)\*\*", r"<strong>\1</strong>", text)
