"""What 8-bit products cost by themselves: python3 fp8.py FILE... (timm 1.x, torch, safetensors).

For each golden, PyTorch computes the model again in float64 with nothing rounded but the operands of
the blocks' four linear layers: x and w to float8_e4m3fn, dy to float8_e5m2, each scaled by the
largest power of two that keeps it in range. Prints the relative L2 norm and 1 - cosine of the worst
streams, logits and gradients: the least that test_golden --type fp8 can allow."""
import os
import sys

import torch
from safetensors import safe_open

torch.set_default_dtype(torch.float64)
sys.argv, files = sys.argv[:1], sys.argv[1:]
sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))


def rounded(x, dtype, most):
    amax = x.abs().max()
    if amax == 0:
        return x
    scale = 2.0 ** torch.floor(torch.log2(most / amax))
    return (x * scale).clamp(-most, most).float().to(dtype).double() / scale


def e4m3(x):
    return rounded(x, torch.float8_e4m3fn, 448.0)


def e5m2(x):
    return rounded(x, torch.float8_e5m2, 57344.0)


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return e4m3(x) @ e4m3(w).T

    @staticmethod
    def backward(ctx, dy):
        x, w = ctx.saved_tensors
        x, dy = x.flatten(0, -2), e5m2(dy.flatten(0, -2))
        dx, dw = dy @ e4m3(w), dy.T @ e4m3(x)
        return dx.reshape(ctx.saved_tensors[0].shape), dw


def in_8_bits(model):
    for block in model.blocks:
        for m in block.modules():
            if isinstance(m, torch.nn.Linear):
                m.forward = lambda x, m=m: Product.apply(x, m.weight) + (0 if m.bias is None else m.bias)


def compare(kind, name, a, b, worst):
    error = ((a - b).norm() / b.norm()).item()
    cosine = torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0).item()
    if error > worst.get(kind, (0,))[0]:
        worst[kind] = (error, 1 - cosine, name)
    errors.setdefault(kind, []).append(error)


errors = {}


def golden(f, variants):
    c = {**variants.BASE, **f.metadata()}
    for k in c:
        if isinstance(variants.BASE.get(k), bool):
            c[k] = str(c[k]) in ("1", "true", "True")
        elif isinstance(variants.BASE.get(k), int):
            c[k] = int(c[k])
    t = {k: f.get_tensor(k) for k in f.keys()}
    t = {k: v.double() if v.is_floating_point() else v for k, v in t.items()}
    params = {k[6:]: v for k, v in t.items() if k.startswith("param.")}
    model = variants.build({**c, "loss": c["loss"]})
    if "cls_token" in params and c["cls_tokens"] > 1:
        params["reg_token"] = params["cls_token"][:, 1:]
        params["cls_token"] = params["cls_token"][:, :1]
    print(model.load_state_dict(params, strict=False) if c.get("verbose") else "", end="")
    model.load_state_dict(params)
    in_8_bits(model)
    worst, streams = {}, []
    for b in model.blocks:
        b.register_forward_hook(lambda _, a, y: streams.append(y))
    logits = model(t["input.images"])
    variants.loss_of(c, logits, t["input.targets"]).backward()
    for i, s in enumerate(streams):
        compare("stream", str(i), s.detach(), t[f"act.{i + 1}"], worst)
    compare("logits", "", logits.detach(), t["out.logits"], worst)
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    same = [n for n in found if "grad." + n in t and found[n].shape == t["grad." + n].shape]
    compare("all gradients", "", torch.cat([found[n].flatten() for n in same]),
            torch.cat([t["grad." + n].flatten() for n in same]), worst)
    for name, p in model.named_parameters():
        if p.grad is not None and "grad." + name in t and p.shape == t["grad." + name].shape:
            compare("gradient", name, p.grad, t["grad." + name], worst)
    return worst


def published(f, path):
    import timm
    model = timm.create_model(f.metadata()["model"], pretrained=False).double().eval()
    weights = os.path.join(os.path.dirname(path), "../data/weights", f.metadata()["model"] + ".safetensors")
    with safe_open(weights, "pt") as w:
        model.load_state_dict({k: w.get_tensor(k).double() for k in w.keys()})
    in_8_bits(model)
    worst = {}
    with torch.no_grad():
        compare("logits", "", model(f.get_tensor("input.images").double()),
                f.get_tensor("out.logits").double(), worst)
    return worst


def main():
    # the builders of variants.py, without its goldens, which it makes when it is run
    import types
    variants = types.ModuleType("variants")
    source = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "variants.py")).read()
    exec(source[:source.index("for number, (name, changes)")], variants.__dict__)
    for path in files:
        with safe_open(path, "pt") as f:
            try:
                worst = published(f, path) if "model" in (f.metadata() or {}) else golden(f, variants)
            except (RuntimeError, AssertionError, KeyError) as e:
                print(os.path.basename(path), "is not timm's:", str(e).split("\n")[0][:80])
                continue
        print(os.path.basename(path), "; ".join("%s %.3f (1 - cosine %.4f) %s" % (k, *v)
                                                for k, v in worst.items()))
    for kind, list_ in errors.items():
        list_.sort()
        print("%-9s median %.3f, 90%% below %.3f, worst %.3f of %d" % (
            kind, list_[len(list_) // 2], list_[len(list_) * 9 // 10], list_[-1], len(list_)))


main()
