"""Writes tiny images as each of the three kinds of source, and lists sources."""

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from gsec_core.sources import ImageRef, Source

Images = Mapping[str, bytes]


def png(grey: int) -> bytes:
    stream = io.BytesIO()
    Image.new("L", (3, 2), grey).save(stream, "PNG")
    return stream.getvalue()


def write_folder(root: Path, images: Images) -> str:
    for name, content in images.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return str(root)


def write_tar(path: Path, images: Images) -> str:
    with tarfile.open(path, "w") as tar:
        for name, content in images.items():
            add(tar, name, content)
    return str(path)


def add(tar: tarfile.TarFile, name: str, content: bytes = b"", **fields: object) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(content))


def write_parquet(path: Path, images: Images, row_group_size: int = 2) -> str:
    rows = [{"bytes": content, "path": name} for name, content in images.items()]
    pq.write_table(pa.table({"image": rows, "label": list(range(len(rows)))}), path, row_group_size=row_group_size)
    return str(path)


def refs(source: Source) -> list[ImageRef]:
    return [ImageRef(**row) for row in source.list().to_pylist()]


def uris(source: Source) -> list[str]:
    return [ref.uri for ref in refs(source)]
