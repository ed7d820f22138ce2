"""Goldens of the network's variants, and of models of which parts learn, or at different rates, from
timm in float64: python3 variants.py makes those in this folder again (timm 1.x, torch,
safetensors). The format is described in test_golden.c: a tiny model, a batch, and what must come
out of it."""
import functools
import os

import torch
from safetensors.torch import save_file
from timm.layers import GluMlp, QuickGELU
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import VisionTransformer

torch.set_default_dtype(torch.float64)

BASE = dict(image_h=12, image_w=12, patch=4, width=16, layers=2, heads=2, mlp=20, classes=4,
            pool="cls", cls_tokens=1, patch_bias=True, representation=0, act="gelu", eps=1e-6,
            eps_final=1e-6, layer_scale=False, norm_pre=False, fc_norm=False, qk_norm=False,
            loss="softmax", optimizer="sgd", decay="matrices", lr=0.05, beta1=0.9, beta2=0.999,
            adam_eps=1e-8, momentum=0.9, weight_decay=0.001, clip=0.0, steps=3, batch=2)
CASES = {
    "variant_swiglu_qknorm": dict(act="swiglu", qk_norm=True, layer_scale=True, mlp=12,
                                  optimizer="adamw", lr=0.001, weight_decay=0.1, clip=1.0),
    "variant_map": dict(pool="map", cls_tokens=0, act="gelu_tanh", layers=1, mlp=16),
    "variant_fcnorm_quickgelu": dict(pool="gap", fc_norm=True, act="quick_gelu", norm_pre=True,
                                     patch_bias=False),
    "variant_distilled": dict(pool="cls_dist", cls_tokens=2, layers=1),
    "variant_cls_gap": dict(pool="cls_gap", cls_tokens=3, layers=1, loss="sigmoid"),
    # what learns, and how fast: a group of parameters for each unit of the model
    "tuned_layer_decay": dict(optimizer="adamw", lr=0.005, weight_decay=0.3, clip=1.0,
                              layer_decay=0.65, frozen=0),
    "tuned_frozen": dict(clip=0.2, layer_decay=0.5, frozen=2, decay="all", weight_decay=0.1),
    "tuned_head_only": dict(optimizer="adamw", lr=0.01, weight_decay=0.1, clip=0.1, layers=1,
                            layer_decay=0.5, frozen=3),
}


class ClassAndMean(VisionTransformer):
    """DINOv2's linear classifier: the class token beside the mean of the patches."""

    def forward_head(self, x):
        return self.head(torch.cat([x[:, 0], x[:, self.num_prefix_tokens:].mean(1)], 1))


def build(c):
    acts = {"gelu": None, "gelu_tanh": functools.partial(torch.nn.GELU, approximate="tanh"),
            "quick_gelu": QuickGELU, "swiglu": torch.nn.SiLU}
    kind, more = VisionTransformer, {}
    if c["pool"] == "cls_dist":
        kind = VisionTransformerDistilled
    else:
        more = dict(class_token=c["cls_tokens"] > 0, reg_tokens=max(c["cls_tokens"] - 1, 0),
                    global_pool={"gap": "avg", "map": "map"}.get(c["pool"], "token"),
                    fc_norm=c["fc_norm"])
    ratio = c["mlp"] / c["width"]
    if c["act"] == "swiglu":
        more["mlp_layer"] = functools.partial(GluMlp, gate_last=False)
        ratio *= 2
    if c["pool"] == "cls_gap":
        kind = ClassAndMean
    model = kind(img_size=(c["image_h"], c["image_w"]), patch_size=c["patch"],
                 num_classes=c["classes"], embed_dim=c["width"], depth=c["layers"],
                 num_heads=c["heads"], mlp_ratio=ratio, qk_norm=c["qk_norm"],
                 init_values=1.0 if c["layer_scale"] else None, pre_norm=c["norm_pre"],
                 act_layer=acts[c["act"]], **more)
    if c["pool"] == "cls_gap":
        model.head = torch.nn.Linear(2 * c["width"], c["classes"])
    return model


def draw(model, seed):
    """Weights that make every path matter: gains around 1, the rest of order 1/sqrt(fan in)."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            std = 1.2 / p.shape[1] ** 0.5 if p.ndim == 2 else 0.3
            p.copy_(torch.randn(p.shape, generator=g) * std)
            if "norm" in name and name.endswith("weight") or name.endswith("gamma"):
                p.add_(1)
            p.copy_(p.float())


def ours(model, c, values):
    """timm's tensors under our names: reg and dist tokens follow the class token, and the two heads
    of a distilled model are one that reads both tokens and takes half of each."""
    t = dict(values)
    tokens = [t.pop(k) for k in ("cls_token", "dist_token", "reg_token") if k in t]
    if tokens:
        t["cls_token"] = torch.cat(tokens, 1)
    return t


def loss_of(c, logits, targets):
    if c["loss"] == "sigmoid":
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        return bce(logits, targets, reduction="none").sum(1).mean()
    return -(targets * logits.log_softmax(1)).sum(1).mean()


class Ours(torch.nn.Module):
    """The distilled model with its head as ours: one matrix over both tokens."""

    def __init__(self, timm):
        super().__init__()
        self.timm = timm
        both = torch.cat([timm.head.weight, timm.head_dist.weight], 1).detach() / 2
        self.head = torch.nn.Linear(both.shape[1], both.shape[0])
        with torch.no_grad():
            self.head.weight.copy_(both)
            self.head.bias.copy_((timm.head.bias + timm.head_dist.bias) / 2)

    def forward(self, x):
        x = self.timm.forward_features(x)
        return self.head(torch.cat([x[:, 0], x[:, 1]], 1))

    def named_parameters(self):
        yield from ((n, p) for n, p in self.timm.named_parameters() if "head" not in n)
        yield from (("head." + n, p) for n, p in self.head.named_parameters())


def unit_of(name, c):
    """0: embedding; 1 to L: blocks; L + 1: what comes after them."""
    if name.startswith("blocks."):
        return int(name.split(".")[1]) + 1
    return 0 if name.split(".")[0] in ("cls_token", "pos_embed", "patch_embed") else c["layers"] + 1


def learns(name, c):
    return name in ("head.weight", "head.bias") or unit_of(name, c) >= c.get("frozen", 0)


def groups_of(parameters, c):
    """The learning rate of unit u is lr * layer_decay^(L + 1 - u)."""
    groups = []
    for n, p in parameters.items():
        decays = c["decay"] == "all" or (p.ndim > 1 and n.endswith("weight"))
        rate = c.get("layer_decay", 1) ** (c["layers"] + 1 - unit_of(n, c))
        if learns(n, c):
            groups.append(dict(params=[p], lr=c["lr"] * rate,
                               weight_decay=c["weight_decay"] if decays else 0))
    return groups


def make(name, changes, seed):
    c = {**BASE, **changes}
    timm = build(c).eval()
    draw(timm, seed)
    model = timm
    g = torch.Generator().manual_seed(seed + 1)
    images = torch.randn(c["batch"], 3, c["image_h"], c["image_w"], generator=g).float().double()
    labels = torch.randint(c["classes"], (c["batch"],), generator=g)
    targets = torch.nn.functional.one_hot(labels, c["classes"]).double()
    if c["pool"] == "cls_dist":
        model = Ours(timm)
        assert torch.allclose(model(images), timm(images), atol=1e-12), "not timm's logits"
    out = {"input.images": images, "input.labels": labels, "input.targets": targets}
    rename = lambda prefix, values: out.update(
        {prefix + k: v.detach().clone() for k, v in ours(model, c, values).items()})
    parameters = dict(model.named_parameters())
    rename("param.", parameters)
    streams = []
    hooks = [b.register_forward_hook(lambda _, a, y: streams.append(y)) for b in timm.blocks]
    hooks.append(timm.blocks[0].register_forward_pre_hook(lambda _, a: streams.append(a[0])))
    logits = model(images)
    for h in hooks:
        h.remove()
    loss = loss_of(c, logits, targets)
    loss.backward()
    for i, s in enumerate(streams):
        out[f"act.{i}"] = s.detach().clone()
    out["out.logits"], out["out.loss"] = logits.detach(), loss.detach().reshape(1)
    grads = {k: p.grad for k, p in parameters.items()}
    rename("grad.", grads)
    out["gradnorm"] = torch.sqrt(sum((g * g).sum() for n, g in grads.items() if learns(n, c))).reshape(1)
    groups = groups_of(parameters, c)
    if c["optimizer"] == "sgd":
        opt = torch.optim.SGD(groups, lr=c["lr"], momentum=c["momentum"])
    else:
        opt = torch.optim.AdamW(groups, lr=c["lr"], betas=(c["beta1"], c["beta2"]),
                                eps=c["adam_eps"])
    losses = []
    for _ in range(c["steps"]):
        opt.zero_grad()
        loss = loss_of(c, model(images), targets)
        losses.append(loss.detach())
        loss.backward()
        if c["clip"]:
            learning = [p for n, p in parameters.items() if learns(n, c)]
            torch.nn.utils.clip_grad_norm_(learning, c["clip"])
        opt.step()
    out["losses"] = torch.stack(losses)
    rename("step.", parameters)
    out = {k: v if v.dtype == torch.int64 else v.float().contiguous() for k, v in out.items()}
    meta = {k: str(v) for k, v in c.items()} | {"name": name, "seed": str(seed)}
    save_file(out, os.path.join(os.path.dirname(os.path.abspath(__file__)), name + ".safetensors"),
              meta)


for number, (name, changes) in enumerate(CASES.items()):
    make(name, changes, 809 + number)
