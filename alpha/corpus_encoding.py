"""From the bytes of a corpus file to its text: UTF-8, and for bytes that are not, what they probably are."""

import codecs
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from alpha.corpus_files import CorpusFile
from alpha.errors import AlphaError

CHUNK_BYTES = 1 << 20
BYTE_ORDER_MARK = "\ufeff"

_ENCODING_MARKS = (
    (codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF32_BE, "UTF-32"),
    (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"),
)  # fmt: skip
_FREQUENT = {
    "SHIFT_JIS": ("[\u3040-\u30ff]", 0.3),
    "EUC-JP": ("[\u3040-\u30ff]", 0.3),
    "EUC-KR": ("[\uac00-\ud7a3]", 0.5),
    "GB18030": ("[的一是不了人在有我他这个上来大国到中文]", 0.04),
    "BIG5": ("[的一是不了人在有我他這個上來大國到中文]", 0.04),
    "WINDOWS-1251": ("[оеаинтсрвл]", 0.4),
    "KOI8-R": ("[оеаинтсрвл]", 0.4),
}
"""Characters that texts of an encoding have, and at least this share of those that are not ASCII."""

_SAMPLE_BYTES = 1 << 14
_CONTROLS = bytes({*range(32), 127} - {*b"\t\n\v\f\r\x1b"})


def decoded_chunks(file: CorpusFile, stream: BinaryIO, report: Callable[[], None]) -> Iterator[str]:
    offset = 0
    undecoded = b""
    while True:
        chunk = stream.read(CHUNK_BYTES)
        report()
        data = undecoded + chunk
        text, used = decode(file, data, offset, final=not chunk)
        yield text.removeprefix(BYTE_ORDER_MARK) if offset == 0 else text
        if not chunk:
            return
        offset += used
        undecoded = data[used:]


def decode(file: CorpusFile, data: bytes, offset: int, final: bool) -> tuple[str, int]:
    """UTF-8 `data`, which stands at byte `offset` of the file, and how many of its bytes were used.

    Unless this is the `final` data, a character that is cut at the end is left for the next call.
    """
    valid, problem = len(data), ""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        valid = error.start
        cut_at_the_end = error.end == len(data) and error.reason == "unexpected end of data"
        problem = "" if cut_at_the_end and not final else "is not UTF-8"
        text = data[:valid].decode()
    zero = data.find(b"\0", 0, valid)
    if zero >= 0:
        valid, problem = zero, "is a NUL byte"
    if problem:
        after = " after decompression" if file.compressed else ""
        where = f"byte {offset + valid:,}{after}"
        raise AlphaError(f"{file.path} is not a text file: {where} {problem}.{_likely_encoding(file, data, valid)}")
    return text, valid


def _likely_encoding(file: CorpusFile, data: bytes, valid: int) -> str:
    """What bytes that are UTF-8 text only up to `valid` probably are, and what to do about it; empty where nothing is
    likely."""
    encoding = _encoding_with_zeros(data)
    if not encoding:
        if 0 in data or len(data.translate(None, _CONTROLS)) < len(data):
            is_gzip = data.startswith(b"\x1f\x8b")
            return " It looks compressed by gzip; give its name the ending .gz." if is_gzip else ""
        around = data[max(0, valid - _SAMPLE_BYTES) : valid + _SAMPLE_BYTES].decode(errors="replace")
        foreign = [char for char in around if not char.isascii()]
        is_damaged = not data[:valid].isascii() and 2 * foreign.count("\ufffd") <= len(foreign)
        encoding = "UTF-8" if is_damaged else _older_encoding(data[valid : valid + _SAMPLE_BYTES])
        if not encoding:
            return " It may be in an older encoding, such as Windows-1251, Shift_JIS or GB18030; convert it with iconv."
    name = "Latin-1 (ISO-8859-1)" if encoding == "ISO-8859-1" else encoding
    path = shlex.quote(str(file.path))
    convert = f"iconv {'-c ' if encoding == 'UTF-8' else ''}-f {encoding} -t UTF-8"
    source = f"zcat {path} | {convert}" if file.compressed else f"{convert} {path}"
    what = "is UTF-8 otherwise; leave out what is damaged" if encoding == "UTF-8" else f"looks like {name}; convert it"
    return f" It {what}: {source} > converted{Path(file.path.name.removesuffix('.gz')).suffix}"


def _older_encoding(data: bytes) -> str:
    """What is likely by the letters that are frequent in it; empty where nothing fits."""
    high = sum(byte >= 0x80 for byte in data)
    in_words = sum(map(len, re.findall(rb"[\x80-\xff]{3,}", data)))
    if 2 * in_words < high < 2 * len(data) / 5:  # single ones among Latin letters
        return "WINDOWS-1252" if any(0x80 <= byte < 0xA0 for byte in data) else "ISO-8859-1"
    found = {}
    for name, (letters, usual) in _FREQUENT.items():
        foreign = "".join(char for char in data.decode(name, errors="ignore") if not char.isascii())
        found[name] = len(re.findall(letters, foreign.lower())) / (usual * len(foreign) or 1)
    best = max(found, key=lambda name: found[name])
    return best if found[best] >= 1 else ""


def _encoding_with_zeros(data: bytes) -> str:
    """UTF-16 or UTF-32, by a byte order mark or by the half of each Latin letter that is zero; else empty."""
    by_mark = next((name for mark, name in _ENCODING_MARKS if data.startswith(mark)), "")
    first, second = data[::2].count(0), data[1::2].count(0)
    if by_mark or 10 * max(first, second) < 9 * (first + second) or 5 * (first + second) <= len(data):
        return by_mark
    return "UTF-16LE" if second > first else "UTF-16BE"
