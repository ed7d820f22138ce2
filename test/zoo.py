"""The networks of other libraries beside this program: logits, one step of training, export.

    python test/zoo.py [--vit ./vit] [--zoo build/zoo] [--out TABLE.md] [NAME...]

Needs torch, timm, transformers, torchvision, onnx, onnxruntime, safetensors; ends with status 77 where
one is missing. Each architecture of the hubs is made by its library at a small size with random
weights, saved as people find it, and computed in float64 there and here (build/zoo):

  logits    largest distance, relative to the largest logit
  sgd adamw largest distance of a parameter after one update (lr 1e-3, AdamW with weight decay 0.05),
            in units of lr
  timm hf npz onnx   the same model exported by ./vit, loaded by timm (strict), transformers, timm's reader
            of Google's files, onnxruntime (float32; two batch sizes), and its logits there; npz, timm and hf
            are read back here as well. A reason in brackets: the form cannot hold this network.

And pictures, as the library prepares them and as this program does by the files beside the weights:
their mean difference in levels.

The last line is `N passed, N failed, N skipped`; --out writes the table.
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import warnings

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["TRANSFORMERS_VERBOSITY"] = "error"
os.environ["HF_HUB_OFFLINE"] = "1"
warnings.filterwarnings("ignore")
try:
    import numpy as np
    import onnx
    import onnxruntime
    import safetensors.torch as st
    import timm
    import torch
    import transformers as T
    from PIL import Image
    from timm.models import _hub
    from timm.models.vision_transformer import _load_weights
    from torch import nn
    from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT
except ImportError as e:
    print(f"skipped: {e}")
    sys.exit(77)
try:
    T.utils.logging.disable_progress_bar()
except AttributeError:
    pass
torch.set_num_threads(1)

S, P, C, L, H, F, K, B = 32, 8, 128, 2, 2, 256, 7, 3  # of the small networks; C / 64 heads
POOLS = {"cls": "token", "gap": "avg", "map": "map"}
LIMIT = {"logits": 1e-9, "sgd": 1e-7, "adamw": 1e-5, "timm": 1e-5, "hf": 1e-5, "npz": 1e-5, "onnx": 1e-5}
SMALL = dict(img_size=S, patch_size=P, embed_dim=C, depth=L, num_heads=H)


def random_weights(model):
    """Large enough that every tensor matters; in float32, as files have them, computed in float64."""
    with torch.no_grad():
        for name, p in model.named_parameters():
            scale = 1.5 / p[0].numel() ** 0.5 if p.ndim > 1 and "token" not in name and "pos" not in name else 0.3
            p.copy_(torch.randn(p.shape) * scale + ("norm" in name and p.ndim == 1 and "bias" not in name))
    return model.eval()


# ---- how each is saved ----

def hub(model, directory, args=None):
    """timm's folder."""
    _hub.save_for_hf(model, directory, model_config={"model_args": args} if args else None, safe_serialization=True)


def pretrained(model, directory, args=None):
    model.save_pretrained(directory)


def beside(save):
    """Tensors alone, with a config.json of timm's that names the architecture."""
    def run(model, directory, args=None):
        hub(model, directory, args)
        os.remove(directory + "/model.safetensors")
        save(model.state_dict(), directory)
    return run


def nested(state, directory):
    torch.save({"model": {"module." + k: v for k, v in state.items()}, "epoch": 3}, directory + "/checkpoint.pth")


def legacy(state, directory):
    torch.save(state, directory + "/old.pth", _use_new_zipfile_serialization=False)


def dino(state, directory):
    """A student, a teacher and what DINO's heads have."""
    both = {"student": {"module.backbone." + k: torch.randn_like(v) for k, v in state.items()},
            "teacher": {"backbone." + k: v for k, v in state.items()}, "epoch": 1}
    both["teacher"]["head.mlp.0.weight"] = torch.randn(3, C)
    torch.save(both, directory + "/dino.pth")


def openai(model, directory, args=None):
    """The names of OpenAI's CLIP and open_clip, of transformers'."""
    w = {}
    for k, v in model.state_dict().items():
        for theirs, name in [("vision_model.", "visual."), ("visual_projection.weight", "visual.proj"),
                             ("embeddings.patch_embedding", "conv1"), ("embeddings.class", "class"),
                             ("embeddings.position_embedding.weight", "positional_embedding"),
                             ("pre_layrnorm", "ln_pre"), ("post_layernorm", "ln_post"),
                             ("encoder.layers", "transformer.resblocks"), ("layer_norm", "ln_"), ("self_attn", "attn"),
                             ("mlp.fc1", "mlp.c_fc"), ("mlp.fc2", "mlp.c_proj")]:
            k = k.replace(theirs, name)
        if not k.endswith("position_ids"):
            w[k] = v.T.contiguous() if k == "visual.proj" else v
    for i in range(L):
        at = f"visual.transformer.resblocks.{i}.attn."
        for kind in ["weight", "bias"]:
            w[at + "in_proj_" + kind] = torch.cat([w.pop(f"{at}{p}_proj.{kind}") for p in "qkv"])
    st.save_file(w, directory + "/open_clip_model.safetensors")
    json.dump({"model_cfg": {"embed_dim": K, "quick_gelu": True, "vision_cfg":
                             {"image_size": S, "layers": L, "width": C, "head_width": C // H, "patch_size": P}},
               "preprocess_cfg": {"mean": [0.48, 0.46, 0.41], "std": [0.27, 0.26, 0.28]}},
              open(directory + "/open_clip_config.json", "w"))


def torchvision(model, directory, args=None):
    torch.save(model.state_dict(), directory + "/vit.pth")


# ---- architectures ----

def of_timm(name, save=hub, classes=K, **more):
    args = {**SMALL, **more}
    model = random_weights(timm.create_model(name, num_classes=classes, **args))
    return model, model, lambda m, d: save(m, d, args)


def of_transformers(Model, config, read, save=pretrained):
    model = random_weights(Model(config))
    return model, lambda x: read(model, x), save


sizes = dict(hidden_size=C, num_hidden_layers=L, num_attention_heads=H, intermediate_size=F, image_size=S,
             patch_size=P, num_labels=K)
dino_sizes = {k: v for k, v in sizes.items() if k != "intermediate_size"}
tower = {k: v for k, v in sizes.items() if k != "num_labels"}
towers = dict(vision_config=tower, text_config=dict(tower, vocab_size=9, bos_token_id=0, eos_token_id=1))


def mae_features(m, x):
    return m(x, noise=torch.arange((S // P) ** 2, dtype=x.dtype).expand(len(x), -1)).last_hidden_state[:, 0]


ZOO = {
    "vit_base_patch16_224": lambda: of_timm("vit_base_patch16_224"),
    "vit_small_patch16_224, .pth": lambda: of_timm("vit_small_patch16_224", beside(nested)),
    "vit_small_patch16_224, old .pth": lambda: of_timm("vit_small_patch16_224", beside(legacy)),
    "vit_small_patch16_224.dino, DINO's file": lambda: of_timm("vit_small_patch16_224", beside(dino), classes=0),
    "deit_tiny_patch16_224": lambda: of_timm("deit_tiny_patch16_224"),
    "deit_tiny_distilled_patch16_224": lambda: of_timm("deit_tiny_distilled_patch16_224"),
    "deit3_small_patch16_224": lambda: of_timm("deit3_small_patch16_224"),
    "flexivit_small": lambda: of_timm("flexivit_small"),
    "vit_base_patch16_224, global_pool=avg (fc_norm)": lambda: of_timm("vit_base_patch16_224", global_pool="avg"),
    "vit_base_patch16_224, token (fc_norm)": lambda: of_timm("vit_base_patch16_224", fc_norm=True),
    "vit_base_patch16_gap_224": lambda: of_timm("vit_base_patch16_gap_224"),
    "vit_medium_patch16_reg4_gap_256": lambda: of_timm("vit_medium_patch16_reg4_gap_256"),
    "vit_base_patch16_224, qk_norm": lambda: of_timm("vit_base_patch16_224", qk_norm=True),
    "vit_base_patch16_224, qkv_bias=False": lambda: of_timm("vit_base_patch16_224", qkv_bias=False),
    "vit_base_patch32_clip_224": lambda: of_timm("vit_base_patch32_clip_224"),
    "vit_base_patch32_clip_quickgelu_224": lambda: of_timm("vit_base_patch32_clip_quickgelu_224"),
    "vit_small_patch14_dinov2": lambda: of_timm("vit_small_patch14_dinov2"),
    "vit_small_patch14_reg4_dinov2": lambda: of_timm("vit_small_patch14_reg4_dinov2"),
    "vit_giant_patch14_reg4_dinov2 (SwiGLU)": lambda: of_timm("vit_giant_patch14_reg4_dinov2"),
    "vit_base_patch16_siglip_224 (map)": lambda: of_timm("vit_base_patch16_siglip_224"),
    "vit_so400m_patch14_siglip_224": lambda: of_timm("vit_so400m_patch14_siglip_224", classes=0),
    "vit_base_patch16_siglip_gap_224": lambda: of_timm("vit_base_patch16_siglip_gap_224"),
    "ViTForImageClassification": lambda: of_transformers(
        T.ViTForImageClassification, T.ViTConfig(**sizes), lambda m, x: m(x).logits),
    "DeiTForImageClassificationWithTeacher": lambda: of_transformers(
        T.DeiTForImageClassificationWithTeacher, T.DeiTConfig(**sizes, layer_norm_eps=1e-6), lambda m, x: m(x).logits),
    "ViTMSNForImageClassification": lambda: of_transformers(
        T.ViTMSNForImageClassification, T.ViTMSNConfig(**sizes), lambda m, x: m(x).logits),
    "ViTMAEModel (backbone)": lambda: of_transformers(
        T.ViTMAEModel, T.ViTMAEConfig(**tower, mask_ratio=0.0), mae_features),
    "Dinov2ForImageClassification": lambda: of_transformers(
        T.Dinov2ForImageClassification, T.Dinov2Config(**dino_sizes, mlp_ratio=2), lambda m, x: m(x).logits),
    "Dinov2WithRegisters..., SwiGLU": lambda: of_transformers(
        T.Dinov2WithRegistersForImageClassification,
        T.Dinov2WithRegistersConfig(**dino_sizes, mlp_ratio=2, use_swiglu_ffn=True), lambda m, x: m(x).logits),
    "CLIPVisionModelWithProjection": lambda: of_transformers(
        T.CLIPVisionModelWithProjection, T.CLIPVisionConfig(**tower, projection_dim=K), lambda m, x: m(x).image_embeds),
    "CLIPModel (both towers)": lambda: of_transformers(
        T.CLIPModel, T.CLIPConfig(**towers, projection_dim=K),
        lambda m, x: m.visual_projection(m.vision_model(x).pooler_output)),
    "CLIP under OpenAI's names": lambda: of_transformers(
        T.CLIPVisionModelWithProjection, T.CLIPVisionConfig(**tower, projection_dim=K),
        lambda m, x: m(x).image_embeds, openai),
    "SiglipVisionModel (backbone)": lambda: of_transformers(
        T.SiglipVisionModel, T.SiglipVisionConfig(**tower), lambda m, x: m(x).pooler_output),
    "SiglipForImageClassification": lambda: of_transformers(
        T.SiglipForImageClassification, T.SiglipConfig(**towers, num_labels=K), lambda m, x: m(x).logits),
    "torchvision's vit": lambda: (lambda m: (m, m, torchvision))(random_weights(
        TorchvisionViT(S, P, L, H, C, F, num_classes=K))),
}


# ---- pictures ----

# How each prepares them: timm's pretrained_cfg; transformers' processor, or what a file from before 4.26 has.
colours = dict(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.3, 0.25])
PICTURES = {
    "timm's center": dict(crop_pct=0.9),
    "timm's squash": dict(crop_mode="squash", crop_pct=0.9, interpolation="bilinear"),
    "timm's squash of all": dict(crop_mode="squash", crop_pct=1.0),
    "ViTImageProcessor": lambda: T.ViTImageProcessor(size={"height": S, "width": S}, **colours),
    "DeiTImageProcessor": lambda: T.DeiTImageProcessor(size={"height": 40, "width": 40}, crop_size=S, **colours),
    "BitImageProcessor": lambda: T.BitImageProcessor(size={"shortest_edge": 40}, crop_size=S, **colours),
    "CLIPImageProcessor": lambda: T.CLIPImageProcessor(size={"shortest_edge": S}, crop_size=S, **colours),
    "SiglipImageProcessor": lambda: T.SiglipImageProcessor(size={"height": S, "width": S}, **colours),
    "a file of google/vit": dict(size=S, do_resize=True, do_normalize=True, **colours),
    "ViTFeatureExtractor": dict(feature_extractor_type="ViTFeatureExtractor", size=S, resample=3, **colours),
    "DeiTFeatureExtractor": dict(feature_extractor_type="DeiTFeatureExtractor", size=40, crop_size=S,
                                 do_center_crop=True, resample=3, **colours),
    "CLIPFeatureExtractor": dict(feature_extractor_type="CLIPFeatureExtractor", size=S, crop_size=S,
                                 do_center_crop=True, resample=3, **colours),
}


def pixels(o, name, how):
    """Mean difference, in levels, of five pictures of five shapes as the library and ./vit show prepare them."""
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as work:
        os.makedirs(work + "/data/class")
        opened = []
        for i, size in enumerate([(300, 200), (200, 301), (64, 64), (97, 50), (40, 33)]):
            small = Image.fromarray(rng.integers(0, 255, (9, 9, 3), dtype=np.uint8))
            small.resize(size, Image.BICUBIC).save(f"{work}/data/class/{i}.png")
            opened.append(Image.open(f"{work}/data/class/{i}.png").convert("RGB"))
        directory = work + "/model"
        if name.startswith("timm"):
            hub(timm.create_model("vit_tiny_patch16_224", **SMALL), directory, SMALL)
            config = json.load(open(directory + "/config.json"))
            config["pretrained_cfg"].update(input_size=[3, S, S], **how)
            json.dump(config, open(directory + "/config.json", "w"))
            transform = timm.data.create_transform(**timm.data.resolve_data_config({}, pretrained_cfg=config[
                "pretrained_cfg"]), is_training=False)
            theirs, mean, std = [transform(x) for x in opened], *(
                config["pretrained_cfg"][k] for k in ["mean", "std"])
        else:
            T.ViTForImageClassification(T.ViTConfig(**sizes)).save_pretrained(directory)
            if callable(how):
                how().save_pretrained(directory)
            else:
                json.dump(how, open(directory + "/preprocessor_config.json", "w"))
            prepare = T.AutoImageProcessor.from_pretrained(directory)
            theirs = [prepare(x, return_tensors="pt")["pixel_values"][0] for x in opened]
            mean, std = colours["image_mean"], colours["image_std"]
        run(o.vit, "show", "--data", work + "/data", "--val", "--weights", directory, "--out", work + "/ours.npy")
        ours = np.load(work + "/ours.npy").astype(float)
        scale = np.array(std).reshape(3, 1, 1), np.array(mean).reshape(3, 1, 1)
        theirs = np.stack([255 * (x.numpy() * scale[0] + scale[1]) for x in theirs]).transpose(0, 2, 3, 1)
        return float(np.abs(ours - theirs).mean())


# ---- comparing ----

def run(*command):
    r = subprocess.run(command, capture_output=True, text=True)
    if r.returncode:
        raise RuntimeError(" ".join(l for l in r.stderr.splitlines() if l.startswith(("error", "hint"))) or r.stderr)
    return r.stdout


def far(ours, theirs):
    a, b = torch.as_tensor(ours).double(), torch.as_tensor(theirs).double()
    return float((a - b).abs().max() / b.abs().max()) if a.shape == b.shape else float("inf")


def load_timm(directory, images):
    model = timm.create_model("local-dir:" + directory, pretrained=True)
    model.load_state_dict(st.load_file(directory + "/model.safetensors"), strict=True)
    return model.eval().double()(images)


def load_hf(directory, images):
    config = json.load(open(directory + "/config.json"))
    model, info = getattr(T, config["architectures"][0]).from_pretrained(directory, output_loading_info=True)
    strange = [k for k in info["missing_keys"] if "pooler" not in k] + list(info["unexpected_keys"])
    if strange:
        raise RuntimeError(f"not strict: {strange[:3]}")
    out = model.eval().double()(images)
    for name in ["logits", "image_embeds"]:
        if hasattr(out, name):
            return getattr(out, name)
    return out.pooler_output if "Siglip" in config["architectures"][0] or "CLIP" in config["architectures"][0] \
        else out.last_hidden_state[:, 0]


def load_npz(path, images, like):
    """timm's reader of Google's files, where the model is timm's."""
    model = timm.create_model("vit_base_patch16_224", num_classes=like.num_classes, **SMALL, mlp_ratio=like.ratio,
                              act_layer=like.act, global_pool=like.pool, class_token=like.pool == "token",
                              fc_norm=False)
    _load_weights(model, path)
    return model.eval().double()(images)


def run_onnx(path, images):
    onnx.checker.check_model(onnx.load(path), full_check=True)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    x = images.float().numpy()
    y = session.run(None, {"image": x})[0]
    assert np.abs(session.run(None, {"image": x[:1]})[0] - y[:1]).max() < 1e-4  # any number of images
    return y


def exports(o, directory, images, want, work):
    """Distance of each form, or the reason why there is none."""
    result, again = {}, {}
    for form in ["timm", "hf", "npz", "onnx"]:
        out = f"{work}/{form}" + {"npz": ".npz", "onnx": ".onnx"}.get(form, "")
        try:
            run(o.vit, "export", "--format", form, directory, out)
        except RuntimeError as e:
            reason = str(e).removeprefix("error: ").split(" hint:")[0]
            result[form] = reason
            continue
        if form == "timm":
            result[form] = far(load_timm(out, images), want)
        elif form == "hf":
            result[form] = far(load_hf(out, images), want)
        elif form == "onnx":
            result[form] = far(run_onnx(out, images), want)
        else:
            result[form] = 0.0
        if form != "onnx":
            again[form] = out
    info = json.loads(run(o.vit, "info", "--json", directory))["config"]
    mean, std = ([info[f"{kind}_{c}"] for c in "rgb"] for kind in ["mean", "std"])
    pixels = 255 * (images * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1))
    run(o.vit, "export", "--format", "onnx", "--normalise", "--external-data", directory, f"{work}/pixels.onnx")
    assert os.path.getsize(f"{work}/pixels.onnx") < os.path.getsize(f"{work}/onnx.onnx") / 4
    result["onnx"] = max(result["onnx"], far(run_onnx(f"{work}/pixels.onnx", pixels), want))
    ok_npz = info["eps"] == 1e-6 and info["act"] == "gelu"  # what nobody says of an npz is assumed to be
    if "npz" in again and not ok_npz:
        run(o.vit, "import", again["npz"], f"{work}/npz-said", "--act", info["act"], "--eps", str(info["eps"]),
            "--eps-final", str(info["eps_final"]))
        again["npz"] = f"{work}/npz-said"
    if "npz" in again and ok_npz and info["pool"] in POOLS:
        like = argparse.Namespace(num_classes=info["classes"], ratio=info["mlp"] / C, act=None,
                                  pool=POOLS[info["pool"]])
        result["npz"] = far(load_npz(f"{work}/npz.npz", images, like), want)
    run(o.vit, "import", directory, work + "/ours")
    again["ours"] = work + "/ours"
    run(o.zoo, "logits", work + "/in.safetensors", work + "/again.safetensors", *again.values())
    for i, form in enumerate(again):
        d = far(st.load_file(work + "/again.safetensors")[str(i)], want)
        result[form] = max(result.get(form, 0.0), d)
    return result


def after_step(model, forward, images, labels, opt, save, directory):
    """The library's model after one update, saved; its weights are what they were."""
    before = {k: v.clone() for k, v in model.state_dict().items()}
    kind = {"sgd": lambda p: torch.optim.SGD(p, lr=1e-3),
            "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, weight_decay=0.05)}[opt]
    optimiser = kind(model.parameters())
    nn.functional.cross_entropy(forward(images), labels).backward()
    optimiser.step()
    model.zero_grad(set_to_none=True)
    os.makedirs(directory, exist_ok=True)
    save(model, directory)
    model.load_state_dict(before)


def try_one(o, make):
    torch.manual_seed(1)
    model, forward, save = make()
    images, labels = torch.randn(B, 3, S, S, dtype=torch.float64), torch.arange(B) % K
    row = {}
    with tempfile.TemporaryDirectory() as work:
        st.save_file({"images": images, "labels": labels}, work + "/in.safetensors")
        directory = work + "/model"
        os.makedirs(directory)
        save(model, directory)
        model.double()
        with torch.no_grad():
            want = forward(images)
        run(o.zoo, "logits", work + "/in.safetensors", work + "/out.safetensors", directory)
        row["logits"] = far(st.load_file(work + "/out.safetensors")["0"], want)
        for opt in ["sgd", "adamw"] if want.shape[1] == K else []:
            after_step(model, forward, images, labels, opt, save, f"{work}/{opt}")
            row[opt], _, row[opt + " at"] = run(o.zoo, "step", work + "/in.safetensors", directory, f"{work}/{opt}",
                                               opt).partition(" ")
            row[opt] = float(row[opt])
        with torch.no_grad():
            row.update(exports(o, directory, images, want, work))
    row["ours"] = row.get("ours", float("nan"))
    return row


def cell(v):
    if v is None:
        return ""
    return f"{v:.1e}" if isinstance(v, float) else f"({v})"


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--vit", default="./vit")
    parser.add_argument("--zoo", default="build/zoo")
    parser.add_argument("--out")
    parser.add_argument("names", nargs="*")
    o = parser.parse_args()
    columns = ["logits", "sgd", "adamw", "timm", "hf", "npz", "onnx"]
    LIMIT["ours"] = 1e-5
    passed = failed = skipped = 0
    rows, pictures = [], []
    for name, make in ZOO.items():
        if o.names and not any(n in name for n in o.names):
            continue
        try:
            row = try_one(o, make)
        except Exception as e:
            failed += 1
            print(f"FAIL {name}: {type(e).__name__}: {str(e)[:400]}", flush=True)
            continue
        rows.append((name, row))
        bad = {k: v for k, v in row.items() if isinstance(v, float) and not v < LIMIT[k]}
        failed += len(bad)
        passed += sum(isinstance(v, float) for v in row.values()) - len(bad)
        for k, v in bad.items():
            print(f"FAIL {name}: {k} {v:.1e}, allowed {LIMIT[k]:.0e} {row.get(k + ' at', '')}".rstrip())
        print(f"{name:48}" + " ".join(f"{cell(row.get(c))[:8]:8}" for c in columns), flush=True)
    for name, how in PICTURES.items():
        if o.names and not any(n in name for n in o.names):
            continue
        try:
            levels = pixels(o, name, how)
        except Exception as e:
            failed += 1
            print(f"FAIL {name}: {type(e).__name__}: {str(e)[:400]}", flush=True)
            continue
        pictures.append((name, levels))
        good = levels < 0.5
        passed, failed = passed + good, failed + (not good)
        print(f"{'' if good else 'FAIL '}{name}: pixels differ by {levels:.2f} levels", flush=True)
    if o.out:
        reasons = {}
        with open(o.out, "w") as f:
            f.write(f"# Networks of other libraries\n\n{datetime.date.today()}; timm {timm.__version__}, transformers "
                    f"{T.__version__}, torch {torch.__version__.split('+')[0]}, onnxruntime {onnxruntime.__version__}. "
                    f"By test/zoo.py: width {C}, {L} blocks, {S}x{S} pixels, random weights, float64 on both sides "
                    "(ONNX: float32).\nlogits and exports: largest distance, relative to the largest logit; sgd, adamw: "
                    "largest distance of any parameter\nafter one update, in units of lr.\n\n")
            f.write("| architecture | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 1) + "\n")
            for name, row in rows:
                cells = []
                for c in columns:
                    v = row.get(c)
                    if isinstance(v, str):
                        v = f"[{reasons.setdefault(v, len(reasons) + 1)}]"
                    cells.append(v if isinstance(v, str) else cell(v))
                f.write(f"| {name} | " + " | ".join(cells) + " |\n")
            worst = {c: max([r[c] for _, r in rows if isinstance(r.get(c), float)], default=float("nan"))
                     for c in columns}
            f.write("| **worst** | " + " | ".join(cell(worst[c]) for c in columns) + " |\n\n")
            f.writelines(f"[{n}] {reason}  \n" for reason, n in reasons.items())
            f.write("\nFive pictures of five shapes, as the library prepares them and as this program does by the files\n"
                    "beside the weights: mean difference in levels of 255.\n\n| prepared by | levels |\n|---|---|\n")
            f.writelines(f"| {name} | {levels:.3f} |\n" for name, levels in pictures)
    print(f"{passed} passed, {failed} failed, {skipped} skipped")
    return failed > 0


if __name__ == "__main__":
    sys.exit(main())
