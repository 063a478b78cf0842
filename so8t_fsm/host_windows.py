"""Every Windows call of the machine (ctypes; no pywin32).  Imported on Windows only, by :mod:`so8t_fsm.host`.

Two ways lead from Windows to us when it wants the process to end, and neither covers the other: a process with a
console gets console control events, one without (``pythonw``, as the scheduled task starts it) gets window messages.
Both are listened to.  Windows ends the process about 5 s after either, and at once when the handler returns: so the
handlers wait, up to :data:`GRACE_SECONDS`, until the main loop says that everything is saved.
"""

from __future__ import annotations

import ctypes
import msvcrt
import os
import sys
import threading
from collections.abc import Callable
from ctypes import wintypes
from pathlib import Path

assert sys.platform == "win32"  # mypy then reads the rest for Windows only

GRACE_SECONDS = 4.0

Notify = Callable[[str], None]

kernel32 = ctypes.WinDLL("kernel32", use_last_error=True)
user32 = ctypes.WinDLL("user32", use_last_error=True)

LRESULT = ctypes.c_ssize_t
CTRL_HANDLER = ctypes.WINFUNCTYPE(wintypes.BOOL, wintypes.DWORD)
WNDPROC = ctypes.WINFUNCTYPE(LRESULT, wintypes.HWND, wintypes.UINT, wintypes.WPARAM, wintypes.LPARAM)

CREATE_SUSPENDED = 0x4

_CTRL_NAMES = {0: "CTRL_C_EVENT", 1: "CTRL_BREAK_EVENT", 2: "CTRL_CLOSE_EVENT", 5: "CTRL_LOGOFF_EVENT",
               6: "CTRL_SHUTDOWN_EVENT"}
_CTRL_INTERACTIVE = (0, 1)
_WM_DESTROY, _WM_CLOSE, _WM_QUERYENDSESSION, _WM_ENDSESSION = 0x2, 0x10, 0x11, 0x16
_ENDSESSION_LOGOFF = 0x80000000
_JOB_EXTENDED_LIMITS = 9
_JOB_KILL_ON_CLOSE = 0x2000
_DRIVE_REMOTE = 4
_STD_INPUT = wintypes.DWORD(-10 & 0xFFFFFFFF)
_ES_CONTINUOUS, _ES_SYSTEM_REQUIRED = 0x80000000, 0x1


class _IoCounters(ctypes.Structure):
    _fields_ = [(name, ctypes.c_ulonglong) for name in (
        "ReadOperationCount", "WriteOperationCount", "OtherOperationCount",
        "ReadTransferCount", "WriteTransferCount", "OtherTransferCount")]


class _BasicLimits(ctypes.Structure):
    _fields_ = [
        ("PerProcessUserTimeLimit", wintypes.LARGE_INTEGER), ("PerJobUserTimeLimit", wintypes.LARGE_INTEGER),
        ("LimitFlags", wintypes.DWORD), ("MinimumWorkingSetSize", ctypes.c_size_t),
        ("MaximumWorkingSetSize", ctypes.c_size_t), ("ActiveProcessLimit", wintypes.DWORD),
        ("Affinity", ctypes.c_size_t), ("PriorityClass", wintypes.DWORD), ("SchedulingClass", wintypes.DWORD),
    ]


class _ExtendedLimits(ctypes.Structure):
    _fields_ = [
        ("BasicLimitInformation", _BasicLimits), ("IoInfo", _IoCounters), ("ProcessMemoryLimit", ctypes.c_size_t),
        ("JobMemoryLimit", ctypes.c_size_t), ("PeakProcessMemoryUsed", ctypes.c_size_t),
        ("PeakJobMemoryUsed", ctypes.c_size_t),
    ]


class _WindowClass(ctypes.Structure):
    _fields_ = [
        ("style", wintypes.UINT), ("lpfnWndProc", WNDPROC), ("cbClsExtra", ctypes.c_int), ("cbWndExtra", ctypes.c_int),
        ("hInstance", wintypes.HINSTANCE), ("hIcon", wintypes.HANDLE), ("hCursor", wintypes.HANDLE),
        ("hbrBackground", wintypes.HANDLE), ("lpszMenuName", wintypes.LPCWSTR), ("lpszClassName", wintypes.LPCWSTR),
    ]


# Without these, ctypes would pass 64-bit handles as 32-bit ints.
kernel32.CreateJobObjectW.restype = wintypes.HANDLE
kernel32.CreateJobObjectW.argtypes = [wintypes.LPVOID, wintypes.LPCWSTR]
kernel32.SetInformationJobObject.argtypes = [wintypes.HANDLE, ctypes.c_int, wintypes.LPVOID, wintypes.DWORD]
kernel32.AssignProcessToJobObject.argtypes = [wintypes.HANDLE, wintypes.HANDLE]
kernel32.TerminateJobObject.argtypes = [wintypes.HANDLE, wintypes.UINT]
kernel32.CloseHandle.argtypes = [wintypes.HANDLE]
kernel32.SetStdHandle.argtypes = [wintypes.DWORD, wintypes.HANDLE]
kernel32.SetConsoleCtrlHandler.argtypes = [CTRL_HANDLER, wintypes.BOOL]
kernel32.GetModuleHandleW.restype = wintypes.HMODULE
kernel32.GetModuleHandleW.argtypes = [wintypes.LPCWSTR]
kernel32.GetDriveTypeW.argtypes = [wintypes.LPCWSTR]
kernel32.GetVolumePathNameW.argtypes = [wintypes.LPCWSTR, wintypes.LPWSTR, wintypes.DWORD]
kernel32.SetThreadExecutionState.restype = wintypes.DWORD
kernel32.SetThreadExecutionState.argtypes = [wintypes.DWORD]
user32.RegisterClassW.argtypes = [ctypes.POINTER(_WindowClass)]
user32.UnregisterClassW.argtypes = [wintypes.LPCWSTR, wintypes.HINSTANCE]
user32.CreateWindowExW.restype = wintypes.HWND
user32.CreateWindowExW.argtypes = [
    wintypes.DWORD, wintypes.LPCWSTR, wintypes.LPCWSTR, wintypes.DWORD, ctypes.c_int, ctypes.c_int, ctypes.c_int,
    ctypes.c_int, wintypes.HWND, wintypes.HMENU, wintypes.HINSTANCE, wintypes.LPVOID]
user32.DefWindowProcW.restype = LRESULT
user32.DefWindowProcW.argtypes = [wintypes.HWND, wintypes.UINT, wintypes.WPARAM, wintypes.LPARAM]
user32.DestroyWindow.argtypes = [wintypes.HWND]
user32.GetMessageW.argtypes = [ctypes.POINTER(wintypes.MSG), wintypes.HWND, wintypes.UINT, wintypes.UINT]
user32.DispatchMessageW.restype = LRESULT
user32.DispatchMessageW.argtypes = [ctypes.POINTER(wintypes.MSG)]
user32.PostMessageW.argtypes = [wintypes.HWND, wintypes.UINT, wintypes.WPARAM, wintypes.LPARAM]
user32.PostQuitMessage.argtypes = [ctypes.c_int]


def _last_error(call: str) -> OSError:
    error = ctypes.WinError(ctypes.get_last_error())
    error.filename = call
    return error


class Job:
    """A Job object: what is in it dies with it, and it dies with this process, even when that is killed."""

    def __init__(self) -> None:
        self._handle = kernel32.CreateJobObjectW(None, None)
        if not self._handle:
            raise _last_error("CreateJobObject")
        limits = _ExtendedLimits()
        limits.BasicLimitInformation.LimitFlags = _JOB_KILL_ON_CLOSE
        if not kernel32.SetInformationJobObject(
            self._handle, _JOB_EXTENDED_LIMITS, ctypes.byref(limits), ctypes.sizeof(limits)
        ):
            error = _last_error("SetInformationJobObject")
            self.close()
            raise error

    def add(self, process_handle: int) -> None:
        """Put a process, and all it will start, into the job.

        Raises:
            OSError: Windows refused.
        """
        if not kernel32.AssignProcessToJobObject(self._handle, process_handle):
            raise _last_error("AssignProcessToJobObject")

    def terminate(self, code: int = 1) -> None:
        """End every process in it at once."""
        if self._handle:
            kernel32.TerminateJobObject(self._handle, code)

    def close(self) -> None:
        """Let go of the job; whatever still runs in it ends."""
        if self._handle:
            kernel32.CloseHandle(self._handle)
            self._handle = None


def inheritable_handle(fd: int) -> int:
    """The Windows handle behind a descriptor, marked as one that a child may inherit."""
    handle = msvcrt.get_osfhandle(fd)
    os.set_handle_inheritable(handle, True)
    return handle


def private_descriptor(handle: int, flags: int) -> int:
    """A descriptor for an inherited handle, which is then not inherited any further."""
    os.set_handle_inheritable(handle, False)
    return msvcrt.open_osfhandle(handle, flags | os.O_NOINHERIT)


def set_standard_input(fd: int) -> None:
    """Children started without their own stdin get the process's handle, which ``dup2`` alone does not change."""
    kernel32.SetStdHandle(_STD_INPUT, msvcrt.get_osfhandle(fd))


def is_remote_drive(path: Path) -> bool:
    """True when the volume that holds the path is a network drive (also one mounted as a letter or a folder)."""
    volume = ctypes.create_unicode_buffer(32768)
    if not kernel32.GetVolumePathNameW(str(path), volume, len(volume)):
        return False
    return bool(kernel32.GetDriveTypeW(volume.value) == _DRIVE_REMOTE)


def keep_awake(on: bool) -> None:
    """Ask Windows not to sleep while the calling thread lives; the screen may still go dark."""
    kernel32.SetThreadExecutionState(_ES_CONTINUOUS | (_ES_SYSTEM_REQUIRED if on else 0))


class ConsoleEvents:
    """Console control events: Ctrl+C, Ctrl+Break, the console window closing, logoff, shutdown."""

    def __init__(self, notify: Notify, saved: threading.Event) -> None:
        self._notify, self._saved = notify, saved
        self._callback = CTRL_HANDLER(self._on_event)  # Windows holds only a bare pointer to it

    def start(self) -> None:
        kernel32.SetConsoleCtrlHandler(self._callback, True)

    def stop(self) -> None:
        kernel32.SetConsoleCtrlHandler(self._callback, False)

    def _on_event(self, event: int) -> bool:
        """Runs in a thread that Windows makes.  True: handled, so Python's own KeyboardInterrupt stays away."""
        self._notify(_CTRL_NAMES.get(event, f"console event {event}"))
        if event not in _CTRL_INTERACTIVE:
            self._saved.wait(GRACE_SECONDS)
        return True


class SessionWindow:
    """A hidden top-level window, in a thread of its own, that is told when Windows ends the session.

    It must be top-level: message-only windows do not get broadcasts.
    """

    def __init__(self, notify: Notify, saved: threading.Event) -> None:
        self._notify, self._saved = notify, saved
        self._procedure = WNDPROC(self._on_message)
        self._name = f"so8t-session-{os.getpid()}-{id(self)}"
        self._window: int | None = None
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="so8t-session-window", daemon=True)

    def start(self) -> None:
        """Returns when the window is there, or could not be made (a service has no desktop: console events remain)."""
        self._thread.start()
        self._ready.wait(5)

    def stop(self) -> None:
        if self._window:
            user32.PostMessageW(self._window, _WM_CLOSE, 0, 0)
            self._thread.join(5)

    def _run(self) -> None:
        instance = kernel32.GetModuleHandleW(None)
        window_class = _WindowClass(lpfnWndProc=self._procedure, hInstance=instance, lpszClassName=self._name)
        try:
            if user32.RegisterClassW(ctypes.byref(window_class)):
                self._window = user32.CreateWindowExW(
                    0, self._name, "SO8T", 0, 0, 0, 0, 0, None, None, instance, None)
        finally:
            self._ready.set()
        if not self._window:
            return
        message = wintypes.MSG()
        while user32.GetMessageW(ctypes.byref(message), None, 0, 0) > 0:
            user32.DispatchMessageW(ctypes.byref(message))
        self._window = None
        user32.UnregisterClassW(self._name, instance)

    def _on_message(self, window: int, message: int, wparam: int, lparam: int) -> int:
        if message == _WM_QUERYENDSESSION:
            return 1  # only asked so far, and another program may still say no: answer quickly and go on
        if message == _WM_ENDSESSION:
            if wparam:
                self._notify("Windows is signing the user out" if lparam & _ENDSESSION_LOGOFF
                             else "Windows is shutting down")
                self._saved.wait(GRACE_SECONDS)
            return 0
        if message == _WM_CLOSE:
            user32.DestroyWindow(window)
            return 0
        if message == _WM_DESTROY:
            user32.PostQuitMessage(0)
            return 0
        return int(user32.DefWindowProcW(window, message, wparam, lparam))
