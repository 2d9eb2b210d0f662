"""Prompts from captions, text files and data sets."""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tokenprune import ConfigurationError
from tokenprune.bench.subjects.prompts import DATA_SETS, SPLITS, DataSet, captions, from_data_set, from_file
from tokenprune.embedded import scenes
from tokenprune.embedded.scenes import render

ROWS = [{"Prompt": f"a cat, number {i}", "Category": "Animals"} for i in range(3)]
TEXTS = tuple(row["Prompt"] for row in ROWS)


@pytest.mark.parametrize("split", SPLITS)
def test_captions_come_with_what_scores_them(split: Any) -> None:
    found = captions(split, 3)
    assert found.texts == tuple(scenes.texts(split, 3))
    assert len(captions(split).texts) == 64
    assert found.score is not None
    right = np.stack([render(scene) for _, scene in scenes.captions(split, 3)])
    assert found.score(right)["scene_score"] > found.score(right[::-1])["scene_score"]


def test_another_split_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="split: expected one of tuning, held-out, got 'train'"):
        captions("train")


def test_a_text_file_has_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("# cats\na cat\n\n   a dog  \n#nothing\na bird # with a sign\n")
    assert from_file(path).texts == ("a cat", "a dog", "a bird # with a sign")
    assert from_file(path, 2).texts == ("a cat", "a dog")
    assert from_file(path).score is None
    assert from_file(path).source == f"prompts of {path}"


def test_the_digest_is_that_of_the_texts(tmp_path: Path) -> None:
    digests = []
    for number, text in enumerate(["a\nb\n", "# same\na\nb", "b\na", "a b"]):
        path = tmp_path / f"{number}.txt"
        path.write_text(text)
        digests.append(from_file(path).digest)
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3


def test_files_without_enough_prompts_are_refused(tmp_path: Path) -> None:
    empty, short = tmp_path / "empty.txt", tmp_path / "short.txt"
    empty.write_text("\n# a cat\n")
    short.write_text("a cat\n")
    for path, count, message in (
        (empty, None, r"empty\.txt: expected some, got none"),
        (short, 2, r"short\.txt: expected 2, got 1"),
        (tmp_path / "missing.txt", None, r"missing\.txt: expected a text file with prompts: .*No such file"),
        (tmp_path, None, "expected a text file with prompts: .*Is a directory"),
    ):
        with pytest.raises(ConfigurationError, match=message):
            from_file(path, count)


def write(folder: Path, suffix: str) -> Path:
    """The same rows in each of the formats."""
    path = folder / f"rows.{suffix}"
    if suffix == "parquet":
        import pandas as pd

        pd.DataFrame(ROWS).to_parquet(path)
        return path
    lines = [[*ROWS[0]], *([*row.values()] for row in ROWS)]
    quoted = [[f'"{cell}"' if suffix == "csv" else cell for cell in line] for line in lines]
    texts = {
        "csv": "\n".join(",".join(line) for line in quoted),
        "tsv": "\n".join("\t".join(line) for line in quoted),
        "json": json.dumps(ROWS),
        "jsonl": "\n".join(json.dumps(row) for row in ROWS),
    }
    path.write_text(texts[suffix])
    return path


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # datasets leaves CSV files open
@pytest.mark.parametrize("suffix", ["csv", "tsv", "json", "jsonl", "parquet"])
def test_data_sets_are_read_from_files(suffix: str, tmp_path: Path) -> None:
    name = f"dataset:{write(tmp_path, suffix)}#Prompt"
    found = from_data_set(name, 3)
    assert (found.texts, found.source) == (TEXTS, f"prompts of {name}")
    assert from_data_set(name, 1).texts == TEXTS[:1]
    gc.collect()


def test_data_sets_are_read_from_folders_by_split(tmp_path: Path) -> None:
    for split, text in (("train", "a cat"), ("validation", "a dog")):
        (tmp_path / f"{split}.jsonl").write_text(json.dumps({"text": text}))
    assert from_data_set(f"dataset:{tmp_path}#text", 1).texts == ("a cat",)
    assert from_data_set(f"dataset:{tmp_path}#text@validation", 1).texts == ("a dog",)
    with pytest.raises(ConfigurationError, match="Bad split: test"):
        from_data_set(f"dataset:{tmp_path}#text@test", 1)


def test_a_known_data_set_is_read_by_its_path_column_and_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"captions": ["a cat", "one cat"], "pixels": [0]}, {"captions": ["a dog"], "pixels": [1]}]
    (tmp_path / "validation.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert set(DATA_SETS) == {"parti-prompts", "coco-2014", "coco-2017"}
    known = DATA_SETS["coco-2017"]
    monkeypatch.setitem(DATA_SETS, "coco-2017", DataSet(str(tmp_path), known.column, known.split))
    assert from_data_set("coco-2017", 2).texts == ("a cat", "a dog")


@pytest.mark.parametrize(
    ("ending", "count", "message"),
    [
        ("#prompt", 3, "expected a data set with texts in a column 'prompt': there are Prompt, Category"),
        ("#Prompt", 4, "expected 4, got 3"),
        ("#Prompt", None, "expected 64, got 3"),
    ],
)
def test_what_a_data_set_lacks_is_named(ending: str, count: int | None, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=message):
        from_data_set(f"dataset:{write(tmp_path, 'jsonl')}{ending}", count)


@pytest.mark.parametrize("value", [3, None, "", []])
def test_a_row_without_text_is_named(value: object, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"text": value}))
    with pytest.raises(ConfigurationError, match="column 'text': row 0 holds "):
        from_data_set(f"dataset:{tmp_path / 'rows.jsonl'}#text", 1)


def test_names_that_are_no_data_set_are_refused(tmp_path: Path) -> None:
    for name in ("cats", "dataset:cats", "dataset:#Prompt"):
        with pytest.raises(
            ConfigurationError, match="expected parti-prompts, coco-2014, coco-2017 or dataset:PATH_OR_NAME#COLUMN"
        ):
            from_data_set(name)
    with pytest.raises(ConfigurationError, match="Couldn't find any data file"):
        from_data_set(f"dataset:{tmp_path / 'missing'}#Prompt")


def test_without_the_library_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ConfigurationError, match=r"parti-prompts: to read it, install 'datasets' \(the extra"):
        from_data_set("parti-prompts", 1)
