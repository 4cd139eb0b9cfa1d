"""The log of a run and its picture."""

import json

import cv2
import pytest
from typer.testing import CliRunner

from latentsync.cli import main as cli
from latentsync.errors import UserError
from latentsync.training.logging import EVENTS, LOG, RunLog, draw_charts, draw_runs, panels, read_log, series, smoothed


@pytest.fixture
def log(tmp_path):
    return RunLog(tmp_path)


def test_means_between_lines(log, tmp_path):
    for value in (1.0, 2.0, 6.0):
        log.add({"loss/noise": value})
    log.write(3, log.means())
    assert log.means() == {}
    assert read_log(tmp_path)[0]["loss/noise"] == 3.0


def test_going_on_forgets_what_came_after(log, tmp_path):
    for step in range(1, 7):
        log.write(step, {"x": step / 3})
    with (tmp_path / LOG).open("a") as file:
        file.write('{"step": 7, "x":')  # killed in the middle of a line
    log.truncate(4)
    log.write(5, {"x": -1.0})
    assert [(line["step"], line["x"]) for line in read_log(tmp_path)] == [
        *((step, step / 3) for step in range(1, 5)),
        (5, -1.0),
    ]


def test_only_the_main_process_writes_curves(tmp_path):
    other = RunLog(tmp_path, main=False)
    other.write(1, {"x": 1.0})
    assert not (tmp_path / LOG).exists()
    assert other.event(4, "clip replaced", why="broken") == "step 4: clip replaced why=broken"
    assert json.loads((tmp_path / EVENTS).read_text())["event"] == "clip replaced"


def test_no_number_is_written_as_none(log, tmp_path):
    log.write(1, {"loss": float("nan"), "x": float("inf"), "y": 2.0})
    assert read_log(tmp_path)[0]["loss"] is None
    assert series(read_log(tmp_path)) == {"y": ([1], [2.0])}


def test_the_later_of_two_lines_counts():
    lines = [{"step": 2, "x": 1.0}, {"step": 1, "x": 0.5}, {"step": 2, "x": 3.0, "time": 9.0}]
    assert series(lines) == {"x": ([1, 2], [0.5, 3.0])}


def test_what_belongs_together_shares_a_panel():
    names = ["loss/noise", "loss/sync", "validation/noise", "gradient"]
    assert panels(names) == {
        "noise": ["loss/noise", "validation/noise"],
        "sync": ["loss/sync"],
        "gradient": ["gradient"],
    }


def test_smoothing_keeps_a_line_straight():
    values = [float(i) for i in range(100)]
    assert smoothed(values)[10:90] == pytest.approx(values[10:90])
    assert smoothed([1.0]) == [1.0]


def test_the_picture(log, tmp_path):
    with pytest.raises((UserError, FileNotFoundError)):
        draw_charts(tmp_path)
    for step in range(1, 80):
        log.write(step, {"loss/noise": 1 / step, "gradient": 2.0 / step, "clips per second": 3.0})
        if step % 20 == 0:
            log.write(step, {"validation/noise": 1.2 / step})
    picture = cv2.imread(str(draw_charts(tmp_path)))
    assert picture.shape[1] > 1000
    assert picture.std() > 10
    assert not list(tmp_path.glob(".*"))


def run_of(folder, scale):
    log = RunLog(folder)
    for step in range(1, 80):
        log.write(step, {"loss/noise": scale / step, "gradient": 2.0 / step})
        if step % 20 == 0:
            log.write(step, {"validation/noise": 1.2 * scale / step})
    return folder


def test_runs_over_each_other(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "latentsync.training.logging._draw", lambda subjects, title, path: drawn.append((subjects, title))
    )
    folders = [run_of(tmp_path / name, scale) for name, scale in (("a/run", 1), ("b/run", 2))]
    draw_runs(folders, tmp_path / "runs.png")
    ((subjects, title),) = drawn
    assert title == "a/run · b/run"
    noise = [(curve.label, curve.color, curve.style, curve.noisy) for curve in subjects["noise"]]
    assert noise == [
        ("a/run loss", "C0", "-", True), ("a/run validation", "C0", "--", False),
        ("b/run loss", "C1", "-", True), ("b/run validation", "C1", "--", False),
    ]  # fmt: skip
    assert [curve.values[0] for curve in subjects["noise"]] == [1, 0.06, 2, 0.12]
    assert [curve.label for curve in subjects["gradient"]] == ["a/run", "b/run"]


def test_the_command_compares_runs(tmp_path):
    one, two = (run_of(tmp_path / name, scale) for name, scale in (("one", 1), ("two", 2)))
    out = tmp_path / "both.png"
    done = CliRunner().invoke(cli.app, ["train", "charts", str(one), str(two), "-o", str(out)])
    assert done.output.strip() == str(out)
    assert cv2.imread(str(out)).std() > 10
    for words, said in (([str(one), str(one)], "named twice"), ([str(one), str(tmp_path)], "has no log.jsonl")):
        failed = CliRunner().invoke(cli.app, ["train", "charts", *words, "-o", str(out)])
        assert (failed.exit_code, said in failed.output) == (2, True)
