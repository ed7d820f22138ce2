#!/bin/bash
# ./vit, end to end: shards and their indexes, contact sheets, good and bad input.
# test/test_tools.sh VIT TRAIN_CPU [SHARED]. Everything happens in a temporary folder.
# Every error must say `error:` and `hint:`, with the right exit status.
root=$(realpath "$(dirname "$0")/..")
tool=$(realpath "$1")
train=$(realpath "$2")
shared=$(realpath -m "${3:-../shared}") # real pictures, where they are
# shellcheck source=test/common.sh
. "$root/test/common.sh"
need "$tool" "$train"

subject=("$tool")
says() { check "$1: says $2" grep -qE -- "$2" log; }
cls() { tar xOf "$1" "$2.cls"; } # a label

# ---- pictures to work on: drawn by the training program, a few of each class ----

"$train" --data shapes --steps 1 --batch-size 2 --threads 1 --out run --val-data none --image-size 32 \
    --patch-size 16 --width 16 --layers 1 --heads 1 --mlp 16 >log 2>&1 || fail "drawing shapes"
for class in data/shapes-32/train/*; do
    mkdir -p "pics/train/$(basename "$class")" "pics/val/$(basename "$class")"
    find "$class" -name '*.jpg' | sort | head -n 7 | xargs cp -t "pics/train/$(basename "$class")"
    find "$class" -name '*.jpg' | sort | tail -n 3 | xargs cp -t "pics/val/$(basename "$class")"
done
rm -rf data run
find pics -type f | sort | xargs md5sum >before

# ---- commands and flags ----

good "help" --help
says "help" 'shard'
for command in index plan shard show top report info import export; do
    good "$command --help" $command --help
    says "$command --help" "usage: ./vit $command"
done
bad "no command" 2 'no command'
bad "unknown command" 2 'did you mean ./vit shard' shrad
bad "unknown flag" 2 'did you mean --max-count' shard --max-conut 3
bad "missing flag" 2 '--out is missing' shard --data pics
bad "missing value" 2 '--out needs a value' shard --data pics --out
bad "no number" 2 "'7x'" shard --data pics --out s --seed 7x
bad "no size" 2 "'7T'" shard --data pics --out s --max-size 7T
bad "huge size" 2 "99999999999999999G" shard --data pics --out s --max-size 99999999999999999G
bad "out of range" 2 'outside 1..100' shard --data pics --out s --quality 101
bad "stray word" 2 'more' shard --data pics --out s more

# ---- shards ----

good "shard" shard --data pics --out one/train-%06d.tar --threads 1
says "shard" "^1 shard, 70 samples, "
says "shard" "^train from them: --data 'wds:one/train-\{000000\.\.000000\}\.tar' --val-data pics --classes one/classes.txt$"
good "shard, 4 threads" shard --data pics --out four/train --threads 4
check "same bytes for any number of threads" cmp one/train-000000.tar four/train-000000.tar
good "shard, another seed" shard --data pics --out seed/train --seed 1
check "the seed changes the order" sh -c '! cmp -s one/train-000000.tar seed/train-000000.tar'
check "samples, cls first" sh -c "tar tf one/train-000000.tar | paste - - |
    grep -cE '^([0-9]{7})\.cls	\1\.jpg$' | grep -qx 70"
check "each sample once" sh -c 'test $(tar tf one/train-000000.tar | sort -u | wc -l) = 140'
mkdir x && tar xf one/train-000000.tar -C x
i=0
for f in $(find pics/train -name '*.jpg' | LC_ALL=C sort); do # copied, with the label of its folder
    key=$(printf %07d $i)
    label=$(ls pics/train | LC_ALL=C sort | grep -nx "$(basename "$(dirname "$f")")" | cut -d: -f1)
    cmp -s "$f" "x/$key.jpg" && [ "$(cat "x/$key.cls")" = $((label - 1)) ] || break
    i=$((i + 1))
done
check "pictures are copied, in sorted order ($i)" [ $i = 70 ]
check "class list" sh -c 'ls pics/train | LC_ALL=C sort | cmp - one/classes.txt'
good "shard, validation" shard --data pics --out one/val --split val
says "validation" '^1 shard, 30 samples'
good "shard, --max-count" shard --data pics --out count/c-%d.tar --max-count 16
says "max-count" '^5 shards, 70 samples'
check "max-count" sh -c 'for k in 0 1 2 3; do
    test $(tar tf count/c-$k.tar | wc -l) = 32 || exit 1; done; tar tf count/c-4.tar >list'
good "shard, --max-size" shard --data pics --out size/c --max-size 20K
check "max-size" sh -c 'test $(ls size/*.tar | wc -l) -gt 4 && ! find size -size +20000c | grep .'
check "the same samples in the same order" sh -c 'for s in one/train* ; do tar tf $s; done >a
    for s in size/c-*.tar; do tar tf $s; done | cmp - a'
{ echo b && echo a && ls pics/train | LC_ALL=C sort; } >list
good "shard, --classes" shard --data pics --out list.d/c --classes list
check "labels are lines of --classes" sh -c "test $(cls list.d/c-000000.tar 0000000) = 2"
good "shards of pictures as they are" shard --data pics --out as-is/c --short-side 1000 --quality 80
says "what has no effect" '^note: --short-side, --quality have no effect here: no picture was encoded$'
rm -r as-is
good "shard, --short-side" shard --data pics --out small.d/c --short-side 16 --quality 80
check "smaller" sh -c 'test $(wc -c <small.d/c-000000.tar) -lt $(wc -c <one/train-000000.tar)'
check "16 pixels" sh -c 'tar xOf small.d/c-000000.tar 0000005.jpg | od -An -v -tx1 | tr -d " \n" |
    grep -qE "ffc0001108" && tar xOf small.d/c-000000.tar 0000005.jpg | od -An -v -tx1 |
    tr -d " \n" | grep -qE "ffc00011080010"'
good "not larger: copied" shard --data pics --out same.d/train --short-side 64
check "not larger: copied" cmp one/train-000000.tar same.d/train-000000.tar
check "the pictures are untouched" sh -c 'find pics -type f | sort | xargs md5sum | cmp - before'

# ---- damaged and foreign pictures ----

mkdir -p odd/a odd/b
cp pics/train/*/0000.jpg odd/a 2>/dev/null || cp "$(find pics/train -name '*.jpg' | head -n 1)" odd/a
whole=$(find odd/a -name '*.jpg' | head -n 1)
head -c $(($(wc -c <"$whole") / 2)) "$whole" >odd/b/cut.jpg
: >odd/b/empty.jpg
echo text >odd/b/text.jpg
printf 'P6 2 2 255\nabcabcabcabc' >odd/b/two.ppm
printf 'P6 2 2 255\nabc' >odd/b/cut.ppm
good "damaged pictures" shard --data odd --out odd.d/c
says "damaged pictures" 'warning: odd/b/cut.jpg: .*left out'
says "damaged pictures" 'warning: odd/b/cut.ppm: .*left out'
says "damaged pictures" 'warning: damaged, and left out: 4 of [0-9]+ pictures'
says "damaged pictures" '^1 picture encoded as JPEG, at quality'
mkdir -p none/a && : >none/a/empty.jpg
bad "nothing but damaged pictures" 1 'none of 1 picture is whole' shard --data none --out none.d/c
check "no shard then" sh -c '! ls none.d/*.tar* 2>/dev/null'

# ---- real pictures ----

if [ -d "$shared/data/hymenoptera" ]; then
    good "shard of photographs" shard --data "$shared/data/hymenoptera" --out bees/val --split val \
        --short-side 64
    says "shard of photographs" '^1 shard, 153 samples'
    check "shard of photographs" [ "$(tar tf bees/val-000000.tar | wc -l)" = 306 ]
else
    skip "no pictures in $shared/data/hymenoptera"
fi

# ---- what cannot be done ----

bad "a device" 2 'a device or a pipe' shard --data pics --out /dev/null
check "makes nothing beside it" sh -c '! ls /dev/null-* /dev/classes.txt 2>/dev/null'
bad "no directory" 1 '/nowhere' shard --data /nowhere --out s
bad "no folder" 1 'folders of images' shard --data cifar10:x --out s
bad "no classes" 1 'one has no class folders' shard --data one --out s
bad "bad split" 2 'neither train nor val' shard --data pics --out s --split test
for pattern in 'a%d%d' 'a%s' 'a%' 'a%06x' 'a%n' 'a%-6d' 'a%06ld' 'a%99d' 'a%%' 'a{0..9}' 'a/' '%d/a'; do
    bad "pattern $pattern" 2 -- '--out' shard --data pics --out "p/$pattern"
done
check "a bad pattern writes nothing" [ ! -e p ]
bad "shards that are there" 1 'one/train-000000.tar is already there' shard --data pics --out one/train
bad "another class list" 1 'other classes' shard --data odd --out one/odd
bad "a file in the way" 1 'before: cannot create' shard --data pics --out before/x
(
    ulimit -f 8 # blocks of 1024 bytes
    "$tool" shard --data pics --out full/c-%d.tar --max-count 3 >log 2>&1
    echo $? >rc
)
check "file too large" sh -c 'test $(cat rc) = 1 && grep -q "^error: full/c-.*cannot write" log'
check "file too large: no half shard" sh -c '! ls full/*part* 2>/dev/null'
mkdir small
if mount -t tmpfs -o size=64k tmpfs small 2>/dev/null; then
    bad "full disk" 1 'No space left' shard --data pics --out small/c --max-size 20K
    check "full disk: no half shard" sh -c '! ls small/*part* 2>/dev/null'
    check "full disk: complete shards can be read" \
        sh -c 'for s in small/*.tar; do tar tf $s >/dev/null || exit 1; done'
    umount small
else
    skip "no right to mount a tmpfs"
fi

# ---- indexes ----

good "index" index --archive 'size/c-{000000..000003}.tar' --index-dir idx
says "index" '^4 indexes of [0-9]+ samples in idx'
check "four indexes" [ "$(cd idx && echo *)" = "idx_0.txt idx_1.txt idx_2.txt idx_3.txt" ]
if python3 -c '' 2>/dev/null; then
    cat >wds2idx.py <<'PY'
import sys, tarfile
for path, index in zip(sys.argv[1::2], sys.argv[2::2]):
    samples, last = [], None
    for m in tarfile.open(path):
        base, dot, ext = m.name.rpartition("/")[2].partition(".")
        if not m.isfile() or not base or not dot:
            continue
        stem = m.name[: len(m.name) - len(ext) - 1]
        if stem != last:
            samples.append([])
        last = stem
        samples[-1].append(f"{ext} {m.offset_data} {m.size} {m.name}")
    text = f"v1.2 {len(samples)}\n" + "".join(" ".join(s) + "\n" for s in samples)
    if text != open(index).read():
        sys.exit(f"{index} differs")
PY
    check "index as Python's tarfile sees it" \
        python3 wds2idx.py size/c-000000.tar idx/idx_0.txt size/c-000003.tar idx/idx_3.txt
    n50=$(printf 'n%.0s' $(seq 50))
    mkdir -p "t/$n50/$n50" # paths of more than a header's 100 bytes, and of more than ustar's 256
    touch "t/$n50/$n50/a.jpg" "t/$n50/$n50/$n50$n50$n50$n50.jpg" t/x.seg.png t/.hidden.jpg t/README && echo 1 >t/x.cls
    ln -s x.cls t/link.cls
    for format in gnu pax ustar v7; do
        [ $format = ustar ] && rm "t/$n50/$n50/$n50$n50$n50$n50.jpg"
        [ $format = v7 ] && rm -r "t/$n50"
        tar cf $format.tar --format=$format -C t --sort=name . || fail "tar --format=$format"
    done 2>log
    good "index of other tar programs" index --archive '{gnu,pax,ustar,v7}.tar' --index-dir other
    check "index of other tar programs" \
        python3 wds2idx.py gnu.tar other/idx_0.txt pax.tar other/idx_1.txt \
        ustar.tar other/idx_2.txt v7.tar other/idx_3.txt
else
    skip "no python3 to compare indexes with"
fi
cp -r idx by-pattern && rm -rf by-folder
mkdir only && cp size/c-00000[0-3].tar only
good "index of a folder" index --archive wds:only::size/c-000000.tar --index-dir by-folder
check "index of a folder" sh -c 'diff -r -x idx_4.txt by-pattern by-folder && cmp by-folder/idx_0.txt by-folder/idx_4.txt'
bad "another machine" 1 'is no file' index --archive s3://bucket/a.tar --index-dir by-folder
good "index again, one thread" index --archive 'size/c-{000000..000001}.tar' --index-dir idx --threads 1
says "index of fewer archives" 'warning: idx/idx_2.txt'
bad "no archive" 1 'size/none.tar' index --archive 'size/{c-000000,none}.tar' --index-dir idx2
bad "unbalanced braces" 1 'without its' index --archive 'size/{c-000000.tar' --index-dir idx2
bad "no tar file" 1 'not the header' index --archive before --index-dir idx2
head -c 5000 size/c-000000.tar >cut.tar
bad "truncated archive" 1 'cut.tar: byte [0-9]+: ' index --archive cut.tar --index-dir idx2
gzip -k cut.tar
bad "compressed archive" 1 'gzip' index --archive cut.tar.gz --index-dir idx2
bad "missing flags" 2 'index-dir is missing' index --archive cut.tar
bad "a file in the way" 1 'before: cannot create' index --archive size/c-000000.tar --index-dir before/x

# ---- training and evaluating from shards ----

tiny="--image-size 32 --patch-size 16 --width 16 --layers 1 --heads 1 --mlp 16 --batch-size 10 --threads 1"
top1() { # evaluate the run, print the last line
    "$train" eval --weights run --threads 1 --classes one/classes.txt "$@" 2>&1 | tee log | grep '^top1'
}
good "shards of the validation images" shard --data pics --split val --out vals/v --max-count 12
good "their index" index --archive 'vals/v-{000000..000002}.tar' --index-dir vals/idx
# shellcheck disable=SC2086
"$train" --data 'wds:size/c-{000000..000004}.tar' --classes one/classes.txt --val-data none --steps 9 \
    --out run $tiny >log 2>&1
check "training from shards" [ $? = 0 ]
folders=$(top1 --data pics)
check "evaluating folders: $folders" [ -n "$folders" ]
shards=$(top1 --data 'wds:vals/v-{000000..000002}.tar')
check "shards evaluate as folders do: $shards" [ "$shards" = "$folders" ]
shards=$(top1 --data 'wds:vals/v-{000000..000002}.tar' --index-dir vals/idx)
check "and with an index: $shards" [ "$shards" = "$folders" ]
good "a sheet from shards" show --data 'wds:size/c-{000000..000004}.tar' --classes one/classes.txt \
    --image-size 32 --patch-size 16 --out shards.png --count 8

# ---- what training from shards must keep ----

trains() { # name, status, pattern of the log, flags of the training program...
    local name=$1 status=$2 pattern=$3
    shift 3
    "$train" "$@" >log 2>&1
    rc=$?
    check "$name: status $rc, not $status" [ $rc = "$status" ]
    check "$name: says $pattern" grep -qE -- "$pattern" log
}
same() { check "$1" sh -c 'cmp "$1/$(cat "$1/latest")/model.safetensors" "$2/$(cat "$2/latest")/model.safetensors"' - "$2" "$3"; }
from="--data wds:size/c-{000000..000003}.tar --val-data none"
tiny="--image-size 16 --patch-size 8 --width 32 --layers 1 --heads 2 --mlp 32 --batch-size 8 --threads 1
    --schedule constant --warmup-steps 0 --shuffle-shards 2"
trains "shards" 0 '24 training images, 10 classes' $from $tiny --steps 14 --save-every 7 --out whole
trains "shards with an index" 0 '24 training images' $from $tiny --index-dir idx --workers 3 --steps 14 --out indexed
same "an index changes nothing, nor do workers" whole indexed
trains "eval of other shards than those of the run's index" 0 ' images 30$' eval --weights indexed --data wds:one/val-000000.tar
trains "a star" 1 '000146' --data 'wds:size/c-*.tar' --val-data none $tiny --out x
trains "shards, half of it" 0 'done' $from $tiny --steps 5 --out part
trains "shards, the rest" 0 '^resumed   at step 5' --resume part --steps 14
same "resumed in mid-epoch" whole part
trains "repeats" 0 'done' $from $tiny --repeats 2 --steps 14 --out repeats
check "repeats are other batches" sh -c '! cmp -s whole/step_*14/model.safetensors repeats/step_*14/model.safetensors'
trains "validation shards" 0 '30 validation images' $from --val-data wds:one/val-000000.tar $tiny --steps 2 --out both
trains "eval" 0 ' images 30$' eval --weights both
trains "no validation shards" 1 '--val-data wds:PATTERN' --data wds:one/train-000000.tar $tiny --steps 2 --out x
trains "a label too large" 1 'has label 9, but there are 9 classes' $from $tiny --num-classes 9 --out x
mkdir twisted && cp idx/idx_0.txt twisted/idx_1.txt && cp idx/idx_1.txt twisted/idx_0.txt &&
    cp idx/idx_2.txt idx/idx_3.txt twisted
mkdir few && tar xf one/train-000000.tar -C few
for label in few/*.cls; do [ "$(cat "$label")" -lt 3 ] || rm "$label" "${label%.cls}.jpg"; done
tar cf few.tar --sort=name -C few .
trains "weights of more classes" 0 '^ +the head is new, for 3 classes' --weights whole --data wds:few.tar \
    --val-data none --image-size 16 --batch-size 2 --steps 1 --out fewer
trains "evaluation of a few classes" 0 ' images [0-9]+$' eval --weights whole --data wds:few.tar
trains "indexes of other archives" 1 'c-00000[01].tar' $from $tiny --index-dir twisted --out x
trains "a cut archive" 1 'cut.tar: byte [0-9]+: ' --data wds:cut.tar --val-data none $tiny --out x
trains "subsets" 0 '^data .* 9 training images, 9 validation images, 3 classes' --data pics $tiny \
    --classes-fraction 0.3 --data-per-class 3 --steps 1 --out subset
trains "subsets of shards" 2 'give --classes' --data wds:one/train-000000.tar --val-data none $tiny \
    --classes-fraction 0.3 --out x

# ---- data as people have it: what is said of it, and what must not happen in silence ----

mkdir -p plain/Training plain/Testing && cp -r pics/train/* plain/Training && cp -r pics/val/* plain/Testing
one=$(ls plain/Training | head -n 1)
echo text >"plain/Training/$one/notes.txt" && echo text >"plain/Training/$one/more.TXT"
first=$(find "plain/Training/$one" -name '*.jpg' | head -n 1) && mv "$first" "${first%.jpg}.JFIF"
trains "splits by other names" 0 '^ +training +plain/Training: 70 images of 10 classes; passed over: 2 .txt$' \
    --data plain $tiny --steps 1 --out x1
says "splits by other names" '^ +validation +plain/Testing: 30 images of 10 classes$'
says "a test split for validation" '^note: plain has no val/: plain/Testing is used'
good "shards of it" shard --data plain --out plain.d/train
says "shards of it" '^plain/Training: 70 images of 10 classes; passed over: 2 .txt$'
rm -r "plain/Testing/$one"
trains "a class without validation images" 0 "^note: no images of 1 of 10 classes here: $one\$" \
    --data plain $tiny --steps 1 --out x2
trains "the same in a folder of its own" 0 '^ +validation +plain/Testing: 27 images of 9 classes' \
    --data plain --val-data plain/Testing $tiny --steps 1 --out x3
mkdir -p flat/train/a flat/test && cp pics/train/circle/*.jpg flat/train/a && cp pics/val/circle/*.jpg flat/test
trains "an unlabelled test split" 1 '^hint: .*--val-data none' --data flat $tiny --steps 1 --out x
trains "one class" 0 "^note: there is one class, 'a'" --data flat --val-data none $tiny --steps 1 --out x4
mkdir -p both && cp one/train-000000.tar both/set-train-0.tar && cp one/val-000000.tar both/set-val-0.tar
trains "a folder with shards of both splits" 0 '^ +training +both .1 train shard.: 70 images' \
    --data wds:both $tiny --steps 1 --out x5
says "a folder with shards of both splits" '^ +validation +both .1 val shard.: 30 images'
trains "its evaluation" 0 ' images 30$' eval --weights x5
trains "evaluation of a run without validation" 0 "^warning: these are the run.s training images" eval --weights whole
check "none of a folder's own" sh -c '! "$1" eval --weights x5 2>&1 | grep -q "training images"' - "$train"
mkdir named && cp one/train-000000.tar named && (cd x && for f in *.jpg; do
    mkdir -p "n/$((10#$(cat "${f%.jpg}.cls") * 5))" && cp "$f" "n/$((10#$(cat "${f%.jpg}.cls") * 5))"; done)
tar cf named.tar --sort=name -C x/n .
trains "labels from folders" 0 '70 training images, 10 classes' --data wds:named.tar --wds-label folder \
    --val-data none $tiny --steps 1 --out x6
check "in byte order" [ "$(head -n 3 x6/classes.txt | tr '\n' ' ')" = "0 10 15 " ]
trains "in natural order" 0 'done' --data wds:named.tar --wds-label folder --class-order natural \
    --val-data none $tiny --steps 1 --out x7
check "in natural order" [ "$(head -n 3 x7/classes.txt | tr '\n' ' ')" = "0 5 10 " ]
weights=$(ls x7/step_*/model.safetensors | tail -n 1)
cp "$weights" alone.safetensors
trains "weights from elsewhere" 0 '^warning: .*--class-order natural' eval --weights alone.safetensors --data x/n
trains "in the order that was asked for" 0 '^top1' eval --weights alone.safetensors --data x/n --class-order byte
check "is not warned of" sh -c '! grep -q ^warning log'
trains "a list of classes" 0 '^top1' eval --weights alone.safetensors --data x/n --classes x7/classes.txt
check "settles it" sh -c '! grep -q ^warning log'
cases=$shared/cases/08-class-order-natural-vs-strcmp
if [ -d "$cases" ]; then
    for order in byte natural timm; do
        "$train" eval --data "$cases/val" --weights "$cases/model.safetensors" --class-order $order >log 2>&1
        check "classes in $order order" grep -q "^top1 $([ $order = byte ] && echo 4.35 || echo 52.17) " log
    done
else
    skip "no weights of another order in $cases"
fi

# ---- contact sheets ----

sheet() { # file, flags...: a sheet of ten images
    local file=$1
    shift
    good "show $*" show --data pics --model Ti/16 --image-size 32 --out "$file" --count 10 --columns 5 "$@"
}
differ() { check "$1 and $2 differ" sh -c "! cmp -s $1 $2"; }
pixels() { # file: width and height of a PNG, in hexadecimal
    od -An -v -tx1 -j16 -N8 "$1" | tr -d ' \n'
}
sheet a.png
sheet b.png --workers 3 --threads 1
check "the same sheet for any number of workers" cmp a.png b.png
check "tiles of 32 x 5 pixels: 5 columns, 2 rows" [ "$(pixels a.png)" = 00000368000001c8 ]
sheet b.png --seed 1
differ a.png b.png
sheet b.png --epoch 1
differ a.png b.png
sheet c.png --epoch 1 --no-augment
differ b.png c.png
sheet b.png --same
differ a.png b.png
sheet c.png --same --no-augment # the same image again, ten times
check "--same without augmentation is small" [ "$(wc -c <c.png)" -lt "$(wc -c <b.png)" ]
sheet b.png --erase 1
differ a.png b.png
sheet c.png --erase 1 --erase-mode zero
differ b.png c.png
sheet b.png --mixup 1 --batch-size 8 # not a divisor of the epoch
differ a.png b.png
sheet c.png --mixup 1 --batch-size 8 --micro-batch 8
check "micro-batches change nothing" cmp b.png c.png
sheet c.png --cutmix 1 --batch-size 8
differ b.png c.png
sheet c.png --auto-augment "randaug(2,15)"
differ a.png c.png
sheet c.png --val
differ a.png c.png
sheet b.png --val --epoch 5 --mixup 1 --seed 3 --erase 1
check "validation images do not change" cmp b.png c.png
says "validation images" '^b.png: 10 of 30 images of 10 classes'
says "what has no effect" '^note: --epoch has no effect with --val'
for recipe in "$root"/recipes/*.ini; do
    good "show with $(basename "$recipe")" show --recipe "$recipe" --data pics --out recipe.png --count 2
done
good "an array in place of a sheet" show --data pics --image-size 32 --count 10 --out a.npy
check "it has ten images" [ "$(wc -c <a.npy)" = $((128 + 10 * 32 * 32 * 3)) ]
check "of bytes" grep -aq "'descr': '|u1', 'fortran_order': False, 'shape': (10, 32, 32, 3)" a.npy
check "and their labels" sh -c "[ \$(wc -l <a.txt) = 10 ] && ! grep -qvE '^[0-9] [a-z]+$' a.txt"
good "the same in training's order" show --data pics --image-size 32 --count 4 --epoch 0 --batch-size 2 --out b.npy
check "is the same, and shorter" sh -c "tail -c +129 a.npy | head -c 12288 >a.raw && tail -c +129 b.npy | cmp - a.raw"
bad "an array of mixed images" 2 'leave --mixup' show --data pics --image-size 32 --count 8 --mixup 1 --out c.npy
good "a sheet as JPEG" show --data pics --image-size 32 --count 2 --out a.jpg
check "is one" [ "$(head -c 3 a.jpg | od -An -tx1)" = " ff d8 ff" ]
good "a sheet called otherwise" show --data pics --image-size 32 --count 2 --out a.pic
says "what it is" 'a.pic: written as PNG'
# The same picture under names that are spelled alike must make the same sheet, but for its title.
spelled() { # name, as
    rm -rf named && mkdir -p "named/train/$1" && cp pics/train/star/*1.jpg "named/train/$1/"
    good "a class called $1" show --data named --val-data none --image-size 32 --count 1 --out b.png
    mv "named/train/$1" "named/train/$2"
    good "and $2" show --data named --val-data none --image-size 32 --count 1 --out c.png
    check "$1 is shown as $2" cmp b.png c.png
}
spelled 'Käfer' 'Kaefer'
spelled 'łódź' 'lodz'
spelled "$(printf 'e\xcc\x81te\xcc\x81')" 'ete' # marks by themselves, as macOS has them
spelled '猫' 'U+732B '
spelled "$(printf 'a\xff')" 'a?'
bad "no --out" 2 '--out is missing' show --data pics
bad "no such data" 1 '/nowhere' show --data /nowhere --out x.png
bad "no such flag" 2 'no such setting' show --data pics --colums 3 --out x.png
bad "too large a sheet" 2 'lower --count' show --data pics --model Ti/16 --image-size 1024 --out x.png \
    --columns 100 --count 100
bad "odd group" 2 'groups of 4' show --data pics --out x.png --mixup 1 --mix-group 4 --batch-size 6
bad "no place" 1 'nowhere/x.png' show --data pics --out nowhere/x.png

# ---- top ----

mkdir -p watched
cat >watched/log.jsonl <<'END'
{"event":"start","step":0,"steps":1000,"device":"Abacus","ranks":4,"hosts":"n1 n1 n2 n2","batch":64}
{"event":"step","step":10,"epoch":0.1,"loss":4,"lr":0.001,"grad_norm":1,"ms":100,"images_per_s":640,"gflops":5,"wait":0.25,"comm_wait":0.125,"damaged":0,"memory":2e9,"skipped":0,"eta":99,"slowest":1,"slowest_by":0.5}
{"event":"step","step":20,"epoch":0.2,"loss":3,"lr":0.001,"grad_norm":1,"ms":100,"images_per_s":640,"gflops":5,"wait":0.25,"comm_wait":0.125,"damaged":3,"memory":2e9,"skipped":0,"eta":98,"slowest":2,"slowest_by":0.25}
{"event":"step","step":30,"epoch":0.3,"loss":2,"lr":0.001,"grad_norm":null,"ms":100,"images_per_s":640,"gflops":5,"wait":0.25,"comm_wait":0.125,"damaged":3,"memory":2e9,"skipped":1,"eta":3970,"slowest":2,"slowest_by":0.5}
{"event":"eval","step":20,"top1":70,"top5":90,"loss":1}
{"event":"eval","step":30,"top1":60,"top5":90,"loss":1}
{"event":"save","step":30,"seconds":1}
half of a li
END
printf '{"event":"step","step":31,"epo' >>watched/log.jsonl # is being written
touch -d '5 minutes ago' watched/latest watched/log.jsonl
LC_ALL=C good "top" top watched
for line in 'step +30 of 1000 \(3.0%\), epoch 0.30, 1h06m left; nothing was said since 5m0.s ago' 'loss +2.0000 +#=_$' \
    'waiting +25% for data, 12% for other ranks' 'memory +2.00 GB' 'damaged +3 images; 1 step left out' \
    'slowest +rank 2 \(n2\) of 4 in 2 of the last 3 reports, by 37.5% of a step' \
    'eval +top-1 60.00% at step 30; best 70.00% at step 20' 'saved +step 30, 5m0.s ago' '1 line of the log makes no sense'; do
    says "top" "$line"
done
LC_ALL=C.UTF-8 good "top, with blocks" top watched
says "top" '█▄▁'
check "no line moves the cursor" sh -c "! grep -q '$(printf '\033')' log"
echo 'ch":1,"loss":1}' >>watched/log.jsonl
echo '{"event":"end","step":31,"seconds":9}' >>watched/log.jsonl
good "top of a run that has ended" top watched
says "top" 'step +31 of 1000, .*the run has ended'
check "and nothing of flags" sh -c "! grep -q 'has no effect' log"
good "seconds between looks, of one" top watched --every 5
says "top" 'note: --every has no effect on one screen'
bad "no run" 2 'which run' top
bad "no such run" 1 'nowhere/log.jsonl' top nowhere
bad "two runs" 2 'no such flag' top watched watched
mkdir -p alien && echo '{"loss":1}' >alien/log.jsonl
bad "another program's log" 1 'has no run in it' top alien

# On a terminal: a run that goes on, until q; then one that ends.
live="--data fake --num-classes 4 --image-size 16 --patch-size 8 --width 16 --layers 1 --heads 1 --mlp 16
      --batch-size 8 --threads 1 --workers 1 --val-data none --log-every 10"
# shellcheck disable=SC2086
"$train" $live --steps 100000000 --save-every 100 --out live >/dev/null 2>&1 &
pid=$!
for _ in $(seq 100); do grep -qs '"event":"save"' live/log.jsonl && break; sleep 0.1; done
(sleep 2.5; printf q) | TERM=xterm timeout 20 script -qec "stty cols 100; '$tool' top live" /dev/null >log
check "top in a terminal ends with q" [ "${PIPESTATUS[1]}" = 0 ]
check "has drawn several screens" [ "$(grep -c "$(printf '\033\\[H')" log)" -ge 2 ]
check "which differ" [ "$(grep -ao 'step  *[0-9]* of' log | sort -u | wc -l)" -ge 2 ]
check "and puts the terminal back" grep -q "$(printf '\033\\[?25h\033\\[?1049l')" log
(sleep 1; kill -TERM $pid) &
TERM=xterm timeout 20 script -qec "'$tool' top live" /dev/null >log </dev/null
check "top ends with the run (status $?)" grep -q 'the run has ended' log
wait $pid

# ---- weights in and out ----

weights=$root/test/weights
eval_of() { # weights: the last line of their evaluation
    "$train" eval --weights "$1" --data fake --threads 1 2>log | tail -n 1
}
good "info of a hub's folder" info "$weights/timm-hub"
says "what it is" "timm's names, config.json"
says "its settings" 'heads 2'
says "its classes" 'ant, bee, cat, dog, ... \(5\)'
good "info with all tensors" info "$weights/hf-clip" --tensors
says "a tensor" 'blocks.1.attn.qkv.weight +F32 +\[24, 8\]'
good "info as JSON" info --json --tensors "$weights/map.safetensors" --heads 2
says "what has no effect" '^note: --tensors has no effect with --json'
good "info as JSON" info --json "$weights/map.safetensors" --heads 2
says "pooling" '"pool":[[:space:]]*"map"'
says "what is assumed" '"eps":[[:space:]]*"eps 1e-06'
check "heads are no longer assumed" sh -c "! grep -q '1 head' log"
"$train" --data fake --steps 2 --out trained --num-classes 4 --image-size 16 --patch-size 8 --width 32 --layers 1 \
    --heads 2 --mlp 64 --batch-size 4 --threads 1 --ema 0.9 --crop stretch >log 2>&1 || fail "a run"
good "info of a run" info trained
says "how far it is" 'step 2'
says "whose weights" 'averaged weights'
says "its images" 'crop stretch'
for format in timm hf npz onnx; do
    out=out-$format
    [ $format = npz ] && out=out.npz
    [ $format = onnx ] && out=out.onnx
    good "a run to $format" export --format $format trained $out
    says "whose weights" 'the averaged weights of a run'
done
check "a hub's folder" [ -s out-timm/config.json ]
check "transformers' folder" [ -s out-hf/preprocessor_config.json ]
want=$(eval_of trained)
check "the run is evaluated" grep -q '^top1 .* images 256$' <<<"$want"
check "timm's folder is the run" [ "$(eval_of out-timm)" = "$want" ]
check "transformers' folder is the run" [ "$(eval_of out-hf)" = "$want" ]
good "npz to ours" import out.npz imported --heads 2 --mean-r 0.485
check "Google's file is the run" [ "$(eval_of imported)" = "$want" ]
good "weights beside the graph" export --format onnx --external-data --normalise trained out.onnx
says "where they are" 'out.onnx.data'
check "they are there" [ "$(wc -c <out.onnx.data)" -gt 50000 ]
good "a backbone to ours" import "$weights/hf-dinov2" backbone.safetensors
good "is one" info backbone.safetensors
says "no classes" 'classes 0'
"$train" --data fake --weights backbone.safetensors --steps 1 --num-classes 4 --batch-size 4 --threads 1 \
    --out tuned >log 2>&1
check "and can be fine-tuned" grep -q 'the head is new, for 4 classes' log
bad "what transformers has not" 1 'no norms of queries and keys' export --format hf "$weights/qk-norm.safetensors" x
bad "what Google has not" 1 'do not have layer scale' export --format npz "$weights/deit3.safetensors" x
bad "an unknown form" 2 'did you mean --format onnx' export --format onx run x
bad "no form" 2 '--format is missing' export trained x
bad "no file" 2 'no file was given' info --json
bad "no such file" 1 '/nowhere' info /nowhere
bad "no such flag" 2 'did you mean --tensors' info trained --tensor
bad "no OUT" 2 'takes IN and OUT' import trained
bad "an OUT of another form" 2 'out.pth: what is written is no .pth' import trained out.pth
bad "a file for a folder" 2 'x.safetensors: what is written is no .safetensors' export --format timm trained x.safetensors
bad "a command of the other program" 2 './train_cpu predict' predict trained
bad "heads that do not fit" 2 'do not divide' import "$weights/map.safetensors" x --heads 3
bad "npz with a normalisation" 2 'for onnx alone' export --format npz --normalise trained x

# ---- report ----

mkdir told
cat >told/log.jsonl <<'END'
{"event":"start","step":0,"steps":4,"device":"a <b> & c","data":"d","batch":8,"ranks":1}
{"event":"step","step":1,"epoch":0.5,"loss":2,"lr":0.1}
{"event":"step","step":2,"epoch":1,"loss":null,"lr":0.1}
{"event":"eval","step":2,"epoch":1,"top1":25,"loss":1.5}
{"event":"step","step":3,"epoch":1.5,"loss":9,"l
{"event":"start","step":2,"steps":4}
{"event":"step","step":2,"epoch":1,"loss":1.75,"lr":0.1}
{"event":"eval","step":2,"epoch":1,"top1":50,"loss":1.25}
{"event":"end","step":2,"seconds":61}
END
good "report" report told
says "report" '^told/report.html: 1 run'
check "one page by itself" sh -c "grep -q '</html>' told/report.html && ! grep -qE '<script|(src|href)=.?http' told/report.html"
check "text is escaped" grep -q 'a &lt;b&gt; &amp; c' told/report.html
check "what was repeated counts once" [ "$(cut -d, -f1,3,25,27 told/metrics.csv | tail -n +2 | tr '\n' ' ')" = \
    "1,2,, 2,1.75,50,1.25 " ]
check "time and best" sh -c "grep -q '1m01s' told/report.html && grep -q '50.00%' told/report.html"
cp -r told again && sed -i 's/"loss":2,/"loss":3,/' again/log.jsonl
printf 'lr = 0.1\nseed = 1\n' >told/config.ini && printf 'lr = 0.2\nseed = 1\n' >again/config.ini
good "report of two" report told again --out two.html
check "what differs" sh -c "grep -q '<tr><td>lr<td>0.1<td>0.2' two.html && ! grep -q '<td>seed' two.html"
echo '{"classes": [{"name": 3}, 7], "confused": [[5, "x"], 1, [0, 1, 2]], "calibration": [[]]}' >told/eval.json
echo '{"pictures": [{}, 4, {"label": "<i>"}]}' >told/pictures.json
good "report of files that others wrote" report told
bad "report of nothing" 2 'no run was named' report
bad "report of a folder that is no run" 1 'pics holds no log.jsonl' report pics
bad "report that cannot be written" 1 'nowhere/page.html' report told --out nowhere/page.html

finish
