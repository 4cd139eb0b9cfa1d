"""The script that Streamlit runs at every interaction of every session."""


def main() -> None:
    import streamlit as st

    from .page import Page
    from .streamlit_session import service, session_id

    app = service()
    Page(st, app, app.sessions.get(session_id())).show()


if __name__ == "__main__":  # Streamlit runs this file by itself, outside its package
    __package__ = "latentsync.webapp"
    main()
