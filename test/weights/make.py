"""Makes the files beside it: tiny random Vision Transformers, saved as people find them.

    python test/weights/make.py      needs torch, timm, transformers, torchvision, safetensors, numpy

Each is the library's own model, which also computes the logits of one image: logits.safetensors has
`image` [1, 3, S, S] and, under the name of the file or folder, its [K] logits.
Made by timm 1.0.31, transformers 5.24.0, torchvision 0.29.2, torch 2.15.0.
"""

import argparse
import collections
import datetime
import functools
import json
import os
import pathlib
import shutil
import struct
import tempfile

import numpy as np
import timm
import torch
import transformers as T
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

HERE = os.path.dirname(os.path.abspath(__file__))
S, P, C, L, H, F, K = 12, 4, 8, 2, 2, 12, 5
logits = {}
torch.manual_seed(0)
image = torch.randn(1, 3, S, S).double()


def here(name):
    return os.path.join(HERE, name)


def random_weights(model):
    """Large enough that every tensor matters, and a change of any shows in the logits."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(torch.randn(p.shape) * (0.4 if p.ndim > 1 else 0.2) + ("norm" in name and p.ndim == 1))
    return model.eval()


def keep(name, model, run=lambda model: model(image)):
    with torch.no_grad():
        logits[name] = run(model.double()).flatten()
    model.float()


def vit(size=S, **more):
    torch.manual_seed(len(logits))
    return random_weights(VisionTransformer(img_size=size, patch_size=P, embed_dim=C, depth=L, num_heads=H,
                                            mlp_ratio=F / C, num_classes=K, **more))


def state(model, prefix=""):
    return {prefix + k: v.contiguous().clone() for k, v in model.state_dict().items()}


def folder(name):
    shutil.rmtree(here(name), ignore_errors=True)
    os.makedirs(here(name))
    return here(name)


def write_json(path, value):
    with open(path, "w") as f:
        json.dump(value, f)


# ---- timm: other containers, prefixes, nested dicts ----

model = vit()
keep("prefix.safetensors", model)
save_file(state(model, "module."), here("prefix.safetensors"))
keep("nested.pth", model)
torch.save({"epoch": 3, "arch": "vit", "model": state(vit(), "module."), "model_ema": state(model, "_orig_mod."),
            "args": argparse.Namespace(lr=1e-3, names=[1, 2]),
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(3), "step": 5}}, "param_groups": [{"lr": 0.1}]}},
           here("nested.pth"))
# what timm's train.py keeps, with its args; the same for any seed, and no logits are compared
saved = timm.create_model("deit_tiny_patch16_224", img_size=S, patch_size=P, embed_dim=C, depth=L, num_heads=H,
                          mlp_ratio=F / C, num_classes=K)
args = argparse.Namespace(model="deit_tiny_patch16_224", img_size=None, input_size=None, mean=[0.25], std=None,
                          interpolation="", crop_pct=None, crop_mode=None, lr=0.1, num_classes=K, gp=None,
                          model_kwargs=dict(num_heads=H))
with tempfile.TemporaryDirectory() as directory:
    optimizer = torch.optim.SGD(saved.parameters(), lr=0.1)
    timm.utils.CheckpointSaver(saved, optimizer, args, checkpoint_dir=directory).save_checkpoint(1, metric=50.0)
    shutil.copy(directory + "/model_best.pth.tar", here("timm-args.pth.tar"))
model = model.half().float()
keep("half.pt", model)
torch.save(state(model.half()), here("half.pt"), pickle_protocol=5)
model.float()
keep("strided.pth", model)  # a transposed tensor, and two in one storage
strided = state(model)
both = torch.stack([strided[f"blocks.{i}.attn.qkv.weight"] for i in range(L)])
strided["blocks.0.attn.qkv.weight"] = torch.nn.Parameter(both[0])
strided["blocks.1.attn.qkv.weight"] = both[1]
strided["blocks.0.mlp.fc1.weight"] = strided["blocks.0.mlp.fc1.weight"].t().contiguous().t()
torch.save(strided, here("strided.pth"))
keep("legacy.pth", model)  # of the form before PyTorch 1.6, with two tensors in one storage
torch.save({"state_dict": strided, "epoch": 3}, here("legacy.pth"), _use_new_zipfile_serialization=False)
torch.save(torch.nn.Linear(2, 2), here("refused-module.pth"))


class Own(torch.Tensor):
    pass


two = torch.eye(2)
for name, value in {"float8": two.to(torch.float8_e4m3fn), "numpy": two.numpy(), "sparse": two.to_sparse(),
                    "own": two.as_subclass(Own), "inner": torch.nn.Linear(2, 2),
                    "quantised": torch.quantize_per_tensor(two, 0.1, 0, torch.qint8)}.items():
    others = {} if name in ("numpy", "inner") else {"plain": two}
    torch.save({"state_dict": {**others, "w": value}, "optimizer": {"w": two.to_sparse()}},
               here(f"refused-{name}.pth"))
torch.save(torch.optim.SGD([torch.nn.Parameter(two)], 0.1).state_dict(), here("refused-optimizer.pth"))
torch.jit.trace(torch.nn.Linear(2, 2), two).save(here("refused-script.pt"))
np.savez(here("refused-no-blocks.npz"), **{"embedding/kernel": np.zeros((P, P, 3, C), np.float32)})

# ---- timm: variants ----

variants = {"no-qkv-bias": {"qkv_bias": False}, "registers": {"reg_tokens": 4, "no_embed_class": True},
            "registers-embedded": {"reg_tokens": 2}, "deit3": {"no_embed_class": True, "init_values": 0.1},
            "gap": {"class_token": False, "global_pool": "avg", "fc_norm": False}}
for name, more in variants.items():
    model = vit(**more)
    keep(name + ".safetensors", model)
    renamed = {k.replace("ls1.gamma", "gamma_1").replace("ls2.gamma", "gamma_2"): v for k, v in state(model).items()}
    save_file(renamed, here(name + ".safetensors"))
model = vit()
for block in model.blocks:
    block.attn.qkv.bias.data[C:2 * C] = 0
keep("no-key-bias.safetensors", model)
eva = state(model)
for i in range(L):
    bias = eva.pop(f"blocks.{i}.attn.qkv.bias")
    eva[f"blocks.{i}.attn.q_bias"], eva[f"blocks.{i}.attn.v_bias"] = bias[:C].clone(), bias[2 * C:].clone()
save_file(eva, here("no-key-bias.safetensors"))
refused = {"rms-norm": {"norm_layer": timm.layers.RmsNorm}, "inner-norm": {"scale_attn_norm": True}}
for name, more in refused.items():
    save_file({k: v for k, v in state(vit(**more)).items() if "blocks.1" not in k},
              here(f"refused-{name}.safetensors"))
distilled = timm.create_model("deit_tiny_distilled_patch16_224", img_size=S, patch_size=P, embed_dim=C, depth=L,
                              num_heads=H, mlp_ratio=F / C, num_classes=K)
random_weights(distilled)
keep("distilled.safetensors", distilled)
save_file(state(distilled), here("distilled.safetensors"))

model, small = vit(2 * S), vit()
resized = state(model)
resized["pos_embed"] = timm.layers.resample_abs_pos_embed(resized["pos_embed"], [S // P] * 2, num_prefix_tokens=1)
small.load_state_dict(resized)
keep("resized.safetensors", small)
save_file(state(model), here("resized.safetensors"))

# ---- a hub's folder, parts, a grid that is no square ----

model = vit()
keep("timm-hub", model)
directory = folder("timm-hub")
save_file(state(model), directory + "/model.safetensors")
write_json(directory + "/config.json",
           {"architecture": "vit_tiny", "num_classes": K, "global_pool": "token", "num_features": C,
            "model_args": {"img_size": S, "num_heads": H}, "label_names": ["ant", "bee", "cat", "dog", "elk"],
            "pretrained_cfg": {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "crop_pct": 0.9,
                               "interpolation": "bilinear", "input_size": [3, S, S]}})
directory = folder("parts")
keep("parts", model)
names = sorted(state(model))
for i in range(2):
    save_file({k: state(model)[k] for k in names[i::2]}, f"{directory}/model-{i + 1:05}-of-00002.safetensors")
write_json(directory + "/model.safetensors.index.json",
           {"metadata": {}, "weight_map": {k: f"model-{i % 2 + 1:05}-of-00002.safetensors" for i, k in enumerate(names)}})
directory = folder("wide")
save_file(state(vit((S, 2 * S))), directory + "/model.safetensors")
write_json(directory + "/config.json", {"architecture": "vit", "model_args": {"img_size": [S, 2 * S], "num_heads": H}})

# ---- transformers ----

sizes = dict(hidden_size=C, num_hidden_layers=L, num_attention_heads=H, intermediate_size=F, image_size=S, patch_size=P,
             num_labels=K)


def save_pretrained(name, model):
    directory = folder(name)
    model.save_pretrained(directory)
    for f in os.listdir(directory):
        if f not in ["config.json", "model.safetensors"]:
            os.remove(os.path.join(directory, f))
    return directory


def transformer(name, Config, Model, **more):
    torch.manual_seed(len(logits))
    model = random_weights(Model(Config(**sizes, **more)))
    keep(name, model, lambda m: m(image).logits)
    return model, save_pretrained(name, model)


model, directory = transformer("hf-vit", T.ViTConfig, T.ViTForImageClassification, hidden_act="gelu_new",
                               id2label=dict(enumerate("ant bee cat dog elk".split())))
write_json(directory + "/preprocessor_config.json",
           {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.25] * 3, "resample": 2,
            "size": {"height": S, "width": S}})
directory = folder("hf-state")  # the names of version 5, which its own files do not have
shutil.copy(here("hf-vit/config.json"), directory)
keep("hf-state", model, lambda m: m(image).logits)
torch.save(model.state_dict(), directory + "/pytorch_model.bin")
transformer("hf-deit", T.DeiTConfig, T.DeiTForImageClassification, layer_norm_eps=1e-5)
few = {k: v for k, v in sizes.items() if k != "intermediate_size"}
model = T.Dinov2WithRegistersModel(T.Dinov2WithRegistersConfig(**few, mlp_ratio=2, num_register_tokens=3))
save_pretrained("hf-dinov2", random_weights(model))
mae = T.ViTMAEConfig(**sizes, decoder_hidden_size=C, decoder_num_hidden_layers=1, decoder_num_attention_heads=2,
                     decoder_intermediate_size=8)
save_pretrained("hf-mae", random_weights(T.ViTMAEForPreTraining(mae)))

# ---- torchvision, Google ----

torch.manual_seed(11)
model = random_weights(TorchvisionViT(S, P, L, H, C, F, num_classes=K))
keep("torchvision.pth", model)
torch.save(model.state_dict(), here("torchvision.pth"))


def google(model, stacked):
    """The inverse of timm's reader: in the old numbering, or in the new one with all blocks in one array."""
    w = {k: v.numpy() for k, v in state(model).items()}
    attention, second, mlp = (("MultiHeadDotProductAttention_0", "LayerNorm_1", "MlpBlock_0") if stacked else
                              ("MultiHeadDotProductAttention_1", "LayerNorm_2", "MlpBlock_3"))
    a = {"cls": w["cls_token"], "embedding/kernel": w["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
         "embedding/bias": w["patch_embed.proj.bias"], "head/kernel": w["head.weight"].T, "head/bias": w["head.bias"],
         "Transformer/encoder_norm/scale": w["norm.weight"], "Transformer/encoder_norm/bias": w["norm.bias"]}
    a["pos_embedding" if stacked else "Transformer/posembed_input/pos_embedding"] = w["pos_embed"]

    def block(i):
        def of(name, kind="weight"):
            return w[f"blocks.{i}.{name}.{kind}"]
        b = {}
        for ours, theirs in {"norm1": "LayerNorm_0", "norm2": second}.items():
            b[theirs + "/scale"], b[theirs + "/bias"] = of(ours), of(ours, "bias")
        for j, part in enumerate(["query", "key", "value"]):
            b[f"{attention}/{part}/kernel"] = of("attn.qkv")[j * C:][:C].T.reshape(C, H, C // H)
            b[f"{attention}/{part}/bias"] = of("attn.qkv", "bias")[j * C:][:C].reshape(H, C // H)
        b[attention + "/out/kernel"] = of("attn.proj").T.reshape(H, C // H, C)
        b[attention + "/out/bias"] = of("attn.proj", "bias")
        for ours, theirs in {"mlp.fc1": "/Dense_0", "mlp.fc2": "/Dense_1"}.items():
            b[mlp + theirs + "/kernel"], b[mlp + theirs + "/bias"] = of(ours).T, of(ours, "bias")
        return b

    blocks = [block(i) for i in range(L)]
    for k in blocks[0]:
        if stacked:
            a["Transformer/encoderblock/" + k] = np.stack([b[k] for b in blocks])
        else:
            a.update({f"Transformer/encoderblock_{i}/{k}": b[k] for i, b in enumerate(blocks)})
    return a


model = vit()
keep("google.npz", model)
np.savez(here("google.npz"), **google(model, stacked=False))
keep("bigvision.npz", model)
np.savez_compressed(here("bigvision.npz"), **{"params/" + k: np.asfortranarray(v) if v.ndim == 2 else v
                                              for k, v in google(model, stacked=True).items()})



def zip64(path):
    """All numbers of the directory where archives above 4 GiB have them."""
    with open(path, "rb") as f:
        data = f.read()
    end = data.rindex(b"PK\5\6")
    count, size, at = struct.unpack("<HII", data[end + 10:end + 20])
    out, p = data[:at], at
    directory = b""
    for _ in range(count):
        head = bytearray(data[p:p + 46])
        packed, full, name, extra, comment = struct.unpack("<IIHHH", head[20:34])
        offset, = struct.unpack("<I", head[42:46])
        head[20:28], head[42:46], head[30:32] = b"\xff" * 8, b"\xff" * 4, struct.pack("<H", 28)
        directory += head + data[p + 46:p + 46 + name] + struct.pack("<HHQQQ", 1, 24, full, packed, offset)
        p += 46 + name + extra + comment
    end64 = struct.pack("<IQHHIIQQQQ", 0x06064b50, 44, 45, 45, 0, 0, count, count, len(directory), at)
    locator = struct.pack("<IIQI", 0x07064b50, 0, at + len(directory), 1)
    last = struct.pack("<IHHHHIIH", 0x06054b50, 0, 0, 0xffff, 0xffff, 0xffffffff, 0xffffffff, 0)
    with open(path, "wb") as f:
        f.write(out + directory + end64 + locator + last)


keep("zip64.npz", model)
np.savez_compressed(here("zip64.npz"), **google(model, stacked=True))
zip64(here("zip64.npz"))
# ---- other networks: pooling, gates, norms of heads, CLIP and SigLIP ----

variants = {"fc-norm": {"global_pool": "avg"}, "map": {"global_pool": "map", "class_token": False},
            "qk-norm": {"qk_norm": True}, "gated": {"mlp_layer": timm.layers.SwiGLUPacked, "act_layer": nn.SiLU},
            "swiglu": {"mlp_layer": timm.layers.SwiGLU, "act_layer": nn.SiLU}}
for name, more in variants.items():
    model = vit(**more)
    keep(name + ".safetensors", model)
    save_file(state(model), here(name + ".safetensors"))
transformer("hf-teacher", T.DeiTConfig, T.DeiTForImageClassificationWithTeacher)
transformer("hf-msn", T.ViTMSNConfig, T.ViTMSNForImageClassification)  # version 5 loses a prefix of its blocks
sizes = few
transformer("hf-giant", T.Dinov2WithRegistersConfig, T.Dinov2WithRegistersForImageClassification, mlp_ratio=1,
            num_register_tokens=2, use_swiglu_ffn=True)
sizes = dict(few, intermediate_size=F)
torch.manual_seed(len(logits))
model = random_weights(T.CLIPVisionModelWithProjection(T.CLIPVisionConfig(**sizes, projection_dim=K)))
keep("hf-clip", model, lambda m: m(image).image_embeds)
save_pretrained("hf-clip", model)
towers = {"vision_config": sizes, "text_config": dict(sizes, vocab_size=9, bos_token_id=0, eos_token_id=1)}
model = random_weights(T.SiglipForImageClassification(T.SiglipConfig(**towers, num_labels=K)))
keep("hf-siglip", model, lambda m: m(image).logits)
save_pretrained("hf-siglip", model)
model = random_weights(T.SiglipVisionModel(T.SiglipVisionConfig(**sizes)))
keep("hf-siglip-pool", model, lambda m: m(image).pooler_output)  # no head: what one would read
save_pretrained("hf-siglip-pool", model)


def openai(names):
    """CLIP's tensors as OpenAI's model has them, with its three numbers beside them."""
    w = {}
    for k, v in names.items():
        for theirs, name in [("vision_model.", "visual."), ("visual_projection.weight", "visual.proj"),
                             ("embeddings.patch_embedding", "conv1"), ("embeddings.class", "class"),
                             ("embeddings.position_embedding.weight", "positional_embedding"),
                             ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"),
                             ("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("self_attn", "attn"),
                             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]:
            k = k.replace(theirs, name)
        w[k] = v.T if k == "visual.proj" else v
    for i in range(L):
        at = f"visual.transformer.resblocks.{i}.attn."
        for kind in ["weight", "bias"]:
            w[at + "in_proj_" + kind] = torch.cat([w.pop(f"{at}{p}_proj.{kind}") for p in "qkv"])
    w.update({"transformer.resblocks.0.ln_1.weight": torch.ones(4), "positional_embedding": torch.zeros(7, 4),
              "context_length": torch.tensor(7), "input_resolution": torch.tensor(S)})
    return w


model = T.CLIPVisionModelWithProjection.from_pretrained(here("hf-clip"))
keep("openai.pt", model, lambda m: m(image).image_embeds)
torch.save(openai(state(model)), here("openai.pt"))

# ---- what trainers keep beside the weights: objects of any module, which are looked past ----

model = vit()
lightning = {
    "epoch": 3, "pytorch-lightning_version": "2.5.0", "hyper_parameters": collections.OrderedDict(
        lr=1e-3, at=datetime.datetime(2026, 1, 1), device=torch.device("cpu"), dtype=torch.float32,
        size=torch.Size([3, 4]), build=functools.partial(torch.optim.SGD, lr=0.1), of=collections.Counter("abc"),
        some={1, 2}, frozen=frozenset([3]), where=pathlib.PurePosixPath("/data"), z=1 + 2j),
    "callbacks": {"ModelCheckpoint": {"best_model_score": torch.tensor(0.5), pathlib.PurePosixPath("a.ckpt"): 1}},
    "loops": {"progress": collections.defaultdict(int, a=1)}, "lr_schedulers": [{"_last_lr": [np.float64(0.2)]}],
    "optimizer_states": [{"state": {0: {"exp_avg": torch.zeros(3)}}, "order": np.arange(3), "bytes": bytearray(b"ab")}],
    "state_dict": {**state(model, "model."), "criterion.weight": torch.ones(K), "val_acc.tp": torch.zeros(K).long()}}
keep("lightning.ckpt", model)
torch.save(lightning, here("lightning.ckpt"))
keep("lightning5.ckpt", model)
torch.save(lightning, here("lightning5.ckpt"), pickle_protocol=5)

# ---- what an architecture's name alone says, and what looks like a plain ViT ----

small = dict(img_size=S, patch_size=P, depth=1, num_classes=K)
torch.manual_seed(len(logits))
model = random_weights(timm.create_model("test_vit", mlp_ratio=0.25, **small)).half().float()  # its heads: 32 wide
keep("timm-heads", model)
directory = folder("timm-heads")
save_file({k: v.half() for k, v in state(model).items()}, directory + "/model.safetensors")
write_json(directory + "/config.json", {"architecture": "test_vit", "num_classes": K, "global_pool": "token",
                                        "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}})
eva02 = timm.create_model("eva02_tiny_patch14_224", embed_dim=C, num_heads=H, **small)
save_file(state(eva02), here("refused-eva02.safetensors"))
tokens = VisionTransformer(embed_dim=C, num_heads=H, global_pool="map", class_token=False, reg_tokens=2, **small)
save_file(state(tokens), here("refused-map-tokens.safetensors"))
np.savez(here("refused-big-endian.npz"), cls=np.zeros((1, 1, C), ">f4"))
adapted = {k.replace("query", "query.base_layer"): v for k, v in state(T.ViTModel(T.ViTConfig(**sizes))).items()}
for part, shape in {"A": (2, C), "B": (C, 2)}.items():  # PEFT's names
    adapted[f"encoder.layer.0.attention.attention.query.lora_{part}.default.weight"] = torch.zeros(shape)
save_file({"base_model.model." + k: v for k, v in adapted.items()}, here("refused-lora.safetensors"))
T.OwlViTVisionModel(T.OwlViTVisionConfig(**sizes)).save_pretrained(folder("refused-owlvit"))
os.remove(here("refused-owlvit/config.json"))
# ---- parts that were wrapped, heads that were replaced ----

model = vit()
model.head = nn.Sequential(nn.Dropout(0.1), nn.Linear(C, K))
random_weights(model)
keep("wrapped.pth", model)  # each block compiled, and an average of it beside another model
for i in range(L):
    model.blocks[i] = torch.compile(model.blocks[i])
averaged = torch.optim.swa_utils.AveragedModel(model).state_dict()
torch.save({"model": state(vit()), "swa_model": averaged}, here("wrapped.pth"))
model = nn.Sequential(vit(), nn.Linear(C, K))
model[0].head = nn.Identity()
random_weights(model)
keep("behind.safetensors", model)
save_file(state(model), here("behind.safetensors"))
model = vit()  # MAE's linear probe: the norm is part of what is learned
model.head = nn.Sequential(nn.BatchNorm1d(C, affine=False), nn.Linear(C, K))
save_file(state(random_weights(model)), here("probe.safetensors"))

save_file({"image": image.float(), **{k: v.float() for k, v in logits.items()}}, here("logits.safetensors"))
print(len(logits), "models;", sum(os.path.getsize(os.path.join(d, f)) for d, _, fs in os.walk(HERE) for f in fs), "bytes")
