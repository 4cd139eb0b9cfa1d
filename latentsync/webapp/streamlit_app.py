"""The script that Streamlit runs at every interaction of every session."""


def main() -> None:
    import streamlit as st

    from . import streamlit_session as tab
    from .page import Page

    app = tab.service()
    session = tab.current_session(st, app.sessions)
    with tab.form_kept(st, session):
        Page(st, app, session, owner=tab.is_owner(st, app.settings), dark=tab.is_dark(st)).show()


if __name__ == "__main__":  # Streamlit runs this file by itself, outside its package
    __package__ = "latentsync.webapp"
    main()
