"""Addresses of sources: which are allowed, their normal form, and the corpus name derived from it."""

import os
import re

from xxhash import xxh3_64_hexdigest

from gsec_core.errors import Refused

# Different fsspec names of the same kind of store must give the same corpus.
_PROTOCOLS = {"file": "file", "s3": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "az": "abfs", "memory": "memory"}

# A secret key may contain slashes, but a bucket's name cannot contain a colon. So everything from a colon up to the "@" is secret.
_USERINFO = re.compile(r"^([^/@?:]*)(?::[^@]*)?@")


def normalise_url(url: str) -> str:
    """The normal form of an address, to which a corpus is bound: an absolute local path, or a URL without credentials.

    Symbolic links are not resolved. A ``?`` in a URL begins a query, which is dropped, so globs in URLs must use ``*``.
    Raises Refused for anything except local paths and the supported object stores.
    """
    if not url or "\0" in url:
        raise Refused("The source has no name: give a folder, a .parquet file or a .tar file, or a glob of such files.")
    scheme, separator, rest = url.partition("://")
    if not separator or "/" in scheme:  # a local path
        return os.path.abspath(url)
    if "::" in scheme:
        raise Refused(f"The source begins with {scheme}://, but chained protocols are not supported: give a plain path or URL.")
    protocol = _PROTOCOLS.get(scheme.lower())
    if protocol is None:
        raise Refused(f"The source begins with {scheme}://, which is not supported: copy it to a folder, or use one of {', '.join(_PROTOCOLS)}.")
    if protocol == "file":
        return os.path.abspath(rest)
    # On Azure the part before the "@" is the container, not a secret.
    rest = _USERINFO.sub(r"\1@" if protocol == "abfs" else "", rest).partition("?")[0].rstrip("/")
    if not rest.partition("/")[0]:
        raise Refused(f"The source {protocol}://{rest} names no bucket: write {protocol}://BUCKET/FOLDER.")
    return f"{protocol}://{rest}"


def is_local(url: str) -> bool:
    """Whether a normalised address is on this machine."""
    return "://" not in url


def source_name(url: str) -> str:
    """Default name of a source's corpus: the last part of its path, made readable, and a hash of the whole address."""
    url = normalise_url(url)
    readable = re.sub(r"[^a-z0-9._-]+", "-", url.rpartition("/")[2].lower())[:64].strip("-._") or "images"
    return f"{readable}-{xxh3_64_hexdigest(url.encode('utf-8', 'surrogateescape'))[:8]}"
