"""The client of ComfyUI where a healthy server does not lead: refusals, losses, bad names, other people's prompts."""

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner

from latentsync import files
from latentsync.cli import main as cli
from latentsync.comfy_client import client, connection, events
from latentsync.comfy_client.client import ComfyClient, RefusedError
from latentsync.comfy_client.events import Output, RunFailedError
from latentsync.comfy_client.prompt import locate, put, read, title
from latentsync.errors import UserError

from .fake_comfy import INFO, PROMPT, RESULT, FakeComfy, reply, succeed

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    """The client's patience in a test's time."""
    monkeypatch.setattr(client, "RETRY_DELAYS", (0.01, 0.02))
    monkeypatch.setattr(connection, "SILENCE", 0.2)
    monkeypatch.setattr(connection, "SETTLE", 0.05)


def go(url, prompt=PROMPT, *, headers=None, fetch=None, **rest):
    """Run a prompt; with fetch, download its files into that folder too."""

    async def work():
        async with ComfyClient(url, headers=headers) as one:
            result = await one.run(prompt, **rest)
            return (result, await one.download(result, fetch)) if fetch else result

    return asyncio.run(work())


async def story(server, prompt_id):
    """A run with all that a server may say of it, and what it says of others."""
    at = {"prompt_id": prompt_id}
    await server.say("status", status={"exec_info": {"queue_remaining": 1}})
    await server.say("execution_start", **at)
    await server.say("execution_cached", nodes=["1"], **at)
    await server.text("3", "before any node runs: another client's")
    await server.say("executing", node="2", display_node="2", **at)
    await server.say("executing", node="2.0.0.1", display_node="2", **at)
    await server.say("executing", node="3", prompt_id="somebody else's")
    await server.text("2", "mouth: 1 of 2")
    await server.say("progress", node="2.0.0.1", value=1, max=2, **at)
    await server.preview({"node_id": "2.0.0.1", "display_node_id": "2", **at}, b"JPEG")
    await server.preview({"node_id": "2", "prompt_id": "somebody else's"}, b"NO")
    await server.say("a kind of message that is not invented yet", **at)
    await asyncio.sleep(0.05)
    await server.say("executing", node="3", display_node="3", **at)
    await server.say("executed", node="3", output=RESULT["3"], **at)
    await server.say("execution_success", **at)
    await succeed(server, prompt_id)


@pytest.mark.parametrize(("host", "base"), [("127.0.0.1", ""), ("127.0.0.1", "/comfy"), ("::1", "/a b/c")])
def test_a_run_is_followed_and_its_file_fetched(host, base, tmp_path):
    events = []
    with FakeComfy(story, host=host, base=base.replace(" ", "%20")) as server:
        result, paths = go(
            server.url + "/", headers={"Authorization": "Bearer s3cret"}, fetch=tmp_path / "new", on_event=events.append
        )
    told = [(event.kind, event.node, event.text) for event in events]
    name = result.prompt_id
    assert told == [
        ("queued", "", name), ("started", "", ""), ("cached", "", ""), ("node", "2", ""),
        ("text", "2", "mouth: 1 of 2"), ("progress", "2", ""), ("preview", "2", ""), ("node", "3", ""),
    ]  # fmt: skip
    assert (events[5].done, events[5].total, events[5].title) == (1, 2, "LatentSync 1.5: Work")
    assert events[6].picture == b"JPEG"
    assert result.cached == ["1"]
    assert set(result.timings) == {"2", "3"}
    assert paths == {Output("3", "Save Video", "x.mp4", "video"): tmp_path / "new" / "x.mp4"}
    assert (tmp_path / "new" / "x.mp4").read_bytes() == b"film"
    assert {headers.get("Authorization") for _, _, headers, _ in server.requests} == {"Bearer s3cret"}
    assert {path.split("/")[1] for _, path, _, _ in server.requests} >= {"ws", "prompt", "view", "object_info"}


def test_seconds_belong_to_the_node_that_a_person_sees(monkeypatch):
    clock = iter([0.0, 1.0, 4.0, 6.0, 9.0])
    monkeypatch.setattr(events.time, "perf_counter", lambda: next(clock))
    monitor = events.RunMonitor(read(PROMPT), "p", None)
    for node in ("1", "2", "2.0.0.5", "2.0.0.6", "1", None):
        monitor.receive(json.dumps({"type": "executing", "data": {"node": node, "prompt_id": "p"}}))
    assert dict(monitor.timings) == {"1": 3.0 + 3.0, "2": 2.0}
    assert monitor.over


@pytest.mark.parametrize(
    "message",
    ["no JSON", "[]", "7", '{"data": [1]}', '{"type": 7}', "[" * 100_000, b"", b"\xff" * 40],
)
def test_messages_that_no_comfyui_sends_are_ignored(message):
    heard = []
    monitor = events.RunMonitor(read(PROMPT), "p", heard.append)
    monitor.receive(message)
    assert not heard
    assert not monitor.over


def test_a_dropped_socket_costs_nothing_but_progress():
    events = []

    async def script(server, prompt_id):
        for _ in range(2):
            await server.say("execution_start", prompt_id=prompt_id)
            await server.drop()
            while not server.sockets:
                await asyncio.sleep(0.01)
        await server.say("executing", node="3", prompt_id=prompt_id)
        await succeed(server, prompt_id)

    with FakeComfy(script) as server:
        result = go(server.url, on_event=events.append)
    kinds = [event.kind for event in events]
    assert kinds.count("lost") == kinds.count("found") == 2
    assert kinds[-1] == "node"
    assert [file.filename for file in result.files] == ["x.mp4"]


def test_a_proxy_without_websockets_will_do():
    async def script(server, prompt_id):
        await asyncio.sleep(0.05)
        server.end(prompt_id)

    with FakeComfy(script, answers={("GET", "/ws"): reply(status=502)}) as server:
        assert go(server.url).files


def test_no_proxy_stands_between_a_machine_and_itself(monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    with FakeComfy() as server:
        assert go(server.url).files
    with pytest.raises(UserError, match=r"cannot be reached at http://elsewhere\.invalid .*'127\.0\.0\.1', 1"):
        go("http://elsewhere.invalid")


def test_a_server_that_stumbles_is_forgiven_and_one_that_is_gone_is_not(monkeypatch):
    fails = iter([True] * 3)

    def stumble(request):
        return web.Response(status=502) if next(fails, False) else server.on_queue(request, "")

    async def script(server, prompt_id):
        server.answers["GET", "/queue"] = stumble
        await succeed(server, prompt_id)

    with FakeComfy(script) as server:
        assert go(server.url).files

    async def vanish(server, prompt_id):
        await asyncio.sleep(0.05)
        await server.stop()

    monkeypatch.setattr(client, "CONTACT_TIMEOUT", 0.3)
    with FakeComfy(vanish) as server, pytest.raises(RunFailedError, match=r"has not answered for 0\.3 s"):
        go(server.url)


def test_a_prompt_that_somebody_deleted_and_a_history_that_somebody_cleared():
    async def forget(server, prompt_id):
        server.running.clear()

    with FakeComfy(forget) as server, pytest.raises(RunFailedError, match="no longer knows the prompt"):
        go(server.url)

    async def clear(server, prompt_id):
        await server.say("executed", node="3", output=RESULT["3"], prompt_id=prompt_id)
        await server.say("execution_success", prompt_id=prompt_id)
        await succeed(server, prompt_id)
        server.history.clear()

    with FakeComfy(clear) as server:
        assert go(server.url).files


ERROR = {
    "node_id": "2",
    "exception_message": "No face was found;\nshow one.\n",
    "exception_type": "pack.latentsync.errors.UserError",
    "traceback": ["line 1\n", "line 2\n"],
}


@pytest.mark.parametrize(
    ("event", "data", "said"),
    [
        ("execution_error", ERROR, "LatentSync 1.5: Work (node 2): No face was found; show one."),
        (
            "execution_error",
            ERROR | {"exception_type": "RuntimeError", "exception_message": "Boom"},
            "RuntimeError: Boom",
        ),
        ("execution_interrupted", {"node_id": "2"}, "interrupted on the server, at LatentSync 1.5: Work"),
        ("something", {}, "does not explain"),
    ],
)
@pytest.mark.parametrize("heard", [True, False])
def test_a_run_that_fails_says_where(event, data, said, heard):
    async def script(server, prompt_id):
        if heard:
            await server.say(event, prompt_id=prompt_id, **data)
        server.end(prompt_id, {}, {"status_str": "error", "completed": False, "messages": [[event, data]]})

    with FakeComfy(script) as server, pytest.raises(RunFailedError) as caught:
        go(server.url)
    assert said in str(caught.value)
    assert not server.asked("POST", "/interrupt")
    if data is ERROR:
        assert (caught.value.node, caught.value.details) == ("2", "line 1\nline 2\n")


def test_a_blocked_node_is_a_failure_although_the_rest_succeeds():
    async def script(server, prompt_id):
        data = {"node_id": "2", "exception_type": "ExecutionBlocked", "exception_message": "Execution Blocked: no"}
        await server.say("execution_error", prompt_id=prompt_id, **data)
        await succeed(server, prompt_id)

    with FakeComfy(script) as server, pytest.raises(RunFailedError, match=r"Work \(node 2\): Execution Blocked: no"):
        go(server.url)


def refusal(node, name):
    said = {"message": "Value not in list", "details": f"{name}: 'x'", "extra_info": {"input_name": name}}
    return {node: {"errors": [said], "class_type": "Any"}}


def test_a_refusal_is_told_node_by_node():
    body = {
        "error": {"message": "Prompt outputs failed validation"},
        "node_errors": refusal("1", "file") | refusal("2", "face"),
    }
    with FakeComfy(answers={("POST", "/prompt"): reply(body, status=400)}) as server:
        with pytest.raises(RefusedError) as caught:
            go(server.url)
        assert caught.value.lines == [
            "Load Video (node 1): Value not in list: file: 'x'; send one with --input \"Load Video.file=FILE\"",
            "LatentSync 1.5: Work (node 2): Value not in list: face: 'x'",
        ]
        body = {"error": {"message": "Prompt has no outputs", "details": ""}, "node_errors": {}}
        server.answers["POST", "/prompt"] = reply(body, status=400)
        with pytest.raises(RefusedError, match="Prompt has no outputs"):
            go(server.url)
        lacking = PROMPT | {"9": {"class_type": "Nobody/Has It", "inputs": {}}}
        with pytest.raises(RefusedError, match=r"node 9\): no Nobody/Has It on this server"):
            go(server.url, lacking)
        assert ("GET", "/object_info/Nobody%2FHas%20It") in [(way, path) for way, path, *_ in server.requests]


def test_a_prompt_that_would_run_in_part_is_withdrawn():
    def answer(request):
        server.pending.append([5, "mine"])
        return web.json_response({"prompt_id": "mine", "node_errors": refusal("1", "file")})

    with FakeComfy(answers={("POST", "/prompt"): answer}) as server:
        with pytest.raises(RefusedError, match="Load Video"):
            go(server.url)
        assert server.asked("POST", "/queue") == [{"delete": ["mine"]}]
        assert not server.pending


async def cancelled(url, after, **rest):
    """Cancel a run once after(event) says so."""
    async with ComfyClient(url) as one:
        task = asyncio.ensure_future(one.run(PROMPT, on_event=lambda event: after(event) and task.cancel(), **rest))
        with pytest.raises(asyncio.CancelledError):
            await task


async def never(server, prompt_id):
    await server.say("execution_start", prompt_id=prompt_id)


async def wait_behind(server, prompt_id):
    server.running, server.pending = [[0, "somebody else's"]], [[1, "another"], [2, prompt_id]]


def test_cancelling_interrupts_what_runs_and_deletes_what_waits():
    with FakeComfy(never) as server:
        asyncio.run(cancelled(server.url, lambda event: event.kind == "started"))
        assert server.asked("POST", "/interrupt") == [{"prompt_id": server.posted["prompt_id"]}]
    ahead = []
    with FakeComfy(wait_behind) as server:
        asyncio.run(cancelled(server.url, lambda event: event.kind == "queued" and not ahead.append(event.done)))
        assert server.asked("POST", "/queue") == [{"delete": [server.posted["prompt_id"]]}]
        assert server.pending == [[1, "another"]]
        assert not server.asked("POST", "/interrupt"), "an older server would interrupt somebody else's prompt"
    assert ahead[0] == 2


def test_a_newer_server_cancels_in_one_step():
    said = reply({"cancelled": True})
    with FakeComfy(never) as server:

        def started(event):
            server.answers["POST", f"/api/jobs/{server.posted['prompt_id']}/cancel"] = said
            return event.kind == "started"

        asyncio.run(cancelled(server.url, started))
        assert server.asked("POST", f"/api/jobs/{server.posted['prompt_id']}/cancel") == [{}]
        assert not server.asked("POST", "/interrupt")
        assert not server.asked("POST", "/queue")


def test_a_run_that_takes_too_long_is_withdrawn():
    with FakeComfy(never) as server:
        with pytest.raises(RunFailedError, match="longer than 2 s"):
            go(server.url, timeout=2)
        assert server.asked("POST", "/interrupt") == [{"prompt_id": server.posted["prompt_id"]}]


def test_files_go_up_once_and_their_new_name_is_set(tmp_path):
    clip = tmp_path / ("über 'clip'.mp4" if os.name == "nt" else 'über "clip".mp4')
    clip.write_bytes(b"moving")
    prompt = PROMPT | {"4": {"class_type": "Load", "inputs": {"file": ""}, "_meta": {"title": "Second"}}}
    with FakeComfy() as server:
        result = go(
            server.url,
            prompt,
            inputs={"Load Video.file": clip, "Second.file": str(clip)},
            values={"Work.steps": "7", "LatentSync 1.5: Work.face": "0"},
        )
        posted = server.posted["prompt"]
    assert server.uploads == [(clip.name.replace('"', "_"), b"moving", "latentsync", False)]
    assert posted["1"]["inputs"]["file"] == posted["4"]["inputs"]["file"] == "latentsync/a (1).mp4"
    assert (posted["2"]["inputs"]["steps"], posted["2"]["inputs"]["face"]) == (7, "0")
    assert result.uploads == {str(clip): "latentsync/a (1).mp4"}
    assert PROMPT["1"]["inputs"]["file"] == "a.mp4", "the caller's workflow is the caller's"


def test_nothing_travels_before_all_is_checked(tmp_path):
    (tmp_path / "a.mp4").touch()
    with FakeComfy() as server:
        for wrong in (
            {"values": {"2.steps": 0}},
            {"inputs": {"1.file": "nowhere.mp4"}},
            {"inputs": {"2.steps": tmp_path / "a.mp4"}},
        ):
            with pytest.raises(UserError):
                go(server.url, **({"inputs": {"1.file": tmp_path / "a.mp4"}} | wrong))
        assert not server.uploads
        assert server.posted is None


def serving(outputs, names=None):
    async def script(server, prompt_id):
        server.end(prompt_id, outputs)

    return FakeComfy(script, files=names)


def test_which_files_count_as_results(tmp_path):
    def file(name, kind="output"):
        return {"filename": name, "subfolder": "", "type": kind}

    outputs = {
        "2": {"preview": [file("seen.jpg", "temp")],
              "compare": [{"before": file("in.mp4", "input"), "after": file("kept.mp4")}]},
        "3": {"gifs": [file("a.gif", "temp")], "audio": [file("a.flac")], "text": ["one", "two"], "animated": [True],
              "score": [{"offset": 3}], "again": [file("a.flac")]},
        "3.0.0.1": {"images": [file("inner.png"), file("gone.png", "temp")]},
        "7": None,
    }  # fmt: skip
    names = dict.fromkeys(("a.gif", "a.flac", "kept.mp4", "inner.png"), b"x")
    with serving(outputs, names) as server:
        result, paths = go(server.url, fetch=tmp_path)
    assert {path.name for path in paths.values()} == {"Save Video.gif", "a.flac", "kept.mp4", "inner.png"}
    assert result.values == {"3": {"text": ["one", "two"], "score": [{"offset": 3}]}}
    assert [file.title for file in result.files if file.filename == "inner.png"] == ["Save Video"]
    saved = client.save_values(result, tmp_path)["3"]
    assert [path.name for path in saved] == ["Save Video.txt", "Save Video.json"]
    assert saved[0].read_text(encoding="utf-8") == "one\ntwo\n"


SAFE = {
    "../../up.png": "up.png", "/etc/up.png": "up.png", "..\\..\\up.png": "up.png", "C:\\up.png": "up.png",
    "..": "output", ".": "output", "a/": "output", "\0a\n.png": "_a_.png", "con.png": "con_.png",
    "a<b>|c?*.gif": "a_b__c__.gif", "C:up.png": "C_up.png", ".hidden": "hidden", "ünï çødé.mp4": "ünï çødé.mp4",
    "x" * 400 + ".png": "x" * 180 + ".png",
}  # fmt: skip


def test_no_name_leaves_the_folder(tmp_path):
    folder = tmp_path / "in" / "here"
    shown = [{"filename": name, "subfolder": "../..", "type": "output"} for name in ("", *SAFE)]
    with serving({"3": {"images": shown}}, dict.fromkeys(SAFE, b"x")) as server:
        _, paths = go(server.url, fetch=folder)
    assert len(set(paths.values())) == len(SAFE), "an empty name is no file"
    assert sorted(paths.values()) == sorted(folder.iterdir())
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent != folder] == []
    for output, path in paths.items():
        wanted = Path(SAFE[output.filename])
        assert re.fullmatch(re.escape(wanted.stem) + r"(-\d)?" + re.escape(wanted.suffix), path.name)


def test_nothing_half_and_nothing_overwritten(tmp_path):
    async def cut_short(request):
        answer = web.StreamResponse(headers={"Content-Length": "100"})
        await answer.prepare(request)
        await answer.write(b"half")
        request.transport.abort()
        return answer

    (tmp_path / "x.mp4").write_bytes(b"mine")
    with FakeComfy() as server:
        tries = iter([cut_short, lambda request: server.on_view(request, "")])
        server.answers["GET", "/view"] = lambda request: next(tries)(request)
        _, paths = go(server.url, fetch=tmp_path)
        assert [path.name for path in paths.values()] == ["x-2.mp4"]
        server.answers["GET", "/view"] = cut_short
        with pytest.raises(UserError, match="cannot be reached"):
            go(server.url, fetch=tmp_path)
        server.answers["GET", "/view"] = reply(status=404)
        with pytest.raises(RunFailedError, match=r"x\.mp4 of Save Video is no longer"):
            go(server.url, fetch=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x.mp4": b"mine", "x-2.mp4": b"film"}


def test_without_hard_links_nothing_is_overwritten_either(tmp_path, monkeypatch):
    def no_links(*_):
        raise PermissionError

    monkeypatch.setattr(files.os, "link", no_links)
    for wanted in ("a.txt", "a-2.txt"):
        part = files.part_in(tmp_path)
        part.write_text(wanted, encoding="utf-8")
        assert files.claim(part, tmp_path / "a.txt", overwrite=False).name == wanted
    part.write_text("new", encoding="utf-8")
    assert files.claim(part, tmp_path / "a.txt", overwrite=True).read_text(encoding="utf-8") == "new"
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (reply(text="<html>hello</html>"), "not as ComfyUI does"),
        (reply(text="[]"), "not as ComfyUI does"),
        (reply(status=401), "--header"),
        (reply(status=404), "is the address right"),
        (reply(status=302, headers={"Location": "https://other/"}), "redirects to https://other/"),
        (reply(status=500), "HTTP 500"),
    ],
)
def test_servers_that_are_something_else(answer, said):
    with FakeComfy(answers={("GET", "/object_info/Load"): answer}) as server, pytest.raises(UserError, match=said):
        go(server.url)


def test_too_large_a_file(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"x" * 100)
    server = FakeComfy(answers={("POST", "/upload/image"): reply(status=413)})
    with server, pytest.raises(UserError, match="--max-upload-size"):
        go(server.url, inputs={"1.file": tmp_path / "a.mp4"})


@pytest.mark.parametrize("text", ["ftp://host", "http://", "host:port", "http://[::1", "file:///etc"])
def test_addresses_that_are_none(text):
    with pytest.raises(UserError, match="is not a server address"):
        ComfyClient(text)


def test_addresses_keep_their_secrets_and_their_tokens():
    assert ComfyClient("http://me:pw@host/comfy/?token=s#x").display_url == "http://host/comfy"
    assert (
        str(ComfyClient("http://host/comfy/?token=s").url("history", "a/b"))
        == "http://host/comfy/history/a%2Fb?token=s"
    )
    assert ComfyClient("host:9").display_url == "http://host:9"


def field(place, prompt=PROMPT, info=INFO):
    return locate(read(prompt), info, place)


@pytest.mark.parametrize("place", ["2.steps", "Work.steps", "LatentSync 1.5: Work.steps", "latentsync 1.5: work.steps"])
def test_an_input_has_several_names(place):
    found = field(place)
    assert (found.node, found.name, found.kind) == ("2", "steps", "INT")


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("Wrok.steps", "There is no node Wrok in the workflow; it has 1 (Load Video), 2 ("),
        ("Save Vidoe.prefix", "Did you mean Save Video?"),
        ("2.stepps", "has no input stepps; it has video, steps, guidance"),
        ("2.stepps", "Did you mean steps?"),
        ("steps", "steps does not name NODE.INPUT; it has 1 (Load Video)"),
    ],
)
def test_a_name_that_fits_nothing_or_too_much(place, said):
    with pytest.raises(UserError) as caught:
        field(place)
    assert said in str(caught.value)


def test_two_nodes_of_one_class_and_one_title():
    twins = PROMPT | {"8": PROMPT["1"]}
    for place in ("Load Video.file", "Load.file"):
        with pytest.raises(UserError, match=r"may be any of 1 \(Load Video\), 8 \(Load Video\); name one by its id"):
            field(place, twins)
    assert field("8.file", twins).node == "8"


def test_names_with_dots_that_only_the_workflow_knows():
    grown = {"5": {"class_type": "Grown", "inputs": {"images.image0": ["1", 0], "mode.level": 3}}}
    assert field("5.mode.level", PROMPT | grown).name == "mode.level"
    assert title(read(grown), "5.0.0.7") == "Grown"
    both = {"5": {"class_type": "A", "inputs": {"b.c": 1}}, "6": {"class_type": "A.b", "inputs": {"c": 1}}}
    assert field("A.b.c", both).node == "6", "the longest name that is one"


SET = [
    ("steps", "7", 7), ("steps", 7.0, 7), ("guidance", "2", 2), ("guidance", "1.25", 1.25),
    ("checkpoint", "1.5", "1.5"), ("checkpoint", 1.5, "1.5"), ("checkpoint", '"nano"', "nano"),
    ("face", "0", "0"), ("face", "1.50", "1.50"), ("face", "true", "true"), ("face", '"quoted"', "quoted"),
    ("face", '"half', '"half'), ("face", "12,30,0", "12,30,0"), ("face", 3, "3"), ("face", "a=b", "a=b"),
    ("sharp", "true", True), ("parts", '["a", "b"]', {"__value__": ["a", "b"]}), ("level", "2", 2),
    ("level", "true", True), ("any", "text", "text"), ("any", "NaN", "NaN"), ("any", "5", 5),
]  # fmt: skip


@pytest.mark.parametrize(("name", "value", "wanted"), SET)
def test_values_are_read_as_the_input_needs_them(name, value, wanted):
    prompt = read(PROMPT)
    put(prompt, locate(prompt, INFO, f"2.{name}"), value)
    got = prompt["2"]["inputs"][name]
    assert got == wanted
    assert type(got) is type(wanted)


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps", "0", 'steps of LatentSync 1.5: Work is "0"; it must be a whole number from 1 to 50.'),
        ("steps", "51", "from 1 to 50"),
        ("steps", "2.5", "whole number"),
        ("steps", "true", "whole number"),
        ("steps", "many", '"many"'),
        ("guidance", "NaN", "a number from 1.0 to 3.0"),
        ("guidance", "Infinity", "a number"),
        ("checkpoint", "2.0", "it must be one of nano, 1.5, 1.6"),
        ("sharp", "1", "true or false"),
        ("none", "x", "nothing to choose from"),
        ("video", "x", "is a socket for VIDEO, wired to Load Video; it takes no value"),
        ("model", "x", "is a socket for MODEL; it takes no value"),
        ("level", "1.5", "one of 1, 2, True"),
        ("parts", '["a", "c"]', 'parts of LatentSync 1.5: Work is "c"; it must be one of a, b.'),
    ],
)
def test_values_that_do_not_fit(name, value, said):
    prompt = read(PROMPT)
    with pytest.raises(UserError) as caught:
        put(prompt, locate(prompt, INFO, f"2.{name}"), value)
    assert said in str(caught.value)
    assert prompt == read(PROMPT)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            '{"nodes": [], "links": []}',
            "as the editor saves it; the queue needs the API form: open it in ComfyUI and choose Export",
        ),
        ("{", "is not JSON"),
        ("{}", "not a workflow in API form"),
        ("[1]", "not a workflow in API form"),
        ('{"1": {"inputs": {}}}', "not a workflow in API form"),
        ('{"1": {"class_type": "A", "inputs": [1]}}', "not a workflow in API form"),
        ("\x80", "is not JSON"),
    ],
)
def test_files_that_are_no_workflow(tmp_path, text, said):
    path = tmp_path / "w.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError) as caught:
        read(path)
    assert said in str(caught.value)
    assert str(path) in str(caught.value)


def test_forms_of_a_workflow(tmp_path):
    path = tmp_path / "w.json"
    path.write_text(json.dumps({"prompt": PROMPT, "client_id": "x"}), encoding="utf-8-sig")
    assert read(path) == read(PROMPT) == PROMPT
    assert read({1: {"class_type": "A"}}) == {"1": {"class_type": "A", "inputs": {}}}
    with pytest.raises(UserError, match="could not be read"):
        read(tmp_path)


# The command line


@pytest.fixture
def workflow(tmp_path):
    path = tmp_path / "work.json"
    path.write_text(json.dumps(PROMPT), encoding="utf-8")
    return path


def call(*words, **environment):
    return CliRunner().invoke(cli.app, ["queue", *map(str, words)], env=environment)


def test_the_command_prints_paths_and_writes_a_report(workflow, tmp_path):
    with FakeComfy(story) as server:
        done = call(
            workflow, "-o", tmp_path / "out", "--json", tmp_path / "r.json", "--free", LATENTSYNC_COMFYUI=server.url
        )
        assert done.exit_code == 0, done.output
        assert done.stdout.split() == [str(tmp_path / "out" / "x.mp4")]
        assert "Save Video" in done.stderr
        assert server.asked("POST", "/free") == [{"unload_models": True, "free_memory": True}]
        again = call(workflow, "--out", tmp_path / "out", "--overwrite", "--json", "-", "--server", server.url)
    assert json.loads(again.stdout)["outputs"][0]["file"] == str(tmp_path / "out" / "x.mp4")
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert [node["title"] for node in report["nodes"]] == ["Load Video", "LatentSync 1.5: Work", "Save Video"]
    assert [node["cached"] for node in report["nodes"]] == [True, False, False]
    assert report["elapsed_s"] > 0
    assert report["server"] == server.url


def test_exit_codes(workflow, tmp_path):
    body = {"error": {"message": "No"}, "node_errors": refusal("2", "face") | refusal("1", "file")}
    with FakeComfy(answers={("POST", "/prompt"): reply(body, status=400)}) as server:
        done = call(workflow, "--server", server.url)
    assert done.exit_code == 2
    assert len(done.stderr.splitlines()) == 3
    with FakeComfy() as server:
        done = call(workflow, "--server", server.url, "--list", "--set", "2.steps=7")
        assert (done.exit_code, server.posted) == (0, None)
    assert done.stdout.splitlines() == [
        "Load Video (node 1)",
        "  file=a.mp4       a file (--input sends one)",
        "LatentSync 1.5: Work (node 2)",
        "  steps=7          a whole number from 1 to 50",
        "  guidance=1.5     a number from 1.0 to 3.0",
        "  checkpoint=nano  one of nano, 1.5, 1.6",
        "  face=largest     text",
        "  sharp=false      true or false",
        '  parts=["a"]      one of a, b',
        "  level=           one of 1, 2, True",
        "  none=            nothing to choose from on this server",
        "  any=             text or JSON",
        "Save Video (node 3)",
        "  prefix=x         text",
    ]
    with FakeComfy(never) as server:
        done = call(workflow, "--server", server.url, "--timeout", "0.2", "--free")
        assert server.asked("POST", "/free")
    assert done.exit_code == 1
    assert "longer than 0.2 s" in done.stderr
    done = call(workflow, "--server", server.url)
    assert done.exit_code == 2
    assert f"ComfyUI cannot be reached at {server.url}" in done.stderr
    assert "start ComfyUI" in done.stderr
    (tmp_path / "file").touch()
    for wrong, said in [
        (("--set", "steps"), "NODE.INPUT=VALUE"),
        (("--header", "Bearer"), "Authorization"),
        (("--header", "A: b\nC: d"), "Authorization"),
        (("--out", tmp_path / "file" / "x"), "--out"),
        (("--json", tmp_path / "no" / "r.json"), "cannot be written there"),
    ]:
        done = call(workflow, *wrong, "--server", "127.0.0.1:1")
        assert (done.exit_code, said in done.stderr) == (2, True), done.stderr


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has other signals")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_withdraws_the_prompt(workflow, tmp_path, number, code):
    command = [sys.executable, "-m", "latentsync", "queue", str(workflow), "-o", str(tmp_path / "out"), "--server"]
    with FakeComfy(never) as server:
        listen = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731
        process = subprocess.Popen(
            [*command, server.url], cwd=ROOT, stderr=subprocess.PIPE, text=True, preexec_fn=listen
        )
        while not server.sockets or not server.asked("GET", "/queue"):
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        _, said = process.communicate(timeout=30)
        assert process.returncode == code
        assert server.asked("POST", "/interrupt") == [{"prompt_id": server.posted["prompt_id"]}]
    assert "Traceback" not in said
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_https_with_a_certificate_of_ones_own(workflow, tmp_path):
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    make += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(make, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)

    with FakeComfy() as server:

        async def secure():
            site = web.TCPSite(server.runner, "localhost", 0, ssl_context=context)
            await site.start()
            return site._server.sockets[0].getsockname()[1]

        port = asyncio.run_coroutine_threadsafe(secure(), server.loop).result(10)
        command = [sys.executable, "-m", "latentsync", "queue", str(workflow), "-o", str(tmp_path / "out")]
        command += ["--server", f"https://localhost:{port}"]
        known = os.environ | {"SSL_CERT_FILE": str(cert)}
        for environment, code in ((os.environ, 2), (known, 0)):
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            assert ("is not trusted here" in done.stderr) == (code == 2)
    assert (tmp_path / "out" / "x.mp4").read_bytes() == b"film"
