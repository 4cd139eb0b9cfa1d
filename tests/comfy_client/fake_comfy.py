"""A server that speaks ComfyUI's protocol and misbehaves as a test tells it: for what a healthy one never does."""

import asyncio
import contextlib
import json
import threading

from aiohttp import WSMsgType, web

INFO = {
    "Load": {"input": {"required": {"file": [["a.mp4"], {"video_upload": True}]}}, "output_node": False},
    "Work": {
        "input": {
            "required": {
                "video": ["VIDEO"],
                "steps": ["INT", {"default": 20, "min": 1, "max": 50}],
                "guidance": ["FLOAT", {"min": 1.0, "max": 3.0}],
                "checkpoint": ["COMBO", {"options": ["nano", "1.5", "1.6"]}],
                "face": ["STRING", {"default": "largest"}],
                "sharp": ["BOOLEAN", {}],
                "parts": ["COMBO", {"options": ["a", "b"], "multiselect": True}],
            },
            "optional": {"model": ["MODEL"], "level": [[1, 2, True]], "none": [[]], "any": ["*"]},
        },
        "output_node": False,
    },
    "Save": {"input": {"required": {"video": ["VIDEO"], "prefix": ["STRING"]}}, "output_node": True},
}
PROMPT = {
    "1": {"class_type": "Load", "inputs": {"file": "a.mp4"}, "_meta": {"title": "Load Video"}},
    "2": {
        "class_type": "Work",
        "inputs": {"video": ["1", 0], "steps": 2, "guidance": 1.5, "checkpoint": "nano", "face": "largest",
                   "sharp": False, "parts": {"__value__": ["a"]}},
        "_meta": {"title": "LatentSync 1.5: Work"},
    },
    "3": {"class_type": "Save", "inputs": {"video": ["2", 0], "prefix": "x"}, "_meta": {"title": "Save Video"}},
}  # fmt: skip
RESULT = {"3": {"images": [{"filename": "x.mp4", "subfolder": "video", "type": "output"}], "animated": [True]}}
OK = {"status_str": "success", "completed": True, "messages": []}


def reply(said=None, **rest):
    """The same answer to every request, JSON or whatever web.Response takes."""
    return lambda request: web.Response(**rest) if said is None else web.json_response(said, **rest)


class FakeComfy:
    """with FakeComfy(script) as server: script(server, prompt_id) is awaited after each POST /prompt.

    answers: {(method, path below base): a function of the request, such as reply(…)} replaces what is usual.
    """

    def __init__(self, script=None, *, host="127.0.0.1", base="", answers=None, files=None):
        self.script, self.host, self.base = script or succeed, host, base
        self.answers, self.files = dict(answers or {}), dict(files or {"x.mp4": b"film"})
        self.requests, self.sockets, self.history = [], {}, {}
        self.running, self.pending, self.uploads = [], [], []
        self.posted = None

    @property
    def url(self):
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}{self.base}"

    def asked(self, method, path):
        return [body for way, place, _, body in self.requests if (way, place) == (method, path)]

    def __enter__(self):
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        asyncio.run_coroutine_threadsafe(self._start(), self.loop).result(10)
        return self

    def __exit__(self, *_):
        asyncio.run_coroutine_threadsafe(self.stop(), self.loop).result(10)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(10)
        self.loop.close()

    async def _start(self):
        app = web.Application(client_max_size=1 << 24)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, self.host, 0)
        await site.start()
        self.port = site._server.sockets[0].getsockname()[1]

    async def stop(self):
        await self.drop()
        await self.runner.cleanup()

    async def _answer(self, request):
        path = request.raw_path.split("?")[0]
        assert path.startswith(self.base), path
        path = path[len(self.base) :]
        is_json = request.content_type == "application/json" and request.can_read_body
        self.requests.append((request.method, path, dict(request.headers), await request.json() if is_json else None))
        answer = self.answers.get((request.method, path))
        if answer is not None:
            answer = answer(request)
            return await answer if asyncio.iscoroutine(answer) else answer
        name = path.strip("/").split("/")[0]
        return await getattr(self, f"on_{name}")(request, path)

    async def on_object_info(self, request, path):
        name = path.rsplit("/", 1)[1]
        return web.json_response({name: INFO[name]} if name in INFO else {})

    async def on_upload(self, request, path):
        form = await request.post()
        self.uploads.append((form["image"].filename, form["image"].file.read(), form["subfolder"], "overwrite" in form))
        return web.json_response({"name": "a (1).mp4", "subfolder": form["subfolder"], "type": "input"})

    async def on_ws(self, request, path):
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        self.sockets[request.query["clientId"]] = socket
        async for message in socket:
            if message.type == WSMsgType.ERROR:
                break
        return socket

    async def on_prompt(self, request, path):
        self.posted = body = await request.json()
        self.running.append([0, body["prompt_id"]])
        task = asyncio.ensure_future(self.script(self, body["prompt_id"]))
        self.tasks = [*getattr(self, "tasks", []), task]
        return web.json_response({"prompt_id": body["prompt_id"], "number": 0, "node_errors": {}})

    async def on_queue(self, request, path):
        if request.method == "POST":
            gone = (await request.json())["delete"]
            self.pending = [item for item in self.pending if item[1] not in gone]
            return web.Response()
        return web.json_response({"queue_running": self.running, "queue_pending": self.pending})

    async def on_interrupt(self, request, path):
        return web.Response()

    async def on_api(self, request, path):
        return web.Response(status=405)  # what a server says that does not know /api/jobs/ID/cancel

    async def on_free(self, request, path):
        return web.Response()

    async def on_history(self, request, path):
        name = path.rsplit("/", 1)[1]
        return web.json_response({name: self.history[name]} if name in self.history else {})

    async def on_view(self, request, path):
        name = request.query["filename"]
        return web.Response(body=self.files[name]) if name in self.files else web.Response(status=404)

    async def say(self, kind, **data):
        await self._send(json.dumps({"type": kind, "data": data}))

    async def _send(self, message):
        for socket in list(self.sockets.values()):
            with contextlib.suppress(ConnectionError):
                await (socket.send_bytes if isinstance(message, bytes) else socket.send_str)(message)

    async def drop(self):
        """Every websocket is gone, without a word."""
        sockets, self.sockets = list(self.sockets.values()), {}
        for socket in sockets:
            transport = socket._req.transport if socket._req is not None else None
            if transport is not None:
                transport.abort()

    async def text(self, node, text):
        await self._send(b"\0\0\0\3" + len(node).to_bytes(4, "big") + node.encode() + text.encode())

    async def preview(self, head, picture):
        said = json.dumps(head).encode()
        await self._send(b"\0\0\0\4" + len(said).to_bytes(4, "big") + said + picture)

    def end(self, prompt_id, outputs=None, status=None):
        self.history[prompt_id] = {"outputs": RESULT if outputs is None else outputs, "status": status or OK}
        self.running = [item for item in self.running if item[1] != prompt_id]


async def succeed(server, prompt_id):
    server.end(prompt_id)
    await server.say("executing", node=None, prompt_id=prompt_id)
