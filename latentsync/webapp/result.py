"""What the page shows of a run: progress, the result, and how well mouth and voice agree."""

import base64
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .backends import LipSyncResult
from .components import announce, named, play_together, show_picture, show_result
from .queue import DONE, WAITING, Job
from .sessions import Session
from .words import count, duration, length, moment, plain, told

if TYPE_CHECKING:
    from ..face.spans import Span

MODELS = {
    "nano": "nano: small, built in; soft mouths",
    "1.5": "LatentSync 1.5 (256 pixels)",
    "1.6": "LatentSync 1.6 (512 pixels: sharper, four times the work)",
}
TRACKING, SAMPLING = "Step 1 of 2: finding the face in every frame", "Step 2 of 2: making the mouth"
STAGES = {
    "": "Starting",
    "loading": "Loading the model (once)",
    "track": TRACKING,
    "finding faces": TRACKING,
    "sample": SAMPLING,
    "sampling": SAMPLING,
    "before": "Making a copy of your video that browsers can play",
    "after": "Making a copy of the result that browsers can play",
    "sending": "Sending the files to ComfyUI",
    "queued": "Queued in ComfyUI",
    "started": "ComfyUI is running",
    "fetching": "Fetching the result",
    "measuring": "Comparing mouth and voice",
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
    """st: Streamlit. owner: whether the page is shown to whoever runs the app. dark: whether it is dark."""

    def __init__(self, st: Any, session: Session, owner: bool = False, dark: bool = False) -> None:
        self.st, self.session, self.owner, self.dark = st, session, owner, dark

    def show(self, result: LipSyncResult) -> None:
        st, run = self.st, self.session.run
        with st.container(key="result"):
            st.header("Your video", anchor=False)
            with st.container(key="pair"):
                left, right = st.columns(2, gap="large")
                with left, st.container(key="before"):
                    self._before(result)
                with right, st.container(key="after"):
                    self._after(result)
            self._facts(result)
        new = self.session.told is not run
        if new:
            st.toast("Your video is ready.", icon=":material/check_circle:")
            self.session.told = run
        show_result(st, result.video.stem)

    def _before(self, result: LipSyncResult) -> None:
        st = self.st
        st.markdown("**Before**")
        if result.request.is_image:
            show_picture(st, _small(result.before), "The picture that you gave")
            return
        kind = TYPES.get(result.before.suffix, "video/mp4")
        st.video(str(result.before), kind, **named(st.video, "Your video, before"))
        play_together(st)

    def _after(self, result: LipSyncResult) -> None:
        st, ending = self.st, result.video.suffix
        st.markdown("**After**")
        played = result.preview or result.video
        st.video(str(played), TYPES.get(played.suffix, "video/mp4"), **named(st.video, "Your video, after"))
        name = f"{Path(result.name).stem}_latentsync{ending}"
        st.download_button(  # the file is opened when the button is clicked
            "Download the video", lambda: result.video.open("rb"), name, TYPES[ending], type="primary",
            on_click="ignore", width="stretch",
        )  # fmt: skip
        if result.preview is not None:
            st.caption(
                f"Not every browser plays this {ending} file; players on a computer do. The page shows a copy in"
                " H.264; the download is the file itself."
            )

    def _facts(self, result: LipSyncResult) -> None:
        st, settings = self.st, result.request.settings
        model = model_label(result.request.checkpoint).split(":")[0]
        how = f"{count(settings.steps, 'step')}, guidance {settings.guidance:g}, seed {settings.seed}"
        took = f"It took {duration(result.elapsed_s)} on {result.backend}."
        st.caption(f"{model}, {how}. {took} Another seed gives another take.")
        for note in () if result.report is None else result.report.notes:
            st.caption(f"What you gave is {plain(note)}.")
        if result.report is not None:
            self._spans(result.report.spans, result.report.fps)
        if self.session.score is not None:
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
            said.append(who + ", ".join(f"{length(seconds)} {plain(state)}" for state, seconds in lengths.items()))
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
        """One plain line, and what it rests on behind it."""
        from ..evaluation.charts import draw_chart
        from ..evaluation.verdict import verdict

        st = self.st
        if job.state != DONE or job.value is None:
            with st.expander("Do the lips follow the voice? This could not be measured."):
                st.info(f"This could not be measured. {told(job.error, self.owner)}")
            return
        said = verdict(job.value)
        with st.expander(f"Do the lips follow the voice? {plain(said)}."):
            alt = f"A chart of mouth opening and loudness over time, and of their correlation. {said}."
            show_picture(st, _png(draw_chart(job.value, self.dark)), alt, "image/png")
            st.caption(
                "Top: how far the mouth is open, and how loud the voice is. Bottom: their correlation when the voice is"
                " shifted by some frames. A good result has a peak at 0, well above the dashed line, which unrelated"
                " curves seldom reach. Clips of a few seconds often have no such peak."
            )


@lru_cache(maxsize=16)
def _small(path: Path) -> str:
    from ..media.image import read_image
    from .faces import jpeg

    return base64.b64encode(jpeg(read_image(path))).decode()


def _png(picture: Any) -> str:
    import cv2

    return base64.b64encode(cv2.imencode(".png", picture[..., ::-1])[1].tobytes()).decode()


def show_progress(st: Any, job: Job[Any]) -> None:
    stage, share = stage_of(job)
    st.progress(share or 0.0, text=progress_text(job))
    announce(st, stage if share is None else f"{stage}, {int(10 * share) * 10} percent")


def stage_of(job: Job[Any]) -> tuple[str, float | None]:
    """What is done now, and how much of it, 0 to 1. A stage that told its end is followed by the next, which tells of
    itself only when its first unit is done."""
    stage = STAGES.get(job.stage, plain(job.stage))
    ended = 0 < job.total <= job.done
    if ended and stage in (TRACKING, SAMPLING):
        return (SAMPLING, 0.0) if stage == TRACKING else ("Writing the file", None)
    return stage, min(1.0, job.done / job.total) if job.total else None


def progress_text(job: Job[Any]) -> str:
    if job.state == WAITING:
        return "Waiting for others"
    stage, part = stage_of(job)
    share = "" if part is None else f" · {int(100 * part)} %"
    left = ""
    if job.remaining_s is not None:
        left = f", about {duration(max(1, job.remaining_s))} left{' in this step' if stage == TRACKING else ''}"
    return f"{stage}{share} · {duration(job.elapsed_s)} so far{left}"
