"""Addresses of sources: which are allowed, their normal form, and the corpus name made from it."""

import os
import re

from xxhash import xxh3_64_hexdigest

from gsec_core.errors import Refused

# The names that fsspec knows for the same store must give the same corpus.
_PROTOCOLS = {"file": "file", "s3": "s3", "gs": "gs", "gcs": "gs", "abfs": "abfs", "az": "abfs", "memory": "memory"}

# A secret key may hold slashes, a bucket's name no colon: after a colon everything up to the "@" is secret.
_USERINFO = re.compile(r"^([^/@?:]*)(?::[^@]*)?@")


def normalise_url(url: str) -> str:
    """The one spelling of an address that a corpus is bound to: an absolute local path, or a URL without credentials.

    Links are kept (the name that was given is the name); a ``?`` in a URL begins a query, so that globs of URLs use ``*``.
    Raises Refused for anything but local paths and the object stores of the allow-list.
    """
    if not url or "\0" in url:
        raise Refused("The source has no name: give a folder, a .parquet file or a .tar file, or a glob of such files.")
    scheme, separator, rest = url.partition("://")
    if not separator or "/" in scheme:  # else the name of a folder
        return os.path.abspath(url)
    if "::" in scheme:
        raise Refused(f"The source begins with {scheme}://, but chained protocols are not supported: give a plain path or URL.")
    protocol = _PROTOCOLS.get(scheme.lower())
    if protocol is None:
        raise Refused(f"The source begins with {scheme}://, which is not supported: copy it to a folder, or use one of {', '.join(_PROTOCOLS)}.")
    if protocol == "file":
        return os.path.abspath(rest)
    # On Azure the part before the "@" is the container, no secret.
    rest = _USERINFO.sub(r"\1@" if protocol == "abfs" else "", rest).partition("?")[0].rstrip("/")
    if not rest.partition("/")[0]:
        raise Refused(f"The source {protocol}://{rest} names no bucket: write {protocol}://BUCKET/FOLDER.")
    return f"{protocol}://{rest}"


def is_local(url: str) -> bool:
    """Whether a normalised address is on this machine."""
    return "://" not in url


def source_name(url: str) -> str:
    """The name of a source's corpus where none is given: its last path part, readable, and a hash that tells equal parts apart."""
    url = normalise_url(url)
    readable = re.sub(r"[^a-z0-9._-]+", "-", url.rpartition("/")[2].lower())[:64].strip("-._") or "images"
    return f"{readable}-{xxh3_64_hexdigest(url.encode('utf-8', 'surrogateescape'))[:8]}"
