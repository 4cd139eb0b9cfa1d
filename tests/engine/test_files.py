"""Writing files: what two writers, a failure or a kill leave behind."""

import pytest

from latentsync.files import atomic_path


def test_the_file_appears_when_it_is_complete(tmp_path):
    final = tmp_path / "out.json"
    with atomic_path(final) as part:
        part.write_text("new")
        assert part.parent == tmp_path
        assert not final.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert final.read_text() == "new"


def write_and_fail(final, text, error):
    with atomic_path(final) as part:
        part.write_text(text)
        raise error


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    final = tmp_path / "out.json"
    final.write_text("old")
    with pytest.raises(error):
        write_and_fail(final, "half", error)
    assert [p.name for p in tmp_path.iterdir()] == ["out.json"]
    assert final.read_text() == "old"


def test_a_writer_that_fails_does_not_harm_another_one_of_the_same_file(tmp_path):
    final = tmp_path / "out.json"
    with atomic_path(final) as first:
        first.write_text("first")
        with pytest.raises(ValueError, match="stopped"):
            write_and_fail(final, "second", ValueError("stopped"))
    assert final.read_text() == "first"
