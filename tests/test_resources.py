"""Guards: what is short, what is enough, and what nobody could see."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pynvml
import pytest

from so8t_fsm import resources
from so8t_fsm.resources import Limits, check, probe
from so8t_fsm.step import MiB, Needs

HUGE = 10**18


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MiB with room for few files."""
    place = tmp_path / "tiny"
    place.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting needs root on Linux")
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m,nr_inodes=2000", "none", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("this system lets nobody mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_enough_disk_is_said_with_its_numbers(tmp_path: Path) -> None:
    (finding,) = check(Needs(disk={tmp_path / "not" / "there" / "yet": 1}))
    assert finding.ok and not finding.blocks and finding.kind == "disk"
    assert finding.fact["path"] == str(tmp_path) and finding.fact["free"] > 1


def test_a_disk_that_is_too_small_blocks(tmp_path: Path) -> None:
    (finding,) = check(Needs(disk={tmp_path: HUGE}))
    assert finding.blocks and not finding.ok
    assert "PiB needed" in finding.message and str(tmp_path) in finding.message


def test_two_paths_on_one_disk_share_its_free_space(tiny_disk: Path) -> None:
    needs = {tiny_disk / "a": 3 * MiB, tiny_disk / "b": 3 * MiB}
    assert all(check(Needs(disk={path: need}))[0].ok for path, need in needs.items())
    (finding,) = check(Needs(disk=needs))
    assert finding.blocks and finding.fact["need"] == 6 * MiB


def test_the_floor_stays_free_after_the_step_has_written(tiny_disk: Path) -> None:
    needs = Needs(disk={tiny_disk: 2 * MiB})
    assert check(needs, Limits(min_free_disk=1 * MiB))[0].ok
    assert check(needs, Limits(min_free_disk=3 * MiB))[0].blocks
    # While it runs it has written part of that already: then the floor alone counts.
    assert probe(needs, Limits(min_free_disk=3 * MiB))[0].ok


def test_a_disk_full_of_small_files_blocks(tiny_disk: Path) -> None:
    assert check(Needs(disk={tiny_disk: 0}))[0].ok
    for n in range(1500):
        (tiny_disk / str(n)).touch()
    (finding,) = check(Needs(disk={tiny_disk: 0}))
    assert finding.blocks and "more files" in finding.message


def test_a_full_disk_is_found_by_the_probe(tiny_disk: Path) -> None:
    with pytest.raises(OSError, match="No space"):
        (tiny_disk / "all").write_bytes(bytes(5 * MiB))
    finding = probe(Needs(disk={tiny_disk: 1}))[0]
    assert finding.short and finding.fact["free"] == 0


def test_a_read_only_disk_is_named_as_such(tiny_disk: Path) -> None:
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    (finding,) = check(Needs(disk={tiny_disk: 1}))
    assert finding.blocks and "cannot be written" in finding.message


def test_a_disk_that_cannot_be_looked_at_is_neither_healthy_nor_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(resources.shutil, "disk_usage", refuse)
    (finding,) = check(Needs(disk={tmp_path: 1}))
    assert not finding.observed and not finding.ok and not finding.short and not finding.blocks
    assert "could not be observed" in finding.message and "Input/output error" in finding.message


def test_ram(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(Needs(ram=1))[0].ok
    assert check(Needs(ram=HUGE))[0].blocks
    assert check(Needs(ram=1), Limits(min_ram=HUGE))[0].blocks
    assert check(Needs()) == []

    import psutil

    monkeypatch.setattr(psutil, "virtual_memory", lambda: (_ for _ in ()).throw(OSError("no /proc")))
    (finding,) = check(Needs(ram=1))
    assert not finding.observed and not finding.blocks


def _fake_nvml(monkeypatch: pytest.MonkeyPatch, free: list[int]) -> None:
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(free))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda index: f"GPU {index}")
    monkeypatch.setattr(
        pynvml, "nvmlDeviceGetMemoryInfo", lambda index: SimpleNamespace(free=free[index], total=12 << 30))


def test_the_gpu_with_the_most_free_memory_counts_and_a_small_one_only_warns(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_nvml(monkeypatch, [2 << 30, 9 << 30])
    (finding,) = check(Needs(vram=8 << 30))
    assert finding.ok and "GPU 1" in finding.message
    (finding,) = check(Needs(vram=10 << 30))
    assert finding.short and not finding.blocks and "9.0 GiB of 12.0 GiB" in finding.message


def test_no_driver_warns_and_an_unreadable_one_is_not_observed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(code: int) -> None:
        def init() -> None:
            raise pynvml.NVMLError(code)

        monkeypatch.setattr(pynvml, "nvmlInit", init)

    fail(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)
    (finding,) = check(Needs(vram=1))
    assert finding.observed and finding.short and not finding.blocks and "CPU" in finding.message
    fail(pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH)
    (finding,) = check(Needs(vram=1))
    assert not finding.observed and not finding.short and "mismatch" in finding.message.lower()


def test_a_hidden_gpu_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_nvml(monkeypatch, [9 << 30])
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    assert check(Needs(vram=1))[0].short


def test_network_by_a_real_connection() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        (finding,) = check(Needs(network=(address,)))
        assert finding.ok and address in finding.message
    (finding,) = check(Needs(network=(address,)))
    assert finding.blocks and "cannot be reached" in finding.message


def test_an_address_that_never_answers_costs_no_more_than_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()

    def hang(*_: object, **__: object) -> None:
        release.wait(20)
        raise TimeoutError("timed out")

    monkeypatch.setattr(resources.socket, "create_connection", hang)
    before = time.monotonic()
    findings = check(Needs(network=("a.invalid:443", "b.invalid:443")), connect_seconds=0.2)
    release.set()
    assert time.monotonic() - before < 3
    assert [f.blocks for f in findings] == [True, True] and "no answer within" in findings[0].message


def test_behind_a_proxy_the_proxy_must_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{server.getsockname()[1]}")
        (finding,) = check(Needs(network=("huggingface.invalid:443",)))
        assert finding.ok and "through the proxy" in finding.message
        monkeypatch.setenv("no_proxy", "huggingface.invalid")
        assert check(Needs(network=("huggingface.invalid:443",)))[0].blocks


def test_a_forbidden_look_is_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(resources.socket, "create_connection", refuse)
    (finding,) = check(Needs(network=("127.0.0.1:1",)))
    assert not finding.observed and not finding.blocks


@pytest.mark.parametrize("address", ["huggingface.co", "https://huggingface.co", ":443", "a:b", "a:1/x", "a:99999"])
def test_what_is_not_an_address_is_a_mistake(address: str) -> None:
    with pytest.raises(ValueError, match="host:port"):
        resources.split_address(address)


def test_addresses() -> None:
    assert resources.split_address("huggingface.co:443") == ("huggingface.co", 443)
    assert resources.split_address("[::1]:80") == ("::1", 80)


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0 B"), (1536, "1.5 KiB"), (12.5 * 2**30, "12.5 GiB"), (-2048, "-2.0 KiB")])
def test_sizes_for_people(value: float, text: str) -> None:
    assert resources.size(value) == text
