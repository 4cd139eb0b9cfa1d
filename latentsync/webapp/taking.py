"""Files from a visitor: the widget, the check, and why one was refused."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .config import Limits
from .examples import Example
from .sessions import Session
from .streamlit_session import discard_upload
from .uploads import Media, take_face, take_file, take_voice
from .words import span, told


class Taking:
    """st: Streamlit. "what" is the place of the file in the session: "face", "voice", "other" or "lora". owner: whether
    the page is shown to whoever runs the app."""

    def __init__(self, st: Any, session: Session, limits: Limits, owner: bool = False) -> None:
        self.st, self.session, self.limits, self.owner = st, session, limits, owner

    def upload(self, what: str, label: str, endings: Sequence[str], take: Callable[..., Media], **rest: Any) -> None:
        """rest: `keep`, see _take."""
        st, most = self.st, self.limits
        with st.container(key=f"{what}-box"):
            upload = st.file_uploader(label, type=endings, key=self._key(what))
            with st.container(key=f"{what}-too-large"):
                kinds = f"one of {', '.join(endings)}" if len(endings) > 1 else f"a .{endings[0]} file"
                st.error(f"This file was not accepted: at most {most.megabytes} MB, and {kinds}.")
        if upload is not None:
            self._take(what, lambda folder: take(upload, upload.name, folder, most), upload, **rest)
        if not self.error(what) and what != "lora":
            st.caption(f"At most {span(most.seconds)} long.")

    def record(self, what: str, **rest: Any) -> None:
        recorded = self.st.audio_input("Press the microphone, speak, press again", key=self._key(f"{what}-recorded"))
        if recorded is not None:
            self._take(what, lambda to: take_voice(recorded, "your recording", to, self.limits), recorded, **rest)
        self.error(what)

    def choose(self, what: str, samples: Sequence[Example], take: Callable[..., Media]) -> None:
        st = self.st
        by_title = {one.title: one for one in samples}
        title = st.selectbox(f"Example of a {what}", list(by_title), key=f"{what}-sample")
        if credit := by_title[title].credit:
            st.caption(f"{credit[0].upper()}{credit[1:]}.")
        if st.button(f"Use this {what}", key=f"{what}-take"):
            path = by_title[title].path
            self._take(what, lambda folder: take_file(path, take, folder, self.limits))
        self.error(what)

    def take_examples(self, face: Path, voice: Path) -> None:
        """Both at once."""
        self.session.face = take_file(face, take_face, self.session.folder, self.limits)
        self._take("voice", lambda folder: take_file(voice, take_voice, folder, self.limits))

    def error(self, what: str) -> bool:
        if message := self.session.errors.get(what):
            self.st.error(self.told(message))
        return bool(message)

    def told(self, message: str) -> str:
        """A message for the page, as Markdown."""
        return told(message, self.owner)

    def _key(self, what: str) -> str:
        """Changes with every upload, which empties the widget."""
        return f"{what}-{self.st.session_state.get('taken', 0)}"

    def _take(
        self,
        what: str,
        take: Callable[[Path], Media],
        upload: Any = None,
        keep: Callable[[Media], None] | None = None,
    ) -> None:
        """Store an upload, or keep the reason for refusing it, and rerun with an empty widget. keep: what becomes of
        it; None puts it into its place in the session."""
        st, session = self.st, self.session
        session.errors.pop(what, None)
        try:
            with st.spinner("Checking the file …"):
                media = take(session.folder)
            keep(media) if keep else setattr(session, what, media)
        except UserError as error:
            session.errors[what] = str(error)
        discard_upload(upload)
        st.session_state["taken"] = st.session_state.get("taken", 0) + 1
        st.rerun()
