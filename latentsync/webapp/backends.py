"""Backends that run a request: the local engine or a ComfyUI server."""

import asyncio
import math
import re
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import UserError
from .queue import CancelledError, Job
from .workflow import NEWER, REPORT, RESULT, SHOW_TEXT, SPEAKERS_NODE, VIDEO_NODE, Told, prompt_for, with_report
from .workflow import LipSyncRequest as LipSyncRequest

if TYPE_CHECKING:
    from ..comfy_client.client import ComfyClient
    from ..comfy_client.events import Event
    from ..comfy_client.prompt import Info
    from ..pipeline import Report
    from ..weights.bundle import Models

PUBLISHED = ("1.5", "1.6")
LACKS = "ComfyUI at {} lacks the LatentSync nodes; install the pack there."
CANCEL_POLL, TIMEOUT, MAX_AGE = 0.2, 10.0, 30.0
"""Seconds between checks whether a run on the server is still wanted, in which a server must list its checkpoints, and
after which it is asked for them again."""


@dataclass(frozen=True)
class LipSyncResult:
    """video: the result; before: the face as browsers can play it, of the same time. name: what its owner calls the
    face. preview: a copy of the result for browsers, which do not play it; None: they do. report: None from a server
    that does not tell.
    """

    video: Path
    request: LipSyncRequest
    elapsed_s: float
    before: Path
    backend: str
    name: str
    preview: Path | None = None
    report: "Report | Told | None" = None


class NotReadyError(UserError):
    """A backend that has not answered yet."""


class Backend(Protocol):
    """title: its name on the page. concurrency: runs that may be sent to it at once."""

    title: str
    concurrency: int

    def checkpoints(self) -> list[str]:
        """What can be chosen, without waiting. UserError when the backend cannot be used."""
        ...

    def run(self, request: LipSyncRequest, job: Job[Any]) -> "Report | Told | None":
        """Write request.out, reporting progress to the job. None: nothing is known of how it went."""
        ...

    def close(self) -> None: ...


class LocalEngine:
    """The engine in this process, one run at a time. The models of the last checkpoint stay loaded."""

    title, concurrency = "this computer", 1

    def __init__(self, extra_checkpoints: tuple[str, ...] = (), device: str = "auto", dtype: str = "auto") -> None:
        self._extra_checkpoints, self._device, self._dtype = extra_checkpoints, device, dtype
        self._loaded: tuple[tuple[str, ...], Models] | None = None
        self._lock = threading.Lock()

    def checkpoints(self) -> list[str]:
        return ["nano", *filter(is_here, PUBLISHED), *self._extra_checkpoints]

    def run(self, request: LipSyncRequest, job: Job[Any]) -> "Report":
        import torch

        from ..pipeline import Speaker, lipsync_file

        voice: Any = request.voice
        if voice is not None and request.others:
            voice = [Speaker(request.settings.face, voice), *request.others]
        with self._lock:
            job.report("loading")
            models = self._models(request.checkpoint, request.lora)
            options: dict[str, Any] = {"models": models, "settings": request.settings, "cut": request.cut}
            options["on_step"] = lambda progress: job.report(progress.stage, progress.done, progress.total)
            try:
                return lipsync_file(request.face, voice, request.out, **options)
            except torch.OutOfMemoryError as error:
                raise UserError("The GPU ran out of memory; a smaller checkpoint may fit.") from error

    def _models(self, checkpoint: str, lora: tuple[str, ...]) -> "Models":
        from ..batch.worker import ModelSpec

        wanted = checkpoint, *lora
        if self._loaded is None or self._loaded[0] != wanted:
            self.close()
            spec = ModelSpec(checkpoint, lora=lora, device=self._device, dtype=self._dtype)
            self._loaded = wanted, spec.load()
        return self._loaded[1]

    def close(self) -> None:
        if self._loaded is not None:
            self._loaded[1].finder.close()
            self._loaded = None


def is_here(name: str) -> bool:
    from ..weights.registry import find

    with suppress(UserError):
        return bool(find(name))
    return False


class ComfyServer:
    """A running ComfyUI with this pack. It has a queue of its own, so several runs may be sent to it."""

    title, concurrency = "ComfyUI", 8

    def __init__(self, server: str, headers: Mapping[str, str] | None = None) -> None:
        self._server, self._headers = server, dict(headers or {})
        url = self._client().display_url
        self._checkpoints = _BackgroundLookup(self._ask_for_checkpoints, f"Asking ComfyUI at {url} for its models …")

    def _client(self) -> "ComfyClient":
        from ..comfy_client.client import ComfyClient

        return ComfyClient(self._server, headers=self._headers)

    def checkpoints(self) -> list[str]:
        return self._checkpoints.get()

    def _ask_for_checkpoints(self) -> list[str]:
        from ..comfy_client.prompt import declared

        async def ask() -> list[str]:
            async with self._client() as client:
                info = await client.describe([VIDEO_NODE])
                if VIDEO_NODE not in info:
                    raise UserError(LACKS.format(client.display_url))
                kind, rules = declared(info, VIDEO_NODE)["checkpoint"]
                return [str(one) for one in (kind if isinstance(kind, list) else rules.get("options", []))]

        try:
            return asyncio.run(asyncio.wait_for(ask(), TIMEOUT))
        except asyncio.TimeoutError:
            url = self._client().display_url
            raise UserError(f"{url} did not answer within {TIMEOUT:g} s; is it running?") from None

    def run(self, request: LipSyncRequest, job: Job[Any]) -> Told | None:
        return asyncio.run(self._run_until_cancelled(request, job))

    async def _run_until_cancelled(self, request: LipSyncRequest, job: Job[Any]) -> Told | None:
        running = asyncio.create_task(self._run(request, job))
        try:
            while not (await asyncio.wait({running}, timeout=CANCEL_POLL))[0]:
                if job.stopping:
                    raise CancelledError
            return await running
        finally:
            running.cancel()  # which withdraws the prompt from the server
            with suppress(asyncio.CancelledError, UserError, CancelledError):
                await running

    async def _run(self, request: LipSyncRequest, job: Job[Any]) -> Told | None:
        if request.lora:
            raise UserError("A LoRA file can be used on this computer only; remove it, or run on this computer.")
        files = {"Face.image" if request.is_image else "Face.file": request.face}
        if request.voice is not None:
            files["Voice.audio"] = request.voice
            if request.settings.audio_track > 0:
                raise UserError("ComfyUI uses only a voice's first audio track; choose that, or run on this computer.")
        files |= {f"Voice {number}.audio": Path(one.voice) for number, one in enumerate(request.others, 2)}

        async with self._client() as client:
            prompt = prompt_for(request)
            info = await client.describe([VIDEO_NODE, SPEAKERS_NODE, SHOW_TEXT])
            _check_nodes(client.display_url, prompt["3"], info)
            if SHOW_TEXT in info:
                prompt = with_report(prompt)
            result = await client.run(prompt, inputs=files, on_event=partial(report_event, job))
            video = next((one for one in result.files if one.title == RESULT and one.type == "output"), None)
            if video is None:
                raise UserError("ComfyUI ended the run without a video; see its log.")
            job.report("fetching")
            (await client.fetch(video, request.out.parent)).replace(request.out)
            return Told.parse(result.values.get(REPORT))

    def close(self) -> None: ...


def _check_nodes(server: str, node: Mapping[str, Any], info: "Info") -> None:
    """UserError where the server lacks the node, or an input of it that is to be set."""
    from ..comfy_client.prompt import declared

    if VIDEO_NODE not in info:
        raise UserError(LACKS.format(server))
    advice = "update them there, do without, or run on this computer"
    if node["class_type"] not in info:
        raise UserError(
            f"The LatentSync nodes at {server} are too old to give several people their own voices; {advice}."
        )
    if lacking := set(node["inputs"]).intersection(NEWER) - set(declared(info, node["class_type"])):
        cannot = dict.fromkeys(NEWER[name] for name in NEWER if name in lacking)
        raise UserError(f"The LatentSync nodes at {server} are too old to {' and to '.join(cannot)}; {advice}.")


class _BackgroundLookup:
    """A value that is looked up in a thread, again when it is older than MAX_AGE. get() never waits."""

    def __init__(self, look_up: Callable[[], list[str]], pending: str) -> None:
        self._look_up, self._lock = look_up, threading.Lock()
        self._found: list[str] | UserError = NotReadyError(pending)
        self._time, self._running = -math.inf, False

    def get(self) -> list[str]:
        with self._lock:
            if not self._running and time.monotonic() - self._time > MAX_AGE:
                self._running = True
                threading.Thread(target=self._refresh, name="latentsync lookup", daemon=True).start()
            if isinstance(self._found, UserError):
                raise self._found.with_traceback(None)
            return self._found

    def _refresh(self) -> None:
        found = UserError("ComfyUI could not be asked for its models; the app's log has the details.")
        try:
            found = self._look_up()
        except UserError as error:
            found = error
        finally:
            with self._lock:
                self._found, self._time, self._running = found, time.monotonic(), False


def report_event(job: Job[Any], event: "Event") -> None:
    match event.kind:
        case "queued":
            job.report("queued")
            job.remote_ahead = int(event.done)
        case "uploading":
            job.report("sending")
        case "text" if event.text:
            # "sampling: 3 of 50": the stage in the server's words; the numbers also come with the next progress
            if numbers := re.fullmatch(r"(.+): (\d+) of (\d+)", event.text, re.DOTALL):
                job.report(numbers[1], float(numbers[2]), float(numbers[3]))
            else:
                job.report(event.text)
        case "progress":
            job.report(job.stage, event.done, event.total)
        case "started" | "node" if not job.total:
            job.report("started")
