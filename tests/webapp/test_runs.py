"""Who computes: the engine here makes what the engine makes; a server is asked as ComfyUI wants to be."""

import asyncio

import pytest
from aiohttp import web

from latentsync.errors import UserError
from latentsync.pipeline import lipsync_file
from latentsync.settings import Settings
from latentsync.webapp.backends import ComfyServer, LocalEngine, Wish, prompt_for
from latentsync.webapp.queue import CANCELLED, DONE, FAILED, Queue
from latentsync.weights.bundle import load_models

from ..comfy_client.fake_comfy import OK, FakeComfy, reply
from .parts import alike
from .test_jobs import wait_until

QUICK = Settings(steps=2, guidance=1.0, seed=5)
RESULT = {"4": {"images": [{"filename": "x.mp4", "subfolder": "video", "type": "output"}], "animated": [True]}}
CHECKPOINTS = ["nano", "1.6"]
UPLOAD = {"video_upload": True}
INFO = {
    "LoadVideo": {"input": {"required": {"file": [["a.mp4"], UPLOAD]}}},
    "LoadImage": {"input": {"required": {"image": [["a.png"], {"image_upload": True}]}}},
    "LoadAudio": {"input": {"required": {"audio": [["a.wav"], {"audio_upload": True}]}}},
    "LatentSyncVideo": {"input": {"required": {"checkpoint": ["COMBO", {"options": CHECKPOINTS}]}}},
    "SaveVideo": {"input": {"required": {"video": ["VIDEO"]}}, "output_node": True},
}
ANSWERS = {("GET", f"/object_info/{kind}"): reply({kind: about}) for kind, about in INFO.items()}


@pytest.fixture
def queue():
    queue = Queue()
    yield queue
    queue.close()


@pytest.fixture
def engine(tiny):
    engine = LocalEngine((tiny,), device="cpu", dtype="fp32")
    yield engine
    engine.close()


def wish(material, out, **rest):
    usual = {"face": material / "clip.mp4", "voice": None, "checkpoint": str(material / "tiny.safetensors")}
    return Wish(**{**usual, "out": out, "settings": QUICK, **rest})


def ended(job):
    assert wait_until(lambda: job.over, 120)
    return job


def test_the_local_engine_makes_what_the_engine_makes(engine, queue, material, tmp_path):
    wanted = tmp_path / "wanted.mp4"
    with load_models(material / "tiny.safetensors") as models:
        lipsync_file(material / "clip.mp4", None, wanted, models=models, settings=QUICK)
    told = []

    def work(job):
        def tell(*said):
            told.append(said)
            type(job).tell(job, *said)

        job.tell = tell
        engine.make(wish(material, tmp_path / "made.mp4"), job)

    job = ended(queue.submit(work))
    assert (job.state, job.error) == (DONE, "")
    assert alike(tmp_path / "made.mp4", wanted)
    assert told[0][0] == "loading"
    assert ("track", 30, 30) in told
    assert told[-1] == ("sample", 4, 4)


def test_models_are_loaded_once_for_all_runs(engine, queue, material, tmp_path, monkeypatch):
    import latentsync.pipeline

    loads, load = [], latentsync.pipeline.load_models
    monkeypatch.setattr(latentsync.pipeline, "load_models", lambda *a, **k: loads.append(a) or load(*a, **k))
    still = {"face": material / "face.png", "voice": material / "say.wav", "still": True}
    for name in "ab":
        job = ended(queue.submit(lambda job, name=name: engine.make(wish(material, tmp_path / name, **still), job)))
        assert job.state == FAILED, "a name without an ending cannot be written"
    good = ended(queue.submit(lambda job: engine.make(wish(material, tmp_path / "c.mp4", **still), job)))
    assert good.state == DONE
    assert len(loads) == 1


def test_cancelling_leaves_no_file(engine, queue, material, tmp_path):
    many = Settings(steps=50, guidance=1.0)
    job = queue.submit(lambda job: engine.make(wish(material, tmp_path / "made.mp4", settings=many), job))
    assert wait_until(lambda: job.stage == "sample" and job.done, 120)
    job.cancel()
    assert ended(job).state == CANCELLED
    assert not list(tmp_path.iterdir())


def test_only_checkpoints_that_are_here_are_offered(engine, tiny):
    assert engine.checkpoints() == ["nano", tiny]


def test_the_prompt_says_all_that_was_chosen(material, tmp_path):
    how = Settings(steps=7, guidance=2.0, seed=9, fit="hold", face="10,20,3", solver="deis")
    moving = prompt_for(wish(material, tmp_path / "x.mp4", settings=how, checkpoint="1.6"))
    assert moving["1"]["class_type"] == "LoadVideo"
    assert "audio" not in moving["3"]["inputs"]
    inputs = moving["3"]["inputs"]
    said = {key: inputs[key] for key in ("steps", "guidance", "seed", "fit", "face", "solver", "checkpoint")}
    assert said == {
        "steps": 7,
        "guidance": 2.0,
        "seed": 9,
        "fit": "hold",
        "face": "10,20,3",
        "solver": "deis",
        "checkpoint": "1.6",
    }
    still = prompt_for(wish(material, tmp_path / "x.mp4", still=True, voice=material / "say.wav"))
    assert still["1"]["class_type"] == "LoadImage"
    assert still["3"]["inputs"]["audio"] == ["2", 0]


def test_a_server_is_asked_and_its_result_fetched(queue, material, tmp_path):
    async def script(server, prompt_id):
        server.running.clear()
        server.history[prompt_id] = {"outputs": RESULT, "status": OK}

    with FakeComfy(script, answers=ANSWERS) as server:
        backend = ComfyServer(server.url)
        assert backend.checkpoints() == CHECKPOINTS
        job = ended(
            queue.submit(lambda job: backend.make(wish(material, tmp_path / "made.mp4", checkpoint="nano"), job))
        )
        assert (job.state, job.error) == (DONE, "")
        assert (tmp_path / "made.mp4").read_bytes() == b"film"
        assert [path.name for path in tmp_path.iterdir()] == ["made.mp4"]
        (_, data, folder, overwrites) = server.uploads[0]
        assert (data, folder, overwrites) == ((material / "clip.mp4").read_bytes(), "latentsync", False)


def test_a_run_on_the_server_is_withdrawn(queue, material, tmp_path):
    async def script(server, prompt_id):
        """It waits behind another one, for ever."""
        server.pending, server.running = server.running, [[0, "somebody else's"]]

    with FakeComfy(script, answers=ANSWERS) as server:
        backend = ComfyServer(server.url)
        job = queue.submit(lambda job: backend.make(wish(material, tmp_path / "made.mp4", checkpoint="nano"), job))
        assert wait_until(lambda: job.elsewhere == 1 or server.pending)
        job.cancel()
        assert ended(job).state == CANCELLED
        assert wait_until(lambda: not server.pending)
        assert server.asked("POST", "/queue")
        assert not server.asked("POST", "/interrupt"), "somebody else's run goes on"


def test_a_mark_that_the_server_does_not_know_is_not_left_out(queue, material, tmp_path):
    marked = wish(material, tmp_path / "made.mp4", checkpoint="nano", settings=Settings(watermark="metadata"))
    with FakeComfy(answers=ANSWERS) as server:
        job = ended(queue.submit(lambda job: ComfyServer(server.url).make(marked, job)))
        assert "cannot mark" in job.error
        assert not server.uploads
    assert prompt_for(marked)["3"]["inputs"]["mark"] == "file"


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({("GET", "/object_info/LatentSyncVideo"): reply({})}, "lacks the LatentSync nodes"),
        ({("GET", "/object_info/LatentSyncVideo"): lambda request: web.Response(status=401)}, "who you are"),
    ],
)
def test_a_server_that_cannot_help_says_so(answers, says):
    with FakeComfy(answers=answers) as server, pytest.raises(UserError, match=says):
        ComfyServer(server.url).checkpoints()


def test_a_server_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr("latentsync.webapp.backends.PATIENCE", 0.3)

    async def never(request):
        await asyncio.sleep(20)

    answers = {("GET", "/object_info/LatentSyncVideo"): never}
    with FakeComfy(answers=answers) as server, pytest.raises(UserError, match="did not answer"):
        ComfyServer(server.url).checkpoints()
    with pytest.raises(UserError, match="cannot be reached"):
        ComfyServer("http://127.0.0.1:9").checkpoints()
