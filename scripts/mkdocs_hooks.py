"""Additions of `make docs` to the pages of docs/: the reference, and the files that pages link to.

Pages link to files of the repository as people read them there (``../experiments/article.toml``).
The site has those files too, below ``files/``: Markdown as it is, everything else as a page that
shows it, pictures as they are. So no page needs to know where the repository can be seen.

Drawings (mermaid) are drawn in the reader's browser by a script that the site brings along, where
npm can get it; else the theme asks a public server for it.
"""

from __future__ import annotations

import logging
import posixpath
import re
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from reference import commands_page, experiment_page

from fluffle.worker.datasets.cache import cache_folder
from fluffle.worker.datasets.packages import npm_pack
from fluffle.worker.datasets.recipe import Unavailable

ROOT = Path(__file__).parents[1]
MERMAID = "mermaid@11.17.2"
MERMAID_SHA256 = "6ad2f42c3fc26bbf9e45cbb6d11898972573ea52b33a5f4ff51952899f950ffd"
_SCRIPT = "javascripts/mermaid.min.js"
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")
_PICTURES = (".svg", ".png")


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The script that draws, if it can be had; kept between builds."""
    kept = cache_folder() / f"{MERMAID}.min.js"
    try:
        if not kept.exists():
            with tempfile.TemporaryDirectory() as folder:
                tarball = npm_pack(MERMAID, MERMAID_SHA256, Path(folder), lambda *_: None)
                with tarfile.open(tarball) as archive:
                    source = archive.extractfile("package/dist/mermaid.min.js")
                    assert source is not None
                    kept.parent.mkdir(parents=True, exist_ok=True)
                    kept.write_bytes(source.read())
    except (Unavailable, OSError) as error:
        logging.getLogger("mkdocs").info("drawings need a network to be seen: %s", error)
    else:
        config.extra["mermaid"] = str(kept)
        config.extra_javascript.append(_SCRIPT)
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The reference, and all that is linked to from the pages, and from what they link to."""
    files.append(File.generated(config, "reference/experiment.md", content=experiment_page()))
    files.append(File.generated(config, "reference/commands.md", content=commands_page()))
    if "mermaid" in config.extra:
        files.append(File.generated(config, _SCRIPT, abs_src_path=config.extra["mermaid"]))
    waiting = [f"docs/{page.src_uri}" for page in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        for target in _targets(waiting.pop()):
            if target in seen or not (ROOT / target).is_file():
                continue
            seen.add(target)
            if not target.startswith("docs/"):
                files.append(_shown(target, config))
                waiting += [target] if target.endswith(".md") else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links to files of the repository lead to their pages."""
    here = page.file.src_uri
    origin = here.removeprefix("files/") if here.startswith("files/") else f"docs/{here}"

    def lead(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[2]))
        if origin.startswith("docs/") and target.startswith("docs/"):
            return link[0]
        return link[1] + posixpath.relpath(_place(target), posixpath.dirname(here) or ".") + link[3]

    return _LINK.sub(lead, markdown)


def _targets(origin: str) -> Iterator[str]:
    path = ROOT / origin
    if path.is_file():  # what is generated links to docs/ alone
        for link in _LINK.finditer(path.read_text(encoding="utf-8")):
            yield posixpath.normpath(posixpath.join(posixpath.dirname(origin), link[2]))


def _place(target: str) -> str:
    """Where the site has a file of the repository."""
    if target.startswith("docs/"):
        return target.removeprefix("docs/")
    return f"files/{target.lstrip('.')}" + ("" if target.endswith((".md", *_PICTURES)) else ".md")


def _shown(target: str, config: MkDocsConfig) -> File:
    path = ROOT / target
    if target.endswith((".md", *_PICTURES)):
        return File.generated(config, _place(target), abs_src_path=str(path))
    language = path.suffix.removeprefix(".") or "ini"
    text = f"# {target}\n\n````{language}\n{path.read_text(encoding='utf-8')}````\n"
    return File.generated(config, _place(target), content=text)
