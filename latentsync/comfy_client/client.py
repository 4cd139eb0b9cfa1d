"""Runs API-form workflows on a ComfyUI server: files up, values set, progress followed, results down.

async with ComfyClient("http://127.0.0.1:8188") as client:
    result = await client.run("lip_sync_a_video.json", inputs={"Load Video.file": "clip.mp4"}, values={"3.seed": 7})
    paths = await client.download(result, "results")
"""

import asyncio
import ipaddress
import json
import os
import time
import urllib.parse
import uuid
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
from yarl import URL

from ..errors import UserError
from ..files import claim, part_in, safe_name
from .events import OnEvent, Output, RunFailedError, Watch, check, collect
from .inputs import Field
from .prompt import Info, Prompt, missing, put, put_all, read, refusals, settable, title

DEFAULT_SERVER = "http://127.0.0.1:8188"
SUBFOLDER = "latentsync"
"""Where uploads go inside ComfyUI's input folder."""
CONNECT, READ, SILENCE, SETTLE, RETRY, PATIENCE, WITHDRAW = 10.0, 120.0, 15.0, 0.5, (0.5, 1.0, 2.0, 5.0), 60.0, 10.0
"""Seconds: to connect; without a byte of an answer; without a word on the socket until history is asked; the same when
the end was told; between attempts after a loss; without any contact until a run is given up; to withdraw a prompt."""
CHUNK = 1 << 20
CONNECTIONS = 8
START = "start ComfyUI (python main.py in its folder), or give its address by --server"


class RefusedError(UserError):
    """The server did not take the workflow. lines: what is wrong, node by node."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("ComfyUI refused the workflow: " + "; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class RunResult:
    """files: what output nodes left on the server; values: what they say, {node: {"text": […]}}; seconds: by node."""

    prompt_id: str
    prompt: Prompt
    files: list[Output]
    values: dict[str, Any]
    seconds: dict[str, float]
    cached: list[str]
    total_seconds: float
    uploads: dict[str, str]


class ComfyClient:
    """One ComfyUI server. headers go along with every request ({"Authorization": "Bearer …"})."""

    def __init__(self, server: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        self.base = address(server or os.environ.get("LATENTSYNC_COMFYUI") or DEFAULT_SERVER)
        self.headers = dict(headers or {})
        self._open: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> "ComfyClient":
        self._open = aiohttp.ClientSession(
            headers=self.headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT, sock_read=READ),
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            trust_env=not _is_local(self.base.host),
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    @property
    def _session(self) -> aiohttp.ClientSession:
        if self._open is None:
            raise RuntimeError("Use the client as: async with ComfyClient(…) as client.")
        return self._open

    @property
    def shown(self) -> str:
        """The address without what is secret in it."""
        return str(self.base.with_user(None).with_query(None)).rstrip("/")

    async def run(
        self,
        workflow: str | Path | Mapping[str, Any],
        *,
        inputs: Mapping[str, str | Path] | None = None,
        values: Mapping[str, Any] | None = None,
        on_event: OnEvent | None = None,
        timeout: float | None = None,
    ) -> RunResult:
        """Queue a workflow and wait for its end.

        inputs: {"NODE.INPUT": file here}, uploaded first. values: {"NODE.INPUT": value}. NODE is an id, a title, or a
        class that occurs once. on_event is told what happens. When the waiting is cancelled or takes longer than
        timeout seconds, the prompt is withdrawn from the server. RefusedError: the workflow cannot be run;
        RunFailedError: it did not end well; UserError: anything else that a person can put right.
        """
        prompt = read(workflow)
        files = {place: _local(path) for place, path in (inputs or {}).items()}
        work = self._run(prompt, files, values or {}, on_event)
        try:
            return await asyncio.wait_for(work, timeout)
        except asyncio.TimeoutError as error:
            raise RunFailedError(f"The run took longer than {timeout:g} s and was stopped.") from error

    async def _run(
        self, prompt: Prompt, files: Mapping[str, Path], values: Mapping[str, Any], on_event: OnEvent | None
    ) -> RunResult:
        start = time.perf_counter()
        info = await self.describe({node["class_type"] for node in prompt.values()})
        # Before large files travel: all checks, with names like those that the server will give.
        fields = put_all(prompt, info, {**values, **{place: path.name for place, path in files.items()}})
        watch = Watch(prompt, str(uuid.uuid4()), on_event)
        uploads = {path: await self._upload(path, watch) for path in dict.fromkeys(files.values())}
        for place, path in files.items():
            put(prompt, fields[place], uploads[path])
        entry = await self._queue(prompt, info, watch)
        check(entry, watch)
        found, says = collect(entry, prompt, lambda kind: bool(info.get(kind, {}).get("output_node")))
        spent = time.perf_counter() - start
        names = {str(path): name for path, name in uploads.items()}
        return RunResult(watch.prompt_id, prompt, found, says, dict(watch.seconds), watch.cached, spent, names)

    async def fields(
        self, workflow: str | Path | Mapping[str, Any], values: Mapping[str, Any] | None = None
    ) -> tuple[Prompt, list[Field]]:
        """The workflow with the values set, and the inputs that a value can be given to. Nothing runs."""
        prompt = read(workflow)
        info = await self.describe({node["class_type"] for node in prompt.values()})
        if lacks := missing(prompt, info):
            raise RefusedError(lacks)
        put_all(prompt, info, values or {})
        return prompt, settable(prompt, info)

    async def describe(self, kinds: Iterable[str]) -> Info:
        """What the server says of these classes of nodes; those that it does not have are left out."""
        said = await asyncio.gather(*(self._get("object_info", kind) for kind in kinds))
        return {name: about for one in said for name, about in one.items()}

    async def _upload(self, path: Path, watch: Watch) -> str:
        watch.tell("uploading", text=str(path), total=path.stat().st_size)
        return await self.upload(path)

    async def upload(self, path: str | Path) -> str:
        """Send a file into the server's input folder; its name there, as a widget takes it.

        A file of the same name and other content stays; the new one gets a number then.
        """
        path = _local(path)
        form = aiohttp.FormData(quote_fields=False)
        with path.open("rb") as file:
            form.add_field("image", file, filename=safe_name(path.name), content_type="application/octet-stream")
            form.add_field("subfolder", SUBFOLDER)
            form.add_field("type", "input")
            said = await self._ask("POST", "upload", "image", data=form)
        return f"{said.get('subfolder') or ''}/{said['name']}".lstrip("/")

    async def _queue(self, prompt: Prompt, info: Info, watch: Watch) -> Mapping[str, Any]:
        client_id = uuid.uuid4().hex
        async with self._socket(client_id) as socket:
            try:
                await self._submit(prompt, info, client_id, watch)
                return await self._wait(socket, watch)
            except UserError:
                raise
            except BaseException:
                await self.withdraw(watch.prompt_id)
                raise

    async def _submit(self, prompt: Prompt, info: Info, client_id: str, watch: Watch) -> None:
        body = {"prompt": prompt, "client_id": client_id, "prompt_id": watch.prompt_id}
        said = await self._ask("POST", "prompt", json=body, allow=(400,))
        if "prompt_id" not in said:
            raise RefusedError(missing(prompt, info) or refusals(prompt, info, said))
        watch.prompt_id = str(said["prompt_id"])
        if said.get("node_errors"):
            # ComfyUI would run the rest; a run that silently lacks a result helps nobody.
            await self.withdraw(watch.prompt_id)
            raise RefusedError(refusals(prompt, info, said))
        with suppress(_UnreachableError):
            watch.tell("queued", done=await self.place(watch.prompt_id) or 0, text=watch.prompt_id)

    @asynccontextmanager
    async def _socket(self, client_id: str) -> AsyncIterator["_Socket"]:
        socket = _Socket(self._session, self._url("ws").update_query(clientId=client_id))
        await socket.connect()
        try:
            yield socket
        finally:
            await socket.close()

    async def _wait(self, socket: "_Socket", watch: Watch) -> Mapping[str, Any]:
        """What history says of the prompt in the end. A dropped socket costs progress, never the result."""
        contact, losses, told = time.monotonic(), 0, False
        while True:
            if socket.is_open:
                await socket.listen(watch)
            if not socket.is_open and not told:
                watch.tell("lost")
                told = True
            try:
                entry = await self._entry(watch)
                contact = time.monotonic()
            except _UnreachableError as error:
                if time.monotonic() - contact > PATIENCE:
                    say = f"{self.shown} has not answered for {PATIENCE:g} s; the run may still go on there as"
                    raise RunFailedError(f"{say} {watch.prompt_id}.") from error
                entry = None
            if entry is not None:
                return entry
            if not socket.is_open and await socket.connect():
                losses, told = 0, False
                watch.tell("found")
            elif not socket.is_open:
                await asyncio.sleep(RETRY[min(losses, len(RETRY) - 1)])
                losses += 1

    async def _entry(self, watch: Watch) -> Mapping[str, Any] | None:
        """The history of the prompt; None while it waits or runs."""
        waits = await self.place(watch.prompt_id)
        said = await self._get("history", watch.prompt_id)
        if watch.prompt_id in said:
            return said[watch.prompt_id]
        if waits is not None:
            if waits:
                watch.tell("queued", done=waits, text=watch.prompt_id)
            return None
        if watch.succeeded:
            # Somebody cleared the history in between; what was heard tells the same.
            return {"outputs": watch.outputs}
        raise RunFailedError(
            "The server no longer knows the prompt: it was deleted from the queue, or ComfyUI restarted."
        )

    async def place(self, prompt_id: str) -> int | None:
        """How many prompts come first (0: none, it runs); None when it is not in the queue."""
        queue = await self._get("queue")
        running = [item[1] for item in queue["queue_running"]]
        if prompt_id in running:
            return 0
        waiting = [item[1] for item in sorted(queue["queue_pending"], key=lambda item: item[0])]
        return len(running) + waiting.index(prompt_id) if prompt_id in waiting else None

    async def withdraw(self, prompt_id: str) -> None:
        """Take a prompt out of the queue, or interrupt it when it runs; other people's prompts are left alone."""
        with suppress(UserError, asyncio.TimeoutError):
            await asyncio.wait_for(self._withdraw(prompt_id), WITHDRAW)

    async def _withdraw(self, prompt_id: str) -> None:
        if await self._cancel(prompt_id):
            return
        await self._ask("POST", "queue", json={"delete": [prompt_id]})
        # Older servers interrupt whatever runs, whoever is named: ask only when it is ours.
        if await self.place(prompt_id) == 0:
            await self._ask("POST", "interrupt", json={"prompt_id": prompt_id})

    async def _cancel(self, prompt_id: str) -> bool:
        """In one step, which cannot hit the prompt that comes next; False where the server does not know how."""
        url = self._url("api", "jobs", prompt_id, "cancel")
        async with self._request("POST", url, json={}) as answer:
            return answer.status == 200 and answer.content_type == "application/json"

    async def free(self) -> None:
        """Ask the server to unload its models and forget cached results, once it has nothing to do."""
        await self._ask("POST", "free", json={"unload_models": True, "free_memory": True})

    async def download(self, result: RunResult, folder: str | Path, *, overwrite: bool = False) -> dict[Output, Path]:
        """Fetch all files of a run into a folder, one after the other."""
        return {one: await self.fetch(one, folder, overwrite=overwrite) for one in result.files}

    async def fetch(self, output: Output, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Fetch one file. It never leaves the folder; it gets a number where its name is taken, unless overwrite."""
        part = part_in(Path(folder))
        try:
            for pause in RETRY:
                try:
                    await self._stream(output, part)
                    break
                except _UnreachableError:
                    if pause == RETRY[-1]:
                        raise
                    await asyncio.sleep(pause)
            # ComfyUI draws the names of temporary files by lot.
            name = f"{output.title}{Path(output.filename).suffix}" if output.type == "temp" else output.filename
            return claim(part, Path(folder) / safe_name(name), overwrite=overwrite)
        except OSError as error:
            raise UserError(
                f"{folder} cannot be written to ({error.strerror or error}); give another folder."
            ) from error
        finally:
            part.unlink(missing_ok=True)

    async def _stream(self, output: Output, part: Path) -> None:
        query = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
        async with self._request("GET", self._url("view").update_query(query)) as answer:
            if answer.status in (400, 404):
                raise RunFailedError(f"{output.filename} of {output.title} is no longer on {self.shown}.")
            if answer.status != 200:
                raise self._unfit(answer)
            with part.open("wb") as file:
                async for chunk in answer.content.iter_chunked(CHUNK):
                    file.write(chunk)

    def _url(self, *parts: str) -> URL:
        quoted = (urllib.parse.quote(part, safe="") for part in parts)
        return self.base.joinpath(*quoted, encoded=True).with_query(self.base.query)

    async def _get(self, *parts: str) -> Any:
        return await self._ask("GET", *parts)

    async def _ask(self, method: str, *parts: str, allow: tuple[int, ...] = (), **body: Any) -> Any:
        async with self._request(method, self._url(*parts), **body) as answer:
            if answer.status not in (200, *allow):
                raise self._unfit(answer)
            text = await answer.text(errors="replace")
        try:
            said = json.loads(text) if text else {}
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise UserError(f"{self.shown} answers, but not as ComfyUI does; is the address right?")
        return said

    @asynccontextmanager
    async def _request(self, method: str, url: URL, **body: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self._session.request(method, url, allow_redirects=False, **body) as answer:
                yield answer
        except aiohttp.ClientConnectorCertificateError as error:
            say = f"The certificate of {self.shown} is not trusted here ({error.certificate_error});"
            raise UserError(f"{say} SSL_CERT_FILE in the environment names one that is.") from error
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            why = str(cause) or "no answer in time"
            raise _UnreachableError(f"ComfyUI cannot be reached at {self.shown} ({why}); {START}.") from error

    def _unfit(self, answer: aiohttp.ClientResponse) -> UserError:
        status = answer.status
        if status in (401, 403):
            return UserError(f'{self.shown} asks who you are (HTTP {status}); give --header "Authorization: Bearer …".')
        if status == 413:
            return UserError(
                f"{self.shown} takes no file that large; start ComfyUI with --max-upload-size and more megabytes, or"
                " copy the file into its input folder and name it by --set."
            )
        if 300 <= status < 400:
            target = answer.headers.get("Location", "elsewhere")
            return UserError(f"{self.shown} sends on to {target}; give that address as the server.")
        if status >= 500:
            return _UnreachableError(f"{self.shown} has a problem of its own (HTTP {status}); see its log.")
        return UserError(f"{self.shown} does not know {answer.url.path} (HTTP {status}); is the address right?")


class _UnreachableError(UserError):
    """No answer, or one that another attempt may better."""


class _Socket:
    """The websocket, which may be gone at any time."""

    def __init__(self, session: aiohttp.ClientSession, url: URL) -> None:
        self.session, self.url = session, url
        self._ws: aiohttp.ClientWebSocketResponse | None = None

    @property
    def is_open(self) -> bool:
        return self._ws is not None and not self._ws.closed

    async def connect(self) -> bool:
        try:
            self._ws = await self.session.ws_connect(self.url, heartbeat=30, max_msg_size=0)
            await self._ws.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return False
        return True

    async def listen(self, watch: Watch) -> None:
        """Until the end is near and all is said, nothing was said for long, or the socket drops."""
        while self._ws is not None and not self._ws.closed:
            try:
                message = await self._ws.receive(timeout=SETTLE if watch.ending else SILENCE)
            except asyncio.TimeoutError:
                return
            if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
                watch.hear(message.data)
                if watch.over:
                    return
            else:
                await self.close()

    async def close(self) -> None:
        if self._ws is not None:
            await self._ws.close()


def save_values(result: RunResult, folder: str | Path, *, overwrite: bool = False) -> dict[str, list[Path]]:
    """Write what output nodes say into a folder, named by their titles: texts as .txt, data as .json."""
    saved: dict[str, list[Path]] = {}
    for node, says in result.values.items():
        for items in says.values():
            plain = all(isinstance(one, str) for one in items)
            text = "\n".join(items) if plain else json.dumps(items, indent=2, ensure_ascii=False)
            part = part_in(Path(folder))
            try:
                part.write_text(text + "\n", encoding="utf-8")
                name = safe_name(title(result.prompt, node) + (".txt" if plain else ".json"))
                saved.setdefault(node, []).append(claim(part, Path(folder) / name, overwrite=overwrite))
            finally:
                part.unlink(missing_ok=True)
    return saved


def address(text: str) -> URL:
    """A server's address; http:// may be left out."""
    text = text.strip()
    try:
        url = URL(text if "://" in text else f"http://{text}").with_fragment(None)
        if url.scheme in ("http", "https") and url.host and url.port is not None:
            return url
    except ValueError:
        pass
    raise UserError(f"{text} is no address of a server; it must look like {DEFAULT_SERVER}.")


def _is_local(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False


def _local(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"There is no file {path}; give one that shall be uploaded.")
    return path
