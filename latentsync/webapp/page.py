"""The page: what a visitor sees and may do, in the order of the steps. No logic but showing and handing on."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..settings import FITS, SOLVERS, WATERMARKS, Settings
from ..weights.load import default_settings
from ..weights.registry import ASSETS
from .backends import Made
from .components import face_names, face_picker, play_together
from .config import GOOD, qualities
from .faces import first_look, look, shown_frames
from .queue import CANCELLED, DONE, FAILED, WAITING, Job
from .service import Order, Studio
from .sessions import Visitor
from .streamlit_session import forget_upload
from .uploads import FACE_ENDINGS, VOICE_ENDINGS, Media, sample_files, take_face, take_file, take_voice

STYLE = """<style>
[data-testid="stMainBlockContainer"] { max-width: 1180px; padding-top: 3rem; }
.st-key-before video, .st-key-after video, .st-key-before img { max-height: 32rem; }
[class*="-too-large"] { display: none; }
[class*="-box"]:has([aria-invalid="true"]) [class*="-too-large"] { display: flex; }
</style>"""
"""The last two: Streamlit itself refuses a file that is too large, and says so only where the mouse is."""
UPLOAD, RECORD, SAMPLE, OWN = "Upload", "Record", "Example", "The video's own sound"
SAMPLE_VOICE = ASSETS / "voice.flac"
MODELS = {
    "nano": "nano: small, built in; mouths are soft",
    "1.5": "LatentSync 1.5 (256 pixels)",
    "1.6": "LatentSync 1.6 (512 pixels: sharper, four times the work)",
}
FIT_WORDS = {
    "pingpong": "Play the video to and fro until the voice ends",
    "loop": "Start the video again until the voice ends",
    "hold": "Hold the last picture until the voice ends",
    "trim": "End with the shorter of the two",
    "silence": "Keep all of the video, silent after the voice",
}
MARK_WORDS = {
    "none": "None",
    "file": "In the file, where players and other programs can read it",
    "picture": "In the file, and in a corner of the picture",
}
STAGES = {
    "": "Starting",
    "loading": "Loading the model (once)",
    "track": "Step 1 of 2: following the face",
    "finding faces": "Step 1 of 2: following the face",
    "sample": "Step 2 of 2: painting the mouth",
    "sampling": "Step 2 of 2: painting the mouth",
    "before": "Making a copy of your video that browsers play",
    "sending": "Sending the files to ComfyUI",
    "queued": "Handed over to ComfyUI",
    "started": "ComfyUI works",
    "fetching": "Fetching the result",
    "measuring": "Measuring mouth and sound",
}
EVERY = 0.5
"""Seconds between looks at a run."""


class Page:
    """One run of the page for one visitor. st: Streamlit."""

    def __init__(self, st: Any, studio: Studio, visitor: Visitor) -> None:
        self.st, self.studio, self.visitor = st, studio, visitor
        self.limits = studio.limits

    def show(self) -> None:
        st = self.st
        st.set_page_config(page_title="LatentSync", page_icon="👄", layout="wide")
        st.html(STYLE)
        st.title("LatentSync", anchor=False)
        st.markdown("Give a face and a voice: the face says what the voice says.")
        left, right = st.columns(2, gap="large")
        with left:
            self._face()
        with right:
            self._start(self._how(self._voice()))
        run = self.visitor.run
        if run is not None and run.state == DONE and run.value is not None:
            self._result(run.value)

    # 1 · the face

    def _face(self) -> None:
        st, visitor = self.st, self.visitor
        st.subheader("1 · The face", anchor=False)
        if visitor.face is None:
            samples = {path.name: path for path in self._samples() if path.suffix.lower()[1:] in FACE_ENDINGS}
            where = self._where("face", [UPLOAD, *([SAMPLE] if samples else [])])
            if where == SAMPLE:
                self._choose("face", samples, take_face)
            else:
                self._upload("face", "A video or a picture of a face, seen from the front", FACE_ENDINGS, take_face)
            return
        self._pick(visitor.face)
        self._given("face", visitor.face)

    def _pick(self, face: Media) -> None:
        """Who speaks: the face that is clicked, in a frame that can be chosen."""
        st, visitor = self.st, self.visitor
        frames = shown_frames(face, self._spoken(), st.session_state.get("fit", Settings.fit))
        try:
            if visitor.shot is None or visitor.shot.frame >= frames:
                with st.spinner("Looking for faces …"):
                    visitor.shot = first_look(face, frames)
                visitor.picked = visitor.shot.largest
            shot, count = visitor.shot, len(visitor.shot.boxes)
        except UserError as error:
            st.info(f"Faces cannot be shown here, the largest one will speak. {error}")
            return
        clicked = face_picker(st, shot, visitor.picked, visitor.busy)
        if clicked is not None and clicked != visitor.picked:
            visitor.picked = clicked
            st.rerun()
        if not count:
            other = "give another picture" if face.kind == "picture" else "choose another moment below"
            st.warning(f"No face was found here: {other}. It must be seen from the front and not be tiny.")
        elif count > 1:
            self._buttons(face_names(count))
        if face.kind == "video" and frames > 1:
            self._moment(face, frames)

    def _buttons(self, names: Sequence[str]) -> None:
        """The same choice for the keyboard, and where a browser cannot show the boxes."""
        st, visitor = self.st, self.visitor
        st.markdown("**Who speaks?** Click a face, or:")
        with st.container(horizontal=True):
            for i, name in enumerate(names):
                kind = "primary" if i == visitor.picked else "secondary"
                if st.button(name, type=kind, key=f"face-{i}", disabled=visitor.busy):
                    visitor.picked = i
                    st.rerun()

    def _moment(self, face: Media, frames: int) -> None:
        st, visitor = self.st, self.visitor
        now = 0 if visitor.shot is None else visitor.shot.frame
        second = st.slider(
            "Moment of the video in which the face is picked",
            0.0,
            float((frames - 1) / face.fps),
            float(now / face.fps),
            float(1 / face.fps),
            format="%.2f s",
            key=f"moment-{face.path.stem}-{frames}",
            disabled=visitor.busy,
        )
        frame = min(frames - 1, round(second * face.fps))
        if frame != now:
            visitor.shot = look(face, frame)
            visitor.picked = visitor.shot.largest
            st.rerun()

    # 2 · the voice

    def _voice(self) -> bool:
        """Whether the voice is the clip's own sound."""
        st, visitor = self.st, self.visitor
        st.subheader("2 · The voice", anchor=False)
        if visitor.voice is not None:
            if visitor.voice.path.suffix in (".wav", ".mp3", ".ogg", ".flac", ".mp4", ".aac"):
                st.audio(str(visitor.voice.path))
            self._given("voice", visitor.voice)
            return False
        speaks = visitor.face is not None and visitor.face.has_sound
        where = self._where("voice", [UPLOAD, RECORD, SAMPLE, *([OWN] if speaks else [])])
        if where == OWN:
            st.caption("The face says again what is heard in the video.")
        elif where == SAMPLE:
            found = [path for path in self._samples() if path.suffix.lower()[1:] in VOICE_ENDINGS]
            self._choose("voice", {path.name: path for path in (SAMPLE_VOICE, *found)}, take_voice)
        elif where == RECORD:
            self._record()
        else:
            self._upload("voice", "A recording of speech, or a video for its sound", VOICE_ENDINGS, take_voice)
        return where == OWN

    def _record(self) -> None:
        st = self.st
        recorded = st.audio_input("Press the microphone, speak, press again", key=self._key("recorded"))
        if recorded is not None:
            self._take("voice", lambda folder: take_voice(recorded, "your recording", folder, self.limits), recorded)
        self._refusal("voice")

    # what both have in common

    def _samples(self) -> list[Path]:
        return sample_files(self.studio.settings.samples)

    def _where(self, what: str, places: list[str]) -> str:
        if len(places) == 1:
            return places[0]
        return self.st.radio("Where from", places, horizontal=True, key=f"{what}-from", label_visibility="collapsed")

    def _key(self, what: str) -> str:
        """A new one after every file: the widget is empty again, and what it held is forgotten."""
        return f"{what}-{self.st.session_state.get('taken', 0)}"

    def _upload(self, what: str, label: str, endings: Sequence[str], take: Callable[..., Media]) -> None:
        st, most = self.st, self.limits
        with st.container(key=f"{what}-box"):
            upload = st.file_uploader(label, type=endings, key=self._key(what))
            with st.container(key=f"{what}-too-large"):
                st.error(f"This file was not taken: at most {most.megabytes} MB, and one of {', '.join(endings)}.")
        if upload is not None:
            self._take(what, lambda folder: take(upload, upload.name, folder, most), upload)
        if not self._refusal(what):
            st.caption(f"At most {most.seconds:.0f} seconds long.")

    def _choose(self, what: str, samples: dict[str, Path], take: Callable[..., Media]) -> None:
        st = self.st
        name = st.selectbox("Example", list(samples), key=f"{what}-sample", label_visibility="collapsed")
        if st.button("Take this one", key=f"{what}-take"):
            path = samples[name]
            self._take(what, lambda folder: take_file(path, take, folder, self.limits))
        self._refusal(what)

    def _take(self, what: str, take: Callable[[Path], Media], upload: Any = None) -> None:
        """Let a file in, or say why not; then the page starts again without what it came by."""
        st, visitor = self.st, self.visitor
        visitor.note.pop(what, None)
        try:
            with st.spinner("Looking at the file …"):
                setattr(visitor, what, take(visitor.folder))
        except UserError as error:
            visitor.note[what] = str(error)
        forget_upload(upload)
        st.session_state["taken"] = st.session_state.get("taken", 0) + 1
        st.rerun()

    def _refusal(self, what: str) -> bool:
        note = self.visitor.note.get(what)
        if note:
            self.st.error(plain(note))
        return bool(note)

    def _given(self, what: str, media: Media) -> None:
        st, visitor = self.st, self.visitor
        words, button = st.columns([3, 1], vertical_alignment="center")
        words.markdown(f"**{plain(media.name)}** · {media.facts}")
        if button.button("Change", key=f"{what}-change", disabled=visitor.busy, width="stretch"):
            visitor.drop(what)
            st.rerun()

    def _spoken(self) -> Any:
        own = self.st.session_state.get("voice-from") == OWN
        return self.studio.spoken(self.visitor, own and self.visitor.voice is None)

    # 3 · how

    def _how(self, own_sound: bool) -> Order | None:
        """What is chosen; None where nobody can compute now."""
        st, busy = self.st, self.visitor.busy
        st.subheader("3 · Model and quality", anchor=False)
        backend, checkpoint = self._machine(busy)
        usual = default_settings(checkpoint or "nano")
        steps = qualities(usual.steps, self.limits.steps)
        quality = st.radio(
            "Quality",
            list(steps),
            index=list(steps).index(GOOD),
            horizontal=True,
            captions=[f"{number} step" + "s" * (number != 1) for number in steps.values()],
            disabled=busy,
            key="quality",
            help="More steps are finer and take longer in proportion.",
        )
        with st.expander("More settings"):
            settings = self._settings(usual, steps[quality], busy)
        if checkpoint is None:
            return None
        return Order(backend, checkpoint, settings, own_sound)

    def _machine(self, busy: bool) -> tuple[str, str | None]:
        st, backends = self.st, self.studio.backends
        backend = next(iter(backends))
        if len(backends) > 1:
            titles = {key: one.title[:1].upper() + one.title[1:] for key, one in backends.items()}
            backend = st.radio(
                "Computed by", list(titles), format_func=titles.__getitem__, horizontal=True, disabled=busy
            )
        try:
            found = backends[backend].checkpoints()
        except UserError as error:
            st.error(plain(str(error)))
            return backend, None
        checkpoint = st.selectbox(
            "Model", found, format_func=lambda name: MODELS.get(name, Path(name).name), disabled=busy
        )
        if not {"1.5", "1.6"} & set(found):
            st.caption(
                "nano shows how it works. For results to keep, get LatentSync 1.6:"
                " `latentsync download 1.6 vae whisper-tiny`."
            )
        return backend, checkpoint

    def _settings(self, usual: Settings, steps: int, busy: bool) -> Settings:
        """usual: what suits the checkpoint. steps: those of the quality, unless told otherwise."""
        st, visitor = self.st, self.visitor
        one, two, three = st.columns(3)
        steps = one.number_input(
            "Steps", 1, self.limits.steps, steps, key=f"steps-{steps}",
            disabled=busy, help="Of the solver. Time grows with them.",
        )  # fmt: skip
        guidance = two.slider(
            "Guidance", 1.0, 3.0, usual.guidance, 0.1, disabled=busy,
            help="How strongly the mouth follows the voice: more opens it wider. 1 takes half the time.",
        )  # fmt: skip
        seed = three.number_input(
            "Seed", 0, 2**31 - 1, usual.seed, disabled=busy,
            help="Another number gives another take, the same one the same video.",
        )  # fmt: skip
        fit = st.selectbox(
            "When voice and video differ in length", list(FITS), index=list(FITS).index(usual.fit), key="fit",
            format_func=FIT_WORDS.__getitem__, disabled=busy,
        )  # fmt: skip
        solver = st.selectbox(
            "Solver", list(SOLVERS), disabled=busy,
            help="How the noise is taken away. ddim is the usual one; the others manage with fewer steps.",
        )  # fmt: skip
        mark = self.studio.settings.mark
        if mark == "none":
            mark = st.selectbox(
                "Mark that the lips were made by a machine", list(WATERMARKS), key="mark",
                format_func=MARK_WORDS.__getitem__, disabled=busy,
            )  # fmt: skip
        shot = visitor.shot
        face = shot.point(visitor.picked) if shot is not None and shot.boxes else usual.face
        return Settings(int(steps), float(guidance), solver, int(seed), fit, face, watermark=mark)

    # 4 · the run

    def _start(self, order: Order | None) -> None:
        """The button; while a run goes on, how far it is instead; and how the last one ended, if not well."""
        st, visitor = self.st, self.visitor
        if visitor.run is not None and not visitor.run.over:
            st.fragment(self._progress, run_every=EVERY)()
            return
        lacks = self._lacks(order)
        pressed = st.button("Make the video", type="primary", disabled=bool(lacks), width="stretch")
        if pressed and order is not None:
            visitor.note.pop("run", None)
            try:
                self.studio.start(visitor, order)
            except UserError as error:
                visitor.note["run"] = str(error)
            st.rerun()
        st.caption(lacks or "Make people say only what they agreed to say.")
        if not self._refusal("run") and visitor.run is not None:
            if visitor.run.state == FAILED:
                st.error(plain(visitor.run.error))
            elif visitor.run.state == CANCELLED:
                st.info("Cancelled; nothing was kept.")

    def _lacks(self, order: Order | None) -> str:
        """What is still missing, as a sentence; "" when all is there."""
        visitor = self.visitor
        if visitor.face is None:
            return "Give a face first."
        if visitor.shot is not None and not visitor.shot.boxes:
            return "There must be a face in the picture."
        if order is None:
            return "Nobody can compute now."
        return "" if visitor.voice is not None or order.own_sound else "Give a voice, too."

    def _progress(self) -> None:
        """Drawn again and again while the run goes on; at its end the whole page is."""
        st, run = self.st, self.visitor.run
        if run is None or run.over:
            st.rerun()
            return
        with st.container(border=True, key="progress"):
            ahead = self.studio.ahead(run)
            if run.stopping:
                st.markdown("Cancelling …")
            elif ahead:
                runs = "1 run is" if ahead == 1 else f"{ahead} runs are"
                st.markdown(f"**Waiting.** {runs} before yours; it starts by itself.")
            else:
                share = min(1.0, run.done / run.total) if run.total else 0.0
                st.progress(share, text=progress_text(run))
            if st.button("Cancel", key="cancel", disabled=run.stopping):
                run.cancel()
                st.rerun()

    def _result(self, made: Made) -> None:
        st = self.st
        st.subheader("Your video", anchor=False)
        left, right = st.columns(2, gap="large")
        with left, st.container(key="before"):
            st.markdown("**Before**")
            (st.image if made.wish.still else st.video)(str(made.before))
        with right, st.container(key="after"):
            st.markdown("**After**")
            st.video(str(made.video))
        if not made.wish.still:
            with left:
                play_together(st)
        right.download_button(
            "Download the video",
            made.video.read_bytes(),
            f"{Path(made.name).stem}_latentsync.mp4",
            "video/mp4",
            type="primary",
            on_click="ignore",
            width="stretch",
        )
        how = made.wish.settings
        model = MODELS.get(made.wish.checkpoint, Path(made.wish.checkpoint).name).split(":")[0]
        st.caption(
            f"{model}, {how.steps} steps, guidance {how.guidance:g}, seed {how.seed};"
            f" {clock(made.seconds)} min on {made.by}. Not as you want it? Another seed gives another take."
        )
        self._score()

    def _score(self) -> None:
        job = self.visitor.score
        if job is None:
            return
        with self.st.expander("Do the lips follow the sound?", expanded=True):
            if job.over:
                self._chart(job)
            else:
                self.st.fragment(self._measuring, run_every=EVERY)()

    def _measuring(self) -> None:
        st, job = self.st, self.visitor.score
        if job is None or job.over:
            st.rerun()
            return
        st.progress(min(1.0, job.done / job.total) if job.total else 0.0, text=progress_text(job))

    def _chart(self, job: Job[Any]) -> None:
        from ..evaluation.charts import draw_chart

        st = self.st
        if job.state != DONE or job.value is None:
            st.info(f"This could not be measured. {plain(job.error)}")
            return
        st.image(draw_chart(job.value))
        st.caption(
            "Above: how far the mouth is open, and how loud the voice is. Below: how well the two agree when the sound"
            " is moved by some pictures. A peak at 0, well above the dashed line of chance, is what one hopes for;"
            " clips of a few seconds often give none."
        )


def progress_text(run: Job[Any]) -> str:
    """What happens now, how far it is, and how long it may take."""
    if run.state == WAITING:
        return "Waiting for others"
    text = STAGES.get(run.stage, run.stage)
    if run.total:
        text += f" · {run.done:.0f} of {run.total:.0f}"
    text += f" · {clock(run.seconds)}"
    return text + (f", about {clock(run.left)} left" if run.left is not None else "")


def clock(seconds: float) -> str:
    """1:05."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def plain(text: str) -> str:
    """Text that came from elsewhere, so that Streamlit's Markdown leaves it as it is."""
    return "".join(f"\\{sign}" if sign in r"\`*_{}[]<>()#+-.!|~$:&" else sign for sign in text)
