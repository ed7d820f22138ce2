#!/usr/bin/env python3
"""The model and the step of bench.c in PyTorch, for numbers side by side.

    pytorch_vit.py --model B/16 --batch 16 --rounds 5 --threads 2 [--bf16] [--compile]

A Vision Transformer with timm's structure and names; a training step is forward, softmax
cross-entropy with one-hot targets, backward, clipping to a global norm of 1 and AdamW; inference is
a forward pass without gradients. One round times both; medians over the rounds are printed, and the
peak of resident memory after the training steps. PyTorch gets what it does best in the installed
version: fused attention, fused AdamW, and OpenBLAS with the kernels that bench/run chose; with --bf16
autocast, whose weights, gradients and AdamW are fp32 as ours; with --compile torch.compile.
Runs with PyTorch 1.13 and 2.x; needs nothing else. losses.py trains the same model from weights of
ours (from_weights).
"""
import argparse
import ctypes
import json
import re
import statistics
import time

import torch
import torch.nn as nn
import torch.nn.functional as F

# name: image, patch, classes, width, layers, heads
MODELS = {
    "B/16": (224, 16, 1000, 768, 12, 12),
    "Ti/16": (224, 16, 1000, 192, 12, 3),
    "Ti/4 at 32": (32, 4, 10, 192, 12, 3),
}
MODELS["cifar"] = MODELS["Ti/4 at 32"]


class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        if hasattr(F, "scaled_dot_product_attention"):
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = (q * (C // self.heads) ** -0.5) @ k.transpose(-2, -1)
            x = scores.softmax(dim=-1) @ v
        return self.proj(x.transpose(1, 2).reshape(B, T, C))


class Mlp(nn.Module):
    def __init__(self, width, hidden):
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Block(nn.Module):
    def __init__(self, width, heads, hidden):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, hidden)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class PatchEmbed(nn.Module):
    def __init__(self, patch, width):
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, x):
        return self.proj(x).flatten(2).transpose(1, 2)


class VisionTransformer(nn.Module):
    def __init__(self, image, patch, classes, width, layers, heads, hidden=0):
        super().__init__()
        hidden = hidden or 4 * width
        tokens = 1 + (image // patch) ** 2
        self.patch_embed = PatchEmbed(patch, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.blocks = nn.Sequential(*[Block(width, heads, hidden) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch_embed(x)
        x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], dim=1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


def initialise(model):
    for module in model.modules():
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=0.02)
            nn.init.zeros_(module.bias)


def read_safetensors(path):
    """The metadata, and the tensors by name: float32 alone."""
    with open(path, "rb") as f:
        header = json.loads(f.read(int.from_bytes(f.read(8), "little")))
        values = torch.frombuffer(bytearray(f.read()), dtype=torch.float32)
    metadata = header.pop("__metadata__", {})
    tensors = {}
    for name, t in header.items():
        begin, end = (at // 4 for at in t["data_offsets"])
        tensors[name] = values[begin:end].reshape(t["shape"])
    return metadata, tensors


def from_weights(path):
    """The model that a checkpoint of ours holds, and its settings."""
    c, tensors = read_safetensors(path)
    names = ["image_h", "patch", "classes", "width", "layers", "heads", "mlp"]
    model = VisionTransformer(*[int(c[name]) for name in names])
    model.load_state_dict(tensors)
    return model, c


def adamw(model):
    """AdamW with weight decay on matrices alone; fused where this version can."""
    groups = [
        {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    try:
        return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999), fused=True)
    except (TypeError, RuntimeError):
        return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999))


def train_step(model, optimiser, images, targets, bf16):
    optimiser.zero_grad(set_to_none=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = model(images)
    F.cross_entropy(logits.float(), targets).backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimiser.step()


def peak_gib():
    with open("/proc/self/status") as f:
        return int(re.search(r"VmHWM:\s*(\d+) kB", f.read()).group(1)) / 2**20


def blas():
    """Which library multiplies matrices: as PyTorch was built, or the OpenBLAS that was loaded."""
    config = torch.__config__.show()
    mkl = re.search(r"Math Kernel Library Version (\S+?)(-\S+)? ", config)
    if mkl:
        return "MKL " + mkl.group(1)
    with open("/proc/self/maps") as f:
        loaded = re.search(r"(/\S*openblas\S*\.so\S*)", f.read())
    if not loaded:
        info = re.search(r"BLAS_INFO=(\w+)", config)
        return "BLAS: " + (info.group(1) if info else "unknown")
    library = ctypes.CDLL(loaded.group(1))
    library.openblas_get_config.restype = ctypes.c_char_p
    library.openblas_get_corename.restype = ctypes.c_char_p
    version = library.openblas_get_config().decode().split()[1]
    return f"OpenBLAS {version} ({library.openblas_get_corename().decode()} kernels)"


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=sorted(MODELS), default="B/16")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--threads", type=int, default=0, help="0: as PyTorch chooses")
    o = parser.parse_args()
    if o.threads:
        torch.set_num_threads(o.threads)
    torch.manual_seed(1)

    image, _, classes = MODELS[o.model][:3]
    model = VisionTransformer(*MODELS[o.model])
    initialise(model)
    optimiser = adamw(model)
    if o.compile:
        model = torch.compile(model)
    images = torch.randn(o.batch, 3, image, image)
    targets = F.one_hot(torch.arange(o.batch) % classes, classes).float()

    def train():
        model.train()
        train_step(model, optimiser, images, targets, o.bf16)

    def infer():
        model.eval()
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=o.bf16):
            model(images)

    if o.compile:
        infer()
    train()  # the first step touches every page and allocates the optimiser's state
    train_times, infer_times = [], []
    for _ in range(o.rounds):
        train_times.append(seconds(train))
        infer_times.append(seconds(infer))
    train_rate = o.batch / statistics.median(train_times)
    infer_rate = o.batch / statistics.median(infer_times)
    print(f"torch {torch.__version__}, {blas()}, {torch.get_num_threads()} threads: "
          f"{o.model}{' bf16' if o.bf16 else ''}{' compiled' if o.compile else ''} "
          f"batch {o.batch}  train {train_rate:.2f} images/s  "
          f"infer {infer_rate:.2f} images/s  peak {peak_gib():.2f} GiB")


if __name__ == "__main__":
    main()
