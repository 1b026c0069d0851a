"""A page that Isoflop wrote, taken apart."""

import html.parser
import json
from pathlib import Path
from typing import Any

EVIL = "</script><script>alert('x')</script><img src=x onerror=alert(1)> {{plotly}} & \"quoted\""
VOID = {"meta", "input", "br", "img", "link", "hr"}


class Page(html.parser.HTMLParser):
    """A page's elements, checked to be closed in order, with the text that is shown."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.scripts = "", []
        source = path.read_text()
        self.feed(source)
        self.close()
        assert not self.open
        self.size = len(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open[-1:] == ["script"]:
            self.scripts.append(data)
        elif self.open[-1:] != ["style"]:
            self.text += data

    def count(self, tag: str, **attributes: str) -> int:
        return sum(name == tag and attributes.items() <= found.items() for name, found in self.elements)

    def data(self, begins: str) -> dict[str, Any]:
        (data,) = [script for script in self.scripts if script.startswith(begins)]
        return json.loads(data)
