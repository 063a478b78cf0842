"""Is there enough disk, memory, GPU memory and network?  Asked before a step starts and while it runs.

Three answers are kept apart: *there is enough*, *there is not*, and *it could not be observed*.  The last one is
neither healthy nor failed: it never holds a step back, and it is always said.
"""

from __future__ import annotations

import os
import shutil
import socket
import sys
import threading
import time
import urllib.parse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from so8t_fsm.step import Needs

Kind = Literal["disk", "ram", "vram", "network"]

CONNECT_SECONDS = 5.0
PROBE_CONNECT_SECONDS = 2.0
"""Shorter: while a step runs its loop has more to do than to wait for a network."""
MIN_FREE_INODES = 1_000
"""A full inode table refuses new files with the same ENOSPC as a full disk; one step writes a few hundred files."""


@dataclass(frozen=True)
class Limits:
    """Floors in bytes, whatever the step says.

    ``min_free_disk`` must stay free on every device *after* the step has written what it announced;
    ``min_ram`` and ``min_vram`` must be free when it starts, even where the step asks for less.
    """

    min_free_disk: int = 0
    min_ram: int = 0
    min_vram: int = 0


@dataclass(frozen=True)
class Finding:
    """One answer about one resource.

    Attributes:
        kind: disk, ram, vram or network.
        ok: there is enough.  False as well when it could not be observed: then ``observed`` says so.
        blocking: a shortage of this kind holds the step back; never true for what could not be observed.
        message: one line: what, where, how much.
        fact: the numbers, plain JSON (bytes).
        observed: whether anybody could look.
    """

    kind: Kind
    ok: bool
    blocking: bool
    message: str
    fact: Mapping[str, Any] = field(default_factory=dict)
    observed: bool = True

    @property
    def short(self) -> bool:
        """Seen, and not enough."""
        return self.observed and not self.ok

    @property
    def blocks(self) -> bool:
        """The step must wait for this."""
        return self.blocking and self.short


def check(needs: Needs, limits: Limits | None = None, *, connect_seconds: float = CONNECT_SECONDS) -> list[Finding]:
    """Everything a step needs before it starts.  Takes at most a little over ``connect_seconds``.

    Raises:
        ValueError: ``needs.network`` holds something that is not ``host:port``.
    """
    limits = limits or Limits()
    findings = [*_disks(needs.disk, limits.min_free_disk, add_needs=True)]
    if needs.ram or limits.min_ram:
        findings.append(_ram(max(needs.ram, limits.min_ram)))
    if needs.vram or limits.min_vram:
        findings.append(_vram(max(needs.vram, limits.min_vram)))
    findings += _network(needs.network, connect_seconds)
    return findings


def probe(
    needs: Needs, limits: Limits | None = None, *, connect_seconds: float = PROBE_CONNECT_SECONDS
) -> list[Finding]:
    """The same while the step runs: only the floors count, since it has already taken part of what it asked for.

    Raises:
        ValueError: ``needs.network`` holds something that is not ``host:port``.
    """
    limits = limits or Limits()
    findings = [*_disks(needs.disk, limits.min_free_disk, add_needs=False), _ram(limits.min_ram)]
    if needs.vram or limits.min_vram:
        findings.append(_vram(limits.min_vram))
    findings += _network(needs.network, connect_seconds)
    return findings


def unobserved(kind: Kind, why: str, **fact: Any) -> Finding:
    """A finding for what nobody could look at."""
    return Finding(kind, ok=False, blocking=False, message=f"{kind}: could not be observed ({why})",
                   fact={**fact, "error": why}, observed=False)


def size(value: float) -> str:
    """Bytes for people, in binary units: ``12.5 GiB``."""
    sign, value = ("-" if value < 0 else ""), abs(value)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB", "PiB"):
        if value < 1024 or unit == "PiB":
            break
        value /= 1024
    return f"{sign}{value:.0f} {unit}" if unit == "B" else f"{sign}{value:.1f} {unit}"


def existing_parent(path: Path) -> Path | None:
    """The path itself or its nearest parent that is there; None when not even its drive is."""
    path = path.absolute()
    return next((p for p in (path, *path.parents) if p.exists()), None)


def _disks(wanted: Mapping[Path, int], floor: int, *, add_needs: bool) -> Iterator[Finding]:
    """One finding a device: two paths on one disk share what is free there."""
    devices: dict[int, tuple[Path, int]] = {}
    for path, need in wanted.items():
        try:
            parent = existing_parent(path)
            device = parent.stat().st_dev if parent else None
        except OSError as error:
            yield unobserved("disk", f"{path}: {error.strerror or error}", path=str(path))
            continue
        if parent is None or device is None:
            yield Finding("disk", ok=False, blocking=True, fact={"path": str(path), "need": need},
                          message=f"disk: {path.anchor or path} is not there; plug the drive in or change the path")
            continue
        first, total = devices.get(device, (parent, 0))
        devices[device] = (first, total + need)
    for parent, need in devices.values():
        yield _disk(parent, need if add_needs else 0, floor)


def _disk(parent: Path, need: int, floor: int) -> Finding:
    try:
        free = shutil.disk_usage(parent).free
        inodes = _free_inodes(parent)
    except OSError as error:
        return unobserved("disk", f"{parent}: {error.strerror or error}", path=str(parent))
    fact = {"path": str(parent), "free": free, "need": need, "floor": floor, "free_inodes": inodes}
    if not os.access(parent, os.W_OK):
        # A write-protected or read-only-mounted place will not get better by freeing space, so say what it is.
        return Finding("disk", ok=False, blocking=True, fact=fact, message=f"disk: {parent} cannot be written to")
    if inodes is not None and inodes < MIN_FREE_INODES:
        return Finding("disk", ok=False, blocking=True, fact=fact,
                       message=f"disk: {parent} has room for only {inodes} more files; delete many small files there")
    enough = free > 0 and free - need >= floor
    message = f"disk: {size(free)} free at {parent}"
    if not enough:
        message += f", {size(need + floor)} needed"
        message += f" ({size(need)} to write, {size(floor)} to stay free)" if need and floor else ""
    return Finding("disk", ok=enough, blocking=True, message=message, fact=fact)


def _free_inodes(path: Path) -> int | None:
    """Free inodes, or None where the file system makes them as it goes (btrfs, NTFS)."""
    if sys.platform == "win32":
        return None
    stats = os.statvfs(path)
    return stats.f_favail if stats.f_files else None


def _ram(need: int) -> Finding:
    import psutil

    try:
        memory = psutil.virtual_memory()
    except (psutil.Error, OSError, RuntimeError) as error:
        return unobserved("ram", str(error))
    enough = memory.available >= need
    message = f"ram: {size(memory.available)} of {size(memory.total)} available"
    message += "" if enough else f", {size(need)} needed; close other programs"
    return Finding("ram", ok=enough, blocking=True, message=message,
                   fact={"available": memory.available, "total": memory.total, "need": need})


def _vram(need: int) -> Finding:
    """The GPU with the most free memory.  A shortage is said, and the step goes on, slower or on the CPU."""
    import pynvml

    if os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return Finding("vram", ok=False, blocking=False, fact={"need": need, "devices": []},
                       message="vram: CUDA_VISIBLE_DEVICES hides every GPU; the step runs on the CPU, much slower")
    try:
        pynvml.nvmlInit()
    except (pynvml.NVMLError_LibraryNotFound, pynvml.NVMLError_DriverNotLoaded):
        return Finding("vram", ok=False, blocking=False, fact={"need": need, "devices": []},
                       message="vram: no NVIDIA driver here; the step runs on the CPU, much slower")
    except pynvml.NVMLError as error:
        return unobserved("vram", f"NVML: {error}")
    try:
        devices: list[dict[str, Any]] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            memory, name = pynvml.nvmlDeviceGetMemoryInfo(handle), pynvml.nvmlDeviceGetName(handle)
            devices.append({"index": index, "name": name if isinstance(name, str) else name.decode(),
                            "free": int(memory.free), "total": int(memory.total)})
    except pynvml.NVMLError as error:
        return unobserved("vram", f"NVML: {error}")
    finally:
        pynvml.nvmlShutdown()
    if not devices:
        return Finding("vram", ok=False, blocking=False, fact={"need": need, "devices": []},
                       message="vram: no NVIDIA GPU here; the step runs on the CPU, much slower")
    best = max(devices, key=lambda device: device["free"])
    enough = best["free"] >= need
    message = f"vram: {size(best['free'])} of {size(best['total'])} free on {best['name']}"
    message += "" if enough else f", {size(need)} wanted; expect it to be slow or to run out"
    return Finding("vram", ok=enough, blocking=False, message=message,
                   fact={"need": need, "free": best["free"], "total": best["total"], "devices": devices})


def _network(addresses: tuple[str, ...], seconds: float) -> Iterator[Finding]:
    """Connect to all at once, each in a thread: a name server that does not answer cannot be timed out otherwise."""
    results: dict[str, tuple[str, OSError | None]] = {}

    def connect(address: str, target: tuple[str, int], through: str) -> None:
        try:
            socket.create_connection(target, timeout=seconds).close()
            results[address] = (through, None)
        except OSError as error:
            results[address] = (through, error)
        except UnicodeError:  # a label that no host name may have, as in a..b
            results[address] = (through, OSError("not a host name"))

    threads = []
    for address in dict.fromkeys(addresses):
        host, port = split_address(address)
        proxy = _proxy_for(host)
        target, through = (proxy, f" through the proxy {proxy[0]}:{proxy[1]}") if proxy else ((host, port), "")
        threads.append((address, through, threading.Thread(
            target=connect, args=(address, target, through), name="so8t-connect", daemon=True)))
    for *_, thread in threads:
        thread.start()
    deadline = time.monotonic() + seconds + 0.5
    for address, through, thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
        via, error = results.get(address, (through, TimeoutError(f"no answer within {seconds:g} s")))
        if isinstance(error, PermissionError):
            # A sandbox or firewall forbids us to look; the child may be allowed what we are not.
            yield unobserved("network", f"{address}: {error.strerror or error}", address=address)
        elif error is None:
            yield Finding("network", ok=True, blocking=True, message=f"network: {address} answers{via}",
                          fact={"address": address})
        else:
            why = error.strerror or str(error)
            yield Finding("network", ok=False, blocking=True, fact={"address": address, "error": why},
                          message=f"network: {address} cannot be reached{via} ({why})")


def split_address(address: str) -> tuple[str, int]:
    """``host:port`` or ``[v6]:port``.

    Raises:
        ValueError: it is neither.
    """
    try:
        parts = urllib.parse.urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or port is None or parts.path:
        raise ValueError(f"{address!r} is not host:port")
    return host, port


def _proxy_for(host: str) -> tuple[str, int] | None:
    """Where HTTPS goes through a proxy, the proxy is what must answer: a direct connection may be forbidden."""
    import urllib.request

    proxy = urllib.request.getproxies().get("https")
    if not proxy or host in ("localhost", "127.0.0.1", "::1") or urllib.request.proxy_bypass(host):
        return None
    parts = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
    return (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)) if parts.hostname else None
