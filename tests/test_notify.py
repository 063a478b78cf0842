"""Notifications, over a real loopback service."""

from __future__ import annotations

import http.server
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from so8t_fsm.notify import desktop_url, notify, redact

SECRET = "t0psecrettoken"


class Service:
    """A notification service on a port of this computer: keeps what it gets, answers ``status`` after ``delay`` s."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.status, self.delay = 200, 0.0
        service = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                time.sleep(service.delay)
                service.got.append(json.loads(body))
                self.send_response(service.status)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"json://127.0.0.1:{self.server.server_port}/{SECRET}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Service()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_a_message_arrives(service: Service) -> None:
    assert notify([service.url], "要確認 needs you", "ディスクが一杯です", "critical", "warning") == []
    (got,) = service.got
    assert got["title"] == "要確認 needs you" and got["message"] == "ディスクが一杯です" and got["type"] == "failure"


@pytest.mark.parametrize(("severity", "minimum", "sent"), [
    ("info", "warning", 0), ("warning", "warning", 1), ("critical", "warning", 1), ("warning", "critical", 0),
    ("info", "info", 1)])
def test_only_what_is_severe_enough_is_sent(service: Service, severity: Any, minimum: Any, sent: int) -> None:
    assert notify([service.url], "t", "b", severity, minimum) == []
    assert len(service.got) == sent


def test_nothing_is_sent_to_nobody() -> None:
    assert notify([], "t", "b", "critical") == []


def test_one_bad_service_does_not_keep_the_others_from_being_told(service: Service) -> None:
    failures = notify(["json://127.0.0.1:1/x", service.url, "nonsense://y"], "t", "b", "critical")
    assert len(service.got) == 1
    assert [f.split(":")[0] for f in failures] == ["notification 1 of 3 (json)", "notification 3 of 3 (nonsense)"]


def test_a_refusal_is_told_with_its_cause(service: Service) -> None:
    service.status = 403
    (failure,) = notify([service.url], "t", "b")
    assert "403" in failure


@pytest.mark.parametrize("url", [
    f"json://127.0.0.1:1/{SECRET}", f"discord://123/{SECRET}/%%%", f"{SECRET}", f"nonsense://{SECRET}",
    f"json://user:{SECRET}@127.0.0.1:1/", f"json://127.0.0.1:bad/{SECRET}", f"json://[{SECRET}", f"mailto://{SECRET}:x@[",
])
def test_no_secret_in_failure_log_or_stderr(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("apprise").setLevel(logging.DEBUG)
        logging.getLogger("urllib3").setLevel(logging.DEBUG)
        (failure,) = notify([url], "t", "b")
    assert SECRET not in failure and failure
    assert failure in caplog.text and SECRET not in caplog.text
    out = capfd.readouterr()
    assert SECRET not in out.out + out.err


def test_no_secret_in_the_log_of_a_success(service: Service, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        logging.getLogger("urllib3").setLevel(logging.DEBUG)
        assert notify([service.url], "t", "b") == []
        logging.getLogger("urllib3.connectionpool").debug("of somebody else")
    assert SECRET not in caplog.text and "of somebody else" in caplog.text


def test_a_service_that_hangs_is_left_behind(service: Service) -> None:
    service.delay = 3.0
    before = time.monotonic()
    (failure,) = notify([service.url], "t", "b", seconds=0.3)
    assert time.monotonic() - before < 2.5
    assert "no answer within 0.3 s" in failure


def test_a_plugin_that_raises_hurts_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    import apprise

    def explode(*_: object, **__: object) -> None:
        raise ZeroDivisionError(f"at {SECRET}")

    monkeypatch.setattr(apprise.Apprise, "instantiate", explode)
    (failure,) = notify([f"json://127.0.0.1:1/{SECRET}"], "t", "b")
    assert "ZeroDivisionError: at ***" in failure


def test_redaction_knows_percent_encoding() -> None:
    assert redact("at p@ss word and p%40ss%20word", "json://user:p%40ss%20word@host/") == "at *** and ***"


def test_the_desktop_has_a_url() -> None:
    assert desktop_url().endswith("://")
    failures = notify([desktop_url()], "t", "b")
    assert len(failures) <= 1
