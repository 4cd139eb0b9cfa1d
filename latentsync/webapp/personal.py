"""A model of the person in the uploaded clip. Only for whoever sits at this computer: it takes minutes of it."""

from typing import TYPE_CHECKING, Any

from .queue import CANCELLED, FAILED
from .result import POLL
from .service import AppService
from .sessions import Session
from .uploads import Media
from .words import duration, plain

if TYPE_CHECKING:
    from ..training.personal.run import PersonalModel

AGREED = "person-agreed"
MEASURES = (("opening", "Follows the voice"), ("similarity", "Likeness"), ("sharpness", "Sharpness"))


class MakePerson:
    """st: Streamlit."""

    def __init__(self, st: Any, service: AppService, session: Session) -> None:
        self.st, self.service, self.session = st, service, session

    def show(self, checkpoint: str) -> None:
        """Where there is a clip with sound, or a model that is being made."""
        st, session, job = self.st, self.session, self.session.person
        if job is not None and not job.over:
            st.fragment(self._progress, run_every=POLL)()
        elif job is not None and job.value is not None:
            self._made(job.value)
        elif session.face is not None and session.face.kind == "video" and session.face.has_sound:
            if job is not None and job.state == FAILED:
                st.error(plain(job.error))
            elif job is not None and job.state == CANCELLED:
                st.caption("The model was not made.")
            self._offer(checkpoint)

    def _offer(self, checkpoint: str) -> None:
        st, session = self.st, self.session
        st.caption(
            "A model of this person makes their mouth sharper and more like them. It is trained on your clip: half a"
            " minute of speech or more, sharp and from the front. With nano it takes about 20 minutes."
        )
        agreed = st.checkbox("This is me, or the person has agreed", key=AGREED, disabled=session.busy)
        if st.button("Make a model of this person", key="make-person", disabled=session.busy or not agreed):
            self.service.make_person(session, checkpoint)
            st.rerun()

    def _progress(self) -> None:
        st, job = self.st, self.session.person
        if job is None or job.over:
            st.rerun()
            return
        ahead = self.service.ahead(job)
        text = (
            "Stopping …" if job.stopping else f"Waiting: {ahead} before it" if ahead else f"Model: {job.stage or '…'}"
        )
        st.progress(min(1.0, job.done / job.total) if job.total else 0.0, text=text)
        if st.button("Stop making the model", key="stop-person", disabled=job.stopping):
            job.cancel()
            st.rerun(scope="fragment")

    def _made(self, model: "PersonalModel") -> None:
        st, session = self.st, self.session
        if model.lora is None:
            return  # only a preview has none
        took = duration(model.seconds)
        st.markdown(f"**The model of this person is ready**, after {took}. On seconds it was not trained on:")
        pairs = ((title, getattr(model.before, name), getattr(model.after, name)) for name, title in MEASURES)
        rows = [f"| {title} | {before:.2f} | {after:.2f} |" for title, before, after in pairs]
        st.markdown("\n".join(["| | before | after |", "|---|---|---|", *rows]))
        use, file, page = st.columns(3)
        in_use = session.lora is not None and session.lora.path == model.lora
        if use.button("Use it", key="use-person", disabled=session.busy or in_use, width="stretch"):
            session.lora = Media(model.lora, model.lora.name, "lora")
            st.rerun()
        for column, label, path in ((file, "Download the model", model.lora), (page, "Download its page", model.page)):
            column.download_button(label, path.read_bytes(), path.name, key=f"get-{path.suffix[1:]}", width="stretch")
