"""Takes pages of the repository from outside docs/ into the site, and mends links to them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

_ROOT = Path(__file__).resolve().parents[2]
# The page in the site, by the file in the repository.
_PAGES = {
    "CHANGELOG.md": "changelog.md",
    "results/README.md": "result-files.md",
    "examples/README.md": "examples.md",
}


def on_files(files: Any, config: Any, **_: Any) -> Any:
    for source, page in _PAGES.items():
        text = (_ROOT / source).read_text().replace("](../docs/", "](").replace("](docs/", "](")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files outside docs/ lead to their pages; where a file has none, its name stays."""
    up = "../" * page.file.src_uri.count("/")

    def mend(link: re.Match[str]) -> str:
        source, anchor = link["source"], link["anchor"] or ""
        if source in _PAGES:
            return f"[{link['text']}]({up}{_PAGES[source]}{anchor})"
        return link["text"] if (_ROOT / source).exists() else link[0]

    outside = (
        rf"\[(?P<text>[^\]]*)\]\({re.escape(up)}\.\./(?P<source>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)"
    )
    return re.sub(outside, mend, markdown)
