"""Running the notebooks of docs/examples, each in a kernel of its own.

python tests/docs/notebooks.py          # run all of them
python tests/docs/notebooks.py --write  # and keep their outputs in the files
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "examples").glob("*.ipynb"))
SHOWN = ("text/plain", "image/png")
"""Kinds of results that are kept."""


def run(path: Path) -> NotebookNode:
    """The notebook with the outputs of a run on one thread; what libraries say on standard error is left out.

    Raises:
        nbclient.exceptions.CellExecutionError: a cell raised an error.
    """
    notebook = nbformat.read(path, as_version=4)
    paths = os.pathsep.join([str(ROOT), str(ROOT / "adapters")])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    client.execute(env=environment)
    for cell in notebook.cells:
        cell.metadata.clear()
        if cell.cell_type == "code":
            cell.outputs = [tidied(output) for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def tidied(output: NotebookNode) -> NotebookNode:
    """An output with its text and its picture alone."""
    if "data" in output:
        output.data = {kind: content for kind, content in output.data.items() if kind in SHOWN}
    return output


if __name__ == "__main__":
    for path in NOTEBOOKS:
        notebook = run(path)
        if sys.argv[1:] == ["--write"]:
            nbformat.write(notebook, path)
        print(path)
