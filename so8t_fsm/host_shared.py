"""Opening a file so that others may still write, rename and delete it.

On Windows Python's own ``open`` forbids the last two: a program that rotates its log would fail while we read it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import BinaryIO

if sys.platform == "win32":
    import ctypes
    import msvcrt
    import os
    from ctypes import wintypes

    GENERIC_READ, OPEN_EXISTING = 0x80000000, 3
    SHARE_ALL = 0x1 | 0x2 | 0x4  # read, write, delete
    INVALID = ctypes.c_void_p(-1).value
    _create = ctypes.WinDLL("kernel32", use_last_error=True).CreateFileW
    _create.argtypes = [wintypes.LPCWSTR, wintypes.DWORD, wintypes.DWORD, ctypes.c_void_p, wintypes.DWORD,
                        wintypes.DWORD, wintypes.HANDLE]
    _create.restype = wintypes.HANDLE

    def open_shared(path: Path) -> BinaryIO:
        """Open for reading, unbuffered, and keep nobody from doing anything with the file.

        Raises:
            OSError: it can't be opened.
        """
        handle = _create(str(path), GENERIC_READ, SHARE_ALL, None, OPEN_EXISTING, 0, None)
        if handle == INVALID:
            raise ctypes.WinError(ctypes.get_last_error())
        return os.fdopen(msvcrt.open_osfhandle(handle, os.O_RDONLY | os.O_BINARY), "rb", buffering=0)

else:

    def open_shared(path: Path) -> BinaryIO:
        """Open for reading, unbuffered, and keep nobody from doing anything with the file.

        Raises:
            OSError: it can't be opened.
        """
        return path.open("rb", buffering=0)
