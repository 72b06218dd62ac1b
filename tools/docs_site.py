"""Hooks of mkdocs: pages link to files of the repository, and those links hold on the rendered site.

Markdown files at the root are pages of the site, and any other file that a page links to is copied into ``files/``. A
reader of the repository and a reader of the site follow the same links; ``tests/test_docs.py`` checks them.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")
COPIES = "files"
LINK = re.compile(r"(?<=\]\()(?![a-z]+:)([^)#\s]+)")  # the path of [text](path#anchor), unless it names a protocol
CODE = re.compile(r"^```.*?^```|^    .*?$|`[^`\n]*`", re.DOTALL | re.MULTILINE)
LINK_OR_CODE = re.compile(f"{CODE.pattern}|{LINK.pattern}", CODE.flags)
ROLE = re.compile(r":(?:attr|class|func|meth|mod):(?=<code)")  # Sphinx's names for what a docstring refers to


def sources() -> list[Path]:
    """Every Markdown file that becomes a page."""
    return [*(ROOT / name for name in PAGES), *sorted((ROOT / "docs").glob("*.md"))]


def links(text: str) -> list[str]:
    """The relative paths that a page links to, code left out."""
    return LINK.findall(CODE.sub("", text))


def target(page: Path, link: str) -> str:
    """The path inside the repository that a link of a page means."""
    return posixpath.normpath(posixpath.join(page.parent.relative_to(ROOT).as_posix(), link))


def place(path: str) -> str:
    """Where a file of the repository lies in the source of the site."""
    if path in PAGES:
        return path
    return path.removeprefix("docs/") if path.startswith("docs/") else f"{COPIES}/{path}"


def on_files(files, config):
    """Add what lies outside of docs/: pages, and files that pages link to."""
    from mkdocs.structure.files import File

    linked = {target(page, link) for page in sources() for link in links(page.read_text(encoding="utf-8"))}
    outside = {path for path in linked if not path.startswith("docs/") and (ROOT / path).is_file()}
    for path in sorted({*PAGES, *outside}):
        files.append(File.generated(config, place(path), abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point links at where their targets lie on the site."""
    source = Path(page.file.abs_src_path)
    here = posixpath.dirname(page.file.src_uri) or "."

    def moved(found: re.Match) -> str:
        return posixpath.relpath(place(target(source, found[1])), here) if found[1] else found[0]

    return LINK_OR_CODE.sub(moved, markdown)


def on_page_content(html, page, config, files):
    """Leave out the roles of Sphinx: the name that follows says enough."""
    return ROLE.sub("", html)
