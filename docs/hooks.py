"""What `mkdocs build` needs beside mkdocs.yml: two pages from elsewhere, and links that hold.

README.md and CONTRIBUTING.md lie at the top of the repository, where people look for them; the site
has them as pages. Links are written as the repository needs them and turned into those of the site.
What a link names that the site does not have, such as a test, is left as its plain text.
"""

from __future__ import annotations

import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # a test of the links needs no MkDocs
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md"}
"""Files at the top of the repository, and the pages they become."""

LINK = re.compile(r"(?P<image>!?)\[(?P<text>[^\[\]]*)\]\((?P<target>[^()\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages from elsewhere."""
    from mkdocs.structure.files import File

    top = Path(config.config_file_path).parent
    for source, page in PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(top / source)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: Any) -> str:
    """Turn links of the repository into links of the site."""
    elsewhere = {made: source for source, made in PAGES.items()}
    name = page.file.src_uri
    return links_of_the_site(markdown, elsewhere.get(name, f"docs/{name}"))


def links_of_the_site(markdown: str, source: str) -> str:
    """A page's text with the links that the site needs.

    Args:
        markdown: the text.
        source: the file's path in the repository.
    """

    def turned(link: re.Match[str]) -> str:
        path, hash_sign, anchor = link["target"].partition("#")
        if ":" in path or not path:
            return link[0]
        page = _on_the_site(normpath(join(dirname(source), path)))
        if page.startswith("../"):
            return link["text"]
        place = relpath(page, dirname(_on_the_site(source)) or ".")
        return f"{link['image']}[{link['text']}]({place}{hash_sign}{anchor})"

    return LINK.sub(turned, markdown)


def _on_the_site(path: str) -> str:
    """Where a file of the repository is on the site; ``../...`` if it is not there."""
    return PAGES.get(path) or relpath(path, "docs")
