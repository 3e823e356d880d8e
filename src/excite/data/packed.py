"""Images inside larger files (archives, shards): where the bytes of each are, and how they are read.

Nothing is unpacked. The bytes of any image can be read at any time, in any order, by any process. Nothing here imports
torch or an image library.
"""

import io
import os
import stat
import struct
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

if TYPE_CHECKING:  # it takes a sixth of a second, and listing folders does not need it
    import numpy as np

#: How a member is stored: as it is; in a zip file behind its own header; there, compressed.
PLAIN, ZIP_PLAIN, ZIP_DEFLATED = 0, 1, 2
#: Bytes of a compressed image. The largest one that Pillow reads has 0.5 GB as a bitmap.
LARGEST = 1 << 30
#: Without waiting for somebody to write to a FIFO.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
#: Files that a process keeps open at a time.
OPEN_FILES = 64
_LOCAL_HEADER = struct.Struct("<4s22xHH")


class _File(io.FileIO):
    """A file that is closed when nobody reads from it any more, which is no mistake."""

    def __del__(self) -> None:
        self.close()


class Container(NamedTuple):
    """A file that images are in, as it was when they were listed.

    Attributes:
        path: its path.
        size: bytes.
        modified: when it changed last, nanoseconds.
    """

    path: str
    size: int
    modified: int

    @classmethod
    def of(cls, path: str | os.PathLike[str]) -> "Container":
        """A file as it is now. Raises OSError."""
        found = os.stat(path)
        return cls(os.fspath(path), found.st_size, found.st_mtime_ns)


class _OpenFiles:
    """Descriptors of the files read last, for all threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[Container, _File] = OrderedDict()

    def opened(self, file_in: Container) -> _File:
        """A file, open as long as somebody holds it. Raises OSError, and ValueError if it is another file now."""
        with self._lock:
            file = self._files.pop(file_in, None)
            if file is None:
                file = _File(file_in.path)
                found = os.fstat(file.fileno())
                if (found.st_size, found.st_mtime_ns) != file_in[1:]:
                    raise ValueError(f"{file_in.path} has changed since its images were listed: start again")
            self._files[file_in] = file
            while len(self._files) > OPEN_FILES:
                self._files.popitem(last=False)  # closed once no other thread reads from it
            return file

    def read(self, file_in: Container, start: int, length: int) -> bytes:
        """At most ``length`` bytes from ``start`` on. Raises what `opened` does."""
        file = self.opened(file_in)
        if not hasattr(os, "pread"):  # Windows: the place is the file's, so only one thread can read
            with self._lock:
                file.seek(start)
                return file.read(length)
        pieces, missing = [], length
        while missing and (piece := os.pread(file.fileno(), min(missing, 1 << 30), start + length - missing)):
            pieces.append(piece)
            missing -= len(piece)
        return b"".join(pieces)


_files = _OpenFiles()


class _Window(io.RawIOBase):
    """A part of a file, as a file of its own."""

    def __init__(self, file: Container, start: int, length: int) -> None:
        super().__init__()
        self._file, self._start, self.length, self._at = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        self._at = max(0, offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.length}[whence])
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        wanted = min(len(buffer), max(0, self.length - self._at))
        found = _files.read(self._file, self._start + self._at, wanted)
        buffer[: len(found)] = found
        self._at += len(found)
        return len(found)


class Bounded(io.BufferedReader):
    """A file that never allocates more for a read than it can fill.

    Python allocates whatever a read asks for, and many of Pillow's readers ask for a length that a header claims.
    """

    def _length(self) -> int:
        return os.fstat(self.fileno()).st_size

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > io.DEFAULT_BUFFER_SIZE:
            size = min(size, max(0, self._length() - self.tell()))
        return super().read(size)


class _BoundedWindow(Bounded):
    """The same for a window."""

    def __init__(self, window: _Window) -> None:
        super().__init__(window)
        self._whole = window.length

    def _length(self) -> int:
        return self._whole


def read_at(file: Container, start: int, length: int) -> bytes:
    """At most ``length`` bytes of a file from ``start`` on. Raises OSError, and ValueError if it has changed."""
    return _files.read(file, start, length)


def opened_file(file: Container) -> io.FileIO:
    """A file, open as long as the caller holds it. Raises OSError, and ValueError if it has changed."""
    return _files.opened(file)


@dataclass(frozen=True)
class Member(os.PathLike[str]):
    """One image inside a larger file; wherever an image's path can be given, this can be given, too.

    Attributes:
        name: for messages: the path of the file and the name of the image in it.
        file: the file that it is in.
        offset: where it begins there, in bytes; of a zip file, where its own header begins.
        length: bytes that it takes there.
        size: bytes that it has.
        kind: :data:`PLAIN`, :data:`ZIP_PLAIN` or :data:`ZIP_DEFLATED`.
        check: CRC-32 of a compressed image.
    """

    name: str
    file: Container
    offset: int
    length: int
    size: int
    kind: int = PLAIN
    check: int = 0

    def __fspath__(self) -> str:
        return self.name

    def open(self) -> BinaryIO:
        """Its bytes as a file. Raises OSError, and ValueError if they are damaged."""
        start = self.offset
        if self.kind != PLAIN:
            header = _files.read(self.file, start, _LOCAL_HEADER.size)
            if len(header) < _LOCAL_HEADER.size or header[:4] != b"PK\x03\x04":
                raise ValueError("the zip file is damaged: its header is missing")
            _, name, extra = _LOCAL_HEADER.unpack(header)
            start += _LOCAL_HEADER.size + name + extra
        if self.kind != ZIP_DEFLATED:
            return _BoundedWindow(_Window(self.file, start, self.length))
        return io.BytesIO(self._inflated(start))

    def _inflated(self, start: int) -> bytes:
        if max(self.length, self.size) > LARGEST:
            raise ValueError(f"it has {max(self.length, self.size):,} bytes, more than an image can have")
        inflate = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            data = inflate.decompress(_files.read(self.file, start, self.length), self.size + 1)
        except zlib.error as error:
            raise ValueError(f"the zip file is damaged: {error}") from None
        if len(data) != self.size or zlib.crc32(data) != self.check:
            raise ValueError("the zip file is damaged: its check sum does not match")
        return data


#: Where the bytes of an image can be read from.
Bytes = str | os.PathLike[str] | bytes


def open_bytes(source: Bytes) -> BinaryIO:
    """An image's bytes as a file, whatever gives them. Raises OSError, and ValueError if a member is damaged."""
    if isinstance(source, bytes):
        return io.BytesIO(source)
    return source.open() if isinstance(source, Member) else Bounded(io.FileIO(source))


def whole_if(source: str | os.PathLike[str], start: bytes) -> bytes | None:
    """All bytes of an image that begins with these, None of another or of what is no regular file. Raises as
    :func:`open_bytes` does.

    In one piece and with few calls of the system, because a loader does it for every image.
    """
    if not isinstance(source, Member):
        descriptor = os.open(source, _READ)
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
                return None
            if os.read(descriptor, len(start)) != start:
                return None
            os.lseek(descriptor, 0, os.SEEK_SET)
            whole = os.read(descriptor, status.st_size)
            return whole if len(whole) == status.st_size else None
        finally:
            os.close(descriptor)
    if source.kind == PLAIN:
        begins = read_at(source.file, source.offset, len(start)) == start
        return read_at(source.file, source.offset, source.length) if begins and source.length <= LARGEST else None
    with source.open() as member:
        data = member.read()
    return data if data.startswith(start) else None


@dataclass(frozen=True)
class Packed:
    """Where N images inside larger files are: all arrays (N,).

    Attributes:
        files: the files; ``file`` int32: the number of each image's.
        offset, length, size: int64; ``kind`` uint8; ``check`` uint32: as in :class:`Member`.
    """

    files: list[Container]
    file: "np.ndarray"
    offset: "np.ndarray"
    length: "np.ndarray"
    size: "np.ndarray"
    kind: "np.ndarray"
    check: "np.ndarray"

    #: The arrays.
    COLUMNS = ("file", "offset", "length", "size", "kind", "check")

    def __len__(self) -> int:
        return len(self.offset)

    def member(self, i: int, name: str) -> Member:
        """Image ``i``."""
        columns = (int(getattr(self, column)[i]) for column in self.COLUMNS[1:])
        return Member(name, self.files[int(self.file[i])], *columns)

    def take(self, index: "np.ndarray") -> "Packed":
        """The images at these positions, in this order."""
        return Packed(self.files, *(getattr(self, column)[index] for column in self.COLUMNS))

    @classmethod
    def of(cls, files: list[Container], rows: "list[tuple[int, int, int, int, int, int]]") -> "Packed":
        """From one row (file, offset, length, size, kind, check) an image."""
        import numpy as np

        types = (np.int32, np.int64, np.int64, np.int64, np.uint8, np.uint32)
        columns = zip(*rows, strict=True) if rows else ((),) * len(types)
        return cls(files, *(np.array(column, kind) for column, kind in zip(columns, types, strict=True)))
