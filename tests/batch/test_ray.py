"""The same on Ray: two nodes on this machine give what one process gives, and a dead actor costs nothing."""

import json
import sys

import pytest
from typer.testing import CliRunner

from latentsync.batch.jobs import read_jobs
from latentsync.batch.parallel.dispatch import map_calls
from latentsync.batch.parallel.processes import InProcessPool
from latentsync.batch.parallel.worker import Call
from latentsync.batch.results import ResultsLog
from latentsync.batch.runner import Batch
from latentsync.batch.worker import LipSyncWorker
from latentsync.cli.main import app
from latentsync.errors import UserError

from ..ray_nodes import two_nodes
from .parts import DIE, Mortal, Plain, frames_of

ray = pytest.importorskip(
    "ray", reason='Ray is not here (pip install "ray[data,train]"): batches on clusters are not tested'
)

from latentsync.batch.parallel import ray_pool  # noqa: E402
from latentsync.batch.parallel.ray_pool import RayPool, capacity, connect, has_free_resources, worker_resources  # noqa: E402

pytestmark = pytest.mark.slow
NODE = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
LIST = """video,audio,out,steps,guidance
a.mp4,,a.mp4,1,1
gray.mp4,,gray.mp4,1,1
b.mp4,say.wav,b.mp4,1,1
"""


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one core each; this process is the driver."""
    with two_nodes(**NODE) as cluster:
        yield cluster


@pytest.fixture
def plain_pool(cluster):
    pool = RayPool(None, 2, Plain)
    yield pool
    pool.close()


@pytest.fixture
def jobs(material):
    path = material / "ray.csv"
    path.write_text(LIST)
    return path


def test_shares_of_nodes(cluster):
    assert worker_resources(None, None, "auto", 8) == (0.0, 1)  # as many cores as the largest node has
    assert capacity(0.0, 1) == 2
    assert has_free_resources(0.0, 1)
    assert not has_free_resources(0.5, 1)
    with pytest.raises(UserError, match=r"No node of the cluster has 0\.5 GPUs"):
        worker_resources(0.5, 1, "auto", 1)
    with pytest.raises(UserError, match="No node"):
        worker_resources(None, 2, "auto", 1)
    with pytest.raises(UserError, match=r"1\.5 GPUs"):
        worker_resources(1.5, 1, "auto", 1)


def test_calls_and_deaths(plain_pool, tmp_path):
    calls = [Call("die_once", (tmp_path / "marker", n)) for n in range(7)]
    told = list(map_calls(calls, plain_pool, ordered=True))
    assert [outcome.value for _, outcome in told] == list(range(7))
    assert sorted(pending.attempts for pending, _ in told) == [1] * 6 + [2]
    deadly = [Call("double", (1,)), Call("die"), Call("double", (2,)), Call("fail")]
    told = [outcome for _, outcome in map_calls(deadly, plain_pool, retries=1, ordered=True)]
    assert [outcome.status for outcome in told] == ["done", "failed", "done", "failed"]
    assert "died 2 times (ActorDiedError" in told[1].error


def test_who_stops_listening_stops_the_work(plain_pool, tmp_path):
    path = tmp_path / "0.txt"
    listening = map_calls(
        [Call("double", (1,)), Call("wait", (path,)), Call("wait", (tmp_path / "1.txt",))], plain_pool
    )
    assert next(listening)[1].value == 2
    listening.close()
    assert [o.value for _, o in map_calls([Call("double", (5,))], plain_pool)] == [10]
    assert not path.exists() or path.read_text() == "cleaned up"


def test_a_list_on_two_nodes_with_a_death_in_the_middle(cluster, jobs, spec, tmp_path, monkeypatch):
    """The same files as without Ray, from both nodes; the actor that painted first died of it, and no job was lost."""
    monkeypatch.setenv(DIE, str(tmp_path / "marker"))
    outs = tmp_path / "ray", tmp_path / "here"
    rows = []
    for out, pool in zip(
        outs,
        (RayPool(spec, 2, Mortal, environment=(DIE, "LATENTSYNC_MODELS")), InProcessPool(spec, LipSyncWorker)),
        strict=True,
    ):
        out.mkdir()
        rows.append(Batch(spec).run(read_jobs(jobs, out), pool, ResultsLog(out / "r.jsonl")))
        pool.close()
    on_ray, here = rows
    assert [row["status"] for row in on_ray] == [row["status"] for row in here] == ["done", "failed", "done"]
    assert sorted(row["attempts"] for row in on_ray if row["status"] == "done") == [1, 2]
    assert on_ray[1]["error"] == here[1]["error"]
    assert len({row["worker"] for row in on_ray}) == 2
    assert sorted(p.name for p in outs[0].iterdir()) == ["a.mp4", "b.mp4", "r.jsonl"]
    for name in ("a.mp4", "b.mp4"):
        assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_a_clip_split_over_two_nodes(cluster, material, spec, tmp_path, monkeypatch):
    """By the command: three segments and more, over a cut and a gap; frames as of a single run."""
    jobs = material / "split.csv"
    jobs.write_text("video,out,steps,guidance\nscenes.mp4,scenes.mp4,1,1\n")
    models = ["-c", spec.checkpoint, "--whisper", spec.whisper, "--device", "cpu"]
    told = CliRunner().invoke(
        app,
        [
            "batch",
            str(jobs),
            "-o",
            str(tmp_path / "split"),
            "--ray",
            "--workers",
            "2",
            "--segment-seconds",
            "0.7",
            *models,
        ],
    )
    assert told.exit_code == 0, told.output
    told = CliRunner().invoke(
        app, ["batch", str(jobs), "-o", str(tmp_path / "single"), "--cpus-per-worker", "1", *models]
    )
    assert told.exit_code == 0, told.output
    split, single = (frames_of(tmp_path / name / "scenes.mp4") for name in ("split", "single"))
    assert (split == single).all()
    row = json.loads((tmp_path / "split" / "split.report.json").read_text())["jobs"][0]
    assert row["segments"] == [[0, 30], [30, 50], [54, 70]]
    assert {"track", "sample", "write"} <= row["timings"].keys()


def test_a_node_that_is_gone_costs_no_call(cluster, plain_pool, monkeypatch):
    """And a worker that finds no place any more leaves its calls to those that have one."""
    monkeypatch.setattr(ray_pool, "PLACEMENT_PATIENCE", 2.0)
    node = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)
    told, calls = [], [Call("later", (n,)) for n in range(12)]
    for pending, outcome in map_calls(calls, plain_pool):
        told.append((pending.index, outcome.status, outcome.value))
        if len(told) == 3:
            cluster.remove_node(node, allow_graceful=False)
    cluster.add_node(**NODE)
    assert sorted(told) == [(n, "done", n) for n in range(12)]


def test_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install .ray\[data,train\]"):
        connect()
