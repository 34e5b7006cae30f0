"""ICC profiles made by hand."""

import struct

import numpy as np

SRGB = ((0.64, 0.33), (0.30, 0.60), (0.15, 0.06))
SWAPPED = (SRGB[1], SRGB[0], SRGB[2])
ADOBE = ((0.64, 0.33), (0.21, 0.71), (0.15, 0.06))
P3 = ((0.680, 0.320), (0.265, 0.690), (0.150, 0.060))
D65, D50 = (0.3127, 0.3290), (0.9642, 1.0, 0.8249)
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])


def rgb_profile(primaries: tuple[tuple[float, float], ...], gamma: float | None) -> bytes:
    """A profile of a matrix and curves, with white D65; ``gamma`` None means sRGB's curve."""
    columns = _to_d50(primaries)
    curve = _curve(gamma)
    tags = {b"wtpt": _xyz(D50), **{b"%cXYZ" % c: _xyz(columns[:, n]) for n, c in enumerate(b"rgb")}, **{b"%cTRC" % c: curve for c in b"rgb"}}
    return _profile(b"mntr", b"RGB ", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return _profile(b"mntr", b"GRAY", b"XYZ ", {b"wtpt": _xyz(D50), b"kTRC": _curve(gamma)})


def cmyk_profile() -> bytes:
    """A profile in which each ink only darkens, so that all colours are grey: L = 100 less 25 per ink."""
    corners = np.array(np.meshgrid(*[[0, 1]] * 4, indexing="ij")).reshape(4, -1).T
    lab = [(round(0xFF00 * (1 - sum(inks) / 4)), 0x8000, 0x8000) for inks in corners]
    return _profile(b"prtr", b"CMYK", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": _table(4, np.array(lab))})


def lab_profile() -> bytes:
    """A profile from Lab to Lab that only exchanges a and b."""
    corners = np.array(np.meshgrid(*[[0, 1]] * 3, indexing="ij")).reshape(3, -1).T
    lab = [(0xFF00 * lightness, 0xFFFF * b, 0xFFFF * a) for lightness, a, b in corners]
    return _profile(b"spac", b"Lab ", b"Lab ", {b"wtpt": _xyz(D50), b"A2B0": _table(3, np.array(lab))})


def _to_d50(primaries: tuple[tuple[float, float], ...]) -> np.ndarray:
    xyz = np.array([(x / y, 1, (1 - x - y) / y) for x, y in primaries]).T
    white = np.array([D65[0] / D65[1], 1, (1 - sum(D65)) / D65[1]])
    matrix = xyz * np.linalg.solve(xyz, white)
    adapted = np.diag((_BRADFORD @ D50) / (_BRADFORD @ white))
    found: np.ndarray = np.linalg.inv(_BRADFORD) @ adapted @ _BRADFORD @ matrix
    return found


def _xyz(values: object) -> bytes:
    return b"XYZ " + bytes(4) + b"".join(struct.pack(">i", round(float(value) * 65536)) for value in values)  # type: ignore[attr-defined]


def _curve(gamma: float | None) -> bytes:
    if gamma is not None:
        return b"curv" + bytes(4) + struct.pack(">IH", 1, round(gamma * 256))
    x = np.linspace(0, 1, 1024)
    y = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    return b"curv" + bytes(4) + struct.pack(">I", 1024) + (y * 65535).round().astype(">u2").tobytes()


def _table(inputs: int, values: np.ndarray) -> bytes:
    """A lut16 table of two points per input."""
    identity = struct.pack(">9i", *(65536 * v for v in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    line = struct.pack(">2H", 0, 65535)
    return b"mft2" + bytes(4) + bytes([inputs, 3, 2, 0]) + identity + struct.pack(">2H", 2, 2) + line * inputs + values.astype(">u2").tobytes() + line * 3


def _profile(kind: bytes, space: bytes, connection: bytes, tags: dict[bytes, bytes]) -> bytes:
    tags = {b"desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(78), b"cprt": b"text" + bytes(4) + b"none\0", **tags}
    index, body = b"", b""
    at = 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        index += name + struct.pack(">2I", at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    size = at + len(body)
    header = struct.pack(">I4sI4s4s4s12s4s", size, bytes(4), 0x02400000, kind, space, connection, bytes(12), b"acsp")
    header += bytes(28) + struct.pack(">3i", *(round(v * 65536) for v in D50))
    return header + bytes(128 - len(header)) + struct.pack(">I", len(tags)) + index + body
