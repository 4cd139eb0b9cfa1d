"""What the page shows of a run: progress, the result, and how well mouth and sound agree."""

from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backends import LipSyncResult
from .components import play_together
from .queue import DONE, WAITING, Job
from .sessions import Session

if TYPE_CHECKING:
    from ..face.spans import Span

MODELS = {
    "nano": "nano: small, built in; mouths are soft",
    "1.5": "LatentSync 1.5 (256 pixels)",
    "1.6": "LatentSync 1.6 (512 pixels: sharper, four times the work)",
}
STAGES = {
    "": "Starting",
    "loading": "Loading the model (once)",
    "track": "Step 1 of 2: tracking the face",
    "finding faces": "Step 1 of 2: tracking the face",
    "sample": "Step 2 of 2: sampling the mouth",
    "sampling": "Step 2 of 2: sampling the mouth",
    "before": "Making a copy of your video that browsers can play",
    "after": "Making a copy of the result that browsers can play",
    "sending": "Sending the files to ComfyUI",
    "queued": "Queued in ComfyUI",
    "started": "ComfyUI is running",
    "fetching": "Fetching the result",
    "measuring": "Measuring mouth and sound",
}
"""Texts for the stages of the engine, the backends and the nodes."""
POLL = 0.5  # seconds between updates of the progress
TYPES = {".mp4": "video/mp4", ".m4v": "video/mp4", ".mov": "video/quicktime", ".webm": "video/webm",
         ".mkv": "video/x-matroska"}  # fmt: skip
MOST_SPANS = 12
"""Rows of the table of what was synced and what was not."""


def model_label(checkpoint: str) -> str:
    return MODELS.get(checkpoint, Path(checkpoint).name)


class ResultView:
    def __init__(self, st: Any, session: Session) -> None:
        self.st, self.session = st, session

    def show(self, result: LipSyncResult) -> None:
        st, request = self.st, result.request
        st.subheader("Your video", anchor=False)
        left, right = st.columns(2, gap="large")
        with left, st.container(key="before"):
            st.markdown("**Before**")
            if request.is_image:
                st.image(str(result.before))
            else:
                st.video(str(result.before), TYPES.get(result.before.suffix, "video/mp4"))
        with right, st.container(key="after"):
            st.markdown("**After**")
            played = result.preview or result.video
            st.video(str(played), TYPES.get(played.suffix, "video/mp4"))
        if not request.is_image:
            with left:
                play_together(st)

        ending = result.video.suffix
        name = f"{Path(result.name).stem}_latentsync{ending}"
        right.download_button(  # the file is opened when the button is clicked
            "Download the video", lambda: result.video.open("rb"), name, TYPES[ending], type="primary",
            on_click="ignore", width="stretch",
        )  # fmt: skip
        if result.preview is not None:
            right.caption(
                f"Not every browser plays this {ending} file as it is stored; players on a computer do. Shown above is"
                " a copy in H.264; the download is the file itself."
            )
        settings = request.settings
        steps = f"{settings.steps} step" + "s" * (settings.steps != 1)
        model, time = model_label(request.checkpoint).split(":")[0], clock(result.elapsed_s)
        st.caption(
            f"{model}, {steps}, guidance {settings.guidance:g}, seed {settings.seed}; {time} min on"
            f" {result.backend}. Another seed gives another take."
        )
        for note in () if result.report is None else result.report.notes:
            st.caption(f"What you gave is {plain(note)}.")
        if result.report is not None:
            self._spans(result.report.spans, result.report.fps)
        if self.session.score is not None:
            with st.expander("Do the lips follow the sound?", expanded=True):
                if self.session.score.over:
                    self._chart(self.session.score)
                else:
                    st.fragment(self._score_progress, run_every=POLL)()

    def _spans(self, spans: "Sequence[Span]", fps: Fraction) -> None:
        """What was synced, what was not, and why; nothing where all was synced."""
        starts = [i for i, span in enumerate(spans) if span.start == 0]  # each face's begin at 0
        if len(spans) <= len(starts) and not any(span.reason for span in spans):
            return
        head = "| from | to | what | why |", "|---|---|---|---|"
        people, said = [spans[a:b] for a, b in pairwise([*starts, len(spans)])], list[str]()
        tables: list[str] = []
        for number, own in enumerate(people, 1):
            who = f"voice {number}: " if len(people) > 1 else ""
            lengths: dict[str, Fraction] = {}
            rows: list[str] = []
            for span in own:
                start, stop = span.start / fps, span.stop / fps
                lengths[span.state] = lengths.get(span.state, Fraction(0)) + stop - start
                rows.append(f"| {moment(start)} | {moment(stop)} | {plain(span.state)} | {plain(span.reason)} |")
            more = [f"| … | | {len(rows) - MOST_SPANS} more | |"] if len(rows) > MOST_SPANS else []
            said.append(who + ", ".join(f"{float(length):.1f} s {plain(state)}" for state, length in lengths.items()))
            title = [f"**Voice {number}**", ""] if who else []
            tables.append("\n".join([*title, *head, *rows[:MOST_SPANS], *more]))
        with self.st.expander(f"What was done: {'; '.join(said)}"):
            self.st.markdown("\n\n".join(tables))

    def _score_progress(self) -> None:
        if (job := self.session.score) is None or job.over:
            self.st.rerun()
        else:
            show_progress(self.st, job)

    def _chart(self, job: Job[Any]) -> None:
        from ..evaluation.charts import draw_chart

        st = self.st
        if job.state != DONE or job.value is None:
            st.info(f"This could not be measured. {plain(job.error)}")
            return
        st.image(draw_chart(job.value))
        st.caption(
            "Top: how far the mouth is open, and how loud the voice is. Bottom: their correlation when the sound is"
            " shifted by some frames. A good result has a peak at 0, well above the dashed line of chance; clips of a"
            " few seconds often have none."
        )


def show_progress(st: Any, job: Job[Any]) -> None:
    st.progress(min(1.0, job.done / job.total) if job.total else 0.0, text=progress_text(job))


def progress_text(job: Job[Any]) -> str:
    if job.state == WAITING:
        return "Waiting for others"
    count = f" · {job.done:.0f} of {job.total:.0f}" if job.total else ""
    left = f", about {clock(job.remaining_s)} left" if job.remaining_s is not None else ""
    return f"{STAGES.get(job.stage, job.stage)}{count} · {clock(job.elapsed_s)}{left}"


def clock(seconds: float) -> str:
    """1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def moment(seconds: Fraction) -> str:
    """1:05.20."""
    minutes, hundredths = divmod(round(seconds * 100), 6000)
    return f"{minutes}:{hundredths / 100:05.2f}"


def plain(text: str) -> str:
    """Escape Markdown."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>()#+-.!|~$:&" else sign for sign in text)
