"""What the web extension asks the server: one frame of a loaded file, and the faces in that frame."""

import asyncio
import io
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from aiohttp import web
from PIL import Image

from ..latentsync.errors import UserError
from ..latentsync.media.image import is_image, read_image
from ..latentsync.media.probe import VideoInfo, probe
from ..latentsync.media.reader import VideoReader
from . import host

SHOWN_SIDE = 1280
"""Longest side of a frame as it goes to the browser; places are always given in pixels of the file."""


def add_routes(table: web.RouteTableDef) -> None:
    """GET /latentsync/frame (a JPEG) and /latentsync/faces (JSON), both with ?file=NAME&frame=N."""
    turn = asyncio.Lock()  # each takes a core: one at a time

    async def answer(request: web.Request, work: Callable[[Path, int, int], Any]) -> Any:
        async with turn:
            return await asyncio.to_thread(_with_file, work, request.query.get("file", ""), request.query.get("frame"))

    @table.get("/latentsync/frame")
    async def frame(request: web.Request) -> web.Response:
        try:
            body = await answer(request, _jpeg)
        except UserError as error:
            return _sorry(error)
        return web.Response(body=body, content_type="image/jpeg", headers={"Cache-Control": "no-cache"})

    @table.get("/latentsync/faces")
    async def faces(request: web.Request) -> web.Response:
        try:
            return web.json_response(await answer(request, _faces))
        except UserError as error:
            return _sorry(error)


def _sorry(error: UserError) -> web.Response:
    return web.json_response({"error": str(error)}, status=400)


def _with_file(work: Callable[[Path, int, int], Any], name: str, frame: str | None) -> Any:
    """work(path, time of the file's last change, frame number), for what a request asks."""
    if not name.strip() or "\0" in name:
        raise UserError("The request names no file; give the name of a file in ComfyUI's input folder.")
    path = host.input_path(name)
    try:
        return work(path, path.stat().st_mtime_ns, _number(frame))
    except UserError as error:  # where the folder lies is nobody's business
        raise UserError(host.short_text(str(error)).replace(str(path), path.name)) from None


def _number(text: str | None) -> int:
    try:
        return int(text or 0)
    except ValueError:
        raise UserError(f"The frame is {text!r}; give a whole number from 0 on.") from None


@lru_cache(maxsize=8)
def _info(path: Path, changed: int) -> VideoInfo | None:
    """None: a still picture."""
    return None if is_image(path) else probe(path)


@lru_cache(maxsize=2)
def _frame(path: Path, changed: int, number: int) -> np.ndarray:
    info = _info(path, changed)
    last = info.frames - 1 if info else 0
    if not 0 <= number <= last:
        raise UserError(f"{path.name} has no frame {number}; give one from 0 to {last}.")
    if info is None:
        return read_image(path)
    with VideoReader(info) as reader:
        return next(reader.read([number]))


@lru_cache(maxsize=16)
def _jpeg(path: Path, changed: int, number: int) -> bytes:
    picture = Image.fromarray(_frame(path, changed, number))
    picture.thumbnail((SHOWN_SIDE, SHOWN_SIDE))
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=88)
    return data.getvalue()


@lru_cache(maxsize=64)
def _faces(path: Path, changed: int, number: int) -> dict[str, Any]:
    """Numbered from left to right; boxes in pixels of the file."""
    frame = _frame(path, changed, number)
    found = sorted(host.face_finder().detect(frame), key=lambda face: face.center[0])
    info = _info(path, changed)
    return {
        "width": frame.shape[1],
        "height": frame.shape[0],
        "frames": info.frames if info else 1,
        "fps": float(info.fps) if info else 0.0,
        "faces": [
            {"index": n, "box": [round(v, 1) for v in face.box], "score": round(face.score, 3)}
            for n, face in enumerate(found)
        ],
    }
