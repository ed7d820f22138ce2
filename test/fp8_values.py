#!/usr/bin/env python3
"""Writes test/fp8_values.h: what PyTorch says that the codes of its 8-bit types mean, and how far
products of operands rounded to them are from the exact ones.

The operands are those of test/test_fp8.c: uniform, variance 1, each scaled by the largest power of
two that keeps it in range. Products are in float64, so that rounding the operands is all there is.
"""
import sys
import torch

KINDS = {"e4m3": (torch.float8_e4m3fn, 448.0), "e5m2": (torch.float8_e5m2, 57344.0)}


def rounded(x, kind):
    dtype, most = KINDS[kind]
    scale = 2.0 ** torch.floor(torch.log2(most / x.abs().max()))
    return ((x * scale).clamp(-most, most).float().to(dtype).double()) / scale


def error(a, b, kind_a, kind_b):
    exact, ours = a @ b, rounded(a, kind_a) @ rounded(b, kind_b)
    return ((ours - exact).norm() / exact.norm()).item()


def uniform(*shape):
    return (torch.rand(*shape, dtype=torch.float64) - 0.5) * 12 ** 0.5


def main():
    torch.manual_seed(0)
    out = open(sys.argv[1] if len(sys.argv) > 1 else "test/fp8_values.h", "w")
    out.write("/* Written by test/fp8_values.py with PyTorch %s. */\n#pragma once\n\n#include <math.h>\n\n"
              % torch.__version__)
    for kind, (dtype, _) in KINDS.items():
        values = torch.arange(256, dtype=torch.uint8).view(dtype).float().tolist()
        text = ["NAN" if v != v else "INFINITY" if v == float("inf") else "-INFINITY" if v == -float("inf")
                else "%.9g" % v for v in values]
        out.write("static const float %s_values[256] = {\n" % kind)
        for i in range(0, 256, 8):
            out.write("    " + ", ".join(text[i:i + 8]) + ",\n")
        out.write("};\n")
    forward = [error(uniform(394, 192), uniform(192, 192), "e4m3", "e4m3") for _ in range(8)]
    backward = [error(uniform(394, 192), uniform(192, 192), "e5m2", "e4m3") for _ in range(8)]
    out.write("\n/* Relative L2 of products of two e4m3, and of an e5m2 and an e4m3: the mean of 8 trials,\n"
              " * which lay within %.1f%% of it. */\n"
              % (100 * max(abs(e / (sum(t) / 8) - 1) for t in (forward, backward) for e in t)))
    for name, t in (("forward", forward), ("backward", backward)):
        out.write("static const double %s_error = %.5f;\n" % (name, sum(t) / 8))


main()
