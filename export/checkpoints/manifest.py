"""The manifest of a checkpoint directory: origin and hash of its files.

revisions   hub repository -> the commit that was downloaded
sources     released file -> its SHA-256, size and modification time
converted   converted file -> its SHA-256 and size, and the SHA-256 of every file it was made from
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cosmos_triton.runtime.errors import CheckpointError

NAME = "cosmos-triton.manifest.json"
CHUNK_BYTES = 16 * 2**20

Progress = Callable[[int], object]  # called with the number of bytes done since the last call


@dataclass(frozen=True, slots=True)
class SourceRecord:
    sha256: str
    bytes: int
    mtime_ns: int

    def describes(self, path: Path) -> bool:
        """Whether size and modification time are unchanged; the content is not read."""
        stat = path.stat()
        return (stat.st_size, stat.st_mtime_ns) == (self.bytes, self.mtime_ns)


@dataclass(frozen=True, slots=True)
class ConvertedRecord:
    sha256: str
    bytes: int
    sources: dict[str, str]


@dataclass
class Manifest:
    directory: Path
    revisions: dict[str, str] = field(default_factory=dict)
    sources: dict[str, SourceRecord] = field(default_factory=dict)
    converted: dict[str, ConvertedRecord] = field(default_factory=dict)

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """The manifest of `directory`, empty if there is none yet. Raises CheckpointError if it cannot be read."""
        path = directory / NAME
        try:
            content = json.loads(path.read_text())
            return cls(
                directory,
                revisions=content["revisions"],
                sources={name: SourceRecord(**record) for name, record in content["sources"].items()},
                converted={name: ConvertedRecord(**record) for name, record in content["converted"].items()},
            )
        except FileNotFoundError:
            return cls(directory)
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path}: not a manifest of this program; delete it and convert again") from error

    def write(self) -> None:
        content = asdict(self)
        del content["directory"]
        replace_file(self.directory / NAME, json.dumps(content, indent=2, sort_keys=True).encode() + b"\n")

    def source_sha256(self, path: Path, progress: Progress) -> str:
        """SHA-256 of a released file, computed only if the file has changed since it was recorded."""
        name = path.relative_to(self.directory).as_posix()
        known = self.sources.get(name)
        if known is None or not known.describes(path):
            self.record_source(path, sha256_of(path, progress))
        else:
            progress(known.bytes)
        return self.sources[name].sha256

    def record_source(self, path: Path, sha256: str) -> None:
        stat = path.stat()
        name = path.relative_to(self.directory).as_posix()
        self.sources[name] = SourceRecord(sha256, stat.st_size, stat.st_mtime_ns)


def sha256_of(path: Path, progress: Progress) -> str:
    return hash_file(path, hashlib.sha256(), progress=progress)


def hash_file(path: Path, *digests: Any, progress: Progress) -> str:
    """Feed a file to hashes of hashlib, in one pass; returns the first one's hexadecimal digest."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            for digest in digests:
                digest.update(chunk)
            progress(len(chunk))
    return digests[0].hexdigest()


def replace_file(path: Path, content: bytes) -> None:
    """Write a small file atomically: a reader sees the old content or the new."""
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)
