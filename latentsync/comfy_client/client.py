"""Run API-form workflows on a ComfyUI server: upload files, set values, follow progress, fetch results.

async with ComfyClient("http://127.0.0.1:8188") as client:
    result = await client.run("lip_sync_a_video.json", inputs={"Load Video.file": "clip.mp4"}, values={"3.seed": 7})
    paths = await client.download(result, "results")
"""

import asyncio
import json
import time
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from ..errors import UserError
from ..files import claim, part_in, safe_name
from .connection import Connection, EventSocket, UnreachableError
from .events import OnEvent, Output, RunFailedError, RunMonitor, check, collect
from .inputs import Field
from .prompt import Info, Prompt, missing, put, put_all, read, refusals, settable, title

SUBFOLDER = "latentsync"  # where uploads go inside ComfyUI's input folder
RETRY_DELAYS = (0.5, 1.0, 2.0, 5.0)
CONTACT_TIMEOUT = 60.0  # seconds without any contact until a run is given up
WITHDRAW_TIMEOUT = 10.0
CHUNK = 1 << 20


class RefusedError(UserError):
    """The server did not accept the workflow. lines: what is wrong, node by node."""

    def __init__(self, lines: list[str]) -> None:
        super().__init__("ComfyUI refused the workflow: " + "; ".join(lines))
        self.lines = lines


@dataclass(frozen=True)
class RunResult:
    """files and values ({node: {"text": […]}}) of output nodes, timings in seconds by node, cached nodes. uploads:
    local path -> name on the server."""

    prompt_id: str
    prompt: Prompt
    files: list[Output]
    values: dict[str, Any]
    timings: dict[str, float]
    cached: list[str]
    elapsed_s: float
    uploads: dict[str, str]


class ComfyClient(Connection):
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

        inputs: {"NODE.INPUT": local file}, uploaded first. values: {"NODE.INPUT": value}. NODE is an id, a title, or a
        class that occurs once. When this is cancelled or takes longer than timeout seconds, the prompt is withdrawn
        from the server. RefusedError: the workflow cannot be run; RunFailedError: it did not end well; UserError:
        anything else that the user can fix.
        """
        prompt = read(workflow)
        files = {place: _existing(path) for place, path in (inputs or {}).items()}
        try:
            return await asyncio.wait_for(self._run(prompt, files, values or {}, on_event), timeout)
        except asyncio.TimeoutError as error:
            raise RunFailedError(f"The run took longer than {timeout:g} s and was stopped.") from error

    async def _run(
        self, prompt: Prompt, files: Mapping[str, Path], values: Mapping[str, Any], on_event: OnEvent | None
    ) -> RunResult:
        start = time.perf_counter()
        info = await self.describe({node["class_type"] for node in prompt.values()})
        # All checks come before large files are sent, with the local names in place of those on the server.
        fields = put_all(prompt, info, {**values, **{place: path.name for place, path in files.items()}})
        monitor = RunMonitor(prompt, str(uuid.uuid4()), on_event)
        uploads: dict[Path, str] = {}
        for path in dict.fromkeys(files.values()):
            monitor.emit("uploading", text=str(path), total=path.stat().st_size)
            uploads[path] = await self.upload(path)
        for place, path in files.items():
            put(prompt, fields[place], uploads[path])
        entry = await self._queue(prompt, info, monitor)
        check(entry, monitor)
        output_kinds = {kind for kind, about in info.items() if about.get("output_node")}
        sent, elapsed_s = {str(path): name for path, name in uploads.items()}, time.perf_counter() - start
        outputs = collect(entry, prompt, output_kinds)
        return RunResult(monitor.prompt_id, prompt, *outputs, dict(monitor.timings), monitor.cached, elapsed_s, sent)

    async def fields(
        self, workflow: str | Path | Mapping[str, Any], values: Mapping[str, Any] | None = None
    ) -> tuple[Prompt, list[Field]]:
        """The workflow with the values set, and the inputs that can be set. Nothing runs."""
        prompt = read(workflow)
        info = await self.describe({node["class_type"] for node in prompt.values()})
        if lines := missing(prompt, info):
            raise RefusedError(lines)
        put_all(prompt, info, values or {})
        return prompt, settable(prompt, info)

    async def describe(self, kinds: Iterable[str]) -> Info:
        """The server's description of these node classes, without those that it does not have."""
        answers = await asyncio.gather(*(self.get("object_info", kind) for kind in kinds))
        return {name: about for answer in answers for name, about in answer.items()}

    async def upload(self, path: str | Path) -> str:
        """Send a file into the server's input folder; returns its name there, as a widget takes it. A file of the same
        name and other content stays; the new one gets a number."""
        path = _existing(path)
        form = aiohttp.FormData(quote_fields=False)
        with path.open("rb") as file:
            form.add_field("image", file, filename=safe_name(path.name), content_type="application/octet-stream")
            form.add_field("subfolder", SUBFOLDER)
            form.add_field("type", "input")
            answer = await self.request_json("POST", "upload", "image", data=form)
        return f"{answer.get('subfolder') or ''}/{answer['name']}".lstrip("/")

    async def _queue(self, prompt: Prompt, info: Info, monitor: RunMonitor) -> Mapping[str, Any]:
        client_id = uuid.uuid4().hex
        socket = EventSocket(self, client_id)
        await socket.connect()
        try:
            await self._submit(prompt, info, client_id, monitor)
            return await self._wait(socket, monitor)
        except UserError:
            raise
        except BaseException:
            await self.withdraw(monitor.prompt_id)
            raise
        finally:
            await socket.close()

    async def _submit(self, prompt: Prompt, info: Info, client_id: str, monitor: RunMonitor) -> None:
        body = {"prompt": prompt, "client_id": client_id, "prompt_id": monitor.prompt_id}
        answer = await self.request_json("POST", "prompt", json=body, allow=(400,))
        if "prompt_id" not in answer:
            raise RefusedError(missing(prompt, info) or refusals(prompt, info, answer))
        monitor.prompt_id = str(answer["prompt_id"])
        if answer.get("node_errors"):
            # ComfyUI would run the rest, and a result would be missing without a word.
            await self.withdraw(monitor.prompt_id)
            raise RefusedError(refusals(prompt, info, answer))
        with suppress(UnreachableError):
            ahead = await self.queue_position(monitor.prompt_id) or 0
            monitor.emit("queued", done=ahead, text=monitor.prompt_id)

    async def _wait(self, socket: EventSocket, monitor: RunMonitor) -> Mapping[str, Any]:
        """The history entry at the end. A broken socket costs progress, never the result."""
        last_contact, failures, lost = time.monotonic(), 0, False
        while True:
            while socket.is_open:
                if (message := await socket.receive(monitor.ending)) is None:
                    break
                monitor.receive(message)
                if monitor.over:
                    break
            if not socket.is_open and not lost:
                monitor.emit("lost")
                lost = True
            try:
                if (entry := await self._history(monitor)) is not None:
                    return entry
                last_contact = time.monotonic()
            except UnreachableError as error:
                if time.monotonic() - last_contact > CONTACT_TIMEOUT:
                    raise RunFailedError(
                        f"{self.display_url} has not answered for {CONTACT_TIMEOUT:g} s; it may still be running"
                        f" there as {monitor.prompt_id}."
                    ) from error
            if not socket.is_open and await socket.connect():
                failures, lost = 0, False
                monitor.emit("found")
            elif not socket.is_open:
                await asyncio.sleep(RETRY_DELAYS[min(failures, len(RETRY_DELAYS) - 1)])
                failures += 1

    async def _history(self, monitor: RunMonitor) -> Mapping[str, Any] | None:
        """The history of the prompt; None while it waits or runs."""
        ahead = await self.queue_position(monitor.prompt_id)
        answer = await self.get("history", monitor.prompt_id)
        if monitor.prompt_id in answer:
            return answer[monitor.prompt_id]
        if ahead is not None:
            if ahead:
                monitor.emit("queued", done=ahead, text=monitor.prompt_id)
            return None
        if monitor.succeeded:  # the history was cleared in between; the events had the same
            return {"outputs": monitor.outputs}
        ends = "it was deleted from the queue, or ComfyUI restarted"
        raise RunFailedError(f"The server no longer knows the prompt: {ends}.")

    async def queue_position(self, prompt_id: str) -> int | None:
        """How many prompts come first (0: none, it runs); None when it is not in the queue."""
        queue = await self.get("queue")
        running = [item[1] for item in queue["queue_running"]]
        if prompt_id in running:
            return 0
        waiting = [item[1] for item in sorted(queue["queue_pending"], key=lambda item: item[0])]
        return len(running) + waiting.index(prompt_id) if prompt_id in waiting else None

    async def withdraw(self, prompt_id: str) -> None:
        """Remove a prompt from the queue, or interrupt it when it runs; other prompts are left alone."""
        with suppress(UserError, asyncio.TimeoutError):
            await asyncio.wait_for(self._withdraw(prompt_id), WITHDRAW_TIMEOUT)

    async def _withdraw(self, prompt_id: str) -> None:
        # recent servers do both in one step, which cannot hit the next prompt
        async with self.request("POST", self.url("api", "jobs", prompt_id, "cancel"), json={}) as response:
            if response.status == 200 and response.content_type == "application/json":
                return
        await self.request_json("POST", "queue", json={"delete": [prompt_id]})
        # Older servers interrupt whatever runs, whichever prompt is named: ask only when it is ours.
        if await self.queue_position(prompt_id) == 0:
            await self.request_json("POST", "interrupt", json={"prompt_id": prompt_id})

    async def free(self) -> None:
        """Ask the server to unload its models and forget cached results once it is idle."""
        await self.request_json("POST", "free", json={"unload_models": True, "free_memory": True})

    async def download(self, result: RunResult, folder: str | Path, *, overwrite: bool = False) -> dict[Output, Path]:
        """Fetch all files of a run into a folder, one after the other."""
        return {one: await self.fetch(one, folder, overwrite=overwrite) for one in result.files}

    async def fetch(self, output: Output, folder: str | Path, *, overwrite: bool = False) -> Path:
        """Fetch one file. It never leaves the folder; it gets a number where its name is taken, unless overwrite."""
        part = part_in(Path(folder))
        try:
            for delay in RETRY_DELAYS:
                try:
                    await self._stream(output, part)
                    break
                except UnreachableError:
                    if delay == RETRY_DELAYS[-1]:
                        raise
                    await asyncio.sleep(delay)
            # ComfyUI gives temporary files random names
            name = f"{output.title}{Path(output.filename).suffix}" if output.type == "temp" else output.filename
            return claim(part, Path(folder) / safe_name(name), overwrite=overwrite)
        except OSError as error:
            reason = error.strerror or error
            raise UserError(f"{folder} cannot be written to ({reason}); give another folder.") from error
        finally:
            part.unlink(missing_ok=True)

    async def _stream(self, output: Output, part: Path) -> None:
        query = {"filename": output.filename, "subfolder": output.subfolder, "type": output.type}
        async with self.request("GET", self.url("view").update_query(query)) as response:
            if response.status in (400, 404):
                raise RunFailedError(f"{output.filename} of {output.title} is no longer on {self.display_url}.")
            if response.status != 200:
                raise self.status_error(response)
            with part.open("wb") as file:
                async for chunk in response.content.iter_chunked(CHUNK):
                    file.write(chunk)


def save_values(result: RunResult, folder: str | Path, *, overwrite: bool = False) -> dict[str, list[Path]]:
    """Write the texts (.txt) and data (.json) of output nodes into a folder, named by the nodes' titles."""
    saved: dict[str, list[Path]] = {}
    for node, values in result.values.items():
        for items in values.values():
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


def _existing(path: str | Path) -> Path:
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"There is no file {path}; give one to upload.")
    return path
