"""The network and the Hub, through the real client: outages are waited out, refusals are for a person, and both end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from conftest import finish, wait_for
from faults import FaultyHome, killed_in_every_recovery
from hub_stub import COMMIT, CONTENT, FORBIDDEN, GATED, REFUSED_TOKEN, Fault, HubStub

DONE = f"faulty_hub {len(CONTENT)} bytes at {COMMIT}\n"


@pytest.fixture
def hub() -> Iterator[HubStub]:
    with HubStub() as stub:
        yield stub


@pytest.fixture
def home(tmp_path: Path, hub: HubStub) -> FaultyHome:
    """One step that asks the Hub for a repository and downloads its file."""
    environment = {
        "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": "hf_good", "HF_HUB_DOWNLOAD_TIMEOUT": "1",
        "HF_HUB_ETAG_TIMEOUT": "1", "NO_PROXY": "127.0.0.1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    return FaultyHome(tmp_path / "home", environment=environment).faults("faulty_hub")


def test_outages_are_waited_out(home: FaultyHome, hub: HubStub) -> None:
    """Refused, reset, silent, busy with a time to come back, broken, and cut off in the body: then it heals."""
    hub.add(Fault("info", "reset"), Fault("info", "hang"), Fault("info", status=429, headers={"Retry-After": "2"}),
            Fault("get", status=503), Fault("get", "cut", times=6))
    runner = home.start("resume", "--config", home.config)
    # Nobody listens yet.
    wait_for(lambda: home.noticed(), "the first refused connection")
    hub.open()
    finish(runner, expect=0, seconds=90)
    refused = len(home.told()) - 5
    assert refused >= 1 and hub.healed
    network = ("faulty_hub", "network_failed", "network")
    home.check_recovered([network] * (refused + 2) + [("faulty_hub", "network_failed", "rate-limit")] + [network] * 2)
    kinds = [failure["exception"]["type"] for failure in home.failed("faulty_hub")]
    assert set(kinds[:refused]) == {"ConnectError"}
    assert kinds[refused:] == ["ReadError", "ReadTimeout", "HfHubHTTPError", "HfHubHTTPError", "RemoteProtocolError"]
    assert (home.committed("faulty_hub") / "out.txt").read_text() == DONE

    # Its own waits are a fifth of a second at most; what the server asks for is longer, and is kept.
    busy = next(i for i, request in enumerate(hub.requests) if request.fault and request.fault.status == 429)
    assert hub.requests[busy + 1].at - hub.requests[busy].at >= 2.0
    waits = {row["rule"]: row["detail"]["decision"]["wait_seconds"] for row in home.incidents()}
    assert 2.0 <= waits["rate-limit"] < 3.0 and waits["network"] <= 0.2


def test_a_mirror_takes_over(home: FaultyHome, hub: HubStub) -> None:
    """The first address refuses, so the second one becomes the one in use; the runner is killed on the way."""
    with HubStub() as nobody:
        home.faults("faulty_hub", resources={"hub_endpoints": [nobody.url, hub.open().url]})
        assert len(killed_in_every_recovery(home, seed=1)) == 1
    home.check_recovered([("faulty_hub", "network_failed", "network")])
    assert home.overrides()["resources.hub_endpoints"] == (
        [nobody.url, hub.url], [hub.url, nobody.url], "recovery rule network")
    assert (home.committed("faulty_hub") / "out.txt").read_text() == DONE


def test_refusals_are_for_a_person_and_end_with_their_cause(home: FaultyHome, hub: HubStub) -> None:
    """Never tried again blindly: the token is looked at, a person is told, and the run goes on from there."""
    hub.open().add(REFUSED_TOKEN)
    old = {"HF_TOKEN": "hf_old"}
    said = home.resume("--config", home.config, expect=78, **old)
    assert "the Hub refuses the token (HTTP 401)" in said
    asked = [request.asked for request in hub.requests]
    assert asked == ["info", "whoami"]
    assert "hf_old" not in "".join(path.read_text() for path in (home.path / "logs").iterdir())
    assert "needs a person" in home.resume(expect=78, **old) and len(hub.requests) == 2  # nothing is asked meanwhile

    # The token is renewed; now its rights are missing, and then the terms are not accepted.
    for fault, kind, command in ((FORBIDDEN, "HfHubHTTPError", ["--retry"]), (GATED, "GatedRepoError", [])):
        hub.add(fault)
        said = home.resume(*command, expect=75)
        assert "the token is tester's and of the kind write" in said
        assert home.failed("faulty_hub")[-1]["exception"]["type"] == kind

    home.resume()
    assert home.told() == [("faulty_hub", "hub_refused", "hub-refused")] * 3
    assert [row["status"] for row in home.incidents()] == ["escalated"] * 3
    assert (home.committed("faulty_hub") / "out.txt").read_text() == DONE
