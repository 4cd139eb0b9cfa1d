"""Who computes: the engine here makes what the engine makes; a server is asked as ComfyUI wants to be."""

import asyncio
import json
import threading
import time
from dataclasses import fields, replace
from fractions import Fraction

import pytest
from aiohttp import web

from latentsync.errors import UserError
from latentsync.face.spans import Span
from latentsync.pipeline import Speaker, lipsync_file
from latentsync.settings import WATERMARKS, Settings
from latentsync.timeline import Cut
from latentsync.webapp.backends import ComfyServer, LipSyncRequest, LocalEngine, NotReadyError, prompt_for
from latentsync.webapp.queue import CANCELLED, DONE, FAILED, Queue
from latentsync.webapp.workflow import Told
from latentsync.weights.bundle import load_models

from ..comfy_client.fake_comfy import FakeComfy, reply
from ..nodes.table import NODES
from .parts import alike
from .test_queue import wait_until

QUICK = Settings(steps=2, guidance=1.0, seed=5, codec="h264")
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
    return LipSyncRequest(**{**usual, "out": out, "settings": QUICK, **rest})


async def finish(server, prompt_id):
    server.end(prompt_id, RESULT)
    await server.say("executing", node=None, prompt_id=prompt_id)


def checkpoints_of(backend):
    """When they are known."""
    while True:
        try:
            return backend.checkpoints()
        except NotReadyError:
            time.sleep(0.02)


def ended(job):
    assert wait_until(lambda: job.over, 120)
    return job


def test_the_local_engine_makes_what_the_engine_makes(engine, queue, material, tmp_path):
    wanted = tmp_path / "wanted.mp4"
    with load_models(material / "tiny.safetensors") as models:
        lipsync_file(material / "clip.mp4", None, wanted, models=models, settings=QUICK)
    told = []

    def work(job):
        def report(*said):
            told.append(said)
            type(job).report(job, *said)

        job.report = report
        engine.run(wish(material, tmp_path / "made.mp4"), job)

    job = ended(queue.submit(work))
    assert (job.state, job.error) == (DONE, "")
    assert alike(tmp_path / "made.mp4", wanted)
    assert told[0][0] == "loading"
    assert ("track", 30, 30) in told
    assert told[-1] == ("sample", 4, 4)


def test_models_are_loaded_once_for_all_runs(engine, queue, material, tmp_path, monkeypatch):
    import latentsync.weights.bundle as bundle

    loads, load = [], bundle.load_models
    monkeypatch.setattr(bundle, "load_models", lambda *a, **k: loads.append(a) or load(*a, **k))
    still = {"face": material / "face.png", "voice": material / "say.wav", "is_image": True}
    for name in "ab":
        job = ended(queue.submit(lambda job, name=name: engine.run(wish(material, tmp_path / name, **still), job)))
        assert job.state == FAILED, "a name without an ending cannot be written"
    good = ended(queue.submit(lambda job: engine.run(wish(material, tmp_path / "c.mp4", **still), job)))
    assert good.state == DONE
    assert len(loads) == 1


def test_cancelling_leaves_no_file(engine, queue, material, tmp_path):
    many = Settings(steps=50, guidance=1.0, codec="h264")
    job = queue.submit(lambda job: engine.run(wish(material, tmp_path / "made.mp4", settings=many), job))
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
    still = prompt_for(wish(material, tmp_path / "x.mp4", is_image=True, voice=material / "say.wav"))
    assert still["1"]["class_type"] == "LoadImage"
    assert still["3"]["inputs"]["audio"] == ["2", 0]


def test_a_server_is_asked_and_its_result_fetched(queue, material, tmp_path):
    with FakeComfy(finish, answers=ANSWERS) as server:
        backend = ComfyServer(server.url)
        assert checkpoints_of(backend) == CHECKPOINTS
        job = ended(
            queue.submit(lambda job: backend.run(wish(material, tmp_path / "made.mp4", checkpoint="nano"), job))
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
        job = queue.submit(lambda job: backend.run(wish(material, tmp_path / "made.mp4", checkpoint="nano"), job))
        assert wait_until(lambda: job.remote_ahead == 1 or server.pending)
        job.cancel()
        assert ended(job).state == CANCELLED
        assert wait_until(lambda: not server.pending)
        assert server.asked("POST", "/queue")
        assert not server.asked("POST", "/interrupt"), "somebody else's run goes on"


def test_a_watermark_that_the_server_does_not_know_is_not_left_out(queue, material, tmp_path):
    marked = wish(material, tmp_path / "made.mp4", checkpoint="nano", settings=replace(QUICK, watermark="metadata"))
    with FakeComfy(answers=ANSWERS) as server:
        job = ended(queue.submit(lambda job: ComfyServer(server.url).run(marked, job)))
        assert "too old to add a watermark" in job.error
        assert not server.uploads
        plain = wish(material, tmp_path / "made.mp4", checkpoint="nano", settings=QUICK)
        job = ended(queue.submit(lambda job: ComfyServer(server.url).run(plain, job)))
        assert "watermark" not in job.error, "an older pack will do where none is wanted"


@pytest.mark.parametrize("watermark", WATERMARKS)
def test_all_that_is_sent_is_an_input_of_the_node(queue, material, tmp_path, watermark):
    """The inputs of LatentSync: Video as saved workflows rely on them; every setting and the watermark get there."""
    promised = {name.strip("[]") for name in NODES["LatentSyncVideo"].inputs.split()}
    settings = replace(QUICK, watermark=watermark)
    request = wish(material, tmp_path / "made.mp4", voice=material / "say.wav", checkpoint="nano", settings=settings)
    sent = prompt_for(request)["3"]["inputs"]
    assert set(sent) <= promised
    no_choice = {"background", "max_side", "mode", "no_face", "pixel_format", "reuse"}
    left_out = {field.name for field in fields(Settings)} - set(sent) - no_choice
    usual = {"audio_track", "codec", "encoder", "points", "quality", "silence", "spans", "strip_metadata"}
    assert left_out == usual | ({"watermark"} if watermark == "none" else set())
    node = {"checkpoint": ["COMBO", {"options": CHECKPOINTS}], "watermark": ["COMBO", {"options": list(WATERMARKS)}]}

    about = reply({"LatentSyncVideo": {"input": {"required": node}}})
    with FakeComfy(finish, answers=ANSWERS | {("GET", "/object_info/LatentSyncVideo"): about}) as server:
        job = ended(queue.submit(lambda job: ComfyServer(server.url).run(request, job)))
        assert (job.state, job.error) == (DONE, "")
        assert server.posted["prompt"]["3"]["inputs"].get("watermark", "none") == watermark


CHOSEN = {
    "codec": ("vp9", "store"), "quality": (40, "store"), "strip_metadata": (True, "remove the source's metadata"),
    "silence": ("close", "relax the mouth in pauses"), "audio_track": (1, "an audio track"),
    "spans": ("1-2", "only some parts"), "points": ("1,1,9,1,5,5,0", "marked by hand"),
    "encoder": ("hardware", "with a graphics card"),
}  # fmt: skip
PART = Cut(Fraction(1, 25), Fraction(2, 3))


def server_with(*inputs):
    """Its node has these inputs and the checkpoint; its result, whatever it is asked for."""
    node = {"checkpoint": ["COMBO", {"options": CHECKPOINTS}], **{name: ["STRING", {}] for name in inputs}}
    about = reply({"LatentSyncVideo": {"input": {"required": node}, "output_node": True}})
    return FakeComfy(finish, answers=ANSWERS | {("GET", "/object_info/LatentSyncVideo"): about})


def run_on(server, queue, request):
    return ended(queue.submit(lambda job: ComfyServer(server.url).run(request, job)))


@pytest.mark.parametrize("name", CHOSEN)
def test_a_setting_gets_to_a_server_that_has_it_and_no_other(queue, material, tmp_path, name):
    value, words = CHOSEN[name]
    request = wish(material, tmp_path / "made.mp4", checkpoint="nano", settings=replace(QUICK, **{name: value}))
    assert name not in prompt_for(wish(material, tmp_path / "made.mp4"))["3"]["inputs"]
    with server_with() as server:
        said = run_on(server, queue, request).error
        assert f"{server.url} are too old to" in said
        assert words in said
        assert said.count(". ") == 0, "one sentence"
        assert not server.uploads
    with server_with(name) as server:
        assert run_on(server, queue, request).error in ("", "ComfyUI ended the run without a video; see its log.")
        assert server.posted["prompt"]["3"]["inputs"][name] == value


def test_all_that_a_server_lacks_is_said_at_once(queue, material, tmp_path):
    settings = replace(QUICK, codec="vp9", quality=50, silence="relax")
    with server_with("codec") as server:
        request = wish(material, tmp_path / "made.webm", checkpoint="nano", settings=settings, cut=PART)
        said = run_on(server, queue, request).error
        wanted = "use a part of a video and to choose how the video is stored and to relax the mouth in pauses; update"
        assert wanted in said


def test_a_part_is_asked_for_in_seconds(queue, material, tmp_path):
    request = wish(material, tmp_path / "made.mp4", checkpoint="nano", cut=PART)
    with server_with("start", "duration") as server:
        assert run_on(server, queue, request).state == DONE
        sent = server.posted["prompt"]["3"]["inputs"]
        assert (sent["start"], sent["duration"]) == (0.04, pytest.approx(2 / 3))
    until = prompt_for(wish(material, tmp_path / "made.mp4", cut=Cut(duration=Fraction(1, 2))))["3"]["inputs"]
    assert "start" not in until
    assert until["duration"] == 0.5


def test_what_an_mp4_does_not_hold_is_saved_by_the_node_itself(queue, material, tmp_path):
    """Core's Save Video writes every video into an .mp4."""
    files = {"x.webm": b"web", "before.mp4": b"old"}

    async def script(server, prompt_id):
        compare = [{name: {"filename": file, "subfolder": "", "type": kind} for name, file, kind in
                    (("before", "before.mp4", "temp"), ("after", "x.webm", "output"))}]  # fmt: skip
        server.files = files
        server.end(prompt_id, {"3": {"latentsync_compare": compare}})
        await server.say("executing", node=None, prompt_id=prompt_id)

    settings = replace(QUICK, codec="vp9")
    request = wish(material, tmp_path / "made.webm", checkpoint="nano", settings=settings)
    with server_with("codec") as server:
        server.script = script
        assert run_on(server, queue, request).error == ""
        sent = server.posted["prompt"]
        assert sent["3"]["inputs"]["save_to"] == "output"
        assert "SaveVideo" not in {node["class_type"] for node in sent.values()}
    assert (tmp_path / "made.webm").read_bytes() == b"web"


def test_a_voice_has_one_track_for_comfyui(queue, material, tmp_path):
    """Load Audio takes the first, so another one must not be chosen without effect."""
    spoken = {"voice": material / "say.wav", "checkpoint": "nano"}
    other, first = (
        wish(material, tmp_path / "made.mp4", settings=replace(QUICK, audio_track=number), **spoken)
        for number in (1, 0)
    )
    with server_with("audio_track") as server:
        assert "only a voice's first audio track" in run_on(server, queue, other).error
        assert run_on(server, queue, first).state == DONE
        assert "audio_track" not in server.posted["prompt"]["3"]["inputs"]


def two_voices(material, out, **rest):
    others = (Speaker("right", material / "say.wav", Fraction(3, 2)), Speaker("7,8,0", material / "say.wav"))
    return wish(material, out, checkpoint="nano", voice=material / "say.wav", others=others, **rest)


def test_several_people_are_one_node(queue, material, tmp_path):
    settings = replace(QUICK, face="left", silence="close", spans="1-")
    sent = prompt_for(two_voices(material, tmp_path / "made.mp4", settings=settings, cut=PART))
    promised = {name.strip("[]") for name in NODES["LatentSyncSpeakers"].inputs.split()}
    inputs = sent["3"]["inputs"]
    assert sent["3"]["class_type"] == "LatentSyncSpeakers"
    assert {name for name in inputs if not name.startswith("speakers.")} <= promised
    assert (inputs["silence"], inputs["spans"], inputs["start"]) == ("close", "1-", 0.04)
    people = [[inputs[f"speakers.{name}_{n}"] for name in ("voice", "face", "start")] for n in (1, 2, 3)]
    assert inputs["speakers"] == "3"
    assert people == [[["2", 0], "left", 0.0], [["22", 0], "right", 1.5], [["23", 0], "7,8,0", 0.0]]
    assert {sent[node]["class_type"] for node in ("2", "22", "23")} == {"LoadAudio"}
    with server_with() as server:
        said = run_on(server, queue, two_voices(material, tmp_path / "made.mp4")).error
        assert said.endswith("too old to give several people their own voices; update them there, do without, or run on"
                             " this computer.")  # fmt: skip
        assert not server.uploads
    with server_with() as server:
        count = {"speakers": ["COMBO", {"options": ["2", "3"]}]}
        rows = {f"speakers.{name}_{n}": [kind] for n in (1, 2, 3)
                for name, kind in (("voice", "AUDIO"), ("face", "STRING"), ("start", "FLOAT"))}  # fmt: skip
        node = {"checkpoint": ["COMBO", {"options": CHECKPOINTS}], **count, **rows}
        about = {"LatentSyncSpeakers": {"input": {"required": node}, "output_node": True}}
        server.answers["GET", "/object_info/LatentSyncSpeakers"] = reply(about)
        assert run_on(server, queue, two_voices(material, tmp_path / "made.mp4")).error == ""
        assert server.posted["prompt"]["23"]["inputs"]["audio"]
        assert [name for name, *_ in server.uploads] == ["clip.mp4", "say.wav"]


REPORTED = {
    "fps": "30000/1001", "notes": ["HDR; written as SDR"],
    "spans": [{"start": 0, "stop": 9, "state": "synced", "reason": "", "face": 0, "from_s": 0, "to_s": 0.3},
              {"start": 9, "stop": 12, "state": "passed through", "reason": "away", "face": None}],
}  # fmt: skip


def test_what_the_servers_node_reports_is_told(queue, material, tmp_path):
    async def script(server, prompt_id):
        server.end(prompt_id, RESULT | {"5": {"text": [json.dumps(REPORTED)]}})
        await server.say("executing", node=None, prompt_id=prompt_id)

    shows = reply({"PreviewAny": {"input": {"required": {"source": ["*"]}}, "output_node": True}})
    request, told = wish(material, tmp_path / "made.mp4", checkpoint="nano"), []
    with server_with() as server:
        server.script = script
        server.answers["GET", "/object_info/PreviewAny"] = shows
        ended(queue.submit(lambda job: told.append(ComfyServer(server.url).run(request, job))))
        assert server.posted["prompt"]["5"]["inputs"] == {"source": ["3", 1]}
    (report,) = told
    assert report.fps == Fraction(30000, 1001)
    assert report.notes == ("HDR; written as SDR",)
    assert report.spans == (Span(0, 9, "synced", "", 0), Span(9, 12, "passed through", "away"))
    with server_with() as server:  # an older ComfyUI has no such node
        ended(queue.submit(lambda job: told.append(ComfyServer(server.url).run(request, job))))
        assert set(server.posted["prompt"]) == {"1", "3", "4"}
    assert told[1] is None


@pytest.mark.parametrize("text", ["", "None", "[]", "3", "{}", '{"fps": "0"}', '{"fps": "25", "spans": [3]}',
                                  '{"fps": "25", "spans": [{"start": 0}]}', '{"fps": [1]}'])  # fmt: skip
def test_what_is_no_report_is_none(text):
    assert Told.parse({"text": [text]}) is None
    assert Told.parse(None) is Told.parse({"text": []}) is None


def test_an_older_report_has_no_spans():
    assert Told.parse({"text": ['{"fps": "25", "frames": 3}']}) == Told(Fraction(25))


def test_the_local_engine_uses_the_part_and_tells_of_it(engine, queue, material, tmp_path):
    how = {"settings": replace(QUICK, codec="vp9"), "cut": Cut(Fraction(8, 25), Fraction(12, 25))}
    reports = []
    job = ended(
        queue.submit(lambda job: reports.append(engine.run(wish(material, tmp_path / "made.webm", **how), job)))
    )
    assert (job.state, job.error) == (DONE, "")
    with load_models(material / "tiny.safetensors") as models:
        lipsync_file(material / "clip.mp4", None, tmp_path / "wanted.webm", models=models, **how)
    assert alike(tmp_path / "made.webm", tmp_path / "wanted.webm")
    assert (reports[0].frames, reports[0].settings.codec) == (12, "vp9")


@pytest.mark.parametrize(
    ("answers", "says"),
    [
        ({("GET", "/object_info/LatentSyncVideo"): reply({})}, "lacks the LatentSync nodes"),
        ({("GET", "/object_info/LatentSyncVideo"): lambda request: web.Response(status=401)}, "asks for authorization"),
    ],
)
def test_a_server_that_cannot_help_says_so(answers, says):
    with FakeComfy(answers=answers) as server, pytest.raises(UserError, match=says):
        checkpoints_of(ComfyServer(server.url))


def test_a_server_that_is_silent_is_given_up(monkeypatch):
    monkeypatch.setattr("latentsync.webapp.backends.TIMEOUT", 0.3)

    async def never(request):
        await asyncio.sleep(20)

    answers = {("GET", "/object_info/LatentSyncVideo"): never}
    with FakeComfy(answers=answers) as server, pytest.raises(UserError, match="did not answer"):
        checkpoints_of(ComfyServer(server.url))
    with pytest.raises(UserError, match="cannot be reached"):
        checkpoints_of(ComfyServer("http://127.0.0.1:9"))


def test_no_click_waits_for_a_server(monkeypatch):
    """Silent, gone, or back again: the answer comes at once, and is the last that was heard."""
    silent, asked = threading.Event(), []

    async def maybe(request):
        asked.append(request)
        while silent.is_set():
            await asyncio.sleep(0.01)
        return reply({"LatentSyncVideo": INFO["LatentSyncVideo"]})(request)

    def at_once(backend):
        start = time.monotonic()
        try:
            return backend.checkpoints()
        except UserError as error:
            return error
        finally:
            assert time.monotonic() - start < 0.2

    monkeypatch.setattr("latentsync.webapp.backends.TIMEOUT", 0.3)
    with FakeComfy(answers={("GET", "/object_info/LatentSyncVideo"): maybe}) as server:
        silent.set()
        backend = ComfyServer(server.url)
        assert isinstance(at_once(backend), NotReadyError)
        assert wait_until(lambda: "did not answer" in str(at_once(backend)))
        silent.clear()
        for _ in range(5):
            assert "did not answer" in str(at_once(backend))
        assert len(asked) == 1, "and not asked at every click"
        monkeypatch.setattr("latentsync.webapp.backends.MAX_AGE", 0.0)
        assert wait_until(lambda: at_once(backend) == CHECKPOINTS)
