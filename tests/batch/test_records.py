"""What is remembered from run to run, and what a report adds up."""

import json

from latentsync.batch.jobs import read_jobs
from latentsync.batch.results import TITLES, Records, summary, table, tail


def row(key="k", line=2, **more):
    facts = {"frames": 50, "video_seconds": 2.0, "seconds": 6.0, "seconds_per_video_second": 3.0, "load_seconds": 1.5}
    base = {"key": key, "line": line, "out": "x/1.mp4", "status": "done", "tries": 1, "worker": "a:1", "bytes": 4}
    return base | facts | more


def test_a_job_is_done_while_its_output_is_there_unchanged(tmp_path):
    (tmp_path / "v.mp4").write_bytes(b"x")
    (tmp_path / "jobs.csv").write_text("video,out\nv.mp4,1.mp4\n")
    job = read_jobs(tmp_path / "jobs.csv")[0]
    path = tmp_path / "r.jsonl"
    records = Records(path)
    assert records.done(job, "k") is None
    records.add(row())
    assert records.done(job, "k") is None  # no output
    job.out.write_bytes(b"four")
    assert Records(path).done(job, "k") == row()
    assert Records(path).done(job, "other") is None
    job.out.write_bytes(b"longer")
    assert Records(path).done(job, "k") is None
    job.out.write_bytes(b"four")
    Records(path).add(row(status="failed"))
    assert Records(path).done(job, "k") is None  # the last word counts


def test_a_torn_line_costs_only_itself(tmp_path):
    path = tmp_path / "r.jsonl"
    Records(path).add(row("a"))
    with path.open("a") as file:
        file.write('{"key": "b", "stat')
    again = Records(path)
    assert set(again.rows) == {"a"}
    again.add(row("c"))
    again.add(row("d"))
    assert set(Records(path).rows) == {"a", "c", "d"}
    path.write_text('[1]\n3\n{"no": "key"}\n' + json.dumps(row("e")) + "\n")
    assert set(Records(path).rows) == {"e"}


def test_sums():
    rows = [
        row(worker="a:1"),
        row(line=3, worker="a:1", seconds=2.0),
        row(line=4, worker="b:1", load_seconds=2.5),
        row(line=5, status="skipped", seconds=100.0),
        {"key": "z", "line": 6, "out": "2.mp4", "status": "failed", "tries": 3, "worker": "", "error": "e" * 200},
    ]
    facts = summary(rows, wall=7.0)
    assert (facts["jobs"], facts["done"], facts["skipped"], facts["failed"]) == (5, 3, 1, 1)
    assert (facts["frames"], facts["video_seconds"], facts["seconds"]) == (150, 6.0, 14.0)
    assert facts["load_seconds"] == 4.0  # once for each worker
    assert facts["seconds_per_video_second"] == round(14 / 6, 4)
    assert facts["wall_seconds_per_video_second"] == round(7 / 6, 4)
    assert "3 done, 1 skipped, 1 failed of 5" in tail(facts)
    cells = table(rows)
    assert all(len(line) == len(TITLES) for line in cells)
    assert cells[-1][-1].endswith("…")
    nothing = summary(rows[3:], wall=0.1)
    assert nothing["seconds_per_video_second"] is None
    assert "0 done" in tail(nothing)
