"""Makes the vocabulary that gsec ships from WordNet 3.0's own file of nouns, and says what is in it.

    python -m benchmarks.wordnet /usr/share/wordnet/data.noun

Debian's package wordnet-base has the file. What is written has a word a line, in the file's order, with spaces for underscores, each once whatever its case.
"""

import argparse
import lzma
from pathlib import Path

from gsec_core.text import vocabulary


def nouns(data: Path) -> list[str]:
    """The words of ``data.noun``. Its lines: offset, lexicographer file, n, hexadecimal count of words, and each word with a number."""
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
