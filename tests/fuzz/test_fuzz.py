"""A few of what `make fuzz` tries; FUZZ says how many in all."""

import os
import random
from pathlib import Path

import pytest

from latentsync.comfy_client import prompt
from latentsync.errors import UserError, is_out_of_memory
from latentsync.files import parse_json

from . import parsers
from .mutate import damaged, odd_bytes
from .run import fuzz
from .seeds import WORKFLOW


def test_damaged_files_are_read_or_refused(tmp_path: Path) -> None:
    each = max(1, int(os.environ.get("FUZZ", "300")) // len(parsers.NAMES))
    assert fuzz(parsers.NAMES, each, tmp_path, 1, together=True) == []


def test_inputs_are_made_from_their_numbers() -> None:
    first, second = (
        (damaged(rng, bytes(range(200))), odd_bytes(rng, WORKFLOW))
        for rng in (random.Random("a:1"), random.Random("a:1"))
    )
    assert first == second


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[" * 10_000 + "]" * 10_000, "nested more than 100 levels"),
        ('{"a":' * 10_000, "nested more than 100 levels"),
        ('{"1": {"class_type": "A", "inputs": {"x": ' + "[" * 300 + "]" * 300 + "}}}", "nested more than 100 levels"),
        ('{"1": {"class_type": "\\ud800"}}', r"half of a character, \\ud800"),
    ],
)
def test_deep_or_odd_workflows_are_one_sentence(tmp_path: Path, text: str, why: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=f"a.json is not JSON .*{why}"):
        prompt.read(path)


def test_pairs_and_names_of_files_stay() -> None:
    assert parse_json('"\\ud83d\\ude00"', strict=True) == "😀"
    assert parse_json('"\\udc80"') == "\udc80"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes."),
            True,
        ),
        (OSError(12, "Cannot allocate memory"), True),
        (RuntimeError("shape mismatch"), False),
        (UserError("std::bad_alloc"), False),
    ],
)
def test_too_little_memory_is_told_from_other_errors(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected
