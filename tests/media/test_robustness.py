"""A part of the matrix in docs/robustness.md: one case of each container and of each kind of encoder."""

import pytest

from benchmarks.robustness import all_cases, check, document

SPREAD = [case for _, case in all_cases()][::45]


@pytest.mark.parametrize("case", SPREAD, ids=str)
def test_a_file_comes_through(tmp_path, case):
    outcome = check(case, tmp_path)
    if outcome.missing:
        pytest.skip(f"not built in: {outcome.missing}")
    assert not outcome.faults


def test_the_matrix_is_wide():
    cases = [case for _, case in all_cases()]
    assert len(set(cases)) > 300
    assert {case.family.suffix for case in cases} >= {".mp4", ".mov", ".mkv", ".webm", ".avi", ".ts", ".mpg", ".flv"}


def test_a_failure_is_shown_with_its_figure(tmp_path):
    kind, case = all_cases()[0]
    outcome = check(case, tmp_path)
    outcome.faults.append("color error 7.00 of 255")
    text = document([(kind, outcome)])
    assert "**0 of 1 cases passed.**" in text
    assert f"- {case}: color error 7.00 of 255" in text
