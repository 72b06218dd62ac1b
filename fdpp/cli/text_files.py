"""Reading the files and the standard input that users name."""

from __future__ import annotations

import sys

from fdpp.errors import RequestError

MAX_BYTES = 64 * 2**20


def read_bytes(file_name: str, what: str) -> bytes:
    """The content of a file of bounded size; ``-`` is stdin."""
    if file_name == "-":
        data = sys.stdin.buffer.read(MAX_BYTES + 1)
    else:
        with open(file_name, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise RequestError(f"expected a {what} of at most {MAX_BYTES >> 20} MiB, got more")
    return data


def decode(data: bytes, what: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RequestError(f"expected a {what} in UTF-8, got byte 0x{data[error.start]:02x} at {error.start}") from None


def read_text(file_name: str, what: str) -> str:
    return decode(read_bytes(file_name, what), what)
