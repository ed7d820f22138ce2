"""Makes the pickles beside it: two images of CIFAR-10 and of CIFAR-100 in Python's version.

CIFAR-10 as Python 2 wrote the original: protocol 2, texts and bytes in BINSTRING, numpy by its old
name. CIFAR-100 as Python 3 writes protocol 2: bytes as UTF-8 of latin1, which _codecs.encode turns
back. Image i has the value 90 c + i in all of channel c. Needs numpy: python3 make.py
"""
import os
import pickle
import struct
import sys

import numpy

HERE = os.path.dirname(os.path.abspath(sys.argv[0]))


class Python2(pickle._Pickler):
    """What Python 2 had one type for."""
    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, b):
        short = len(b) < 256
        self.write((b"U" + bytes([len(b)]) if short else b"T" + struct.pack("<i", len(b))) + b)
        self.memoize(b)

    dispatch[bytes] = save_bytes

    def save_str(self, s):
        self.save_bytes(s.encode())

    dispatch[str] = save_str


def dump(name, value, pickler):
    os.makedirs(os.path.dirname(os.path.join(HERE, name)), exist_ok=True)
    path = os.path.join(HERE, name)
    with open(path, "wb") as f:
        pickler(f, 2).dump(value)
    text = open(path, "rb").read().replace(b"numpy._core.", b"numpy.core.")
    open(path, "wb").write(text)


def images(first):
    rows = [[90 * c + i for c in range(3) for _ in range(1024)] for i in range(first, first + 2)]
    return numpy.array(rows, dtype=numpy.uint8)


for first, name in ((0, "data_batch_1"), (2, "data_batch_2"), (4, "test_batch")):
    dump(f"cifar-10-batches-py/{name}",
         {"batch_label": name, "labels": [first, first + 1], "data": images(first),
          "filenames": ["a.png", "b.png"]}, Python2)
dump("cifar-10-batches-py/batches.meta",
     {"num_cases_per_batch": 2, "label_names": [f"class {k}" for k in range(10)], "num_vis": 3072},
     Python2)
for first, name in ((0, "train"), (2, "test")):
    dump(f"cifar-100-python/{name}",
         {"filenames": ["a.png", "b.png"], "batch_label": b"training", "fine_labels": [99, first],
          "coarse_labels": [0, 0], "data": images(first)}, pickle._Pickler)
