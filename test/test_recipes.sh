#!/bin/bash
# Recipes, and what fine-tuners set: test/test_recipes.sh BINARY. Everything happens in a temporary folder.
# Every recipe is read and trains for three steps, with all that it says but the size of the model, of a step
# and of the machine.
binary=$(realpath "$1") root=$(cd "$(dirname "$0")/.." && pwd)
# shellcheck source=test/common.sh
. "$root/test/common.sh"
need "$binary"
subject=("$binary")

setting() { # file, key
    sed -nE "s/^$2 = //p" "$1" | tail -n 1
}
close() { # name, a, b: lists of numbers that agree within 1e-5
    check "$1" awk -v a="$2" -v b="$3" 'BEGIN { n = split(a, x); m = split(b, y); bad = n == 0 || n != m
        for (i = 1; i <= n; i++) bad += !((x[i] - y[i]) ^ 2 <= (1e-5 * y[i]) ^ 2)
        exit bad > 0 }'
}

# ---- every recipe ----

size="--width 32 --layers 4 --heads 2 --mlp 64 --num-classes 4 --batch-size 16 --micro-batch 8 --data fake:64"
one="--threads 1 --tp 1 --pp 1 --zero 0 --no-layers-per-stage --precision fp32 --loss-scaling default
     --no-stochastic-rounding"
run="--steps 3 --warmup-steps 1 --log-every 1 --eval-every 3 --save-every 3"

# The weights that a recipe starts from are of another that names it, or of one as small.
three_steps() { # recipe, arguments...
    local name=$1
    shift
    good "$name" --recipe "$root/recipes/$name.ini" $size $one $run "$@" --out "$name"
    check "$name: three losses, all finite" sh -c "[ \$(grep -c '\"event\":\"step\"' $name/log.jsonl) = 3 ] &&
        ! grep -q 'nan\\|inf\\|null' $name/log.jsonl"
    for key in opt lr weight-decay clip schedule; do
        check "$name: $key is the recipe's" \
            awk -v a="$(setting "$root/recipes/$name.ini" $key)" -v b="$(setting "$name/config.ini" $key)" \
            'BEGIN { exit !(a == "" || a == b || a + 0 == b + 0) }'
    done
}
for name in rosetta_b16_pretrain nemo_b16_pretrain nemo_l16_pretrain nemo_h16_pretrain azure_b16_sgd \
    azure_highres graphcore_b16_in1k_pretrain graphcore_b16_in1k_pretrain_lamb deit_ti16_in1k deit3_s16_in1k \
    augreg_s16_in1k baseline_s16_in1k; do
    three_steps $name --image-size 32
done
for name in rosetta_g14_pretrain nemo_h14_pretrain nemo_g14_pretrain nemo_bigG14_pretrain fsdp_10b fsdp_60b \
    fsdp_120b; do
    three_steps $name --image-size 28
done
three_steps cifar10 --image-size 32
three_steps rosetta_b16_finetune384 --image-size 48 --weights rosetta_b16_pretrain
three_steps nemo_finetune512 --image-size 48 --weights nemo_b16_pretrain
for name in graphcore_b16_cifar10 graphcore_b16_in1k_finetune graphcore_b16_in1k_finetune_als finetune_small finetune_cifar10 \
    linear_probe; do
    three_steps $name --image-size 32 --weights azure_b16_sgd
done
for run_of in cifar10 in1k_finetune in1k_finetune_als in1k_pretrain in1k_pretrain_lamb; do
    good "graphcore_b16_${run_of}_valid" eval graphcore_b16_$run_of --recipe "$root/recipes/graphcore_b16_${run_of}_valid.ini" \
        --data fake:64 --precision fp32
    check "evaluates" grep -q '^top1 .* images 64$' log
    touch graphcore_b16_${run_of}_valid
done
for recipe in "$root"/recipes/*.ini; do
    check "$(basename "$recipe") is tried" test -e "$(basename "$recipe" .ini)"
    check "$(basename "$recipe") says where it is from and what to expect" \
        grep -qE '^# (Source|Published|Reached): ' "$recipe"
done
check "the tanh layer is gone" grep -q '^representation = 0$' rosetta_b16_finetune384/config.ini
check "and so are positions of another size" grep -q '^image-height = 48$' rosetta_b16_finetune384/config.ini

# ---- accumulation averages ----

tiny="--image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2 --mlp 64 --num-classes 4 --threads 1 --data fake:64"
for opt in sgd adamw lamb; do
    for micro in 16 4; do
        good "$opt by $micro" $tiny --opt $opt --lr 0.05 --batch-size 16 --micro-batch $micro --steps 4 --warmup-steps 0 \
            --clip 0.01 --log-every 1 --val-data none --out $opt-$micro
    done
    close "$opt: losses do not depend on the micro-batch" "$(field $opt-4 loss)" "$(field $opt-16 loss)"
    close "$opt: nor do the gradients' norms" "$(field $opt-4 grad_norm)" "$(field $opt-16 grad_norm)"
done

# ---- parts that do not learn ----

good "a linear probe" $tiny --weights sgd-16 --freeze head-only --layer-decay 0.5 --steps 2 --batch-size 16 --out probe
check "says what learns" grep -q '^learning  head.weight and head.bias alone: 132 of ' log
good "blocks are frozen" $tiny --weights sgd-16 --freeze 1 --layer-decay 0.5 --steps 2 --batch-size 16 --out frozen
check "says which learn" grep -q '^learning  blocks 1 to 1 and the head: ' log
check "and how slowly" grep -q 'times 0.5 for each layer below the head: 0.5 of it in the lowest that learns' log
good "it goes on with more of it" --resume frozen --steps 4 --no-freeze --batch-size 16
check "and says so" grep -q '^changed   freeze 1 -> (none)$' log
good "freezing what is random" $tiny --freeze 2 --steps 1 --batch-size 16 --out random
check "is warned of" grep -q '^warning: what is frozen is random' log
bad "more blocks than there are" 2 'the model has 2 blocks' $tiny --freeze 3 --steps 1 --batch-size 16 --out none
bad "no number of blocks" 2 'no number' $tiny --freeze some --steps 1 --batch-size 16 --out none
bad "another name for it" 2 'no such setting' $tiny --linear-probe 1

# ---- fixed positions, hard targets ----

good "fixed positions" $tiny --position sincos2d --steps 2 --batch-size 16 --out sines
check "are said" grep -q '^learning  all but the positions' log
check "and written down" grep -q '^position = sincos2d$' sines/config.ini
good "in place of those of weights" $tiny --weights sgd-16 --position sincos2d --lr 0 --steps 1 --batch-size 16 --out put
positions() { # run: the first tensor but one of its weights, behind its header
    local file header
    file=$(last "$1")/model.safetensors
    header=$(od -An -tu8 -N8 "$file")
    tail -c +$((9 + header + 128)) "$file" | head -c $((5 * 128))
}
check "are the same ones" [ "$(positions sines | cksum)" = "$(positions put | cksum)" ]
check "and others than were learned" [ "$(positions sines | cksum)" != "$(positions sgd-16 | cksum)" ]
bad "no room for two axes of sines" 2 'a multiple of four' $tiny --width 30 --position sincos2d --steps 1 --out none
bad "hard targets of a softmax" 2 'of the sigmoid loss alone' $tiny --target-threshold 0 --label-smoothing 0 --out none
bad "all targets hard" 2 'smoothed targets are all above 0' $tiny --loss sigmoid --target-threshold 0 --out none
bad "hard whatever they are" 2 'every target is above it' $tiny --loss sigmoid --target-threshold -0.5 --out none
good "hard targets" $tiny --loss sigmoid --target-threshold 0.2 --mixup 0.8 --steps 2 --batch-size 16 --out hard

# ---- early stopping ----

good "nothing gets better" $tiny --lr 0 --patience 2 --eval-every 1 --steps 50 --batch-size 16 --out early
check "ends early" grep -q '^stopped early, after step 3 of 50: 2 evaluations without a better top-1' log
check "with a checkpoint" test -e early/step_00000003
good "it was at two of three" --resume early --patience 3
check "and ends after the next" grep -q '^stopped early, after step 4 of 50: 3 evaluations' log
bad "both sides in a pipeline" 2 "the last of 2 stages" $tiny --tta flip --pp 2 --ranks 2 --batch-size 16 --out none
bad "patience without evaluations" 2 'counts evaluations' $tiny --patience 2 --val-data none --batch-size 16 --out none

# ---- pictures: unequal classes, no validation split ----

for i in 1 2 3 4 5 6 7 8; do
    for class in a b; do
        mkdir -p pics/$class mirrored/$class
        [ $class = b ] && [ $i -gt 2 ] && continue
        printf 'P6 2 2 255 %d00YYY%d00YYY' $i $i >pics/$class/$i.ppm
        printf 'P6 2 2 255 YYY%d00YYY%d00' $i $i >mirrored/$class/$i.ppm
    done
done
pics="--image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2 --mlp 64 --threads 1 --data pics --crop stretch"
good "a share for validation" $pics --val-fraction 0.25 --class-weights balanced --steps 3 --batch-size 4 --out share
check "is said" grep -q '^note: pics has no validation images: 3 of its 10 are kept .*(--val-fraction 0.25)$' log
check "and counted" grep -q '^data      pics: 7 training images, 3 validation images, 2 classes' log
check "so are weights" grep -qE '^weighted  .*balanced: from 0.583 \(a\) to 3.5 \(b\)' log
good "it is what is evaluated" eval share
check "alone" grep -q '^top1 .* images 3$' log
good "other data" eval share --data mirrored
check "is evaluated as a whole" grep -q '^top1 .* images 10$' log
printf '1\n1\n' >equal.txt && printf 'a 1\nb 3\n' >unequal.txt
for weights in "" equal.txt unequal.txt; do
    good "weights ${weights:-of none}" $pics --val-data none ${weights:+--class-weights "$weights"} --init torch --steps 1 --batch-size 10 \
        --out "weights-$weights"
done
close "equal weights change nothing" "$(field weights-equal.txt loss)" "$(field weights- loss)"
check "others do" [ "$(field weights-unequal.txt loss)" != "$(field weights- loss)" ]
mkdir -p asked/test && cp -r pics asked/train && cp pics/a/1.ppm asked/test
good "a share beside pictures without labels" $pics --data asked --val-fraction 0.25 --steps 1 --batch-size 4 --out beside
check "which are left alone" sh -c "! grep -q 'asked/test: ' log"
bad "a share of what is no folder" 1 'folders of pictures' $tiny --val-fraction 0.1 --steps 1 --batch-size 16 --out none
bad "weights of a sigmoid's classes" 2 'softmax loss alone' $pics --loss sigmoid --class-weights balanced --out none
printf 'a 1\n' >weights.txt
bad "too few weights" 1 '1 weight for 2 classes' $pics --val-data none --class-weights weights.txt --steps 1 --batch-size 4 --out none

# ---- pictures and their mirror images ----

for set in pics mirrored; do
    for tta in none flip; do
        good "$set, $tta" eval share --data $set --tta $tta
        tail -n 1 log >$set-$tta
        "$binary" predict share --tta $tta $set/a/1.ppm 2>/dev/null | tail -n +2 >$set-$tta-1
    done
done
check "pictures and mirror images differ" sh -c "! cmp -s pics-none mirrored-none"
check "but not where both count" cmp pics-flip mirrored-flip
check "in predict too" sh -c "cmp pics-flip-1 mirrored-flip-1 && ! cmp -s pics-none-1 mirrored-none-1 && test -s pics-flip-1"

finish
