"""A hook of MkDocs: the site is laid out as the repository is, so that links mean the same in both.

Its pages are the README, the pages and notebooks of ``docs/``, and the other Markdown that the navigation
names. Whatever file of the repository a page links to comes with it: pictures as they are, text (a module,
the licence) as a page that shows it. A link to what is neither is left to MkDocs, which warns.
"""

from __future__ import annotations

import base64
import json
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"\]\((?![a-z+]+:|/|#)([^)#\s]+)")  # the target of a relative one
CODE = re.compile(r"^(```|~~~).*?^\1|`[^`\n]+`", re.MULTILINE | re.DOTALL)
OURS = ("docs/site/style.css", "docs/site/iframe-worker.js")  # named in mkdocs.yml
PICTURES = (".png", ".svg", ".jpg")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".toml": "toml", ".sh": "bash"}


class Shown(File):
    """A page made of a file that is no Markdown."""

    def is_documentation_page(self) -> bool:
        """Always: it is rendered."""
        return True


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The files of the site, in place of those that MkDocs finds below ``docs/``."""
    docs = Path(config.docs_dir)
    pages = [path for kind in ("*.md", "*.ipynb") for path in docs.rglob(kind)]
    found = {path.relative_to(ROOT).as_posix() for path in pages}
    found |= {*in_navigation(config.nav), *OURS}
    result = Files(
        [one for one in files if one.src_dir != config.docs_dir]
    )  # the theme's, the plugins'
    waiting = sorted(found)
    while waiting:
        page, *pictures = site_files(waiting.pop(), config.site_dir)
        for one in (page, *pictures):
            result.append(one)
        new = {target for target in linked(page) if (ROOT / target).is_file()} - found
        found |= new
        waiting += sorted(new)
    return result


def in_navigation(nav: Any) -> Iterator[str]:
    """The files that a navigation names, at any depth."""
    if isinstance(nav, str):
        yield nav
    else:
        for one in nav.values() if isinstance(nav, dict) else nav or ():
            yield from in_navigation(one)


def linked(page: File) -> set[str]:
    """What the page links to, as paths in the repository; the links in code are none."""
    if Path(page.src_uri).suffix not in (".md", ".ipynb"):
        return set()
    folder = posixpath.dirname(page.src_uri)
    targets = LINK.findall(CODE.sub("", page.content_string))
    return {posixpath.normpath(posixpath.join(folder, unquote(one))) for one in targets}


def site_files(path: str, site: str) -> list[File]:
    """A file of the repository as the site has it, and the pictures that are in it."""
    if path.endswith(".ipynb"):
        return notebook(path, site)
    if path.endswith((".md", ".css", ".js", *PICTURES)):
        return [File(path, str(ROOT), site, use_directory_urls=False)]
    language = LANGUAGES.get(Path(path).suffix, "text")
    text = f"# {path}\n\n~~~~~~{language}\n{(ROOT / path).read_text(encoding='utf-8')}\n~~~~~~\n"
    return [shown(path, site, text, f"{path}.html", InclusionLevel.NOT_IN_NAV)]


def shown(
    path: str,
    site: str,
    text: str,
    where: str,
    inclusion: InclusionLevel = InclusionLevel.INCLUDED,
) -> File:
    """The page ``where`` that shows a file by a Markdown text."""
    made = Shown(path, None, site, False, dest_uri=where, inclusion=inclusion)
    made.content_string = text
    return made


def notebook(path: str, site: str) -> list[File]:
    """A notebook as a page, with what its cells have put out, and its pictures."""
    stem = path.removesuffix(".ipynb")
    parts, pictures = [], []
    for cell in json.loads((ROOT / path).read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/png" in data:
                name = f"{stem}_{len(pictures) + 1}.png"
                picture = File(name, None, site, use_directory_urls=False)
                picture.content_bytes = base64.b64decode(data["image/png"])
                pictures.append(picture)
                parts.append(f"![Output of the cell above]({posixpath.basename(name)})")
            else:
                parts.append(f"```text\n{''.join(data['text/plain']).rstrip()}\n```")
    page = shown(path, site, "\n\n".join(parts), f"{stem}.html")
    return [page, *pictures]
