"""What is to be drawn, from text files and lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tokenprune.errors import ConfigurationError
from tokenprune.generate.jobs import MOST_SEED, Job, batches_of, digest, jobs_of, read_jobs


def write(path: Path, *lines: object) -> Path:
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def test_a_text_file_has_a_prompt_a_line(tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.txt", "# two", "a cat", "", " a dog ")
    assert read_jobs(file, 5) == (Job("000000", "a cat", 5), Job("000001", "a dog", 6))
    assert read_jobs(file, count=1) == (Job("000000", "a cat", 0),)


def test_lines_of_json_may_say_seeds_and_names(tmp_path: Path) -> None:
    lines = ({"prompt": "a cat", "seed": 7, "name": "cats/one"}, "", {"prompt": " a dog "}, {"prompt": "#", "seed": 0})
    file = write(tmp_path / "prompts.jsonl", *lines)
    found = read_jobs(file, 3)
    assert found == (Job("cats/one", "a cat", 7), Job("000001", "a dog", 4), Job("000002", "#", 0))
    assert read_jobs(file, 3, 2) == found[:2]


def test_seeds_and_names_go_by_the_place_alone() -> None:
    many = jobs_of(f"prompt {number}" for number in range(1200))
    assert many[:3] == jobs_of(["prompt 0", "prompt 1", "prompt 2"])
    assert (many[1100].name, many[1100].seed) == ("001100", 1100)
    assert len({job.name for job in many}) == 1200


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "expected JSON: "),
        ("[1]", r"expected an object with prompt, seed, name, got \[1\]"),
        ({"prompt": "a", "sead": 1}, "expected an object with prompt, seed, name, got "),
        ({"seed": 1}, "prompt: expected text, got None"),
        ({"prompt": " "}, "prompt: expected text, got ' '"),
        ({"prompt": "a", "seed": -1}, f"seed: expected a whole number from 0 to {MOST_SEED}, got -1"),
        ({"prompt": "a", "seed": True}, "seed: expected a whole number"),
        ({"prompt": "a", "seed": 1.0}, "seed: expected a whole number"),
        ({"prompt": "a", "seed": 2**63}, "seed: expected a whole number"),
        ({"prompt": "a", "name": "../a"}, "name: expected letters, digits"),
        ({"prompt": "a", "name": "/a"}, "name: expected letters, digits"),
        ({"prompt": "a", "name": "a/../../b"}, "name: expected letters, digits"),
        ({"prompt": "a", "name": ".a"}, "name: expected letters, digits"),
        ({"prompt": "a", "name": "a\n"}, "name: expected letters, digits"),
        ({"prompt": "a", "name": 3}, "name: expected letters, digits"),
        ({"prompt": "a", "name": "000000"}, "name: expected one of its own, got '000000' again"),
    ],
)
def test_a_line_that_says_something_else_is_named(line: object, message: str, tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.jsonl", {"prompt": "first"}, "", line)
    with pytest.raises(ConfigurationError, match=rf"prompts\.jsonl, line 3: {message}"):
        read_jobs(file)


def test_a_file_with_too_few_or_no_prompts_is_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "prompts.jsonl", {"prompt": "one"})
    with pytest.raises(ConfigurationError, match=r"prompts\.jsonl: expected 2 prompts, got 1"):
        read_jobs(file, count=2)
    with pytest.raises(ConfigurationError, match=r"empty\.jsonl: expected some prompts, got none"):
        read_jobs(write(tmp_path / "empty.jsonl"))
    for name in ("missing.jsonl", "missing.txt"):
        with pytest.raises(ConfigurationError, match=f"{name}: expected "):
            read_jobs(tmp_path / name)


def test_batches_and_digest() -> None:
    jobs = jobs_of("abcde")
    assert batches_of(jobs, 2) == [jobs[:2], jobs[2:4], jobs[4:]]
    assert digest(jobs) == digest(list(jobs))
    assert len({digest(jobs), digest(jobs[:4]), digest(jobs[::-1]), digest(jobs_of("abcde", 1))}) == 4
