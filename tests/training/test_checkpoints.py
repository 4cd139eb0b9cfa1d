"""Checkpoints are whole or absent; trouble is skipped, then undone; runs end by a rule."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from latentsync.errors import UserError
from latentsync.training.checkpoints import STATE, Checkpoints, EarlyStopping, StepGuard, load_state, save_state
from latentsync.training.optim import drop_gradients

G, B = True, False


@pytest.mark.parametrize(
    ("story", "verdicts"),
    [
        ([G, G], ["step", "step"]),
        ([B, G, B, B], ["skip", "step", "skip", "skip"]),
        ([B, B, B, G], ["skip", "skip", "roll back", "step"]),
        ([B] * 9, ["skip", "skip", "roll back"] * 3),
        ([B] * 12, [*(["skip", "skip", "roll back"] * 3), "skip", "skip", "give up"]),
    ],
)
def test_the_guards_verdicts(story, verdicts):
    guard = StepGuard(3)
    assert [guard.check(finite) for finite in story] == verdicts


def test_a_new_checkpoint_ends_the_trouble():
    guard = StepGuard(1)
    for _ in range(9):
        assert guard.check(B) == "roll back"
        guard.rollbacks = 0  # as Trainer.save does
    assert guard.skipped == 9


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 5))
def test_no_checkpoint_in_the_middle_of_trouble(story, patience):
    guard = StepGuard(patience)
    for finite in story:
        verdict = guard.check(finite)
        assert guard.stable == (verdict in ("step", "roll back"))


def write(text):
    def fill(folder):
        (folder / "weights").write_text(text)
        save_state(folder, step=1)

    return fill


def test_a_checkpoint_is_whole_or_absent(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)

    def broken(folder):
        (folder / "weights").write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        checkpoints.save(5, broken)
    assert checkpoints.latest() is None
    assert not list(checkpoints.folder.iterdir())
    place = checkpoints.save(5, write("good"))
    assert place.name == "step-00000005"
    with pytest.raises(UserError):
        checkpoints.save(5, broken)
    assert (place / "weights").read_text() == "good"
    checkpoints.save(5, write("better"))
    assert (place / "weights").read_text() == "better"


def test_the_newest_and_the_best_stay(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for step in (0, 10, 20, 30, 40):
        checkpoints.save(step, write(str(step)))
        if step == 10:
            checkpoints.set_best(10, 0.5)
        checkpoints.prune()
    assert checkpoints.steps() == [10, 30, 40]
    assert checkpoints.best() == 10
    (checkpoints.folder / ".dead.part").mkdir()
    checkpoints.prune()
    assert not list(checkpoints.folder.glob("*.part"))
    checkpoints.drop_after(30)
    assert checkpoints.latest() == 30


def test_a_state_that_is_missing_or_damaged(tmp_path):
    with pytest.raises(UserError, match="cannot resume from it"):
        load_state(tmp_path)
    (tmp_path / STATE).write_bytes(b"PK\x03\x04 nothing")
    with pytest.raises(UserError, match="is damaged"):
        load_state(tmp_path)


def test_patience():
    patience = EarlyStopping(2)
    assert [patience.improved(v) for v in (3.0, 2.0, 2.0, 1.9, 5.0)] == [True, True, False, True, False]
    assert not patience.exhausted
    assert not patience.improved(1.9)
    assert patience.exhausted
    endless = EarlyStopping(0)
    assert endless.improved(1.0)
    assert not any(endless.improved(1.0) for _ in range(9))
    assert not endless.exhausted


def test_a_scaler_is_told_of_a_step_that_is_not_taken():
    """torch's own gradient scaler, which refuses to look at gradients twice without a word between."""
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer, scaler = torch.optim.AdamW([weight]), torch.amp.GradScaler("cpu", init_scale=8.0)
    for _ in range(2):
        scaler.scale((weight * float("inf")).sum()).backward()
        scaler.unscale_(optimizer)
        drop_gradients(optimizer, scaler)
    assert scaler.get_scale() == 2.0
    assert weight.grad is None
    scaler.scale(weight.sum()).backward()
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    assert (weight < 1).all()
