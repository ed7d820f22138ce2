#!/usr/bin/env python3
"""Fine-tuning on a folder of pictures as timm's train.py does it, to set beside ours.

    finetune_timm.py --data DIR --weights model.safetensors --epochs 6 --batch 32 --threads 2

The loop, data pipeline and defaults are those of train.py: a cosine by epochs, label smoothing 0.1,
random resized crops in a random interpolation, flips, colour jitter 0.4; like it this evaluates and
saves after each epoch. Its optimiser is for ResNets (SGD with 0.1 for 256 images: 67% on
hymenoptera) and so is its warm-up of 5 epochs; as people do for a Vision Transformer this has
--opt adamw --lr 1e-4 --weight-decay 0.05 --clip-grad 1 --warmup-epochs 1. The last line says what
came of it; seconds are of the whole process, imports included, and of what follows them.
"""
import time

begin = time.perf_counter()

import argparse
import os
import tempfile

import timm
import torch
from timm.data import create_dataset, create_loader, resolve_data_config
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2

imported = time.perf_counter()


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with train/ and val/")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--classes", type=int, default=2)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--warmup-epochs", type=int, default=1)
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=0, help="0: as PyTorch chooses")
    parser.add_argument("--workers", type=int, default=2, help="of each DataLoader")
    parser.add_argument("--seed", type=int, default=42)
    return parser.parse_args()


def loaders(o, model):
    """Training and validation; the prefetcher normalises, as on train.py's way."""
    data = resolve_data_config({}, model=model)
    common = dict(input_size=data["input_size"], mean=data["mean"], std=data["std"],
                  num_workers=o.workers, device=torch.device("cpu"), batch_size=o.batch)
    train = create_loader(create_dataset("", o.data, split="train", is_training=True),
                          is_training=True, interpolation="random", color_jitter=0.4, hflip=0.5,
                          scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3), **common)
    val = create_loader(create_dataset("", o.data, split="val"), crop_pct=data["crop_pct"],
                        interpolation=data["interpolation"], **common)
    return train, val


def evaluate(model, loader):
    model.eval()
    right = images = 0
    with torch.inference_mode():
        for x, y in loader:
            right += (model(x).argmax(1) == y).sum().item()
            images += len(y)
    return 100 * right / images


def train_epoch(model, loader, loss_of, optimiser):
    model.train()
    for x, y in loader:
        optimiser.zero_grad()
        loss_of(model(x), y).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()


def main():
    o = arguments()
    if o.threads:
        torch.set_num_threads(o.threads)
    timm.utils.random_seed(o.seed)
    model = timm.create_model(o.model, pretrained=True, num_classes=o.classes,
                              pretrained_cfg_overlay={"file": o.weights})
    train, val = loaders(o, model)
    optimiser = create_optimizer_v2(model, opt="adamw", lr=o.lr, weight_decay=0.05)
    schedule, epochs = create_scheduler_v2(optimiser, sched="cosine", num_epochs=o.epochs,
                                           warmup_epochs=o.warmup_epochs, warmup_lr=1e-5, min_lr=0,
                                           cooldown_epochs=0, updates_per_epoch=len(train))
    loss_of = LabelSmoothingCrossEntropy(0.1)
    best = 0
    with tempfile.TemporaryDirectory() as run:
        for epoch in range(epochs):
            train_epoch(model, train, loss_of, optimiser)
            top1 = evaluate(model, val)
            best = max(best, top1)
            schedule.step(epoch + 1, top1)
            torch.save({"state_dict": model.state_dict(), "optimizer": optimiser.state_dict()},
                       os.path.join(run, "last.pth.tar"))
            print(f"epoch {epoch + 1}  top1 {top1:.2f}", flush=True)
    end = time.perf_counter()
    print(f"torch {torch.__version__}, timm {timm.__version__}, {torch.get_num_threads()} threads, "
          f"{o.workers} workers: top1 {top1:.2f}  best {best:.2f}  "
          f"seconds {end - begin:.1f}  without imports {end - imported:.1f}")


if __name__ == "__main__":
    main()
