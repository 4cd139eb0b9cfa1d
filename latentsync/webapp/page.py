"""The page: the steps of the form. What it shows of a run and its result is in result.py."""

import re
from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from ..face.points import Points
from ..settings import Settings
from ..weights.load import default_settings
from .advanced import BY_HAND, STRENGTH, MoreSettings, used_part
from .backends import NotReadyError
from .components import face_names, face_picker, named, page_style, point_picker
from .config import GOOD, qualities
from .examples import FACES, VOICES, Example, of_folder
from .faces import Shot, first_look, look, places, shown_frames
from .getting import GetModel
from .personal import MakePerson
from .queue import CANCELLED, DONE, FAILED
from .result import POLL, ResultView, model_label, show_progress
from .service import AppService, FormValues
from .sessions import Session
from .streamlit_session import LOST
from .taking import Taking
from .uploads import FACE_ENDINGS, VOICE_ENDINGS, Media, sample_files, take_face, take_voice
from .words import count, plain, span

UPLOAD, RECORD, SAMPLE, OWN_SOUND = "Upload", "Record", "Example", "The video's own audio"


class Page:
    """One rerun of the page for one session. st: Streamlit. owner: whether it is shown to whoever runs the app, on the
    same computer. dark: whether it is dark."""

    def __init__(self, st: Any, service: AppService, session: Session, owner: bool = False, dark: bool = False) -> None:
        self.st, self.service, self.session = st, service, session
        self.owner, self.dark, self.limits = owner, dark, service.limits
        self.files = Taking(st, session, self.limits, owner)

    def show(self) -> None:
        st = self.st
        st.set_page_config(page_title=self._title(), page_icon="👄", layout="wide")
        page_style(st)
        st.title("LatentSync", anchor=False)
        st.markdown("Add a face and a voice, and the face speaks with that voice.")
        if st.session_state.get(LOST):
            st.info(
                "Your earlier files and result are gone: they are removed after the page has been closed for"
                f" {span(self.limits.keep)}."
            )
        if self.session.face is None and self.session.voice is None:
            if st.button("Try it with an example face and voice", key="try-it"):
                self.files.take_examples(FACES[0].path, VOICES[0].path)
            st.caption(f"A picture ({FACES[0].credit}) and a short sentence.")
        left, right = st.columns(2, gap="large")
        with left:
            self._face()
        with right:
            own_sound = self._voice()
            self._start(self._form(own_sound))
        run = self.session.run
        if run is not None and run.state == DONE and run.value is not None:
            ResultView(st, self.session, self.owner, self.dark).show(run.value)

    def _title(self) -> str:
        """For the tab, which may be in the background."""
        run = self.session.run
        if run is None or run.state in (FAILED, CANCELLED):
            return "LatentSync"
        return "Your video is ready · LatentSync" if run.state == DONE else "Making your video … · LatentSync"

    # 1 · the face

    def _face(self) -> None:
        st, session = self.st, self.session
        st.header("1 · The face", anchor=False)
        if session.face is None:
            where = self._where("face", [UPLOAD, SAMPLE])
            if where == SAMPLE:
                self.files.choose("face", [*FACES, *self._samples(FACE_ENDINGS)], take_face)
            else:
                self.files.upload(
                    "face", "A video or a picture of a face, seen from the front", FACE_ENDINGS, take_face
                )
            return
        self._pick(session.face)
        self._given("face", session.face)

    def _pick(self, face: Media) -> None:
        """The face that is to speak: one to click, in a frame to choose."""
        st, session = self.st, self.session
        own_sound = st.session_state.get("voice-from") == OWN_SOUND and session.voice is None
        voice = None if own_sound else session.voice
        seconds = None if voice is None else max([voice.seconds, *(other.end for other in session.others)])
        used = used_part(st, face)
        frames = shown_frames(face, seconds, st.session_state.get("fit", Settings.fit), len(used))
        shown = used[:frames]
        try:
            if session.shot is None or session.shot.frame not in shown:
                with st.spinner("Looking for faces …"):
                    session.shot = first_look(face, frames, used.start)
                session.picked = session.shot.largest
            shot, count = session.shot, len(session.shot.boxes)
        except UserError as error:
            st.info(f"Faces cannot be shown here; the largest one will speak. {self.files.told(str(error))}")
            return
        session.points = ""
        if not count or self._by_hand:
            if not count:
                other = "give another picture" if face.kind == "picture" else "choose another moment below"
                st.warning(f"No face was found here: {other}. It must be seen from the front and not be too small.")
            session.points = self._point_out(face, shot)
        else:
            clicked = face_picker(st, shot, session.picked, session.busy)
            if clicked is not None and clicked != session.picked:
                session.picked = clicked
                st.rerun()
            if count > 1:
                self._buttons(face_names(count))
        if face.kind == "video" and frames > 1:
            self._moment(face, shown)

    @property
    def _by_hand(self) -> bool:
        return bool(self.st.session_state.get(BY_HAND))

    def _point_out(self, face: Media, shot: Shot) -> str:
        """Three points in this frame, "" until they make a face. The field holds them; clicks write into it."""
        st, busy = self.st, self.session.busy
        key = f"points-{face.path.stem}-{shot.frame}"
        clicked = point_picker(st, shot, places(st.session_state.get(key, "")), busy)
        if clicked is not None:
            st.session_state[key] = ", ".join(f"{x:.0f}, {y:.0f}" for x, y in clicked)
            st.rerun()
        text = st.text_input(
            "Or a face that cannot be found, such as a drawing: click the left brow, the right brow and the tip of"
            " the nose, as you see them", key=key, placeholder="x1, y1, x2, y2, x3, y3", disabled=busy,
        )  # fmt: skip
        if len(places(text)) < 3 and re.fullmatch(r"[\d.,;\s]*", text):
            return ""  # not all of them yet
        try:
            points = Points.parse(text)
            _ = points.landmarks
        except UserError as error:
            st.error(plain(str(error)))
            return ""
        return ",".join(f"{number:g}" for place in points.places for number in place)

    def _buttons(self, names: Sequence[str]) -> None:
        """The same choice without the boxes: for keyboards, and browsers that cannot show them."""
        st, session = self.st, self.session
        st.markdown("**Who speaks?** Click a face, or:")
        with st.container(horizontal=True):
            for i, name in enumerate(names):
                kind = "primary" if i == session.picked else "secondary"
                if st.button(name, type=kind, key=f"face-{i}", disabled=session.busy):
                    session.picked = i
                    st.rerun()

    def _moment(self, face: Media, frames: range) -> None:
        """frames: of the clip, that appear in the result."""
        st, session = self.st, self.session
        now = frames.start if session.shot is None else session.shot.frame
        first, last, shown, step = (float(number / face.fps) for number in (frames.start, frames.stop - 1, now, 1))
        second = st.slider(
            "Moment of the video to pick the face in", first, last, shown, step, format="%.2f s",
            key=f"moment-{face.path.stem}-{frames.start}-{frames.stop}", disabled=session.busy,
        )  # fmt: skip
        frame = max(frames.start, min(frames.stop - 1, round(second * face.fps)))
        if frame != now:
            session.shot = look(face, frame)
            session.picked = session.shot.largest
            st.rerun()

    # 2 · the voice

    def _voice(self) -> bool:
        """Returns whether the voice is the clip's own sound."""
        st, session = self.st, self.session
        st.header("2 · The voice", anchor=False)
        if session.voice is not None:
            if session.voice.path.suffix in (".wav", ".mp3", ".ogg", ".flac", ".mp4", ".mov", ".webm", ".aac"):
                st.audio(str(session.voice.path), **named(st.audio, "The voice"))
            self._given("voice", session.voice)
            return False
        has_sound = session.face is not None and session.face.has_sound
        where = self._where("voice", [UPLOAD, RECORD, SAMPLE, *([OWN_SOUND] if has_sound else [])])
        if where == OWN_SOUND:
            st.caption("The face repeats what the video says.")
        elif where == SAMPLE:
            self.files.choose("voice", [*VOICES, *self._samples(VOICE_ENDINGS)], take_voice)
        elif where == RECORD:
            self.files.record("voice")
        else:
            self.files.upload("voice", "A recording of speech, or a video with speech", VOICE_ENDINGS, take_voice)
        return where == OWN_SOUND

    # face and voice

    def _samples(self, endings: Sequence[str]) -> Sequence[Example]:
        """Those of the folder that whoever runs the app has named."""
        found = sample_files(self.service.settings.samples)
        return of_folder([path for path in found if path.suffix.lower()[1:] in endings])

    def _where(self, what: str, places: list[str]) -> str:
        label = f"Where the {what} comes from"
        return self.st.radio(label, places, horizontal=True, key=f"{what}-from", label_visibility="collapsed")

    def _given(self, what: str, media: Media) -> None:
        st, session = self.st, self.session
        words, button = st.columns([5, 3], vertical_alignment="center")
        words.markdown(f"**{plain(media.name)}** · {media.summary}")
        if button.button(f"Change the {what}", key=f"{what}-change", disabled=session.busy, width="stretch"):
            session.remove(what)
            st.rerun()

    # 3 · model and quality

    def _form(self, own_sound: bool) -> FormValues | None:
        """None when the backend cannot be used now."""
        st, busy = self.st, self.session.busy
        st.header("3 · Model and quality", anchor=False)
        backend, checkpoint = self._backend(busy)
        defaults = default_settings(checkpoint or "nano")
        offered, quality = qualities(defaults, self.limits.steps), GOOD
        if len(offered) > 1:
            captions = [count(one.steps, "step") for one in offered.values()]
            quality = st.radio(
                "Quality", list(offered), index=list(offered).index(GOOD), horizontal=True, captions=captions,
                disabled=busy, key="quality", help="More steps: sharper but slower.",
            )  # fmt: skip
        more = MoreSettings(st, self.session, self.limits, self.service.settings.watermark, self.files)
        settings, cut = more.show(offered[quality], own_sound)
        strength = st.session_state.get(STRENGTH, 1.0)
        if self.owner and backend == "local" and checkpoint is not None:
            MakePerson(st, self.service, self.session).show(checkpoint)
        return None if checkpoint is None else FormValues(backend, checkpoint, settings, own_sound, cut, strength)

    def _backend(self, busy: bool) -> tuple[str, str | None]:
        st, backends = self.st, self.service.backends
        backend = next(iter(backends))
        if len(backends) > 1:
            titles = {key: one.title[:1].upper() + one.title[1:] for key, one in backends.items()}
            backend = st.radio(
                "Run on", list(titles), format_func=titles.__getitem__, horizontal=True, disabled=busy, key="backend"
            )
        try:
            found = backends[backend].checkpoints()
        except UserError as error:
            (st.info if isinstance(error, NotReadyError) else st.error)(self.files.told(str(error)))
            st.fragment(self._rerun_on_change, run_every=POLL)(backend, str(error))
            return backend, None
        if len(found) == 1:
            checkpoint = found[0]
            st.markdown(f"**Model** · {plain(model_label(checkpoint))}")
        else:
            key = f"model-{backend}"
            checkpoint = st.selectbox("Model", found, format_func=model_label, disabled=busy, key=key)
        if self.owner and backend == "local":
            GetModel(st, self.service).show()
        return backend, checkpoint

    def _rerun_on_change(self, backend: str, shown: str) -> None:
        """Rerun once the backend can be used, or when another error must be shown."""
        try:
            self.service.backends[backend].checkpoints()
        except UserError as error:
            if str(error) == shown:
                return
        self.st.rerun()

    # 4 · the run

    def _start(self, form: FormValues | None) -> None:
        st, session = self.st, self.session
        if session.run is not None and not session.run.over:
            st.fragment(self._progress, run_every=POLL)()
            return
        missing = self._missing_input(form)
        pressed = st.button("Make the video", type="primary", disabled=bool(missing), width="stretch")
        if pressed and form is not None:
            session.errors.pop("run", None)
            try:
                self.service.start(session, form)
            except UserError as error:
                session.errors["run"] = str(error)
            st.rerun()
        st.caption(missing or "Only use faces and voices of people who have agreed to it.")
        if not self.files.error("run") and session.run is not None:
            if session.run.state == FAILED:
                st.error(self.files.told(session.run.error))
            elif session.run.state == CANCELLED:
                st.info("Cancelled; nothing was kept.")

    def _missing_input(self, form: FormValues | None) -> str:
        """A sentence; "" when nothing is missing."""
        session = self.session
        if session.face is None:
            return "Give a face first."
        if session.shot is not None and not session.points and (not session.shot.boxes or self._by_hand):
            return "There must be a face in the picture."
        if form is None:
            return "No model is available right now."
        return "" if session.voice is not None or form.own_sound else "Give a voice, too."

    def _progress(self) -> None:
        st, run = self.st, self.session.run
        if run is None or run.over:
            st.rerun()
            return
        with st.container(border=True, key="progress"):
            ahead = self.service.ahead(run)
            if run.stopping:
                st.markdown("Cancelling …")
            elif ahead:
                runs = f"{count(ahead, 'run')} {'is' if ahead == 1 else 'are'}"
                st.markdown(f"**Waiting.** {runs} before yours; it starts by itself.")
            else:
                show_progress(st, run)
            if st.button("Cancel", key="cancel", disabled=run.stopping):
                run.cancel()
                st.rerun()
