#!/usr/bin/env python3
"""Writes the novels in the data base of the R package janeaustenr (Debian: r-cran-janeaustenr) as one text, without R.

usage: read_janeaustenr.py .../janeaustenr/data/Rdata OUT.txt

BASE.rdx is an index of names with offset and length of a compressed object in BASE.rdb; a novel is a vector of lines. Only the
kinds of object that occur here are read; anything else is an error.
"""
import bz2
import lzma
import struct
import sys
import zlib

NIL, REFERENCE, SYMBOL, PAIR_LIST, CHARS, LOGICAL, INTEGER, REAL, STRINGS, LIST = 254, 255, 1, 2, 9, 10, 13, 14, 16, 19


class Reader:
    """R's serialisation format, XDR, versions 2 and 3."""

    def __init__(self, data):
        if data[:2] != b"X\n":
            sys.exit("read_janeaustenr: an object is not in R's XDR format")
        self.data, self.at, self.symbols = data, 2, []
        version = self.numbers("i", 3)[0]
        if version == 3:
            length = self.number()  # of the name of the encoding
            self.at += length

    def numbers(self, kind, count):
        out = struct.unpack_from(f">{count}{kind}", self.data, self.at)
        self.at += struct.calcsize(f">{count}{kind}")
        return list(out)

    def number(self):
        return self.numbers("i", 1)[0]

    def item(self):
        """The next object and its attributes."""
        flags = self.number()
        kind, has_attributes, has_tag = flags & 255, flags & 512, flags & 1024
        if kind == NIL:
            return None
        if kind == REFERENCE:
            return self.symbols[(flags >> 8 or self.number()) - 1]
        if kind == SYMBOL:
            self.symbols.append(self.item())
            return self.symbols[-1]
        if kind == PAIR_LIST:
            if has_attributes:
                self.item()
            tag = self.item() if has_tag else None
            value = self.item()
            return [(tag, value)] + (self.item() or [])
        count = self.number()
        if kind == CHARS:
            text = "" if count < 0 else self.data[self.at:self.at + count].decode("utf-8")
            self.at += max(count, 0)
            return text
        if kind in (INTEGER, LOGICAL):
            value = self.numbers("i", count)
        elif kind == REAL:
            value = self.numbers("d", count)
        elif kind in (STRINGS, LIST):
            value = [self.item() for _ in range(count)]
        else:
            sys.exit(f"read_janeaustenr: objects of R's type {kind} are not read")
        if has_attributes:
            self.item()
        return value


def decompressed(blob):
    """Four bytes of length, then zlib; or a letter first: '2' bzip2, 'Z' xz."""
    if blob[4:5] == b"2":
        return bz2.decompress(blob[5:])
    if blob[4:5] == b"Z":
        return lzma.decompress(blob[5:], lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "preset": 6}])
    return zlib.decompress(blob[4:])


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    base, out = sys.argv[1:]
    with open(base + ".rdx", "rb") as file:
        index = Reader(zlib.decompress(file.read(), 47)).item()  # 47: zlib or gzip
    with open(base + ".rdb", "rb") as file:
        blobs = file.read()
    novels = []
    for offset, length in index[0]:
        value = Reader(decompressed(blobs[offset:offset + length])).item()
        if isinstance(value, list) and value and all(isinstance(line, str) for line in value):
            novels.append("\n".join(value) + "\n\n")
    if not novels:
        sys.exit(f"read_janeaustenr: {base}.rdb holds no text")
    with open(out, "w", encoding="utf-8") as file:
        file.write("".join(novels))


main()
