"""A Hub on a port of this computer, for the real client: it answers well, or as badly as its script says.

It knows one model repository with one file, which is all that a download needs: ``whoami-v2``, the repository's info,
and HEAD and GET of the file with ranges.  Each request to one of these takes the next entry of the script, if there is
one; an entry names the kind of request it is meant for.  Before :meth:`HubStub.open` the port refuses connections.
"""

from __future__ import annotations

import hashlib
import http.server
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

REPO, FILE = "so8t/faulty", "weights.bin"
CONTENT = hashlib.sha256(b"so8t").digest() * 8192
COMMIT = "5" * 40
Asked = Literal["whoami", "info", "head", "get"]


@dataclass(frozen=True)
class Fault:
    """What happens instead of an answer.

    Attributes:
        to: the kind of request it waits for.
        kind: ``status`` answers with it; ``reset`` resets the connection; ``hang`` says nothing for ``seconds``;
            ``cut`` closes it in the middle of the body.
    """

    to: Asked
    kind: Literal["status", "reset", "hang", "cut"] = "status"
    status: int = 503
    headers: Mapping[str, str] = field(default_factory=dict)
    seconds: float = 2.0
    times: int = 1


REFUSED_TOKEN = Fault("info", status=401, headers={"X-Error-Message": "Invalid credentials in Authorization header"})
FORBIDDEN = Fault("info", status=403, headers={"X-Error-Message": "Your token has no access to this repository"})
GATED = Fault("info", status=401, headers={
    "X-Error-Code": "GatedRepo", "X-Error-Message": f"Access to model {REPO} is restricted. You must be authenticated."})


@dataclass(frozen=True)
class Request:
    """One request as it came in: what was asked for, when (seconds since the epoch), and what was done about it."""

    asked: Asked
    at: float
    fault: Fault | None


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubStub

    def do_GET(self) -> None:
        self._answer(whole=True)

    def do_HEAD(self) -> None:
        self._answer(whole=False)

    def _answer(self, *, whole: bool) -> None:
        asked = self._asked(whole)
        if asked is None:
            self._send(404, b'{"error": "not here"}', {"X-Error-Message": "not here"}, whole)
            return
        fault = self.server.take(asked)
        if fault is None:
            self._serve(asked, whole)
        elif fault.kind == "status":
            body = json.dumps({"error": fault.headers.get("X-Error-Message", "as the script says")}).encode()
            self._send(fault.status, body, fault.headers, whole)
        elif fault.kind == "reset":
            # With a linger time of zero, closing sends RST instead of FIN.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._hang_up()
        elif fault.kind == "hang":
            self.server.closing.wait(fault.seconds)
            self._hang_up()
        else:
            self._serve(asked, whole, cut=True)
            self._hang_up()

    def _asked(self, whole: bool) -> Asked | None:
        if self.path == "/api/whoami-v2":
            return "whoami"
        if self.path.partition("?")[0].startswith(f"/api/models/{REPO}"):
            return "info"
        if self.path.startswith(f"/{REPO}/resolve/"):
            return "get" if whole else "head"
        return None

    def _serve(self, asked: Asked, whole: bool, *, cut: bool = False) -> None:
        if asked == "whoami":
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            if token != self.server.token:
                self._send(401, b"{}", {"X-Error-Message": "Invalid credentials in Authorization header"}, whole)
                return
            self._json({"name": "tester", "type": "user", "auth": {"accessToken": {"role": "write"}}}, whole)
        elif asked == "info":
            self._json({"id": REPO, "modelId": REPO, "sha": COMMIT, "siblings": [{"rfilename": FILE}], "tags": []}, whole)
        else:
            digest = hashlib.sha256(CONTENT).hexdigest()
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{digest}"', "Accept-Ranges": "bytes"}
            wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
            begin = int(wanted[1]) if wanted else 0
            if wanted:
                headers["Content-Range"] = f"bytes {begin}-{len(CONTENT) - 1}/{len(CONTENT)}"
            self._send(206 if wanted else 200, CONTENT[begin:], headers, whole, cut)

    def _json(self, value: Mapping[str, Any], whole: bool) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"}, whole)

    def _send(self, status: int, body: bytes, headers: Mapping[str, str], whole: bool, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if whole:
            self.wfile.write(body[: len(body) // 2] if cut else body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()

    def log_message(self, *_: object) -> None:
        pass


class HubStub(http.server.ThreadingHTTPServer):
    """The Hub; ``with HubStub() as hub:`` closes it.

    Attributes:
        url: for ``HF_ENDPOINT``.
        token: the one that whoami takes.
        requests: what was asked, in order.
    """

    daemon_threads = True

    def __init__(self, *script: Fault, token: str = "hf_good") -> None:
        super().__init__(("127.0.0.1", 0), _Handler, bind_and_activate=False)
        self.server_bind()
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.token = token
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self._script = [fault for fault in script for _ in range(fault.times)]
        self._lock = threading.Lock()
        self._open = False

    def open(self) -> HubStub:
        """Take connections from now on."""
        self.server_activate()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        self._open = True
        return self

    def add(self, *script: Fault) -> None:
        """Append to the script."""
        with self._lock:
            self._script += [fault for fault in script for _ in range(fault.times)]

    @property
    def healed(self) -> bool:
        """Has everything in the script happened?"""
        with self._lock:
            return not self._script

    def take(self, asked: Asked) -> Fault | None:
        """The fault for a request, which is noted; only the first entry of the script is looked at."""
        with self._lock:
            fault = self._script.pop(0) if self._script and self._script[0].to == asked else None
            self.requests.append(Request(asked, time.time(), fault))
            return fault

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no error of ours."""

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        if self._open:
            self.shutdown()
        self.server_close()
