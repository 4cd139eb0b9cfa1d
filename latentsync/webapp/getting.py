"""The button that fetches LatentSync 1.6. Only for whoever sits at this computer: visitors see nothing of it."""

from typing import Any

from ..weights.registry import get, human_size, with_required
from .backends import is_here
from .queue import DONE, FAILED, Job
from .result import POLL
from .service import AppService
from .words import duration, plain

WANTED = "1.6"


class GetModel:
    """st: Streamlit."""

    def __init__(self, st: Any, service: AppService) -> None:
        self.st, self.service = st, service

    def show(self) -> None:
        st, job = self.st, self.service.download
        if job is not None and not job.over:
            st.fragment(self._progress, run_every=POLL)()
            return
        if is_here(WANTED):
            if job is not None and job.state == DONE:
                st.success("LatentSync 1.6 is ready. Choose it above.")
            return
        if job is not None and job.state == FAILED:
            st.error(plain(job.error))
        st.caption("nano is a small demonstration model with only one quality. LatentSync 1.6 makes sharper mouths.")
        missing = [entry for entry in with_required([WANTED]) if not is_here(entry.name)]
        size = human_size(sum(entry.expected_bytes for entry in missing))
        if st.button(f"Get LatentSync 1.6 ({size})", key="get-model"):
            self.service.get_model(WANTED)
            st.rerun()
        st.caption(f"Its weights have their authors' license, {get(WANTED).license}. It needs a GPU to be fast.")

    def _progress(self) -> None:
        st, job = self.st, self.service.download
        if job is None or job.over:
            st.rerun()
            return
        st.progress(min(1.0, job.done / job.total) if job.total else 0.0, text=progress_text(job))
        if st.button("Stop the download", key="stop-download", disabled=job.stopping):
            job.cancel()
            st.rerun(scope="fragment")


def progress_text(job: Job[Any]) -> str:
    if job.stopping:
        return "Stopping the download …"
    if not job.done:
        return "Getting LatentSync 1.6: connecting …"
    left = f", about {duration(job.remaining_s)} left" if job.remaining_s is not None else ""
    return f"Getting LatentSync 1.6: {human_size(int(job.done))} of {human_size(int(job.total))}{left}"
