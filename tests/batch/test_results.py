"""What is remembered from run to run, and what a report adds up."""

import json

from latentsync.batch.jobs import read_jobs
from latentsync.batch.results import TITLES, ResultsLog, footer, summary
from latentsync.batch.results import cells as cells_of


def row(key="k", line=2, **more):
    facts = {"frames": 50, "video_s": 2.0, "compute_s": 6.0, "realtime_factor": 3.0, "load_s": 1.5}
    base = {"key": key, "line": line, "out": "x/1.mp4", "status": "done", "attempts": 1, "worker": "a:1", "bytes": 4}
    return base | facts | more


def test_a_job_is_done_while_its_output_is_there_unchanged(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"x")
    (tmp_path / "jobs.csv").write_text("video,out\nv.mp4,1.mp4\n")
    job = read_jobs(tmp_path / "jobs.csv")[0]
    path = tmp_path / "r.jsonl"
    records = ResultsLog(path)
    assert records.finished(job, "k") is None
    records.add(row())
    assert records.finished(job, "k") is None  # no output
    job.out.write_bytes(b"four")
    assert ResultsLog(path).finished(job, "k") == row()
    assert ResultsLog(path).finished(job, "other") is None
    job.out.write_bytes(b"longer")
    assert ResultsLog(path).finished(job, "k") is None
    job.out.write_bytes(b"four")
    ResultsLog(path).add(row(status="failed"))
    assert ResultsLog(path).finished(job, "k") is None  # the last word counts


def test_a_torn_line_costs_only_itself(tmp_path):
    path = tmp_path / "r.jsonl"
    ResultsLog(path).add(row("a"))
    with path.open("a") as file:
        file.write('{"key": "b", "stat')
    again = ResultsLog(path)
    assert set(again.results) == {"a"}
    again.add(row("c"))
    again.add(row("d"))
    assert set(ResultsLog(path).results) == {"a", "c", "d"}
    path.write_text('[1]\n3\n{"no": "key"}\n' + json.dumps(row("e")) + "\n")
    assert set(ResultsLog(path).results) == {"e"}


def test_sums():
    rows = [
        row(worker="a:1"),
        row(line=3, worker="a:1", compute_s=2.0),
        row(line=4, worker="b:1", load_s=2.5),
        row(line=5, status="skipped", compute_s=100.0),
        {"key": "z", "line": 6, "out": "2.mp4", "status": "failed", "attempts": 3, "worker": "", "error": "e" * 200},
    ]
    facts = summary(rows, elapsed_s=7.0)
    assert (facts["jobs"], facts["done"], facts["skipped"], facts["failed"]) == (5, 3, 1, 1)
    assert (facts["frames"], facts["video_s"], facts["compute_s"]) == (150, 6.0, 14.0)
    assert facts["load_s"] == 4.0  # once for each worker
    assert facts["realtime_factor"] == round(14 / 6, 4)
    assert facts["elapsed_factor"] == round(7 / 6, 4)
    assert "3 done, 1 skipped, 1 failed of 5" in footer(facts)
    cells = list(map(cells_of, rows))
    assert all(len(line) == len(TITLES) for line in cells)
    assert cells[-1][-1].endswith("…")
    nothing = summary(rows[3:], elapsed_s=0.1)
    assert nothing["realtime_factor"] is None
    assert "0 done" in footer(nothing)
