"""Latents worth looking at: rare, strong, and active on many different tokens, so that they mean more than one word.

usage: choose_latents.py CODES.safetensors TOKENS.npy COUNT
CODES as `sae encode --sparse` writes them, TOKENS as `sae collect` does (int32 [N, 3]: token, window, position), row by row.
Prints COUNT latents, strongest first, with commas between.
"""

import array
import collections
import json
import struct
import sys


def read_codes(path):
    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
        start = file.tell()

        def tensor(name, kind):
            begin, end = header[name]["data_offsets"]
            file.seek(start + begin)
            return array.array(kind, file.read(end - begin))

        return tensor("row_offsets", "q"), tensor("latents", "i"), tensor("values", "f")


def read_tokens(path):
    with open(path, "rb") as file:
        file.seek(8)
        file.seek(10 + struct.unpack("<H", file.read(2))[0])
        numbers = array.array("i", file.read())
        return numbers[::3], numbers[2::3]


def main():
    offsets, latents, values = read_codes(sys.argv[1])
    tokens, positions = read_tokens(sys.argv[2])
    rows = len(offsets) - 1
    active = collections.defaultdict(list)
    for row in range(rows):
        if positions[row] < 8:  # the first words of a window have too little context to mean much
            continue
        for entry in range(offsets[row], offsets[row + 1]):
            active[latents[entry]].append((values[entry], row))

    choice = []
    for latent, where in active.items():
        where.sort(reverse=True)
        top = where[:20]
        different = len({tokens[row] for _, row in top})
        mean = sum(value for value, _ in top) / len(top)
        wanted = 0.001 * rows < len(where) < 0.01 * rows and different >= 10
        choice.append((not wanted, -mean, latent))
    choice.sort()
    print(",".join(str(latent) for _, _, latent in choice[: int(sys.argv[3])]))


main()
