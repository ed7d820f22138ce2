#!/bin/bash
# End to end: the program on tiny models, good and bad input. test/test_train.sh BINARY [SHARED]
# Everything happens in a temporary folder. TEST_SMALL=1 leaves out what is slow under sanitizers.
# Every error must say `error:` and `hint:`, with the right exit status and without a crash.
binary=$(realpath "$1") here=$(realpath "$(dirname "$0")")
shared=$(realpath -m "${2:-../shared}")
# shellcheck source=test/common.sh
. "$here/common.sh"
need "$binary"
subject=("$binary")

tiny="--image-size 16 --patch-size 8 --width 32 --layers 2 --heads 2 --mlp 64 --batch-size 16
      --threads 1 --lr 0.001"
fake="--data fake --num-classes 4 $tiny"

# ---- usage ----

good "help" --help all
check "help lists groups and flags" sh -c "grep -q '^learning rate' log && grep -q -- '--patch-size' log"
good "help of a command" predict --help
check "is about that" sh -c "grep -q -- '--topk' log && ! grep -q -- '--lr ' log"
good "version" --version
check "says what was compiled in" grep -qE '^train_[cg]pu of vit.c, compiled with .*MPI, (no )?WebP, (no )?TIFF by' log
bad "a flag of timm's" 2 'here it is --label-smoothing' --smoothing 0.1
bad "data that names no place" 1 'follows the colon' --data cifar10:
ln -s circle circle
bad "a link in a circle" 1 'circle: symbolic links that lead in a circle' --data circle
bad "weights that are one" 1 'circle: symbolic links that lead in a circle' eval circle
bad "unknown flag" 2 'did you mean --width' --widht 3
bad "unknown command" 2 'did you mean train' trian
bad "a command that is a flag" 2 'train, eval, predict or bench; --help' help
bad "a flag at the end" 2 'hint: peak learning rate' --lr
bad "bad number" 2 'lr: .fast.' --lr fast
bad "out of range" 2 'batch-size' --batch-size -4
bad "heads do not divide the width" 2 '5 heads.* 32' $fake --heads 5
bad "patch does not divide the image" 2 '16x16' $fake --patch-size 7
bad "unknown model" 2 'B/17' $fake --model B/17
bad "unknown initialiser" 2 'jaxx' $fake --init jaxx
bad "unknown augmentation" 2 'did you mean imagenet' --data /nonexistent --auto-augment imagnet
bad "part of an augmentation" 2 'called .x3' --data /nonexistent --auto-augment rand-m9-x3
bad "colour jitter" 2 'hue' --data /nonexistent --color-jitter 0.4,0.4,0.4,0.6
bad "tf32 on a CPU" 2 'fp32 and bf16' $fake --precision tf32
bad "fp16 on a CPU" 2 'fp32 and bf16' $fake --precision fp16
VIT_BF16_PRODUCTS=halves run $fake --precision bf16
refused "products that there are not" 2 'VIT_BF16_PRODUCTS is .halves'
bad "eval without weights" 2 'needs --weights' eval --data fake
bad "predict without images" 2 'needs images' predict --weights x.safetensors
printf '\357\273\277steps = 0\r\nepochs = 0\r\n' >marked.ini
bad "a recipe from Windows is read" 2 'epochs 0 trains nothing' --recipe marked.ini
printf 'width = 32\nlayrs = 2\n' >recipe.ini
bad "unknown key in a recipe" 2 'recipe.ini:2.*layrs|did you mean layers' --recipe recipe.ini
head -c 3000 /dev/urandom >noise.ini
run --recipe noise.ini
check "noise as a recipe" [ $rc = 2 ]

mkdir folder-alone && touch recipe-alone.ini image-alone.JPG weights-alone.pth
bad "a folder alone" 2 'hint: images are --data folder-alone' folder-alone
bad "behind train too" 2 'hint: images are --data folder-alone' train folder-alone
bad "a recipe alone" 2 'hint: .*--recipe recipe-alone.ini' recipe-alone.ini
bad "a picture alone" 2 'hint: .*predict RUN image-alone.JPG' image-alone.JPG
bad "weights alone" 2 'hint: .*--weights weights-alone.pth' weights-alone.pth
bad "a no with a value" 2 'no-augment takes no value' --no-augment=false

# ---- a run and what it leaves ----

good "a run" $fake --steps 12 --log-every 4 --eval-every 6 --out run
check "plain lines on a pipe" grep -qE '^step 4/12 .* [0-9.]+ images/s' log
check "how to go on" grep -q -- '--resume run' log
check "step lines" grep -qE '^\{"event":"step","step":12,.*"loss":[0-9.e+-]+.*"images_per_s":.*\}$' run/log.jsonl
check "eval lines" grep -qE '^\{"event":"eval","step":6,.*"top1":.*"top5":.*"loss":.*\}$' run/log.jsonl
check "start line" sh -c "head -n 1 run/log.jsonl | grep -q '^{\"event\":\"start\"'"
good "eval" eval --weights run
check "closing line of eval" \
    sh -c "tail -n 1 log | grep -qE '^top1 [0-9]+\.[0-9]{2} top5 100\.00 loss [0-9]+\.[0-9]{4} images 256$'"
good "flags without effect" $fake --steps 1 --val-data none --momentum 0.9 --out vain
check "are named, with what they need" grep -q '^note: --momentum has no effect without --opt sgd$' log
good "flags of training, in eval" eval run --position sincos2d --lr 3
check "are named, in one line" grep -q '^note: --lr, --position have no effect in eval$' log
good "a recipe's, in another run" --recipe run/config.ini --opt sgd --steps 1 --val-data none --out vain2
check "are not" sh -c "! grep -q 'no effect' log"
good "eval of a file" eval --data fake --weights "$(last run)/model.safetensors"
bad "the folder holds a run" 1 'already holds' $fake --steps 12 --out run
good "a finished run has nothing left" --resume run
check "and says so" grep -q 'nothing left' log
good "a finished run gets more steps" --resume run --steps 14
check "from where it was" grep -q '^resumed   at step 12' log
good "resumed as it was" --resume run --steps 14
check "keeps one older config.ini" sh -c "test -e run/config.ini.1 && ! test -e run/config.ini.2"
good "and with other settings" --resume run --steps 20 --lr 0.002 --flip 0 --batch-size 8
check "says which" sh -c "grep -q '^changed   lr 0.001 -> 0.002$' log && grep -q '^changed   flip 0.5 -> 0$' log &&
    grep -q '^changed   batch-size 16 -> 8$' log && [ \$(grep -c ^changed log) = 4 ]"
check "and what the learning rate does" grep -qE '^ +lr goes from .* to .*: .* 20 steps, not 14' log
check "the settings before are kept" sh -c "grep -q '^lr = 0.001$' run/config.ini.2 && grep -q '^lr = 0.002$' run/config.ini"
for model in vit_tiny_patch16_224 google/vit-tiny-patch16-224-in21k deit_tiny_patch16_224 ti/16; do
    good "$model" --model $model --data fake --num-classes 4 --image-size 32 --layers 1 --batch-size 2 --threads 1 \
        --steps 1 --val-data none --out "names/$(basename $model)"
    check "$model is Ti/16" grep -q 'width 192, 1 layer, 3 heads, mlp 768, patch 16' log
done
bad "a model that is none" 2 'no model is called' --model swin_tiny_patch4_224 --data fake
good "a run in a folder with blanks" $fake --steps 1 --val-data none --out "a run's"
check "is named as a shell takes it" sh -c "grep -qF \"eval 'a run'\\\\''s'\" log"
good "evaluated by its name alone" eval run
bad "another seed cannot continue" 1 'seed' --resume run --steps 30 --seed 9
bad "nothing to resume" 1 'nowhere' --resume nowhere
bad "a file of a run" 1 'run/latest: is a file, not the directory' --resume run/latest
bad "and to evaluate" 1 'run/latest: is a file of a run' eval run/latest
bad "a run as a recipe" 2 '--recipe run/config.ini' --recipe run
bad "a command of the tools" 2 './vit info' info run
mkdir -p runs/one/sub && cp -r run runs/two
bad "a folder of runs" 1 'name one of runs/two$' --resume runs
bad "a folder of runs to evaluate" 1 'name one of runs/two$' eval --weights runs --data fake
cp run/config.ini runs/one
bad "a run without a checkpoint" 1 'has not saved a checkpoint' --resume runs/one
bad "no run at all" 1 'holds no run' --resume runs/one/sub
good "an epoch that is over" --resume run --epochs 0.001
check "is said without a plan" sh -c "grep -q 'at step 20, epoch 0.21, already' log && ! grep -q ^plan log"

# ---- a terminal that is made narrower ----

for kind in cut fold; do
    if ! python3 -c 'import pty, termios' 2>/dev/null; then
        skip "no Python to play a terminal"
        continue
    fi
    timeout 300 python3 "$here/terminal.py" $kind "$binary" $fake --steps 100000000 --eval-every 100000000 \
        --out on-$kind >log 2>&1
    check "a terminal that ${kind}s its lines (status $?): one bar, all else stays" test ! -s log
done

# ---- bits ----

full="$fake --threads 2 --steps 24 --dropout 0.1 --attention-dropout 0.1 --drop-path 0.2 --ema 0.9
      --mixup 0.4 --cutmix 1 --mix-per sample --mix-pairs roll --erase 0.3 --color-twist 0.4,0.4,0.4,10
      --save-every 4 --eval-every 12 --warmup-steps 5 --keep 3"
good "run A" $full --out a
good "run A again" $full --out b
same "same seed, same bits" a b
good "another seed" $full --seed 1 --out c
check "another seed, other bits" \
    sh -c "! cmp -s '$(last a)/model.safetensors' '$(last c)/model.safetensors'"
good "a recipe's echo" --recipe a/config.ini --out d
same "the echo repeats the run" a d
check "the best by EMA is evaluated with EMA" sh -c "
    '$binary' eval --weights a >log 2>&1; grep -q averaged log && '$binary' eval --weights a --no-ema >log 2>&1"

# What is evaluated is what the file holds, whoever reads it: in a run, copied, to start from.
top1() { tail -n 1 log | cut -d' ' -f2,6; } # and the loss
"$binary" eval --weights a >log 2>&1
average=$(top1)
cp "$(cat a/best | sed 's,^,a/,')/model.safetensors" exported.safetensors
good "the average, copied" eval --data fake --weights exported.safetensors
check "is what was evaluated" [ "$(top1)" = "$average" ]
check "and it says so" grep -q '^ *averaged weights$' log
good "the average, copied, without it" eval --data fake --weights exported.safetensors --no-ema
check "says that there is nothing else" grep -q 'averaged weights: those of the last step are not with them' log
for from in a exported.safetensors; do
    for how in "" --no-ema "--ema 0.9"; do
        good "training on from $from $how" $fake --weights $from $how --steps 1 --val-data none --out from
        check "says which weights it has" [ "$(grep -c '^ *averaged weights$' log)" = 1 ]
        rm -r from
    done
done
good "a run without an average" $fake --weights "$(last run)/model.safetensors" --no-ema --steps 1 --out from
check "has nothing to say" sh -c "! grep -q 'averaged' log"
rm -r from
cp "$(last run)/model.safetensors" plain.safetensors
bad "the average of a file that has none" 1 'leave --ema out' eval --data fake --weights plain.safetensors --ema 0.9
good "the weights of the last step" eval --weights a --no-ema
check "are others" [ "$(top1)" != "$average" ]
check "and it says so" grep -q 'not their average' log
good "a short run with a long average" $fake --steps 40 --lr 0.03 --ema 0.9999 --eval-every 1 --out long
losses=$(grep '"event":"eval"' long/log.jsonl | sed -nE '1s/.*"loss":([^,]*).*/\1/p; $s/.*"loss":([^,]*).*/\1/p')
good "its last weights" eval --weights "$(last long)" --no-ema
check "is judged by weights near its last, not its first" awk -v l="$losses $(top1)" 'BEGIN {
    split(l, f); a = f[2] - f[1]; b = f[2] - f[4]; exit !(a * a > 4 * b * b) }'

good "stopped half way" $full --steps 12 --schedule constant --out e
good "and continued" --resume e --steps 24
good "not stopped" $full --schedule constant --out f
same "12 + 12 steps are 24" e f

# In bf16: the same bits again and on other numbers of threads; continued as it was begun.
half="$full --schedule constant --precision bf16"
good "in bf16" $half --out half
check "says how it multiplies" grep -q '^device .*bf16 products by ' log
check "says what it makes again" grep -q 'made again, save .* (--recompute none keeps them)' log
good "in bf16, making nothing again" $half --out half0 --recompute none
check "says nothing of it" sh -c "! grep -q 'made again' log"
same "bf16 has the same bits with all of it kept" half half0
good "in bf16, on one thread" $half --out half2 --threads 1
same "bf16 has the same bits on one thread" half half2
good "in bf16, stopped half way" $half --steps 12 --out half12
good "in bf16, continued" --resume half12 --steps 24
same "bf16: 12 + 12 steps are 24" half half12
good "the same in fp32" $full --schedule constant --out whole
check "has nearly the same losses: $(field half loss | tail -n 1), $(field whole loss | tail -n 1)" \
    awk -v a="$(field half loss | tail -n 1)" -v b="$(field whole loss | tail -n 1)" \
    'BEGIN { exit !(a > 0.97 * b && a < 1.03 * b && a != b) }'
good "a run in bf16 evaluated" eval --weights half --precision bf16
good "in fp32" eval --weights half --precision fp32
check "has been asked to" sh -c "! grep -q 'in fp32, where' log"
VIT_BF16_PRODUCTS=floats good "where bf16 is no faster" eval --weights half
check "eval computes in fp32 and says so" grep -q 'in fp32, where the run was in bf16 (--precision bf16)' log
export VIT_BF16_PRODUCTS=pairs # a CPU that multiplies bf16 faster
good "where bf16 is faster" eval --weights half
check "eval computes in it and says so" grep -q 'in bf16, .*--precision fp32' log
good "but training" $fake --steps 1 --out single
check "does not" sh -c "! grep -q bf16 log"
export VIT_BF16_PRODUCTS=floats

# Killed twice at arbitrary points of a run of a few seconds, then resumed to its end.
long="$full --steps 1500 --width 96 --batch-size 32 --save-every 20 --eval-every 100"
good "a longer run" $long --out j
mkdir g
for start in "$long --out g" "--resume g"; do
    before=$(cat g/latest 2>/dev/null)
    "$binary" $start >log 2>&1 &
    pid=$!
    wait_for 60 sh -c "test -e g/latest && [ \"\$(cat g/latest)\" != '$before' ]"
    sleep 0.0$((RANDOM % 10))
    kill -9 $pid
    wait $pid 2>/dev/null
    check "killed at $(cat g/latest)" [ "$(cat g/latest)" != "$(cat j/latest)" ]
done
good "resumed after kill -9" --resume g
same "killed and resumed is as not interrupted" j g

# Accumulation: other sums, the same mathematics; 16 images are 5 + 5 + 5 + 1.
first_loss() { grep -m 1 '"event":"step"' "$1/log.jsonl" | sed 's/.*"loss":\([^,]*\),.*/\1/'; }
near() { # name, run, run: the loss of the first step
    local d
    d=$(awk -v a="$(first_loss "$2")" -v b="$(first_loss "$3")" 'BEGIN { print a - b }')
    check "$1 (difference $d)" awk -v d="$d" 'BEGIN { exit !(d < 1e-4 && d > -1e-4) }'
}
good "micro-batches" $full --micro-batch 5 --mixup 0 --cutmix 0 --out h
good "no micro-batches" $full --mixup 0 --cutmix 0 --out i
near "accumulation gives the same loss" h i

# Images mix within groups, whatever the micro-batch.
check "the group is recorded" grep -q '^mix-group = 8$' a/config.ini
for micro in 4 8 16; do
    good "mixed, $micro at a time" $full --steps 2 --mix-group 4 --micro-batch $micro --out mix$micro
done
near "mixed images, 4 and 16 at a time" mix4 mix16
near "mixed images, 8 and 16 at a time" mix8 mix16
check "mixing changes the loss" [ "$(first_loss i)" != "$(first_loss mix16)" ]
good "a run that mixed is evaluated in any batches" eval --weights a --batch-size 3
bad "groups across micro-batches" 2 'groups of 8.*micro-batch of 4' $fake --mixup 1 --micro-batch 4
check "another group is named" grep -q '^hint: --mix-group 4' log
bad "one image to mix" 2 'with itself' $fake --cutmix 1 --batch-size 1
bad "a colour twist of two numbers" 2 'color-twist' $fake --color-twist 0.1,0.2
for opt in adam sgd lamb; do
    good "$opt" $fake --opt $opt --steps 3 --out opt-$opt
done
good "sigmoid loss, layer scale, several class tokens, gap" $fake --steps 3 --loss sigmoid \
    --mixup 0.2 --cutmix 1 --layer-scale --cls-tokens 2 --pool gap --head-bias -2 --schedule step --out variant

# ---- trouble while running ----

bad "diverges" 1 'training diverged' $fake --lr 1e30 --clip 0 --warmup-steps 0 --steps 40 --out nan
check "a loss that is none has no sign" sh -c "grep -q 'loss nan' log && ! grep -q -- -nan log"
good "before it is full" $fake --steps 4 --out full
saved=$(last full)
(
    ulimit -f 8 # KiB: less than a checkpoint, more than the log
    "$binary" --resume full --steps 8 >log 2>&1
    echo $? >status
)
check "full disk: status $(cat status)" [ "$(cat status)" = 1 ]
check "full disk: says what to do" \
    sh -c "grep -q '^error: ' log && grep -q '^hint: ' log && grep -q -- '--resume full' log"
check "full disk: the old checkpoint stays the last" [ "$(last full)" = "$saved" ]
good "full disk: and can be continued" --resume full --steps 8
if mkdir small && mount -t tmpfs -o size=900k none small 2>/dev/null; then
    bad "tmpfs runs full" 1 'small' $fake --steps 40 --save-every 1 --keep 9 --out small/run
    good "what it holds can be read" eval --weights "$(last small/run)"
    umount small
else
    skip "no tmpfs can be mounted here"
fi

for limit in 200000 320000 450000; do # KiB of addresses: OpenBLAS waits forever for what it lacks
    (
        ulimit -v $limit
        timeout 20 "$binary" $fake --threads 2 --steps 2 --out tight >log 2>&1
        echo $? >status
    )
    check "$limit KiB of addresses: status $(cat status)" [ "$(cat status)" = 1 ]
    check "$limit KiB of addresses: says so" sh -c "grep -q '^error: no address space' log && grep -q 'ulimit -v' log"
done

"$binary" $fake --steps 1000000 --eval-every 1000000 --save-every 5 --out term >log.term 2>&1 &
pid=$!
wait_for 60 test -e term/latest
lines=$(wc -l <term/config.ini)
bad "a directory that is in use" 1 "term is in use by process $pid on" $fake --steps 3 --out term
bad "a run that is in use" 1 "term is in use by process $pid on" --resume term
check "is left as it is" [ "$(wc -l <term/config.ini) $(grep -c '"event":"start"' term/log.jsonl)" = "$lines 1" ]
kill -TERM $pid
wait $pid
rc=$?
mv log.term log
check "the lock ends with the run" [ ! -e term/lock ]
check "SIGTERM: status $rc" [ $rc = 143 ]
check "SIGTERM: saved, and says how to go on" sh -c "test -e term/latest && grep -q -- '--resume term' log"
check "SIGTERM: nothing is lost" \
    sh -c "grep -q \"stopped after step \$(cat term/latest | sed 's/step_0*//') \" log"
"$binary" $fake --steps 1000000 --eval-every 1000000 --out interrupted >log 2>&1 &
pid=$!
wait_for 60 grep -q '"event":"step"' interrupted/log.jsonl
kill -INT $pid
wait $pid
rc=$?
check "SIGINT: status $rc" [ $rc = 130 ]
check "and there is a checkpoint" test -e interrupted/latest
mkdir mapped && head -c 307300 /dev/zero >mapped/data_batch_1.bin && cp mapped/data_batch_1.bin mapped/test_batch.bin
"$binary" $fake --data cifar10:mapped --val-data none --num-classes 10 --image-size 32 --patch-size 8 \
    --steps 1000000 --eval-every 1000000 --save-every 2 --out lost >log 2>&1 &
pid=$!
wait_for 60 test -e lost/latest
: >mapped/data_batch_1.bin
wait $pid
rc=$?
check "a mapped file that ends earlier: status $rc" [ $rc = 1 ]
check "a mapped file that ends earlier: says so" \
    sh -c "grep -q '^error: a file of the data set' log && grep -q '^hint: ' log && grep -q -- '--resume lost' log"
"$binary" $fake --data fake --width 1024 --mlp 4096 --image-size 224 --out twice >log 2>&1 &
pid=$!
wait_for 60 test -e twice/log.jsonl
kill -INT $pid 2>/dev/null || kill -TERM $pid
kill -TERM $pid # at once: a launcher's echo of the first
sleep 1.2
kill -TERM $pid 2>/dev/null
sleep 1
check "a second signal ends it at once" sh -c "! kill -0 $pid 2>/dev/null"
wait $pid
rc=$?
check "a second signal: status $rc" [ $rc -ge 128 ]

# ---- data ----

good "shapes are drawn" --data shapes $tiny --steps 2 --out drawn
shapes=data/shapes-16
check "where it says, and how it would be elsewhere" \
    grep -q "drawing 6000 images into $shapes (--data shapes:DIR" log
mkdir -p elsewhere && cd elsewhere || exit 1
good "evaluated from another directory" eval ../drawn
check "they are not drawn again" [ "$(ls)" = log ]
cd .. || exit 1
rm elsewhere/log
good "shapes elsewhere" --data shapes:elsewhere/own $tiny --steps 1 --val-data none --out drawn2
check "are there" test -e elsewhere/own/shapes-16/train
check "and in config.ini" grep -q "^data = shapes:$tmp/elsewhere/own$" drawn2/config.ini
bad "shapes nowhere" 1 'follows the colon: shapes:DIR' --data shapes: $tiny
mkdir shapes && touch elsewhere/data
good "a folder of that name" --data shapes $tiny --steps 1 --val-data none --out drawn3
check "is not what is taken, which it says" grep -q '^warning: shapes is made .* --data ./shapes$' log
rmdir shapes && cd elsewhere || exit 1
bad "shapes where nothing can be written" 1 '--data shapes:DIR and --out DIR' --data shapes $tiny
cd .. || exit 1
mv elsewhere/log log
rm -r elsewhere
folder="--data folder $tiny --steps 20 --num-classes 2"
mkdir -p folder/train/x folder/train/y folder/val/x folder/val/y
i=0
for class in "$shapes"/train/*/; do
    i=$((i + 1))
    [ $i -le 2 ] || break
    name=$([ $i = 1 ] && echo x || echo y)
    find "$class" -type f | sort | head -n 40 | xargs -I{} cp {} folder/train/$name/
    find "$class" -type f | sort | tail -n 10 | xargs -I{} cp {} folder/val/$name/
done
good "a folder, one worker" $folder --workers 1 --out one
good "a folder, three workers" $folder --workers 3 --out three
same "workers change nothing" one three
picture=$(find folder/val -type f | head -n 1)
good "predict" predict --weights one "$picture"
check "predict names classes" grep -qE '^ +[0-9]+\.[0-9]{2}%  [xy]  class [01]$' log
mkdir -p elsewhere && cd elsewhere || exit 1
good "evaluated from another directory" eval --weights ../one
good "resumed from another directory" --resume ../one --steps 22
cd .. || exit 1
mv elsewhere/log log
cp -r one nolatest && rm nolatest/latest
good "resumed where latest was not copied" --resume nolatest --steps 23
check "from its newest checkpoint" grep -q '^resumed  *at step 22,' log
"$binary" predict --weights one folder/val/*/*.jpg --topk 1 >out 2>log
rc=$?
check "predict many (status $rc): results alone on stdout" \
    [ "$rc $(grep -c '^folder' out) $(grep -cE '^ +[0-9.]+%  [xy]  class' out) $(wc -l <out)" = "0 20 20 40" ]
for batch in 1 7; do # run settings do not count, flags do
    "$binary" predict --weights one folder/val/*/*.jpg --topk 1 --batch-size $batch >out.$batch 2>log
    check "predict, $batch at a time" cmp out out.$batch
done
touch none.jpg
"$binary" predict --weights one none.jpg "$picture" none.jpg --topk 1 >out 2>log
rc=$?
check "files that cannot be read are left out (status $rc)" \
    [ "$rc $(wc -l <out) $(head -n 1 out) $(grep -c '^error: none.jpg' log)" = "1 2 $picture 2" ]
# Formats, folders, lists; a damaged file is a line, and the status at the end.
mkdir -p mixed/deep && cp "$picture" mixed/b.jpg && cp "$picture" mixed/deep/a.jpg && echo no >mixed/note.txt
"$binary" predict --weights one mixed none.jpg --topk 1 --format csv >out 2>log
rc=$?
check "predict a folder as CSV (status $rc)" [ "$rc $(cut -d, -f1,2 out | tr '\n' ' ')" = \
    "1 file,rank mixed/b.jpg,1 mixed/deep/a.jpg,1 none.jpg, " ]
check "what is wrong stands in the line" grep -qE '^none.jpg,,,,,.+' out
check "what is no picture is counted" grep -q '^note: 1 file in the folders is no picture' log
printf '%s\n\nnone.jpg\n' mixed/b.jpg | "$binary" predict --weights one - --format jsonl --topk 2 >out 2>log
check "predict a list as JSON" [ "${PIPESTATUS[1]} $(wc -l <out) $(grep -c '"error": "none.jpg' out) \
$(grep -cE '^\{"file": "mixed/b.jpg", "predictions": \[\{"class": [01], "name": "[xy]", "probability": [0-9.]+\}, ' out)" = "1 2 1 1" ]
mkdir -p tangled/@eaDir tangled/a/b && cp mixed/b.jpg tangled/a/b && cp mixed/b.jpg tangled/@eaDir
ln -s .. tangled/a/up && ln -s ../.. tangled/a/b/up && ln -s a/b tangled/again
"$binary" predict --weights one tangled --topk 1 --format csv >out 2>log
check "links in a circle: each picture once" [ "$(tail -n +2 out | cut -d, -f1)" = tangled/a/b/b.jpg ]
printf '\xef\xbb\xbfmixed/b.jpg\0mixed/deep/a.jpg\0\0folder/none.jpg' |
    "$binary" predict --weights one - --topk 1 --format csv >out 2>log
check "a list of names that end with zeros" [ "$(tail -n +2 out | cut -d, -f1 | tr '\n' ' ')" = \
    "mixed/b.jpg mixed/deep/a.jpg folder/none.jpg " ]
find folder/val -type f | LC_ALL=C sort >listed
for batch in 1 7; do
    "$binary" predict --weights one - --features f$batch.npy --batch-size $batch <listed >out.$batch 2>log
done
check "features of any batch" sh -c 'for f in f1 f7; do od -An -v -w4 -t f4 -j 128 $f.npy >$f.num; done
    paste f1.num f7.num | awk "{ d = \$1 - \$2 } d > 1e-4 || d < -1e-4 { exit 1 }"'
check "their names" cmp listed f1.txt
check "numpy's header" sh -c "head -c 128 f1.npy | tail -c 118 | grep -q \"{'descr': '<f4', 'fortran_order': False, 'shape': (20, 32), }\""
check "as many numbers" [ "$(wc -c <f1.npy)" = $((128 + 20 * 32 * 4)) ]
# Decoding runs beside computing. Of pictures after the first batch, and the first product of that
# batch, each waits here for the other: a program that does one after the other stands still. Where
# several threads decode, as many of the first batch may begin after others of the second: there are
# FEW cores, so that two batches have more pictures than there are threads.
cat >beside.c <<'END'
#define _GNU_SOURCE
#include <dlfcn.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>
__attribute__((constructor)) static void leave_few(void)
{
    cpu_set_t cores;
    if (sched_getaffinity(0, sizeof cores, &cores) != 0)
        return;
    for (int i = 0, kept = 0; i < CPU_SETSIZE; i++)
        if (CPU_ISSET(i, &cores) && kept++ >= atoi(getenv("FEW")))
            CPU_CLR(i, &cores);
    sched_setaffinity(0, sizeof cores, &cores);
}
static atomic_int pictures, products, after; /* begun; begun after the first batch; decoded then */
static void wait_for(atomic_int *n, const char *what)
{
    for (int i = 0; i < 2000 && !*n; i++)
        usleep(10000);
    if (!*n) {
        fprintf(stderr, "no %s meanwhile\n", what);
        _exit(9);
    }
}
typedef int Header(void *, int);
Header jpeg_read_header;
int jpeg_read_header(void *d, int image)
{
    int late = pictures++ >= atoi(getenv("BATCH")) + atoi(getenv("DECODERS"));
    if (late)
        wait_for(&products, "product");
    int result = ((Header *)dlsym(RTLD_NEXT, "jpeg_read_header"))(d, image);
    after += late;
    return result;
}
typedef void Product(int, int, int, int, int, int, float, const float *, int, const float *, int, float, float *, int);
Product cblas_sgemm;
void cblas_sgemm(int o, int ta, int tb, int m, int n, int k, float alpha, const float *a, int lda,
                 const float *b, int ldb, float beta, float *c, int ldc)
{
    if (pictures >= atoi(getenv("BATCH"))) {
        products++;
        wait_for(&after, "picture");
    }
    ((Product *)dlsym(RTLD_NEXT, "cblas_sgemm"))(o, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}
END
if ldd "$binary" | grep -qE 'libasan|libtsan'; then
    skip "sanitizers and a library that is loaded before them"
elif ${CC:-cc} -shared -fPIC -o beside.so beside.c -ldl 2>log; then
    for workers in 0 1; do
        export FEW=4 DECODERS=$((workers ? workers : 4))
        BATCH=7 LD_PRELOAD=$tmp/beside.so good "eval decodes while it computes, workers $workers" \
            eval --weights one --micro-batch 7 --workers $workers
        check "and says how long it waited" grep -qE '^20 images in .* [0-9]+% of the time waiting for data$' log
        BATCH=7 LD_PRELOAD=$tmp/beside.so good "predict does, workers $workers" \
            predict --weights one --batch-size 7 --workers $workers folder/val
    done
else
    skip "no compiler for a library that waits"
fi
# A list that pauses is answered: here its second name waits for what is said of the first.
mkfifo list.fifo
"$binary" predict --weights one - --topk 1 <list.fifo >out 2>log &
pid=$!
exec 3>list.fifo
head -n 1 listed >&3
check "a list that pauses is answered" wait_for 20 grep -q '%' out
sed -n 2p listed >&3
exec 3>&-
wait $pid
check "and goes on (status $?)" [ "$(grep -c '%' out)" = 2 ]
mapfile -t three < <(head -n 3 listed)
good "attention" predict --weights one "${three[@]}" --attention attention.png
check "attention is a PNG" sh -c 'head -c 4 attention.png | tail -c 3 | grep -q PNG'
bad "features of another name" 2 'does not end in .npy' predict --weights one "$picture" --features f.txt
good "evaluation leaves files" eval --weights one --out counted
check "files of an evaluation" sh -c 'grep -q "^label . prediction,x,y$" counted/confusion.csv &&
    [ $(wc -l <counted/eval.csv) = 3 ] && grep -q "\"auc\": [0-9]" counted/eval.json &&
    grep -q "</html>" counted/report.html'
check "each image once in the confusion matrix" [ "$(tail -n +2 counted/confusion.csv | cut -d, -f2- |
    tr , '\n' | awk '{ n += $1 } END { print n }')" = 20 ]
check "a run's page" sh -c 'grep -q "</html>" one/report.html && grep -q "data:image/jpeg" one/report.html &&
    ! grep -qE "(src|href)=\"?http|<script" one/report.html'
check "a run's table" sh -c 'head -n 1 one/metrics.csv | grep -q "^step,epoch,loss,.*,eval_top1,"'
check "a run's events" sh -c 'ls one/events.out.tfevents.* >list'
rm none.jpg
for command in "predict --weights one $picture" "eval --weights one" "--help"; do
    "$binary" $command >/dev/full 2>log
    rc=$?
    check "a full disk for what $command prints (status $rc)" sh -c "[ $rc = 1 ] && grep -q '^error: cannot write all' log"
    "$binary" $command 2>log | true
    check "nobody reads what $command prints" [ "${PIPESTATUS[0]}" = 0 ]
done
bad "predict without such a file" 1 'none.jpg' predict --weights one none.jpg
bad "predict of an empty list" 1 'there were no pictures' predict --weights one - </dev/null
mkfifo named.npy
bad "a pipe in a file's place" 1 'named.npy: is a device or a pipe' predict --weights one "$picture" --features named.npy
check "is left there" [ -p named.npy ]

victim=$(find folder/train/x -type f | sort | head -n 1)
head -c 100 "$victim" >less && mv less "$victim"
good "a damaged image" $folder --out damaged
check "is counted and named" sh -c "grep -q 'damaged' log && grep -q '$(basename "$victim")' log"
check "and logged" [ "$(field damaged damaged | tail -n 1)" = 1 ]

# Copies of one file, so that what was read is a multiple of its size: what the run took, and what
# was made ahead of it (3 batches and a half, and an image of each worker).
mkdir -p copies/train/a copies/train/b
for i in $(seq 8); do cp "$picture" copies/train/a/$i.jpg; cp "$picture" copies/train/b/$i.jpg; done
size=$(stat -c %s "$picture")
good "copies of one file" --data copies --val-data none $tiny --steps 20 --num-classes 2 --workers 2 \
    --log-every 1 --out copied
bytes=$(field copied data_bytes)
check "bytes read, $bytes, are those of the files" \
    [ $((bytes % size)) = 0 -a "$bytes" -ge $((320 * size)) -a "$bytes" -le $((400 * size)) ]
check "their rate is theirs too" awk -v all="$bytes" -v rate="$(field copied data_bytes_per_s)" \
    -v ms="$(field copied ms)" 'BEGIN {
        n = split(rate, r, "\n"); split(ms, t, "\n")
        for (i = 1; i <= n; i++) sum += r[i] * t[i] / 1000
        exit !(n == 20 && sum > 0.5 * all && sum < 1.02 * all) }'
check "workers are logged" [ "$(field copied workers | sort -u)" = 2 ]
check "no GPU's use on a CPU" sh -c "! grep -q '\"gpu\"' copied/log.jsonl"

# Images of 12 MB for a model of a moment.
mkdir -p slow/train/a slow/train/b
{ printf 'P6 2000 2000 255\n'; head -c 12000000 /dev/zero; } >slow/train/a/1.ppm
cp slow/train/a/1.ppm slow/train/b
good "slow data" --data slow --val-data none $tiny --steps 20 --num-classes 2 --workers 1 --out slowly
check "is said, and what to do" grep -q 'waiting for images; more --workers .1 at' log
check "and logged" awk -v wait="$(grep '"event":"end"' slowly/log.jsonl | sed 's/.*"wait":\([0-9.]*\).*/\1/')" \
    'BEGIN { exit !(wait > 0.05 && wait <= 1) }'
bad "no such folder" 1 'nofolder' --data nofolder $tiny
mkdir -p folder/train/z folder/val/z
bad "a class without images" 1 'folder/(train|val)/z' $folder --out empty
rmdir folder/train/z folder/val/z
bad "too few classes in the model" 1 'classes' --data folder $tiny --num-classes 1 --out few

# ---- what a run must not do silently ----

mv folder/train/y folder/train/w && mv folder/val/y folder/val/w
bad "eval with other class names" 1 'class folder folder/val/w is not' eval --weights one --data folder
bad "resume with other class names" 1 'class [01] is .[wx].' --resume one --steps 9
mv folder/train/w folder/train/y && mv folder/val/w folder/val/y
mv folder moved
for command in "eval one" "--resume one --steps 22"; do
    bad "images that have moved: $command" 1 '^hint: .*config.ini: --data names another' $command
done
mv moved folder
mkdir some && cp -r folder/val/y some
good "eval on some of the classes" eval --weights one --data some
check "says which are not there" grep -q 'no images of 1 of 2 classes here: x' log
y=$(tail -n 1 log | cut -d' ' -f2)
rm -r some/y && cp -r folder/val/x some
good "eval on the others" eval --weights one --data some
x=$(tail -n 1 log | cut -d' ' -f2)
good "eval on all" eval --weights one --data folder/val
check "the parts' mean is the whole" awk -v x="$x" -v y="$y" -v all="$(tail -n 1 log | cut -d' ' -f2)" \
    'BEGIN { exit !((x + y) / 2 == all) }'
good "no learning rate" $fake --lr 0 --lr-floor 0 --steps 1 --out still
check "is said" grep -q 'nothing will be learned' log
good "a warm-up beyond the end" $fake --lr 0.5 --warmup-steps 100 --steps 4 --val-data none --out warm
check "is said, with where it ends" grep -q '^warning: --warmup-steps 100 in a run of 4 steps: .* comes to 0.02 of' log
good "a warm-up up to the end" $fake --warmup-steps 4 --steps 4 --val-data none --out warm2
check "is none" sh -c "! grep -q '^warning' log"
for length in "--steps 2" "--epochs 3"; do
    good "a batch beyond the epoch, $length" $fake --data fake:20 --batch-size 50 $length --val-data none --out beyond
    check "is said once, and what it means" \
        [ "$(grep -cE '^warning: .* 50 images, and there are 20 to train on: .* 2.5 times; lower --batch-size' log)" = 1 ]
    rm -r beyond
done
good "a batch of the whole epoch" $fake --data fake:20 --batch-size 20 --steps 2 --val-data none --out at-once
check "needs no warning" sh -c "! grep -q ^warning log"
good "a run evaluated on the training images" $folder --val-data folder/train --out onfolder
good "eval takes --data, not the run's --val-data" eval --weights onfolder --data folder
check "and says so" grep -q 'data      folder:' log
mkdir linked && ln -s ../folder/train linked/train && ln -s ../folder/train linked/val
good "a link to the training images for validation" --data linked $tiny --steps 1 --out onlinked
check "is said" grep -q '^warning: evaluating on the training images' log
good "a run without evaluation" $folder --val-data none --out noeval
good "can be evaluated" eval --weights noeval --data folder
bad "two sources of weights" 2 'give one' --resume one --weights "$(last one)/model.safetensors"
bad "nothing to train" 2 'epochs 0' $fake --epochs 0
bad "a floor above the peak" 2 'lr-floor' $fake --lr 0.001 --lr-floor 0.1
bad "the last steps were skipped" 1 'nothing was saved' $fake --lr 1e30 --clip 0 --warmup-steps 0 \
    --steps 5 --out skipped
check "no result is claimed" sh -c "! grep -qE '^(done|results)' log"
mv one/config.ini kept.ini
bad "resume without the run's settings" 1 'recipe' --resume one --steps 9
mv kept.ini one/config.ini
cp -r one other && rm other/config.ini && touch config.ini
good "a config.ini that is no run's" predict --weights "$(last other)/model.safetensors" "$picture"
rm config.ini

# ---- weights ----

weights=$(last one)/model.safetensors
bad "weights of another width" 1 'head|blocks|cls_token|pos_embed|patch' eval --data folder \
    --weights "$weights" --width 64
head -c $(($(stat -c %s "$weights") / 2)) "$weights" >half.safetensors
bad "half a file" 1 'half.safetensors' eval --data folder --weights half.safetensors
head -c 20000 /dev/urandom >noise.safetensors
bad "noise" 1 'noise.safetensors' eval --data folder --weights noise.safetensors
bad "no weights" 1 'none.safetensors' eval --data folder --weights none.safetensors
good "a new head" --data fake --num-classes 7 --weights "$weights" --batch-size 8 --steps 2 --out newhead
check "is said" grep -qi 'head' log
check "and how it trains" grep -q '^recipe    built-in, fine-tuning: sgd, lr 0.01, 8 images a step, 2 steps .flags' log
good "another optimiser" --data fake --num-classes 7 --weights "$weights" --opt adamw --steps 2 --out newhead2
check "has its own learning rate" grep -q 'fine-tuning: adamw, lr 0.001, 32 images' log

# Those of other people's programs; test_weights has their logits.
others=$here/weights
good "a folder with a config.json" predict --weights "$others/timm-hub" "$picture"
check "names its classes" grep -q 'elk  class 4' log
check "says how images are cropped" grep -q 'bilinear, centre crop of 0.9' log
check "and has nothing to assume" bash -c '! grep -q assumed log'
good "its file alone" predict --weights "$others/timm-hub/model.safetensors" "$picture"
check "is the same" grep -q 'elk  class 4' log
# Class folders are numbered as config.json numbers their names.
cp -r "$others/timm-hub" turned
sed -i 's/"ant", "bee", "cat", "dog", "elk"/"elk", "dog", "cat", "bee", "ant"/' turned/config.json
mkdir -p byname/ant byname/bee byname/cat byname/dog byname/elk
run predict --weights turned "$picture" --topk 1 --format csv # class 4, which they now call an ant
name=$(tail -n 1 log | cut -d, -f4)
cp "$picture" "byname/$name/"
good "classes by name" eval --weights turned --data byname
check "are the weights'" grep -q '^top1 100.00 ' log
printf 'ant\nbee\ncat\ndog\nelk\n' >insects.txt
good "classes by a list" eval --weights turned --data byname --classes insects.txt
check "are the list's" grep -q '^top1 0.00 ' log
printf 'ant\ngreat bee\ncat\ndog\nelk\n' >plain.txt
good "names alone, some of two words" predict --weights turned "$picture" --classes plain.txt
check "are shown in full" grep -q '  great bee  class 1$' log
printf '["ant", "bee", "cat", "dog", "elk"]' >names.json
bad "names in JSON" 1 'JSON or Python, not a list' predict --weights turned "$picture" --classes names.json
mv byname/bee byname/wasp
bad "one of another name" 1 '4 of 5 class folders are among' eval --weights turned --data byname
mkdir -p others/v others/w others/x others/y others/z && cp "$picture" others/v
good "all of other names" eval --weights turned --data others
check "are said to be sorted" grep -q "^warning: the weights' config.json names other classes, such as 'elk'" log
cp -r turned few && sed -i 's/, "ant"\]/]/' few/config.json
good "a config.json that names too few classes" predict --weights few "$picture"
check "is said, and what to do" grep -q '^note: .*label_names names 4 classes, the head has 5: .*--classes FILE' log
mv byname/wasp byname/bee
for class in byname/*; do cp "$picture" "$class/"; done
good "trained on by name" --data byname --weights turned --val-data none --steps 1 --batch-size 2 --out byname.run
check "keeps the weights' order, and the head" sh -c '[ "$(tr "\n" " " <byname.run/classes.txt)" = "elk dog cat bee ant " ] &&
    ! grep -q "head is new" log'
good "and resumed" --resume byname.run --steps 2
# So does a run's head, by its classes.txt.
printf 'elk\ncat\ndog\nbee\nant\n' >zoo.txt
tuned="--val-data none --steps 1 --batch-size 2"
good "a run with an order of its own" --data byname --classes zoo.txt $tiny $tuned --out zoo.run
good "trained on from it" --data byname --weights zoo.run $tuned --out zoo2.run
check "keeps its order" cmp -s zoo2.run/classes.txt zoo.txt
cp -r byname fewer && rm -r fewer/cat
good "with fewer classes and the head of all" --data fewer --weights zoo.run --num-classes 5 $tuned --out zoo3.run
check "too" cmp -s zoo3.run/classes.txt zoo.txt
for asked in "--classes insects.txt" "--class-order natural"; do
    printf 'ant\nbee\ncat\ndog\nelk\n' >insects.txt
    good "with another order" --data byname --weights zoo.run $asked $tuned --out zoo4.run
    check "has what was asked for, and says so" sh -c "cmp -s zoo4.run/classes.txt insects.txt &&
        grep -q \"^warning: .* class 0 is 'elk' in it (classes.txt) and 'ant' in the data: leave ${asked% *} out\" log"
    rm -r zoo4.run
done
mv fewer/bee fewer/wasp && mkdir fewer/yak && cp "$picture" fewer/yak/
good "on some other classes" --data fewer --weights zoo.run $tuned --out zoo5.run
check "says how many" grep -q '^warning: .* as many classes, 2 of them by other names (classes.txt)' log
good "on some other classes than config.json's" --data fewer --weights turned $tuned --out zoo6.run
check "says how many" grep -q '^warning: .* as many classes, 2 of them by other names (config.json)' log
cp -r "$others/hf-vit" many && sed -i '1s/{/{"problem_type": "multi_label_classification",/' many/config.json
sum() { awk -F, 'NR > 1 { n += $5 } END { print (n > 0.999 && n < 1.001) }' out; } # of all probabilities
"$binary" predict --weights many "$picture" --format csv >out 2>log
check "weights of several classes at once: no sum of 1" sh -c "[ $(sum) = 0 ] && grep -q '^note: by config.json' log"
"$binary" predict --weights many "$picture" --format csv --loss softmax >out 2>log
check "unless asked for" [ "$(sum)" = 1 ]
good "a file without one" predict --weights "$others/nested.pth" "$picture"
check "what is assumed is a warning" grep -q '^warning: .*--heads.*--mean' log
check "and how pictures are cropped is said" grep -q 'images as usual, .*: bicubic, centre crop of 0.875 (--crop-pct)' log
good "its name alone" predict "$others/nested.pth" "$picture"
good "what is given is not assumed" predict --weights "$others/nested.pth" --heads 2 --mean 0.5 --std 0.5 \
    "$picture"
check "only the rest is" bash -c "grep '^warning: ' log | grep -q -- --act && ! grep -q -- '--heads\|--mean' log"
bad "eval without a head" 1 'has no head' eval --data fake --weights "$others/hf-mae"
good "training without a head" --data fake:64 --weights "$others/hf-mae" --steps 2 --batch-size 8 --out headless
check "makes one" grep -q 'head is new.*has none' log
bad "not even of no classes" 2 'num-classes = 0' --data fake:64 --weights "$others/hf-mae" --num-classes 0
good "bench without a head" bench --weights "$others/hf-mae" --steps 2 --batch-size 2
bad "no weights in a folder" 1 'holds no weights' predict --weights folder "$picture"
echo "version https://git-lfs.github.com/spec/v1" >pointer.bin
bad "a pointer of Git LFS" 1 'git lfs pull' predict --weights pointer.bin "$picture"
good "other images" --data fake:64 --weights "$others/prefix.safetensors" --image-size 16x24 --steps 2 \
    --batch-size 8 --pos-resize google --ema 0.9 --out resized
check "resize the positions" grep -q 'from 3x3 to 4x6 patches (google)' log
good "so does evaluation, of the average too" eval --data fake:64 --weights resized --image-size 24
check "as the run did" grep -q 'from 4x6 to 6x6 patches (google)' log
check "is the average" grep -q 'averaged weights' log

# ---- bench ----

cat >specs.ini <<'END'
# for all
image-size = 16
patch-size = 8
width = 32
layers = 1
heads = 2
mlp = 64
num-classes = 4
batch-size = 4
threads = 1
steps = 10

[plain]
published = 50
on = an abacus
source = nobody

[micro]
micro-batch = 1
baseline = plain

[loader]
data = fake

[wrong]
batch-size = 5
micro-batch = 2
END
good "bench" bench --data fake:resident $tiny --steps 3 --json one.json
check "says speed and spread" grep -qE '^training +[0-9.]+ images/s .* per step of 16 .*\+-[0-9.]+%' log
check "in JSON too" grep -q '^{"event":"bench","device":.*"batch":16,.*"data":"fake:resident","images_per_s":' one.json
"$binary" bench --spec specs.ini --json all.json >table 2>log
rc=$?
check "bench of many, of which one fails: status $rc" [ $rc = 1 ]
check "a row each" [ "$(grep -c '^| ' table)" = 5 ]
check "beside what was published" grep -qE '^\| plain \| 1 \| 4 \| .* \| 50.0 on an abacus: ours is [0-9.]+ of it \|$' table
key() { sed -nE 's/.*"name":"'"$1"'".*"'"$2"'":([0-9.e+-]+).*/\1/p' all.json; } # configuration, name
check "efficiency is images/s against the baseline's" awk -v e="$(key micro efficiency)" \
    -v a="$(key micro images_per_s)" -v b="$(key plain images_per_s)" \
    'BEGIN {exit !(e > 0 && (e - a / b) ^ 2 < 1e-10)}'
check "why one failed" grep -q '^| wrong .*2 images at a time, of 5 on each rank |$' table
check "a JSON line for each of the others" [ "$(grep -c '"name":"\(plain\|micro\|loader\)"' all.json)$(wc -l <all.json)" = 33 ]
check "with the loader" grep -q '"name":"loader".*"data":"fake",' all.json
good "one of them" bench --spec specs.ini --only micro --steps 2
check "computes as it says" grep -q '; 1 image at a time' log
check "flags win" grep -q 'per step of 4' log
bad "none of them" 2 'did you mean micro' bench --spec specs.ini --only mikro
bad "no file" 2 'none.ini' bench --spec none.ini
bad "one of no file" 2 'of which file' bench --only micro
bad "a spec to train" 2 'are bench.s' --spec specs.ini
for wrong in 'heits = 3:did you mean heads' 'published = many:not a positive number' 'baseline = top:there is no .top' \
    '[plain]\nlr = 1:is there already' '[]\nlr = 1:has no name'; do
    { cat specs.ini && printf '%b\n' "${wrong%%:*}"; } >wrong.ini
    bad "in a spec: ${wrong%%:*}" 2 "${wrong#*:}" bench --spec wrong.ini
    check "says where: ${wrong%%:*}" grep -qE 'wrong.ini:[0-9]+: |\[wrong\]' log
done
: >empty.ini
bad "an empty spec" 2 'has no configuration' bench --spec empty.ini
for spec in "$here"/../bench/specs*.ini; do # nothing of it is computed
    RANK=0 WORLD_SIZE=2 LOCAL_RANK=0 MASTER_ADDR=127.0.0.1 MASTER_PORT=29000 "$binary" bench --spec "$spec" >log 2>&1
    check "$(basename "$spec") can be read" grep -q 'name one of them' log
done

# ---- real weights, real images ----

deit=$shared/data/weights/deit_tiny_patch16_224.safetensors
if [ -n "${TEST_SMALL-}" ]; then
    skip "DeiT-Tiny on 250 images: too slow here"
elif [ -e "$deit" ]; then
    good "DeiT-Tiny" eval --data "$shared/data/imagenet_sample" --weights "$deit" \
        --classes "$shared/data/imagenet_classes.txt" --precision fp32
    line=$(tail -n 1 log)
    check "DeiT-Tiny reaches 84.00 and 95.20 within one image: $line" \
        awk -v line="$line" 'BEGIN { split(line, f, " ")
            exit !(f[2] >= 83.59 && f[2] <= 84.41 && f[4] >= 94.79 && f[4] <= 95.61 && f[8] == 250) }'
    good "DeiT-Tiny in bf16" eval --data "$shared/data/imagenet_sample" --weights "$deit" \
        --classes "$shared/data/imagenet_classes.txt" --precision bf16
    check "loses no more than one image by it: $(tail -n 1 log)" \
        awk -v half="$(tail -n 1 log)" -v line="$line" 'BEGIN { split(half, h, " "); split(line, f, " ")
            d = h[2] - f[2]; exit !(d > -0.41 && d < 0.41 && h[8] == 250) }'
    if ${PYTHON:-python3} "$here/weights/deit.py" "$deit" forms >log 2>&1; then
        for form in hub hf deit.pth deit.npz; do # the same network, in other files
            good "DeiT-Tiny as $form" eval --data "$shared/data/imagenet_sample" --weights forms/$form \
                --classes "$shared/data/imagenet_classes.txt" --precision fp32
            check "has the same accuracy: $(tail -n 1 log)" [ "$(tail -n 1 log)" = "$line" ]
        done
    else
        skip "no Python with torch and safetensors: DeiT-Tiny in other files"
    fi
    good "DeiT-Tiny predicts" predict --weights "$deit" --classes "$shared/data/imagenet_classes.txt" \
        "$(find "$shared/data/imagenet_sample" -name '*.JPEG' | sort | head -n 1)"
else
    skip "no weights and images in $shared/data"
fi

finish
