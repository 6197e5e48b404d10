"""Plain text files as documents: each file is one, or each of its lines.

Also compressed, and as members of a tar archive. A line end is a newline, however the file has it,
and a byte order mark is none of the text.
"""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, cast

from vila_mc.data.sources.compressed import DAMAGE, open_gzip, open_zstd
from vila_mc.data.sources.file_kinds import open_regular
from vila_mc.data.sources.record_files import LONGEST_RECORD, Entry, read_lines
from vila_mc.data.sources.records import NOT_READ, RejectionError
from vila_mc.data.sources.tars import Member, MemberStream, Unread, scan
from vila_mc.errors import DataError

Document = Literal["file", "line"]
"""What of a plain text file is one document."""

PLAIN = (".txt", ".txt.gz", ".txt.zst")
_STREAMS = {".gz": open_gzip, ".zst": open_zstd}
_MARK = b"\xef\xbb\xbf"
_TOO_LONG = (
    f"a document of more than {LONGEST_RECORD:,} bytes; the option document makes one of each line"
)


def is_plain(file: Path | str) -> bool:
    """Whether a name is that of a plain text file."""
    return str(file).lower().endswith(PLAIN)


def open_plain(file: Path, raw: BinaryIO) -> BinaryIO:
    """What a plain text file holds, decompressed if it has to be."""
    return _STREAMS.get(file.suffix.lower(), lambda same: same)(raw)


def read_documents(file: Path, document: Document) -> Iterator[Entry]:
    """Each document of a plain text file or of a ``.tar`` of them, as bytes.

    Raises:
        DataError: the file is missing or unreadable.
    """
    if file.suffix.lower() == ".tar":
        yield from _archived(file, document)
        return
    last: tuple[int, int] = (0, 0)
    try:
        with open_regular(file) as raw:
            stream = open_plain(file, raw)
            if document == "line":
                for place, line, end in read_lines(stream, raw):
                    last = (cast(int, place), end)
                    yield place, line, end
            else:
                yield from _whole(stream, file.stat().st_size)
    except DAMAGE as error:
        yield last[0] + 1, RejectionError("damaged file", str(error) or "it is cut off"), last[1]
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror}. Check the path.") from None


def text_of(raw: bytes) -> str:
    """The text of a document. Raises RejectionError."""
    try:
        text = raw.removeprefix(_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectionError("not UTF-8", f"{error.reason} at byte {error.start + 1}") from None
    text = text.replace("\r\n", "\n").replace("\r", "\n").removesuffix("\n")
    if not text.strip():
        raise RejectionError("empty text", "the document is blank")
    return text


def _whole(stream: BinaryIO, size: int) -> Iterator[Entry]:
    data = stream.read(LONGEST_RECORD + 1)
    if len(data) > LONGEST_RECORD:
        yield 1, RejectionError("too long", _TOO_LONG, size), size
    else:
        yield 1, data, size


def _archived(file: Path, document: Document) -> Iterator[Entry]:
    with open_regular(file) as raw:
        end = 0
        for member in scan(file):
            if isinstance(member, RejectionError):
                yield f"after {end} bytes", member, end
                return
            if isinstance(member, Unread):
                yield member.name, member.error, end
                continue
            end = member.offset + member.size
            if not member.name.lower().endswith(".txt"):
                detail = f"{member.size:,} bytes that are no .txt file"
                yield member.name, RejectionError(NOT_READ, detail, member.size), end
                continue
            yield from _in_member(raw, member, document)


def _in_member(raw: BinaryIO, member: Member, document: Document) -> Iterator[Entry]:
    end = member.offset + member.size
    stream = cast(BinaryIO, io.BufferedReader(MemberStream(raw, member)))
    if document == "line":
        for line, entry, _ in read_lines(stream, stream):
            yield f"{member.name}:{line}", entry, end
    elif member.size > LONGEST_RECORD:
        yield member.name, RejectionError("too long", _TOO_LONG, member.size), end
    else:
        yield member.name, stream.read(), end
