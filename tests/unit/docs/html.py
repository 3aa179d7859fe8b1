"""What a built site refers to: links and anchors inside it, and assets from outside."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import lru_cache
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_CSS_REFERENCE = re.compile(r"""(?:url\(\s*|@import\s+)['"]?([^'")\s;]+)""")
_ASSET_ATTRIBUTES = {"img": "src", "script": "src", "iframe": "src", "source": "src", "video": "src", "link": "href"}


@dataclass(slots=True)
class Page:
    """What one HTML file refers to."""

    links: list[str] = field(default_factory=list)
    assets: list[str] = field(default_factory=list)
    """What a browser loads by itself when the page is shown."""
    ids: set[str] = field(default_factory=set)


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.page = Page()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        for name in ("id", "name"):
            if attributes.get(name):
                self.page.ids.add(str(attributes[name]))
        if tag == "a" and attributes.get("href"):
            self.page.links.append(str(attributes["href"]))
        asset = attributes.get(_ASSET_ATTRIBUTES.get(tag, ""))
        if asset and attributes.get("rel") not in ("canonical", "next", "prev", "alternate"):
            self.page.assets.append(asset)


@lru_cache(maxsize=256)
def read_page(path: Path) -> Page:
    """The references of an HTML file."""
    reader = _Reader()
    reader.feed(path.read_text(encoding="utf-8"))
    return reader.page


def broken_links(site: Path) -> list[str]:
    """Links and assets inside the site that lead nowhere, as `page: target`.

    404.html is left out: a server shows it for any address, so its links begin at the server's root.
    """
    broken = []
    for path in sorted(set(site.rglob("*.html")) - {site / "404.html"}):
        page = read_page(path)
        broken += [
            f"{path.relative_to(site)}: {target}"
            for target in [*page.links, *page.assets]
            if not _is_outside(target) and not _leads_somewhere(path, target)
        ]
    return broken


def outside_assets(site: Path) -> list[str]:
    """What a browser would load from other servers, as `file: address`."""
    found = []
    for path in sorted(site.rglob("*.html")):
        found += [f"{path.relative_to(site)}: {asset}" for asset in read_page(path).assets if _is_outside(asset)]
    for path in sorted(site.rglob("*.css")):
        references = _CSS_REFERENCE.findall(path.read_text(encoding="utf-8"))
        found += [f"{path.relative_to(site)}: {address}" for address in references if _is_outside(address)]
    return found


def _is_outside(target: str) -> bool:
    return target.startswith(("http:", "https:", "//", "mailto:"))


def _leads_somewhere(path: Path, target: str) -> bool:
    if target.startswith("data:"):
        return True
    parts = urlsplit(target)
    file = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
    if file.is_dir():
        file /= "index.html"
    if not file.is_file():
        return False
    return not parts.fragment or file.suffix != ".html" or unquote(parts.fragment) in read_page(file).ids
