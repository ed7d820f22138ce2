"""DeiT-Tiny in other forms: python test/weights/deit.py FILE.safetensors OUT

Makes OUT/hub (a folder as timm's), OUT/hf (transformers' names), OUT/deit.pth (nested, as its authors
published it) and OUT/deit.npz (Google's names, compressed): all are one network.
"""

import json
import os
import shutil
import sys

import numpy as np
import torch
from safetensors.torch import load_file, save_file

source, out = sys.argv[1:]
w = load_file(source)
C, L, H = 192, 12, 3
normal = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}

os.makedirs(out + "/hub", exist_ok=True)
shutil.copy(source, out + "/hub/model.safetensors")
with open(out + "/hub/config.json", "w") as f:
    json.dump({"architecture": "deit_tiny_patch16_224", "num_classes": 1000, "global_pool": "token",
               "pretrained_cfg": {**normal, "crop_pct": 0.875, "interpolation": "bicubic",
                                  "input_size": [3, 224, 224]}}, f)

torch.save({"model": w, "epoch": 299}, out + "/deit.pth")

names = {"cls_token": "vit.embeddings.cls_token", "pos_embed": "vit.embeddings.position_embeddings",
         "patch_embed.proj": "vit.embeddings.patch_embeddings.projection", "norm": "vit.layernorm", "head": "classifier"}
layer = {"norm1": "layernorm_before", "attn.proj": "attention.output.dense", "norm2": "layernorm_after",
         "mlp.fc1": "intermediate.dense", "mlp.fc2": "output.dense"}
hf = {}
for name, t in w.items():
    stem, _, kind = name.rpartition(".")
    if name in names:
        hf[names[name]] = t
    elif stem in names:
        hf[f"{names[stem]}.{kind}"] = t
    else:
        _, i, rest = stem.split(".", 2)
        at = f"vit.encoder.layer.{i}."
        if rest == "attn.qkv":
            for part, x in zip(["query", "key", "value"], t.chunk(3)):
                hf[f"{at}attention.attention.{part}.{kind}"] = x.contiguous()
        else:
            hf[f"{at}{layer[rest]}.{kind}"] = t
os.makedirs(out + "/hf", exist_ok=True)
save_file(hf, out + "/hf/model.safetensors")
with open(out + "/hf/config.json", "w") as f:
    json.dump({"model_type": "vit", "hidden_size": C, "num_hidden_layers": L, "num_attention_heads": H,
               "intermediate_size": 768, "image_size": 224, "patch_size": 16, "hidden_act": "gelu",
               "layer_norm_eps": 1e-6}, f)
with open(out + "/hf/preprocessor_config.json", "w") as f:
    json.dump({"image_mean": normal["mean"], "image_std": normal["std"], "resample": 3, "do_center_crop": True,
               "size": 256, "crop_size": 224}, f)

n = {k: v.numpy() for k, v in w.items()}
a = {"cls": n["cls_token"], "embedding/kernel": n["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
     "embedding/bias": n["patch_embed.proj.bias"], "head/kernel": n["head.weight"].T, "head/bias": n["head.bias"],
     "Transformer/posembed_input/pos_embedding": n["pos_embed"],
     "Transformer/encoder_norm/scale": n["norm.weight"], "Transformer/encoder_norm/bias": n["norm.bias"]}
for i in range(L):
    at, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
    for norm, theirs in {"norm1": "LayerNorm_0", "norm2": "LayerNorm_2"}.items():
        a[f"{at}{theirs}/scale"], a[f"{at}{theirs}/bias"] = n[f"{ours}{norm}.weight"], n[f"{ours}{norm}.bias"]
    attention = at + "MultiHeadDotProductAttention_1/"
    for j, part in enumerate(["query", "key", "value"]):
        a[f"{attention}{part}/kernel"] = n[ours + "attn.qkv.weight"][j * C:][:C].T.reshape(C, H, C // H)
        a[f"{attention}{part}/bias"] = n[ours + "attn.qkv.bias"][j * C:][:C].reshape(H, C // H)
    a[attention + "out/kernel"] = n[ours + "attn.proj.weight"].T.reshape(H, C // H, C)
    a[attention + "out/bias"] = n[ours + "attn.proj.bias"]
    for j, fc in enumerate(["fc1", "fc2"]):
        a[f"{at}MlpBlock_3/Dense_{j}/kernel"] = n[f"{ours}mlp.{fc}.weight"].T
        a[f"{at}MlpBlock_3/Dense_{j}/bias"] = n[f"{ours}mlp.{fc}.bias"]
np.savez_compressed(out + "/deit.npz", **a)
