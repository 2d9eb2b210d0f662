"""Renewing all tables in the documents from their result files: `python -m tokenprune.bench.render`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tokenprune.bench.results import load
from tokenprune.bench.tables import markdown, marks, renew


def tables(results: Path) -> dict[str, str]:
    """The Markdown of every result file in a folder, by file name; other JSON files are left out."""
    found = {}
    for path in sorted(results.glob("*.json")):
        if path.name.startswith("shapes-"):
            loaded = load(path)
            found[path.name] = markdown(loaded, by_psnr=loaded.settings["suite"] != "sensitivity")
    return found


def main(docs: Annotated[Path, typer.Argument(help="Folder of the documents; results lie in its `results`.")]) -> None:
    """Put every table between its marks, wherever they stand."""
    for name, table in tables(docs / "results").items():
        for page in sorted(docs.glob("*.md")):
            if marks(name)[0] in page.read_text():
                renew(page, name, table)
                print(f"{name} -> {page}")


if __name__ == "__main__":
    typer.run(main)
