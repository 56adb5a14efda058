"""A page as a browser reads it, and the curves of a run that it shows."""

from html.parser import HTMLParser

METRICS = [
    {"step": step, "loss": 1 / step, "images_per_s": 100.0, "data_wait": 0.1}
    for step in (5, 10, 15)
]


class Page(HTMLParser):
    """Checks nesting and collects what a browser would load."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []
        self.tags: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [value or "" for name, value in attrs if name in ("src", "srcset", "href")]
        if tag not in ("meta", "img", "source", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
