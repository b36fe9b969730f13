"""Takes pages of the repository from outside docs/ into the site, and mends links to them."""

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
    up = "../" * (page.file.src_uri.count("/") + 1)
    for source, target in _PAGES.items():
        markdown = markdown.replace(f"]({up}{source}", f"]({up.removeprefix('../')}{target}")
    return markdown
