"""Read and write files that gzip or zstd has compressed, as streams.

Owns the suffixes, the first bytes of both formats and the libraries. Knows nothing of captures. Reading takes bounded
memory, whatever a file claims: a decoder gives at most :data:`_PIECE` bytes at once, or gets little input.
"""

from __future__ import annotations

import importlib
import io
import sys
import time
import zlib
from abc import ABC, abstractmethod
from enum import Enum
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn, cast

from memifrt.errors import ConfigError, ErrorCode, MemifError, os_error

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer, WriteableBuffer

#: The most bytes that a decoder gives at once, and the bytes of a file that it takes at once.
_PIECE, _INPUT = 1 << 18, 1 << 14
#: The package zstandard decompresses all of its input at once. 4 bytes may become 128 KiB, so it gets little.
_ZSTANDARD_INPUT = 1 << 10
#: zlib's argument for the format of gzip.
_GZIP_WINDOW = 31
#: A balance between the rate of a capture and the size of its file. zstd's is its own default.
_GZIP_LEVEL, _ZSTD_LEVEL = 3, 3
#: Seconds between two flushes. A flush costs some of the compression, and a capture flushes whenever no packets come.
_FLUSH_INTERVAL = 1.0


class CompressedFileError(MemifError):
    """Compressed data are broken or end too early. The message names the file and the position."""

    def __init__(self, message: str) -> None:
        super().__init__(ErrorCode.INVAL_ARG, message)


class Compression(Enum):
    """How a file is compressed; the value is the suffix of its name."""

    GZIP = ".gz"
    ZSTD = ".zst"

    @classmethod
    def of_name(cls, path: str) -> Compression | None:
        """Return the compression that the suffix of a path asks for; None if there is none."""
        return next((kind for kind in cls if path.lower().endswith(kind.value)), None)

    @classmethod
    def of_content(cls, start: bytes) -> Compression | None:
        """Return the compression of a file that starts with these four bytes; None if it is not compressed."""
        if start[:2] == b"\x1f\x8b":
            return cls.GZIP
        skippable = start[1:4] == b"\x2a\x4d\x18" and start[0] >> 4 == 5  # pzstd starts a file with such a frame
        return cls.ZSTD if skippable or start[:4] == b"\x28\xb5\x2f\xfd" else None


def without_suffix(path: str) -> tuple[str, str]:
    """Return a path without the suffix of its compression, and that suffix or an empty text."""
    kind = Compression.of_name(path)
    return (path, "") if kind is None else (path[: -len(kind.value)], path[-len(kind.value) :])


def check_library(kind: Compression | None) -> None:
    """Check that files of this kind can be read and written.

    :raises ConfigError: it needs a package that is not installed.
    """
    if kind is Compression.ZSTD:
        _zstd()


def _zstd() -> Any:
    """Return ``compression.zstd`` of the standard library, or the package zstandard."""
    for name in ("compression.zstd", "zstandard"):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ConfigError("files compressed with zstd need a package: pip install 'memifrt[zstd]'")


# --- reading --------------------------------------------------------------------------------------------------------


class _Decoder(ABC):
    """Decompresses one member of a gzip file, or one frame of zstd.

    :cvar input: the most bytes to give it at once.
    :ivar errors: what :meth:`decode` raises for broken data.
    """

    input = _INPUT
    errors: tuple[type[Exception], ...]

    @abstractmethod
    def decode(self, data: bytes) -> bytes:
        """Return what becomes of more input; with no input, more of what it holds."""

    @property
    @abstractmethod
    def ended(self) -> bool:
        """Whether the end of the member has been found."""

    @property
    @abstractmethod
    def rest(self) -> bytes:
        """The input behind the end of the member."""


class _Gunzip(_Decoder):
    errors = (zlib.error,)

    def __init__(self) -> None:
        self._object = zlib.decompressobj(_GZIP_WINDOW)

    def decode(self, data: bytes) -> bytes:
        return self._object.decompress(self._object.unconsumed_tail + data, _PIECE)

    @property
    def ended(self) -> bool:
        return self._object.eof

    @property
    def rest(self) -> bytes:
        return self._object.unused_data


class _StandardUnzstd(_Decoder):
    def __init__(self, library: Any) -> None:
        self.errors = (library.ZstdError,)
        self._object = library.ZstdDecompressor()

    def decode(self, data: bytes) -> bytes:
        return cast("bytes", self._object.decompress(data, _PIECE))

    @property
    def ended(self) -> bool:
        return bool(self._object.eof)

    @property
    def rest(self) -> bytes:
        return cast("bytes", self._object.unused_data)


class _PackageUnzstd(_Decoder):
    input = _ZSTANDARD_INPUT

    def __init__(self, library: Any) -> None:
        self.errors = (library.ZstdError,)
        self._object = library.ZstdDecompressor().decompressobj()

    def decode(self, data: bytes) -> bytes:
        return cast("bytes", self._object.decompress(data)) if data else b""

    @property
    def ended(self) -> bool:
        return bool(self._object.eof)

    @property
    def rest(self) -> bytes:
        return cast("bytes", self._object.unused_data)


def _decoder(kind: Compression) -> _Decoder:
    if kind is Compression.GZIP:
        return _Gunzip()
    library = _zstd()
    return (
        _PackageUnzstd(library)
        if hasattr(library, "DECOMPRESSION_RECOMMENDED_INPUT_SIZE")
        else _StandardUnzstd(library)
    )


class DecompressedFile(io.RawIOBase):
    """Reads what a compressed file contains. It may have several members or frames.

    :param start: the bytes of the file that have been read already.
    :ivar consumed: the number of bytes of the compressed file that have been read.
    """

    def __init__(self, file: BinaryIO, name: str, kind: Compression, start: bytes) -> None:
        self._file = file  # first: what cannot be read is closed, too
        check_library(kind)
        self._name = name
        self._kind = kind
        self._input = start
        self._decoder: _Decoder | None = _decoder(kind)
        self._ready = memoryview(b"")
        self.consumed = len(start)

    def readable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._file.fileno()

    def close(self) -> None:
        if not self.closed and self._file is not sys.stdin.buffer:
            self._file.close()
        super().close()

    def readinto(self, buffer: WriteableBuffer) -> int:
        """Read decompressed bytes.

        :raises CompressedFileError: the file is broken or ends too early.
        :raises MemifOSError: it cannot be read.
        """
        while not self._ready:
            if not self._decode_more():
                return 0
        room = memoryview(buffer).cast("B")
        count = min(len(room), len(self._ready))
        room[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def _decode_more(self) -> bool:
        """Decode once, with or without a result. Return False at the end of the file."""
        if self._decoder is None:
            data = self._next_input(_INPUT)
            if self._kind is Compression.GZIP:  # zeros may fill the last block of a tape
                data = data.lstrip(b"\0")
                if not data and self._input:
                    return True
            if not data:
                return False
            self._decoder, self._input = _decoder(self._kind), data
        decoder = self._decoder
        try:
            made = decoder.decode(b"")
            if not made:
                data = self._next_input(decoder.input)
                made = decoder.decode(data)
                if not data and not made:
                    self._fail("at", "they end too early; the file was cut off")
        except decoder.errors as error:
            self._fail("at or before", f"they are broken: {error}")
        self._ready = memoryview(made)
        if decoder.ended:
            self._input = decoder.rest + self._input
            self._decoder = None
        return True

    def _next_input(self, count: int) -> bytes:
        if not self._input:
            try:
                # As much as is there, so that the packets of a pipe come when they are written.
                read = getattr(self._file, "read1", self._file.read)
                self._input = cast("bytes", read(_INPUT))
            except OSError as error:
                raise os_error(f"cannot read {self._name}", error, path=self._name) from error
            self.consumed += len(self._input)
        data, self._input = self._input[:count], self._input[count:]
        return data

    def _fail(self, where: str, what: str) -> NoReturn:
        at = self.consumed - len(self._input)
        raise CompressedFileError(f"{self._name}: {where} byte {at} of the {self._kind.name.lower()} data: {what}")


# --- writing --------------------------------------------------------------------------------------------------------


class _Encoder(ABC):
    @abstractmethod
    def encode(self, data: ReadableBuffer) -> bytes: ...

    @abstractmethod
    def flush(self) -> bytes:
        """Return all that has been encoded, so that a reader sees it."""

    @abstractmethod
    def finish(self) -> bytes: ...


class _Gzip(_Encoder):
    def __init__(self) -> None:
        self._object = zlib.compressobj(_GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)

    def encode(self, data: ReadableBuffer) -> bytes:
        return self._object.compress(data)

    def flush(self) -> bytes:
        return self._object.flush(zlib.Z_SYNC_FLUSH)

    def finish(self) -> bytes:
        return self._object.flush(zlib.Z_FINISH)


class _Zstd(_Encoder):
    """Both libraries give an object with ``compress`` and ``flush``, and numbers for what a flush shall end."""

    def __init__(self, library: Any) -> None:
        if hasattr(library, "COMPRESSOBJ_FLUSH_BLOCK"):
            self._object = library.ZstdCompressor(level=_ZSTD_LEVEL).compressobj()
            self._block, self._end = library.COMPRESSOBJ_FLUSH_BLOCK, library.COMPRESSOBJ_FLUSH_FINISH
        else:
            self._object = library.ZstdCompressor(level=_ZSTD_LEVEL)
            self._block, self._end = self._object.FLUSH_BLOCK, self._object.FLUSH_FRAME

    def encode(self, data: ReadableBuffer) -> bytes:
        return cast("bytes", self._object.compress(data))

    def flush(self) -> bytes:
        return cast("bytes", self._object.flush(self._block))

    def finish(self) -> bytes:
        return cast("bytes", self._object.flush(self._end))


class CompressedFile(io.RawIOBase):
    """Compresses what is written to it into another file, and closes that file too.

    The file is complete when it is closed. ``flush`` does something once a second at most.

    :ivar size: the number of compressed bytes so far.
    """

    def __init__(self, file: BinaryIO, kind: Compression) -> None:
        self._encoder: _Encoder | None = None  # close() may run if the next line raises
        self._file = file
        self._encoder = _Gzip() if kind is Compression.GZIP else _Zstd(_zstd())
        self._flushed = time.monotonic()
        self.size = 0

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer) -> int:
        assert self._encoder is not None
        self._put(self._encoder.encode(data))
        return memoryview(data).nbytes

    def flush(self) -> None:
        now = time.monotonic()
        if self._encoder is not None and now >= self._flushed + _FLUSH_INTERVAL:
            self._flushed = now
            self._put(self._encoder.flush())
            self._file.flush()

    def close(self) -> None:
        encoder, self._encoder = self._encoder, None
        try:
            if encoder is not None:
                self._put(encoder.finish())
        finally:
            self._file.close()
            super().close()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self.size += len(data)
