#!/usr/bin/env python3
"""The loss of each step here and in PyTorch, from the same weights on the same batches.

    losses.py --weights START.safetensors --images BATCHES.npy [--svg FILE] RUN...

RUN is a directory of ours: its config.ini says optimiser, decay, clipping and label smoothing, its
log.jsonl the learning rate and the loss of each step. BATCHES.npy and .txt are its images and labels
in their order (./vit show --out BATCHES.npy). PyTorch's own AdamW and SGD, and timm's Lamb, take
these steps in float32. Prints a table, draws the picture, and ends with 1 where a loss differs by
more than 1e-3. bench/run_losses makes the runs and calls this.
"""
import argparse
import json
import math
import sys

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import pytorch_vit

MOST = 1e-3


def read_run(run):
    """Settings by name, and per step (learning rate, loss)."""
    with open(f"{run}/config.ini") as f:
        lines = [line.split(" = ", 1) for line in f if " = " in line]
    settings = {key: value.split(" #")[0].strip() for key, value in lines}
    with open(f"{run}/log.jsonl") as f:
        events = [json.loads(line) for line in f]
    return settings, [(e["lr"], e["loss"]) for e in events if e["event"] == "step"]


def optimiser_of(model, s):
    """Decay on tensors of two or more dimensions, as --decay no_1d has it."""
    number = {key: float(s[key]) for key in
              ["weight-decay", "beta1", "beta2", "adam-eps", "momentum"]}
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1],
               "weight_decay": number["weight-decay"]},
              {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    adam = dict(lr=0.0, betas=(number["beta1"], number["beta2"]), eps=number["adam-eps"])
    if s["opt"] == "adamw":
        return torch.optim.AdamW(groups, **adam)
    if s["opt"] == "sgd":
        return torch.optim.SGD(groups, lr=0.0, momentum=number["momentum"])
    from timm.optim import Lamb
    return Lamb(groups, max_grad_norm=None, **adam)


def batches(path, settings, config):
    """Normalised images [B, 3, H, W] and smoothed targets [B, K] of each step."""
    images = np.load(path)
    with open(path[:-len(".npy")] + ".txt") as f:
        labels = torch.tensor([int(line.split()[0]) for line in f])
    size, classes = int(settings["batch-size"]), int(config["classes"])
    smoothing = float(settings["label-smoothing"])
    mean, std = (torch.tensor([float(config[f"{what}_{c}"]) for c in "rgb"]).view(3, 1, 1)
                 for what in ("mean", "std"))
    for at in range(0, len(images), size):
        x = torch.from_numpy(images[at:at + size]).permute(0, 3, 1, 2).float() / 255
        y = F.one_hot(labels[at:at + size], classes).float()
        yield (x - mean) / std, (1 - smoothing) * y + smoothing / classes


def train(weights, images, run):
    """The loss of each step in PyTorch, and of ours."""
    settings, steps = read_run(run)
    model, config = pytorch_vit.from_weights(weights)
    optimiser = optimiser_of(model, settings)
    theirs = []
    for (x, y), (lr, _) in zip(batches(images, settings, config), steps):
        for group in optimiser.param_groups:
            group["lr"] = lr
        optimiser.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), float(settings["clip"]))
        optimiser.step()
        theirs.append(loss.item())
    return settings["opt"], theirs, [loss for _, loss in steps]


def svg(results):
    """Two panels over the steps: the losses, theirs pale and wide under ours, and how far apart."""
    W, L, R, T, H1, H2, GAP = 720, 70, 110, 40, 230, 130, 40
    steps = max(len(ours) for _, _, ours in results)
    top = math.ceil(4 * max(max(ours) for _, _, ours in results)) / 4
    bottom = math.floor(4 * min(min(ours) for _, _, ours in results)) / 4
    low, high = -8, -2  # powers of ten of a difference
    second = T + H1 + GAP

    def px(step):
        return L + (step - 1) / max(steps - 1, 1) * (W - L - R)

    def py(loss):
        return T + (top - loss) / (top - bottom) * H1

    def pd(difference):
        return second + (high - math.log10(max(difference, 10 ** low))) / (high - low) * H2

    def path(kind, ys):
        d = "L".join(f"{px(i + 1):.1f} {y:.1f}" for i, y in enumerate(ys))
        return f'<path class="{kind}" d="M{d}"/>'

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {W} {second + H2 + 50}" '
           'font-family="sans-serif" font-size="13">',
           "<style>text{fill:#222}.axis{stroke:#888;fill:none}.grid{stroke:#ddd}"
           ".c1{stroke:#0072b2}.c2{stroke:#d55e00}.c3{stroke:#009e73}path{fill:none}"
           ".ours{stroke-width:1.5}.theirs{stroke-width:6;opacity:.3}"
           ".limit{stroke:#888;stroke-dasharray:5 4}"
           "@media (prefers-color-scheme: dark){text{fill:#ddd}.grid{stroke:#333}}</style>",
           f'<text x="{L}" y="20" font-weight="bold">Loss of each step: ours thin, PyTorch\'s wide, '
           "and their difference</text>"]
    for k in range(int(4 * bottom), int(4 * top) + 1):
        out.append(f'<path class="grid" d="M{L} {py(k / 4):.1f}H{W - R}"/><text x="{L - 8}" '
                   f'y="{py(k / 4) + 4:.1f}" text-anchor="end">{k / 4:g}</text>')
    for e in range(low, high + 1, 2):
        out.append(f'<path class="grid" d="M{L} {pd(10 ** e):.1f}H{W - R}"/><text x="{L - 8}" '
                   f'y="{pd(10 ** e) + 4:.1f}" text-anchor="end">1e{e}</text>')
    out.append(f'<path class="limit" d="M{L} {pd(MOST):.1f}H{W - R}"/>'
               f'<text x="{W - R + 8}" y="{pd(MOST) + 4:.1f}">limit {MOST:g}</text>')
    for c, (opt, theirs, ours) in enumerate(results, 1):
        out.append(path(f"theirs c{c}", [py(v) for v in theirs]))
        out.append(path(f"ours c{c}", [py(v) for v in ours]))
        out.append(path(f"ours c{c}", [pd(abs(a - b)) for a, b in zip(ours, theirs)]))
        y = T + 12 + 22 * c
        out.append(f'<path class="theirs c{c}" d="M{W - R + 12} {y}h22"/>'
                   f'<path class="ours c{c}" d="M{W - R + 12} {y}h22"/>'
                   f'<text x="{W - R + 42}" y="{y + 4}">{opt}</text>')
    for at, height in ((T, H1), (second, H2)):
        out.append(f'<path class="axis" d="M{L} {at}V{at + height}H{W - R}"/>')
    for step in sorted({1, *range(20, steps + 1, 20), steps}):
        out.append(f'<text x="{px(step):.1f}" y="{second + H2 + 20}" text-anchor="middle">{step}'
                   "</text>")
    out.append(f'<text x="{(L + W - R) / 2}" y="{second + H2 + 40}" text-anchor="middle">step</text>'
               "</svg>")
    return "\n".join(out) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", required=True)
    parser.add_argument("--svg", default="")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("runs", nargs="+", metavar="RUN")
    o = parser.parse_args()
    if o.threads:
        torch.set_num_threads(o.threads)
    results = [train(o.weights, o.images, run) for run in o.runs]
    worst = 0
    print("| optimiser | steps | loss of the first | of the last | largest difference |")
    print("|---|---|---|---|---|")
    for opt, theirs, ours in results:
        if len(theirs) != len(ours):
            sys.exit(f"{opt}: {len(ours)} steps of ours, images for {len(theirs)}")
        largest = max(abs(a - b) for a, b in zip(ours, theirs))
        worst = max(worst, largest)
        print(f"| {opt} | {len(ours)} | {ours[0]:.4f} | {ours[-1]:.4f} | {largest:.1e} |")
    if o.svg:
        with open(o.svg, "w") as f:
            f.write(svg(results))
    return not worst <= MOST


if __name__ == "__main__":
    sys.exit(main())
