"""The page and its data over HTTP, for the one person who started it.

Listens on loopback only. A request must name this server as its host, which a page elsewhere whose name was rebound to
127.0.0.1 cannot, and bring the token: in the address (which answers with a cookie and the address without it), as that
cookie, or as `Authorization: Bearer`. All else is answered with 403 before anything is looked at.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import os
import secrets
import socket
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from typing import Any, Final
from urllib.parse import parse_qsl, urlsplit

from callscope.errors import CallscopeError
from callscope.viewer.answers import Answers
from callscope.viewer.query import ROUTES, MissingError, QueryError

ADDRESS: Final = "127.0.0.1"
KINDS: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY: Final = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-store",
}
_IDLE_SECONDS = 30


def page_files() -> dict[str, bytes]:
    """The files of the page by name."""
    directory = files("callscope.viewer").joinpath("page")
    return {
        entry.name: entry.read_bytes()
        for entry in directory.iterdir()
        if entry.is_file() and any(entry.name.endswith(suffix) for suffix in KINDS)
    }


class ViewServer(ThreadingHTTPServer):
    """Serves one trace. `url`: with the token. Close it with `server_close`."""

    daemon_threads = False  # a thread that the end of Python meets inside a library in C++ would abort it

    def __init__(self, answers: Answers, port: int = 0) -> None:
        """Listen on a port of loopback, 0 for any that is free. Raises OSError."""
        super().__init__((ADDRESS, port), Handler)
        self._connections: set[socket.socket] = set()
        self.answers = answers
        self.token = secrets.token_urlsafe(32)
        self.pages = page_files()
        self.hosts = {f"{name}:{self.server_port}" for name in (ADDRESS, "localhost")}
        self.cookie = f"callscope-{self.server_port}"

    def process_request(self, request: Any, client_address: Any) -> None:
        """Remember the connection, to end it."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        """The connection is over."""
        self._connections.discard(request)
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Stop listening, let no connection ask any more, and wait for the answers that are being made."""
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RD)
        super().server_close()

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{ADDRESS}:{self.server_port}/?token={self.token}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that went away is no error: nothing, unless CALLSCOPE_DEBUG asks for it."""
        if os.environ.get("CALLSCOPE_DEBUG"):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers one connection's requests."""

    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = _IDLE_SECONDS

    def version_string(self) -> str:
        """No versions."""
        return "callscope"

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: the terminal is the user's."""

    def do_HEAD(self) -> None:
        """As GET, without the body."""
        self.do_GET()

    def do_GET(self) -> None:
        """The page, one of its files, or data."""
        parts = urlsplit(self.path)
        query = dict(parse_qsl(parts.query, keep_blank_values=True, max_num_fields=32)) if _few(parts.query) else {}
        if len(self.headers.get_all("Host", [])) != 1 or self.headers["Host"] not in self.server.hosts:
            self._refuse()
        elif parts.path == "/" and "token" in query:
            self._welcome(query["token"])
        elif not self._is_known():
            self._refuse()
        elif parts.path.startswith("/api/"):
            self._answer(parts.path.removeprefix("/api/"), query)
        else:
            self._send_file(parts.path.removeprefix("/") or "index.html")

    def _welcome(self, token: str) -> None:
        if not self._matches(token):
            self._refuse()
            return
        cookie = f"{self.server.cookie}={self.server.token}; Path=/; HttpOnly; SameSite=Strict"
        self._send(HTTPStatus.SEE_OTHER, b"", KINDS[".html"], {"Location": "/", "Set-Cookie": cookie})

    def _is_known(self) -> bool:
        scheme, _, given = self.headers.get("Authorization", "").partition(" ")
        if scheme == "Bearer" and self._matches(given):
            return True
        try:
            cookies = SimpleCookie(self.headers.get("Cookie", ""))
        except CookieError:
            return False
        return self.server.cookie in cookies and self._matches(cookies[self.server.cookie].value)

    def _matches(self, token: str) -> bool:
        return hmac.compare_digest(token.encode("utf-8", "replace"), self.server.token.encode())

    def _refuse(self) -> None:
        text = b"Open the address that callscope view printed: it has the token that this page needs.\n"
        self._send(HTTPStatus.FORBIDDEN, text, "text/plain; charset=utf-8")

    def _send_file(self, name: str) -> None:
        content = self.server.pages.get(name)
        if content is None:
            self._send(HTTPStatus.NOT_FOUND, b"not found\n", "text/plain; charset=utf-8")
        else:
            self._send(HTTPStatus.OK, content, KINDS["." + name.rpartition(".")[2]])

    def _answer(self, name: str, query: dict[str, str]) -> None:
        route = ROUTES.get(name)
        try:
            if route is None:
                raise MissingError(f"there is no {name}")
            status, answer = HTTPStatus.OK, route(self.server.answers, query)
        except QueryError as error:
            status, answer = HTTPStatus.BAD_REQUEST, {"error": str(error)}
        except MissingError as error:
            status, answer = HTTPStatus.NOT_FOUND, {"error": str(error)}
        except CallscopeError as error:
            status, answer = HTTPStatus.UNPROCESSABLE_ENTITY, {"error": str(error)}
        except Exception as error:  # the page says so, and all else can still be looked at
            reason = f"unexpected {type(error).__name__}: {error} (a bug in callscope: please report it)"
            status, answer = HTTPStatus.INTERNAL_SERVER_ERROR, {"error": reason}
        self._send(status, as_json(answer), "application/json")

    def _send(self, status: HTTPStatus, body: bytes, kind: str, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        headers = {**_HEADERS, "Content-Type": kind, "Content-Length": str(len(body)), **(more or {})}
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def as_json(answer: Any) -> bytes:
    """JSON in UTF-8. Names are bytes of programs: halves of surrogate pairs may be in them."""
    return json.dumps(answer, separators=(",", ":"), ensure_ascii=True, default=str).encode()


def _few(query: str) -> bool:
    return query.count("&") < 32
