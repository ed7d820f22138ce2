#!/usr/bin/env python3
"""A training step and a forward pass of a ViT in PyTorch on one GPU, as fast as PyTorch makes them.

    pytorch_gpu.py MODEL BATCH...          e.g. B/16 256 512 1024; the best of the batches counts
    pytorch_gpu.py --ceilings              what matrix products and copies reach on this GPU

The step is the one that `train_gpu bench` times: uint8 images that are on the GPU already are
normalised there, forward, softmax cross-entropy with soft targets, backward, clipping to a global
norm of 1, AdamW. PyTorch gets bf16 autocast, torch.compile over normalisation, model and loss,
fused attention by whichever of its kernels is fastest at this shape, fused AdamW, and patches as
one matrix product (--patches conv: as a convolution, channels last; --timm: timm's own model).
Inference is a forward pass of a bf16 copy without gradients.

Speeds are medians over --rounds, each of them at least --round-seconds of steps between two events
on the GPU. Where compiling fails it runs eagerly and says so. The last line of the output is one
JSON object. Needs PyTorch 2 and nothing else; --device cpu tries the script itself.
"""
import argparse
import copy
import gc
import json
import math
import statistics
import sys
import time

try:
    import torch
    import torch.nn as nn
    import torch.nn.functional as F
except ImportError:
    sys.exit("error: this python has no PyTorch\nhint: pip install torch, or name another python")

START = time.monotonic()
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
# width, layers, heads, mlp; the patch size stands in the model's name
SIZES = {
    "Ti": (192, 12, 3, 768), "S": (384, 12, 6, 1536), "B": (768, 12, 12, 3072),
    "L": (1024, 24, 16, 4096), "H": (1280, 32, 16, 5120), "g": (1408, 40, 16, 6144),
    "G": (1664, 48, 16, 8192),
}
TIMM = {"Ti": "tiny", "S": "small", "B": "base", "L": "large", "H": "huge", "g": "giant",
        "G": "gigantic"}


def fail(what, hint):
    sys.exit(f"error: {what}\nhint: {hint}")


def say(text):
    print(text, file=sys.stderr, flush=True)


# ---- the model: timm's structure ----

class Attention(nn.Module):
    def __init__(self, width, heads):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x):
        B, T, C = x.shape
        q, k, v = self.qkv(x).reshape(B, T, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        x = attend(q, k, v)
        return self.proj(x.transpose(1, 2).reshape(B, T, C))


def attend(q, k, v):
    if hasattr(F, "scaled_dot_product_attention"):
        return F.scaled_dot_product_attention(q, k, v)
    return (q @ k.transpose(-2, -1) / math.sqrt(q.shape[-1])).softmax(-1) @ v


class Block(nn.Module):
    def __init__(self, width, heads, mlp):
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.Sequential(nn.Linear(width, mlp), nn.GELU(), nn.Linear(mlp, width))

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Normalised images [B, 3, S, S] in memory order [B, S, S, 3] -> logits [B, K]."""

    def __init__(self, image, patch, classes, size, convolve):
        super().__init__()
        width, layers, heads, mlp = size
        self.patch, self.convolve = patch, convolve
        self.embed = (nn.Conv2d(3, width, patch, stride=patch) if convolve
                      else nn.Linear(3 * patch * patch, width))
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(0.02 * torch.randn(1, 1 + (image // patch) ** 2, width))
        self.blocks = nn.Sequential(*[Block(width, heads, mlp) for _ in range(layers)])
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, classes)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x):
        B, P = x.shape[0], self.patch
        if self.convolve:
            x = self.embed(x).flatten(2).transpose(1, 2)
        else:
            n = x.shape[2] // P
            x = x.permute(0, 2, 3, 1).reshape(B, n, P, n, P, 3).transpose(2, 3)
            x = self.embed(x.reshape(B, n * n, P * P * 3))
        x = torch.cat([self.cls.expand(B, -1, -1).to(x.dtype), x], dim=1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


def make_model(o, name):
    letter, _, patch = name.partition("/")
    if letter not in SIZES or not patch.isdigit() or o.image % int(patch):
        fail(f"unknown model '{name}' for {o.image} pixels", "one of " + ", ".join(
            f"{letter}/16" for letter in SIZES) + ", or another patch size")
    if not o.timm:
        return VisionTransformer(o.image, int(patch), o.classes, SIZES[letter],
                                 o.patches == "conv"), "own module"
    import timm
    width, layers, heads, mlp = SIZES[letter]
    model = timm.create_model(
        f"vit_{TIMM[letter]}_patch{patch}_224", pretrained=False, num_classes=o.classes,
        img_size=o.image, embed_dim=width, depth=layers, num_heads=heads, mlp_ratio=mlp / width)
    return model.to(memory_format=torch.channels_last), "timm " + timm.__version__


class Step(nn.Module):
    """What is compiled as one: bytes [B, S, S, 3] -> loss, or logits where there are no targets."""

    def __init__(self, model, dtype):
        super().__init__()
        self.model, self.dtype = model, dtype
        self.register_buffer("scale", 1 / (255 * torch.tensor(STD)))
        self.register_buffer("shift", -torch.tensor(MEAN) / torch.tensor(STD))

    def forward(self, images, targets=None):
        x = images.float() * self.scale.float() + self.shift.float()
        logits = self.model(x.to(self.dtype).permute(0, 3, 1, 2))
        return logits if targets is None else F.cross_entropy(logits.float(), targets)


# ---- measuring ----

class Clock:
    """Seconds of device time, or of wall time without a GPU."""

    def __init__(self, cuda):
        self.cuda = cuda

    def time(self, work, steps):
        if not self.cuda:
            start = time.perf_counter()
            for _ in range(steps):
                work()
            return time.perf_counter() - start
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(steps):
            work()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1000

    def rounds(self, work, o):
        """Seconds per step, one number per round."""
        for _ in range(3):
            work()
        once = self.time(work, 2) / 2
        steps = max(1, math.ceil(o.round_seconds / once))
        return [self.time(work, steps) / steps for _ in range(o.rounds)]


def pick_attention(o, clock, size, tokens):
    """The fastest of PyTorch's attention kernels at this shape, forward and backward."""
    width, _, heads, _ = size
    switches = {}
    for name, switch in (("flash", "enable_flash_sdp"), ("efficient", "enable_mem_efficient_sdp"),
                         ("cudnn", "enable_cudnn_sdp")):
        if hasattr(torch.backends.cuda, switch):
            switches[name] = getattr(torch.backends.cuda, switch)
    if not o.cuda or not switches or o.attention == "default":
        return "default"
    torch.backends.cuda.enable_math_sdp(False)
    qkv = torch.randn(256, tokens, 3, heads, width // heads, device="cuda", dtype=torch.bfloat16,
                      requires_grad=True)
    gradient = torch.randn(256, heads, tokens, width // heads, device="cuda", dtype=torch.bfloat16)

    def work():
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        F.scaled_dot_product_attention(q, k, v).backward(gradient)
        qkv.grad = None

    def only(chosen):
        for name, enable in switches.items():
            enable(name == chosen)

    times = {}
    for name in switches if o.attention == "best" else [o.attention]:
        try:
            only(name)
            for _ in range(5):
                work()
            times[name] = min(clock.time(work, 20) / 20 for _ in range(3))
            say(f"attention by {name}: {1e6 * times[name]:.0f} us forward and backward, batch 256")
        except Exception as e:
            say(f"attention by {name}: {str(e).splitlines()[0][:100]}")
    if not times:
        torch.backends.cuda.enable_math_sdp(True)
        only(None)
        return "math"
    best = min(times, key=times.get)
    only(best)
    return best


def make_optimiser(model):
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": 0.05},
              {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0}]
    try:
        return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999), fused=True)
    except (TypeError, RuntimeError):
        return torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.999))


def compiled(module, o):
    if o.mode == "eager":
        return module
    return torch.compile(module, mode=None if o.mode == "default" else o.mode, dynamic=False)


def measure(o, clock, name, batch):
    """One batch size: seconds of each round of training and of inference, and peak memory."""
    torch.manual_seed(1)
    device = "cuda" if o.cuda else "cpu"
    images = torch.randint(0, 256, (batch, o.image, o.image, 3), dtype=torch.uint8, device=device)
    targets = torch.full((batch, o.classes), 0.1 / o.classes, device=device)
    targets[torch.arange(batch), torch.arange(batch) % o.classes] += 0.9
    model, source = make_model(o, name)
    model = Step(model, torch.bfloat16 if o.cuda else torch.float32).to(device)
    optimiser = make_optimiser(model)
    forward = compiled(model, o)

    def train():
        optimiser.zero_grad(set_to_none=True)
        with torch.autocast(device, torch.bfloat16, enabled=o.cuda):
            loss = forward(images, targets)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    if o.cuda:
        torch.cuda.reset_peak_memory_stats()
    model.train()
    result = {"batch": batch, "source": source, "train": clock.rounds(train, o)}
    result["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30 if o.cuda else 0
    del optimiser, forward
    frozen = copy.deepcopy(model).eval()
    for p in frozen.parameters():
        p.grad = None
    if o.cuda:
        frozen.to(torch.bfloat16)
    predict = compiled(frozen, o)

    def infer():
        with torch.no_grad():
            predict(images)

    result["infer"] = clock.rounds(infer, o)
    return result


def try_batch(o, clock, name, batch):
    """measure(), eagerly where compiling fails; None where there is not enough memory."""
    while True:
        try:
            return measure(o, clock, name, batch)
        except Exception as e:
            text = (str(e).splitlines() or [type(e).__name__])[0][:200]
            if "out of memory" in str(e).lower():
                say(f"{name} batch {batch}: out of memory")
                return None
            if o.mode == "eager":
                fail(f"{name} batch {batch}: {text}", "run it by hand for the whole trace")
            say(f"{name} batch {batch}: torch.compile failed ({text}); running eagerly")
            o.note = "torch.compile failed: " + text
            o.mode = "eager"
        finally: # compiled code holds on to its model
            if o.mode != "eager":
                torch._dynamo.reset()
            gc.collect()
            if o.cuda:
                torch.cuda.empty_cache()


def ceilings(o, clock):
    """TFLOP/s of a large bf16 product of random matrices; TB/s of a copy, read and written."""
    n, size = (8192, 4 * 2**30) if o.cuda else (512, 2**26)
    device, dtype = ("cuda", torch.bfloat16) if o.cuda else ("cpu", torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    c = torch.empty_like(a)
    product = statistics.median(clock.rounds(lambda: torch.mm(a, b, out=c), o))
    x = torch.empty(size, dtype=torch.uint8, device=device).random_()
    y = torch.empty_like(x)
    moved = statistics.median(clock.rounds(lambda: y.copy_(x), o))
    return {"tflops": round(2 * n**3 / product / 1e12, 1),
            "tbytes_per_s": round(2 * size / moved / 1e12, 2)}


def versions(o):
    found = {"torch": torch.__version__, "cuda": torch.version.cuda,
             "cudnn": torch.backends.cudnn.version() if o.cuda else None}
    if o.cuda:
        found["gpu"] = torch.cuda.get_device_name()
        try:
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        except Exception:
            pass
    return found


def rate(batch, seconds):
    return round(batch / statistics.median(seconds), 2)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", help="Ti/16 S/16 B/16 L/16 H/14 g/14 G/14 ...")
    parser.add_argument("batch", nargs="*", type=int)
    parser.add_argument("--ceilings", action="store_true")
    parser.add_argument("--image", type=int, default=224)
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--mode", default="default", help="of torch.compile: default, "
                        "reduce-overhead, max-autotune, max-autotune-no-cudagraphs; or eager")
    parser.add_argument("--attention", default="best",
                        choices=["best", "default", "flash", "efficient", "cudnn"])
    parser.add_argument("--patches", default="linear", choices=["linear", "conv"])
    parser.add_argument("--timm", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--round-seconds", type=float, default=1.0)
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no batch after so many")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    o = parser.parse_args()
    o.cuda, o.note = o.device == "cuda", None
    if not o.ceilings and not (o.model and o.batch):
        parser.error("a model and at least one batch size, or --ceilings")
    if o.cuda and not torch.cuda.is_available():
        fail(f"PyTorch {torch.__version__} finds no CUDA GPU",
             "see nvidia-smi; --device cpu tries the script itself")
    if o.timm:
        try:
            import timm  # noqa: F401
        except ImportError:
            o.timm, o.note = False, "no timm here: own module"
            say(o.note)
    if o.mode != "eager" and not hasattr(torch, "compile"):
        o.mode, o.note = "eager", "this PyTorch has no torch.compile"
        say(o.note)
    if o.cuda:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    clock = Clock(o.cuda)
    out = versions(o)
    if o.ceilings:
        print(json.dumps({**out, **ceilings(o, clock)}))
        return

    letter, _, patch = o.model.partition("/")
    make_model(argparse.Namespace(**{**vars(o), "timm": False}), o.model)  # or an error, early
    tokens = 1 + (o.image // int(patch)) ** 2
    attention = pick_attention(o, clock, SIZES[letter], tokens)
    results = []
    for batch in o.batch:
        if time.monotonic() - START > o.seconds:
            say(f"batch {batch}: no time left")
            continue
        r = try_batch(o, clock, o.model, batch)
        if r:
            results.append(r)
            say(f"torch {torch.__version__}: {o.model} batch {batch}  train "
                f"{rate(batch, r['train'])} images/s  infer {rate(batch, r['infer'])} images/s  "
                f"peak {r['peak_gib']:.1f} GiB")
    if not results:
        fail(f"{o.model}: no batch size could be measured", "give smaller ones")
    best = max(results, key=lambda r: rate(r["batch"], r["train"]))
    quick = max(results, key=lambda r: rate(r["batch"], r["infer"]))
    out.update(model=o.model, source=best["source"], mode=o.mode, attention=attention, note=o.note,
               batch=best["batch"], train=rate(best["batch"], best["train"]),
               train_rounds=[round(best["batch"] / s, 2) for s in best["train"]],
               infer_batch=quick["batch"], infer=rate(quick["batch"], quick["infer"]),
               infer_rounds=[round(quick["batch"] / s, 2) for s in quick["infer"]],
               peak_gib=round(best["peak_gib"], 2),
               all={r["batch"]: [rate(r["batch"], r["train"]), rate(r["batch"], r["infer"])]
                    for r in results})
    print(json.dumps(out))


if __name__ == "__main__":
    main()
