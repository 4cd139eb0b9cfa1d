"""me.html: what a model of a person has learned, before and after, on seconds that it was not trained on."""

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory

import cv2
import numpy as np

from ...evaluation.canvas import Chart, Line
from ...files import atomic_path
from ...media.audio_track import AudioTrack
from ...media.writer import VideoWriter
from .judge import Figures

COLUMNS = 8
ROWS = (
    ("opening", "Mouth follows the speech", "correlation with the true opening; 1 is perfect"),
    ("similarity", "Likeness at the lips", "SSIM; 1 is the same picture"),
    ("sharpness", "Sharpness at the lips", "share of the true fine detail; 1 is as sharp as filmed"),
)  # fmt: skip
STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;margin:2em auto;max-width:60em;padding:0 1em;color-scheme:light dark}"
    "td,th{padding:.25em 1.2em .25em 0;text-align:left;font-weight:400}th{opacity:.75}"
    "img,video{max-width:100%;height:auto}code{word-break:break-all}"
)


@dataclass(frozen=True)
class Story:
    """What the page tells. true, before, after: (F, R, R, 3) uint8 of the same held-out moments; after and its figures
    are missing where nothing was trained. video: the part of them that follows each other, with its sound, at fps.
    history: (step, figures)."""

    person: str
    facts: Mapping[str, str]
    true: np.ndarray
    before: np.ndarray
    figures: Figures
    after: np.ndarray | None = None
    better: Figures | None = None
    history: Sequence[tuple[int, Figures]] = ()
    use: str = ""
    fps: Fraction = Fraction(25)
    sound: AudioTrack | None = None
    together: int = 0
    notes: Sequence[str] = field(default_factory=tuple)


def write_page(path: Path, story: Story) -> Path:
    """One file, with everything in it."""
    title = f"A model of {story.person}"
    parts = [f"<h1>{html.escape(title)}</h1>", _table(story.facts)]
    parts += [f"<p>{html.escape(note)}" for note in story.notes]
    parts += ["<h2>On seconds it was not trained on</h2>", _figures(story), _video(story), _sheet(story)]
    if len(story.history) > 1:
        parts += ["<h2>During training</h2>", _image(_chart(story), "Figures of the held-out seconds over the steps")]
    if story.use:
        parts += ["<h2>Use it</h2>", f"<pre><code>{html.escape(story.use)}</code></pre>"]
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
    wide = '<meta name="viewport" content="width=device-width,initial-scale=1">'
    with atomic_path(path) as part:
        part.write_text(f"{head}{wide}<style>{STYLE}</style><body>{''.join(parts)}</body></html>\n", "utf-8")
    return path


def sheet(true: np.ndarray, before: np.ndarray, after: np.ndarray | None, columns: int = COLUMNS) -> np.ndarray:
    """Rows: as filmed, the checkpoint alone, the person's model. RGB uint8."""
    picked = np.linspace(0, len(true) - 1, columns).round().astype(int)
    rows = [np.concatenate(list(frames[picked]), 1) for frames in (true, before, after) if frames is not None]
    return np.concatenate(rows)


def _figures(story: Story) -> str:
    lines = ["<tr><th><th>before<th>after<th>"]
    for name, title, meaning in ROWS:
        values = [f"{getattr(one, name):.2f}" if one else "–" for one in (story.figures, story.better)]
        lines.append(f"<tr><td>{title}<td>{values[0]}<td>{values[1]}<td>{meaning}")
    return f"<table>{''.join(lines)}</table>"


def _table(rows: Mapping[str, str]) -> str:
    lines = (f"<tr><th>{html.escape(name)}<td>{html.escape(value)}" for name, value in rows.items())
    return f"<table>{''.join(lines)}</table>"


def _sheet(story: Story) -> str:
    rows = "as filmed, before" + (", after" if story.after is not None else "")
    image = _image(sheet(story.true, story.before, story.after), f"Moments of held-out seconds: {rows}")
    return f"<p>From top to bottom: {rows}.<p>{image}"


def _video(story: Story) -> str:
    if story.together < 2:
        return ""
    shown = [part[: story.together] for part in (story.true, story.before, story.after) if part is not None]
    wide = np.concatenate(shown, 2)
    with TemporaryDirectory(prefix="latentsync-") as folder:
        path = Path(folder) / "video.mp4"
        with VideoWriter(path, wide.shape[2], wide.shape[1], story.fps, audio=story.sound, crf=18) as writer:
            for frame in wide:
                writer.write(frame)
        data = base64.b64encode(path.read_bytes()).decode()
    names = "as filmed, before" + (", after" if story.after is not None else "")
    return f'<p>From left to right: {names}.<p><video controls loop src="data:video/mp4;base64,{data}"></video>'


def _image(picture: np.ndarray, text: str) -> str:
    ok, data = cv2.imencode(".jpg", picture[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    assert ok
    return f'<img alt="{html.escape(text)}" src="data:image/jpeg;base64,{base64.b64encode(data.tobytes()).decode()}">'


def _chart(story: Story) -> np.ndarray:
    steps = np.array([step for step, _ in story.history], float)
    chart = Chart(len(ROWS), "Held-out seconds", "by training step; 0 is the checkpoint alone")
    for name, title, _ in ROWS:
        values = np.array([getattr(one, name) for _, one in story.history])
        line = Line(steps, values, label=title, dots=True)
        chart.panel([line], ("", "step", ""), x=(0, float(steps[-1])), whole=True)
    return chart.picture()
