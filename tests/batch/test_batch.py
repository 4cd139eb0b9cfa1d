"""A list of jobs from end to end, on this machine: what is done, skipped, failed, and what the report says."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentsync.batch.jobs import read_jobs
from latentsync.batch.parallel.processes import InProcessPool, ProcessPool
from latentsync.batch.results import ResultsLog
from latentsync.batch.runner import Batch
from latentsync.batch.worker import LipSyncWorker
from latentsync.cli.main import app
from latentsync.pipeline import lipsync_file
from latentsync.settings import Settings

from .parts import DIE, Mortal

ROOT = Path(__file__).resolve().parents[2]
LIST = """video,audio,out,steps,guidance,fit
a.mp4,,a.mp4,1,1,
gray.mp4,,gray.mp4,1,1,
face.png,say.wav,face.mp4,2,1.5,hold
"""


@pytest.fixture
def jobs(material):
    path = material / "jobs.csv"
    path.write_text(LIST)
    return path


def command(jobs, spec, *more):
    return ["batch", str(jobs), "-c", spec.checkpoint, "--whisper", spec.whisper, "--device", "cpu", *map(str, more)]


def test_a_list_on_the_command_line(jobs, spec, material, tmp_path):
    """One job fails and the others are made; a second run has nothing to do but the failed one; --again does all."""
    out, runner = tmp_path / "results", CliRunner()
    told = runner.invoke(app, command(jobs, spec, "--out", out))
    assert told.exit_code == 1
    assert "2 done, 0 skipped, 1 failed of 3 jobs" in told.output
    assert "No face was found in any of the 8 frames" in told.output
    assert sorted(p.name for p in out.iterdir()) == ["a.mp4", "face.mp4", "jobs.report.json", "jobs.report.jsonl"]
    report = json.loads((out / "jobs.report.json").read_text())
    assert [(row["line"], row["status"], row["attempts"]) for row in report["jobs"]] == [
        (2, "done", 1),
        (3, "failed", 1),
        (4, "done", 1),
    ]
    first = report["jobs"][0]
    assert (first["frames"], first["video_s"], first["settings"]["steps"]) == (20, 0.8, 1)
    assert first["compute_s"] > 0
    assert first["realtime_factor"] == pytest.approx(first["compute_s"] / 0.8, abs=1e-3)
    assert {"track", "sample", "write"} <= first["timings"].keys()
    assert report["summary"]["frames"] == 40
    assert len(report["jobs"][2]["worker"]) > 2

    made = {name: (out / name).stat().st_mtime_ns for name in ("a.mp4", "face.mp4")}
    told = runner.invoke(app, command(jobs, spec, "--out", out))
    assert told.exit_code == 1
    assert "0 done, 2 skipped, 1 failed of 3 jobs" in told.output
    assert made == {name: (out / name).stat().st_mtime_ns for name in made}
    jobs.write_text(LIST.replace("a.mp4,1,1", "a.mp4,2,1").replace("gray.mp4,,gray.mp4,1,1,\n", ""))
    told = runner.invoke(app, command(jobs, spec, "--out", out))  # another setting is another job
    assert told.exit_code == 0
    assert "1 done, 1 skipped, 0 failed of 2 jobs" in told.output
    told = runner.invoke(
        app, command(jobs, spec, "--out", out, "--overwrite", "--segment-seconds", "0.5", "--json", tmp_path / "r.json")
    )
    assert "2 done, 0 skipped, 0 failed of 2 jobs" in told.output
    report = json.loads((tmp_path / "r.json").read_text())
    assert {row["worker"] for row in report["jobs"]} == {"all"}


def test_bad_lists_and_places_are_told_before_anything_is_loaded(jobs, spec, tmp_path):
    runner = CliRunner()
    jobs.write_text(LIST.replace("gray.mp4,,", "none.mp4,,"))
    told = runner.invoke(app, command(jobs, spec, "--out", tmp_path / "out"))
    assert told.exit_code == 2
    assert "Line 3: there is no file" in told.output
    jobs.write_text(LIST)
    for more in (
        ["--json", tmp_path / "x.txt"],
        ["--json", tmp_path / "no" / "x.json"],
        ["--gpus-per-worker", "0.5"],
    ):
        told = runner.invoke(app, command(jobs, spec, "--out", tmp_path / "out", *more))
        assert told.exit_code == 2, told.output
    told = runner.invoke(app, ["batch", str(jobs), "--out", str(tmp_path / "out"), "-c", "no-such-model"])
    assert told.exit_code == 2
    assert "could not load the models" in told.output
    assert not list(tmp_path.rglob("*.mp4"))


def test_runs_into_one_path_do_not_disturb_each_other(spec, material, tmp_path):
    """While one writes, another begins and is cancelled, and a third one ends: each result is whole."""
    out, settings, begun = tmp_path / "out.mp4", Settings(steps=1, guidance=1), []

    def cancel(progress):
        raise KeyboardInterrupt

    def in_between(progress):
        if progress.stage != "sample" or begun:
            return
        begun.append(progress)
        with pytest.raises(KeyboardInterrupt):
            lipsync_file(material / "b.mp4", None, out, models=models, settings=settings, on_step=cancel)
        assert not out.exists()
        lipsync_file(material / "b.mp4", None, out, models=models, settings=settings)
        assert [path.read_bytes() for path in tmp_path.glob("*.mp4")] == [(tmp_path / "b" / "b.mp4").read_bytes()]

    with spec.load() as models:
        for name in "ab":
            (tmp_path / name).mkdir()
            plain = tmp_path / name / f"{name}.mp4"
            lipsync_file(material / f"{name}.mp4", None, plain, models=models, settings=settings)
        lipsync_file(material / "a.mp4", None, out, models=models, settings=settings, on_step=in_between)
    assert begun
    assert out.read_bytes() == (tmp_path / "a" / "a.mp4").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "out.mp4"]


@pytest.mark.slow
def test_a_process_that_dies_in_the_middle_loses_no_job(jobs, spec, material, tmp_path, monkeypatch):
    """Two processes; the first that paints a mouth dies. All is made, the same as by a plain run."""
    monkeypatch.setenv(DIE, str(tmp_path / "marker"))
    jobs.write_text("video,audio,steps,guidance\na.mp4,say.wav,1,1\nb.mp4,say.wav,1,1\n")
    listed, out = read_jobs(jobs, tmp_path / "out"), tmp_path / "out"
    out.mkdir()
    pool = ProcessPool(spec, 2, Mortal)
    rows = Batch(spec).run(listed, pool, ResultsLog(out / "r.jsonl"))
    pool.close()
    assert [row["status"] for row in rows] == ["done", "done"]
    assert sorted(row["attempts"] for row in rows) == [1, 2]
    assert sorted(p.name for p in out.iterdir()) == ["a.mp4", "b.mp4", "r.jsonl"]
    with spec.load() as models:
        for job in listed:
            plain = tmp_path / job.out.name
            lipsync_file(job.video, job.audio, plain, models=models, settings=Settings(steps=1, guidance=1))
            assert plain.read_bytes() == job.out.read_bytes()


def test_records_are_there_as_soon_as_a_job_is(jobs, spec, tmp_path):
    """Whoever is interrupted keeps what is done: the second job does not begin before the first is written down."""
    (out := tmp_path / "out").mkdir()
    seen = []

    def stop(row):
        seen.append(row)
        raise KeyboardInterrupt

    pool = InProcessPool(spec, LipSyncWorker)
    with pytest.raises(KeyboardInterrupt):
        Batch(spec).run(read_jobs(jobs, out), pool, ResultsLog(out / "r.jsonl"), stop)
    pool.close()
    assert [json.loads(line)["line"] for line in (out / "r.jsonl").read_text().splitlines()] == [2]
    assert sorted(p.name for p in out.iterdir()) == ["a.mp4", "r.jsonl"]


@pytest.mark.parametrize("segments", [None, 0.5])
def test_a_programming_error_keeps_its_traceback(jobs, spec, tmp_path, caplog, monkeypatch, segments):
    """In the log, and in short form in the results; a UserError is one sentence."""

    def broken(*_, **__):
        raise RuntimeError("off by one")

    monkeypatch.setattr("latentsync.pipeline.lipsync_file", broken)
    monkeypatch.setattr("latentsync.batch.segments.lipsync_segments", broken)
    (out := tmp_path / "out").mkdir()
    log = ResultsLog(out / "r.jsonl")
    with closing(InProcessPool(spec, LipSyncWorker)) as pool:
        first, *_ = Batch(spec, segment_seconds=segments).run(read_jobs(jobs, out), pool, log)
    assert first["error"] == "RuntimeError: off by one"
    assert first["traceback"][-1].startswith("test_batch.py:")
    assert "in broken" in caplog.text
    assert json.loads((out / "r.jsonl").read_text().splitlines()[0])["traceback"] == first["traceback"]


posix = pytest.mark.skipif(os.name != "posix", reason="signals are those of POSIX")


@posix
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_leaves_no_partial_file(jobs, spec, material, tmp_path, workers):
    """The real command, interrupted while it paints; what was whole stays."""
    rows = "".join(f"a.mp4,say.wav,long{i}.mp4,900,1,hold\n" for i in range(workers))
    jobs.write_text("video,audio,out,steps,guidance,fit\n" + rows)
    out = tmp_path / "out"
    arguments = command(jobs, spec, "--out", out, "--workers", workers)
    process = started(tmp_path, arguments)
    wait_until(lambda: len(list(out.glob(".*.part"))) == workers, process)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "interrupted" in said
    assert not [p for p in out.iterdir() if p.suffix != ".jsonl"]


@posix
@pytest.mark.slow
def test_killed_by_force_it_goes_on(jobs, spec, material, tmp_path):
    """The workers of a killed command end and clear away; what it had written down is not done again."""
    jobs.write_text("video,audio,out,steps,guidance\na.mp4,say.wav,short.mp4,1,1\na.mp4,say.wav,long.mp4,600,1\n")
    out, arguments = tmp_path / "out", command(jobs, spec, "--out", tmp_path / "out", "--workers", 2)
    process = started(tmp_path, arguments)
    wait_until(lambda: (out / "short.mp4").exists() and list(out.glob(".long*.part")), process)
    wait_until((out / "jobs.report.jsonl").exists, process)
    process.kill()
    process.communicate(timeout=300)  # its workers hold the other end until they have ended
    assert sorted(path.name for path in out.iterdir()) == ["jobs.report.jsonl", "short.mp4"]
    made = (out / "short.mp4").stat().st_mtime_ns
    told = CliRunner().invoke(app, arguments)
    assert "1 done, 1 skipped, 0 failed of 2 jobs" in told.output
    assert sorted(p.name for p in out.iterdir()) == ["jobs.report.json", "jobs.report.jsonl", "long.mp4", "short.mp4"]
    assert (out / "short.mp4").stat().st_mtime_ns == made


def started(folder, arguments):
    """The command in a process of its own that hears Ctrl-C, which Python as a shell's background job would not."""
    script = folder / "run.py"
    script.write_text(
        f"import signal, sys\nsys.path.insert(0, {str(ROOT)!r})\nif __name__ == '__main__':\n"
        "    signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "    from latentsync.cli.main import main\n    main()\n"
    )
    return subprocess.Popen([sys.executable, script, *arguments], stderr=subprocess.PIPE, text=True, cwd=folder)


def wait_until(true, process):
    for _ in range(2400):
        if true():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    pytest.fail("the run did not get so far")


def test_speakers_are_run_whole_whatever_the_segments(material, spec, tmp_path):
    """Two people of one picture, and a clip beside it; the same file as a single run makes."""
    import cv2
    import numpy as np

    face = cv2.imread(str(material / "face.png"))
    cv2.imwrite(str(tmp_path / "two.png"), np.concatenate((face, face[:, ::-1]), 1))
    say, how = material / "say.wav", {"steps": 1, "guidance": 1}
    rows = [
        {"video": "two.png", "out": "two.mp4", "speakers": [f"left={say}", f"right={say}@0.4"], **how},
        {"video": str(material / "a.mp4"), "out": "a.mp4", "spans": "0-0.4", **how},
    ]
    (tmp_path / "jobs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    jobs = read_jobs(tmp_path / "jobs.jsonl", tmp_path)
    with closing(InProcessPool(spec, LipSyncWorker)) as pool:
        for seconds in (None, 0.3):
            results = Batch(spec, segment_seconds=seconds, overwrite=True).run(
                jobs, pool, ResultsLog(tmp_path / "log.jsonl")
            )
            assert [(one["status"], one["frames"]) for one in results] == [("done", 30), ("done", 20)]
            assert results[0]["speakers"][1] == f"right={say}@0.4"
            assert "speakers" not in results[1]
            assert results[1]["repainted"] == 10
            data = (tmp_path / "two.mp4").read_bytes()
            lipsync_file(
                jobs[0].video,
                jobs[0].speakers,
                tmp_path / "wanted.mp4",
                models=pool.worker.models,
                settings=jobs[0].settings,
            )
            assert data == (tmp_path / "wanted.mp4").read_bytes()
