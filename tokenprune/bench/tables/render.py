"""Renewing all tables in the documents: `python -m tokenprune.bench.tables.render docs`.

Those of results come from the files in `docs/results`, that of policies from the policies themselves.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tokenprune.bench.commands import run
from tokenprune.bench.measuring.result_file import Results, load
from tokenprune.bench.tables import policies
from tokenprune.bench.tables.cells import markdown, marks, renew
from tokenprune.reports.outputs import check_output

PAGE = "results.md"


HEADING = """# Results

This page shows every result file of `docs/results`, as `tokenprune bench` wrote it.
`python -m tokenprune.bench.tables.render docs` makes it anew. [Benchmarking](benchmarking.md) explains the columns, and
[analysis](analysis.md) says what follows from them.
"""


def results_of(folder: Path) -> dict[str, Results]:
    """The result files of bench suites in a folder, by file name; other JSON files are left out."""
    contents = {path: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}
    return {path.name: load(path) for path, content in contents.items() if "suite" in content.get("settings", {})}


def tables(folder: Path) -> dict[str, str]:
    """The Markdown of every result file in a folder, by file name."""
    return {name: table(results) for name, results in results_of(folder).items()}


def table(results: Results) -> str:
    """The Markdown of a result file."""
    return markdown(results, by_psnr=results.settings["suite"] != "sensitivity")


def page(folder: Path) -> str:
    """All result files of a folder on one page."""
    parts = [HEADING]
    for results in results_of(folder).values():
        settings = results.settings
        budget = f" at {settings['budget']}" if "budget" in settings else ""
        title = f"{settings['model']}: {settings['suite']}{budget}, {settings['steps']} steps"
        parts.append(f"## {title}\n\n{table(results)}")
    return "\n".join(parts)


def main(
    docs: Annotated[Path, typer.Argument(help="Folder of the documents; result files lie in its `results`.")],
) -> None:
    """Put every table between its marks, wherever they stand, and all of them on a page of their own."""
    check_output("docs", docs / PAGE, ".md")
    for name, text in {policies.NAME: policies.table(), **tables(docs / "results")}.items():
        for document in sorted(docs.glob("*.md")):
            if marks(name)[0] in document.read_text():
                renew(document, name, text)
                print(f"{name} -> {document}")
    (docs / PAGE).write_text(page(docs / "results"))


if __name__ == "__main__":
    run(main, "tokenprune.bench.tables.render")
