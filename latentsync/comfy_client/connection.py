"""HTTP and websocket of one ComfyUI server; what goes wrong becomes a UserError."""

import asyncio
import ipaddress
import os
import urllib.parse
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

import aiohttp
from yarl import URL

from ..errors import UserError
from ..files import parse_json

Own = TypeVar("Own", bound="Connection")
DEFAULT_SERVER = "http://127.0.0.1:8188"
CONNECT_TIMEOUT, READ_TIMEOUT = 10.0, 120.0
SILENCE, SETTLE = 15.0, 0.5
"""Seconds without a websocket message until history is checked; the same once the run's end was announced."""
CONNECTIONS = 8


class UnreachableError(UserError):
    """No answer, or a server error; another attempt may succeed."""


class Connection:
    """HTTP requests to one server. headers go with every request ({"Authorization": "Bearer …"})."""

    def __init__(self, server: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        self.base = parse_url(server or os.environ.get("LATENTSYNC_COMFYUI") or DEFAULT_SERVER)
        self.headers = dict(headers or {})
        self._open: aiohttp.ClientSession | None = None

    async def __aenter__(self: Own) -> Own:
        self._open = aiohttp.ClientSession(
            headers=self.headers,
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT, sock_read=READ_TIMEOUT),
            connector=aiohttp.TCPConnector(limit=CONNECTIONS),
            trust_env=not _is_local(self.base.host),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.session.close()

    @property
    def session(self) -> aiohttp.ClientSession:
        if self._open is None:
            raise RuntimeError("Use the client as: async with ComfyClient(…) as client.")
        return self._open

    @property
    def display_url(self) -> str:
        """The address without its secrets."""
        return str(self.base.with_user(None).with_query(None)).rstrip("/")

    def url(self, *parts: str) -> URL:
        quoted = (urllib.parse.quote(part, safe="") for part in parts)
        return self.base.joinpath(*quoted, encoded=True).with_query(self.base.query)

    async def get(self, *parts: str) -> Any:
        return await self.request_json("GET", *parts)

    async def request_json(self, method: str, *parts: str, allow: tuple[int, ...] = (), **body: Any) -> dict[str, Any]:
        """allow: statuses besides 200 that have an answer."""
        async with self.request(method, self.url(*parts), **body) as response:
            if response.status not in (200, *allow):
                raise self.status_error(response)
            text = await response.text(errors="replace")
        try:
            answer = parse_json(text) if text else {}
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise UserError(f"{self.display_url} answers, but not as ComfyUI does; is the address right?")
        return answer

    @asynccontextmanager
    async def request(self, method: str, url: URL, **body: Any) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            async with self.session.request(method, url, allow_redirects=False, **body) as response:
                yield response
        except aiohttp.ClientConnectorCertificateError as error:
            raise UserError(
                f"The certificate of {self.display_url} is not trusted here ({error.certificate_error}); set"
                " SSL_CERT_FILE in the environment to one that is."
            ) from error
        except (aiohttp.ClientError, asyncio.TimeoutError) as error:
            cause = error.os_error if isinstance(error, aiohttp.ClientConnectorError) else error
            raise UnreachableError(
                f"ComfyUI cannot be reached at {self.display_url} ({str(cause) or 'no answer in time'}); start ComfyUI"
                " (python main.py in its folder), or give its address with --server."
            ) from error

    def status_error(self, response: aiohttp.ClientResponse) -> UserError:
        status, server = response.status, self.display_url
        if status in (401, 403):
            wanted = 'give --header "Authorization: Bearer …"'
            return UserError(f"{server} asks for authorization (HTTP {status}); {wanted}.")
        if status == 413:
            return UserError(
                f"{server} takes no file that large; start ComfyUI with a larger --max-upload-size (in megabytes), or"
                " copy the file into its input folder and name it with --set."
            )
        if 300 <= status < 400:
            target = response.headers.get("Location", "elsewhere")
            return UserError(f"{server} redirects to {target}; give that address as the server.")
        if status >= 500:
            return UnreachableError(f"{server} has an internal error (HTTP {status}); see its log.")
        return UserError(f"{server} does not know {response.url.path} (HTTP {status}); is the address right?")


class EventSocket:
    """The websocket, which may break at any time."""

    def __init__(self, connection: Connection, client_id: str) -> None:
        self._session, self._url = connection.session, connection.url("ws").update_query(clientId=client_id)
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None and not self._socket.closed

    async def connect(self) -> bool:
        try:
            self._socket = await self._session.ws_connect(self._url, heartbeat=30, max_msg_size=0)
            await self._socket.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError):
            return False
        return True

    async def receive(self, ending: bool) -> str | bytes | None:
        """The next message; None after SILENCE (SETTLE if ending) seconds, or when the socket breaks."""
        assert self._socket is not None
        try:
            message = await self._socket.receive(timeout=SETTLE if ending else SILENCE)
        except asyncio.TimeoutError:
            return None
        if message.type in (aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY):
            return message.data
        await self.close()
        return None

    async def close(self) -> None:
        if self._socket is not None:
            await self._socket.close()


def parse_url(text: str) -> URL:
    """A server's address; http:// may be left out."""
    text = text.strip()
    with suppress(ValueError):
        url = URL(text if "://" in text else f"http://{text}").with_fragment(None)
        if url.scheme in ("http", "https") and url.host and url.port is not None:
            return url
    raise UserError(f"{text} is not a server address; it must look like {DEFAULT_SERVER}.")


def _is_local(host: str | None) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return False
