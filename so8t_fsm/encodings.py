"""Text of unknown origin: UTF-8, UTF-16 with or without a byte order mark, or the code page of a Japanese console."""

from __future__ import annotations

import codecs

PAIRS = 4
"""Byte pairs that must have been seen before their pattern of zeros says anything."""


def guess_encoding(head: bytes) -> str:
    """``utf-16-le``, ``utf-16-be`` or ``utf-8``, by a file's first bytes.

    Without a byte order mark, text in UTF-16 is known by its line ends, spaces and digits: a zero beside each, always
    on the same side.  Text in other encodings has no zeros at all.
    """
    if head.startswith(codecs.BOM_UTF16_LE):
        return "utf-16-le"
    if head.startswith(codecs.BOM_UTF16_BE):
        return "utf-16-be"
    high, low = head[::2], head[1::2]
    if len(low) >= PAIRS:
        if 0 not in high and low.count(0) * 10 >= len(low):
            return "utf-16-le"
        if 0 not in low and high.count(0) * 10 >= len(high):
            return "utf-16-be"
    return "utf-8"


def line_end(encoding: str) -> bytes:
    """The bytes of a line feed."""
    return "\n".encode(encoding)


def decode(data: bytes, encoding: str) -> str:
    """UTF-8 where it is, else the code page of a Japanese Windows console, else with marks for what it can't be."""
    if encoding.startswith("utf-16"):
        return data.decode(encoding, "replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        try:
            return data.decode("cp932")
        except UnicodeDecodeError:
            return data.decode("utf-8", "replace")


def whole_characters(data: bytes, encoding: str) -> int:
    """How many bytes of ``data`` can be decoded without cutting its last character in two."""
    if encoding.startswith("utf-16"):
        whole = len(data) - len(data) % 2
        last = int.from_bytes(data[whole - 2:whole], "little" if encoding.endswith("le") else "big")
        return whole - 2 if 0xD800 <= last < 0xDC00 else whole
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte >= 0xC0:
            length = 2 if byte < 0xE0 else 3 if byte < 0xF0 else 4
            return len(data) - back if back < length else len(data)
        if byte < 0x80:
            break
    return len(data)
