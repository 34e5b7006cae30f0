"""Makes the vocabulary that gsec ships from the file of nouns of WordNet 3.0, and prints its size.

    python -m benchmarks.wordnet /usr/share/wordnet/data.noun

Debian's package wordnet-base has the file. The vocabulary has one word on each line, in the file's order, with spaces instead of underscores. Words that
differ only in case are written once.
"""

import argparse
import lzma
from pathlib import Path

from gsec_core.text import vocabulary


def nouns(data: Path) -> list[str]:
    """The words of ``data.noun``. Each of its lines has offset, lexicographer file, n, hexadecimal count of words, and each word with a number."""
    first: dict[str, str] = {}
    for line in data.read_text("ascii").splitlines():
        if line.startswith("  "):  # the licence
            continue
        _, _, _, count, *fields = line.split(" ")
        for word in fields[: 2 * int(count, 16) : 2]:
            first.setdefault(word.casefold(), word.replace("_", " "))
    return list(first.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    words = nouns(parser.parse_args().data)
    vocabulary.WORDNET.write_bytes(lzma.compress("\n".join(words).encode(), preset=9 | lzma.PRESET_EXTREME))
    print(f"{len(words):,} words, {vocabulary.WORDNET.stat().st_size / 2**20:.2f} MiB")


if __name__ == "__main__":
    main()
