"""The same run placed by Ray on two nodes of one machine; an actor is killed in the middle."""

import os
import shutil
import signal
import threading
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from latentsync.cli import main as cli
from latentsync.prepare.runner import prepare
from latentsync.prepare.settings import PrepareSettings

from ..tiny import face_model
from .scenes import UNMEASURED, WORDS, footage, results, run

pytestmark = pytest.mark.slow

pytest.importorskip("scenedetect", reason="PySceneDetect, of the extra `prepare`")
ray = pytest.importorskip("ray", reason="Ray, of the extra `ray`")
pytest.importorskip("ray.data", reason="Ray Data, of the extra `ray`")


@pytest.fixture(scope="module")
def two_nodes():
    """Two nodes with one CPU each, in processes of this machine."""
    from ray.cluster_utils import Cluster

    from latentsync.batch.parallel.ray_pool import python_path

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    memory = 100 * 2**20
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": memory})
    cluster.add_node(num_cpus=1, object_store_memory=memory)
    ray.init(address=cluster.address, log_to_driver=False, runtime_env={"env_vars": python_path()})
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def actors() -> list[int]:
    """Process numbers of the actors that work, among this process's own children and theirs."""
    parents, names = {}, {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            stat = (folder / "stat").read_text()
            names[int(folder.name)] = (folder / "cmdline").read_text()
        except OSError:
            continue
        parents[int(folder.name)] = int(stat.rsplit(")", 1)[1].split()[1])

    def ours(pid: int) -> bool:
        while pid in parents and pid != os.getpid():
            pid = parents[pid]
        return pid == os.getpid()

    return [pid for pid, name in names.items() if "ray::" in name and "Worker" in name and ours(pid)]


class Killer(threading.Thread):
    """Kills one actor as soon as a first clip is done."""

    def __init__(self, out: Path) -> None:
        super().__init__(daemon=True)
        self.out, self.killed = out, 0

    def run(self) -> None:
        until = time.monotonic() + 300
        while time.monotonic() < until and not self.killed:
            if list((self.out / "work" / "clip").glob("*.json")):
                for pid in actors()[:1]:
                    os.kill(pid, signal.SIGKILL)
                    self.killed = pid
            time.sleep(0.02)


def test_two_nodes_give_the_same_and_a_killed_actor_loses_nothing(two_nodes, tmp_path, monkeypatch):
    from latentsync.prepare.ray_data import run_ray

    monkeypatch.setenv("LATENTSYNC_MODELS", str(face_model().parent))
    videos = footage(tmp_path / "videos")
    run(videos, tmp_path / "local")
    out = tmp_path / "ray"
    killer = Killer(out)
    killer.start()
    used: set[str] = set()

    def execute(plan, kind, items):
        for outcome in run_ray(plan, kind, items, 2, None):
            used.add(kind)
            yield outcome

    prepare(videos, out, PrepareSettings(**UNMEASURED), execute, threads=1)
    assert used == {"source", "clip"}
    assert killer.killed, "no actor was there to be killed"
    assert results(out) == results(tmp_path / "local")
    shutil.rmtree(out / "work" / "clip")
    words = ["prepare", str(videos), str(out), *WORDS, "--no-chart", "--ray", "--workers", "2"]
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    assert results(out) == results(tmp_path / "local")
