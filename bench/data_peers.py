"""Other loaders, beside bench/data.c: the same pictures to the same size.

    PYTHON bench/data_peers.py                        answers requests on its input
    PYTHON bench/data_peers.py FILE IMAGES SECONDS full|draft
                                                      random crops of one picture, with Pillow: of
                                                      the whole, or by draft() at 1/2, 1/4 or 1/8 as
                                                      long as twice the size remains

Says "peer NAME what it is" for each loader that is installed, then "ready". A request is

    NAME crop|eval|policy FILTER START COUNT LIST     one thread
    NAME loader FILTER WORKERS SECONDS LIST           a DataLoader with that many processes

where LIST is a text file of paths, or wds: and the pattern of tar shards. The answer is a line
"NAME IMAGES WALL_SECONDS CPU_SECONDS", or "NAME no" and a reason. A pipeline is built before the
clock runs, and its first image is made before, too.
"""
import io
import itertools
import math
import os
import random
import re
import sys
import tarfile
import time

for threads in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[threads] = "1"

SIZE, SHORT_SIDE = 224, 256
POLICY = "rand-m9-n2-mstd0.5-inc1"


def have(name):
    try:
        return __import__(name, fromlist=["x"])
    except Exception:  # also a broken installation is none
        return None


Image = have("PIL.Image")
if Image:
    Image.MAX_IMAGE_PIXELS = None
    PIL = have("PIL")


def random_box(w, h):
    """As torchvision's RandomResizedCrop draws it."""
    for _ in range(10):
        area = w * h * random.uniform(0.08, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        cw, ch = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < cw <= w and 0 < ch <= h:
            x, y = random.randint(0, w - cw), random.randint(0, h - ch)
            return x, y, x + cw, y + ch
    side = min(w, h)
    x, y = (w - side) // 2, (h - side) // 2
    return x, y, x + side, y + side


def pillow_filter(name):
    return {"bilinear": Image.BILINEAR, "bicubic": Image.BICUBIC}[name]


# ---- pipelines: made for a task and a filter, each takes a file and delivers one sample ----

def pillow(task, filter_name):
    method = pillow_filter(filter_name)
    augment = timm_policy(filter_name) if task == "policy" else None

    def crop(file):
        im = Image.open(file).convert("RGB")
        im = im.resize((SIZE, SIZE), method, box=random_box(*im.size))
        if random.random() < 0.5:
            im = im.transpose(Image.FLIP_LEFT_RIGHT)
        return (augment(im) if augment else im).tobytes()

    def evaluate(file):
        im = Image.open(file).convert("RGB")
        w, h = im.size
        short = min(w, h)
        w, h = w * SHORT_SIDE // short, h * SHORT_SIDE // short
        im = im.resize((w, h), method)
        x, y = (w - SIZE) // 2, (h - SIZE) // 2
        return im.crop((x, y, x + SIZE, y + SIZE)).tobytes()

    if task == "policy" and not augment:
        return None
    return evaluate if task == "eval" else crop


def timm_policy(filter_name):
    augment = have("timm.data.auto_augment")
    if not augment:
        return None
    change = augment.rand_augment_transform(
        POLICY, {"translate_const": 100, "img_mean": (124, 116, 104),
                 "interpolation": pillow_filter(filter_name)})

    def apply(im):
        while True:
            try:
                return change(im)
            except ValueError:  # now and then it asks for 0 bits, which a newer Pillow refuses
                pass
    return apply


def webdataset(task, filter_name):
    return pillow(task, filter_name) if task != "policy" else None


def torchvision(task, filter_name):
    t = have("torchvision.transforms")
    method = {"bilinear": t.InterpolationMode.BILINEAR,
              "bicubic": t.InterpolationMode.BICUBIC}[filter_name]
    to_float = [t.ToTensor(), t.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))]
    if task == "eval":
        steps = [t.Resize(SHORT_SIDE, method), t.CenterCrop(SIZE)]
    else:
        steps = [t.RandomResizedCrop(SIZE, interpolation=method), t.RandomHorizontalFlip()]
    if task == "policy":
        augment = timm_policy(filter_name)
        steps.append(augment or t.RandAugment(2, 9, interpolation=method))
    transform = t.Compose(steps + to_float)

    def sample(file):
        return transform(Image.open(file).convert("RGB"))
    return sample


def opencv(task, filter_name):
    cv2, np = have("cv2"), have("numpy")
    cv2.setNumThreads(0)
    method = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC}[filter_name]
    if task == "policy":
        return None

    def sample(file):
        im = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)
        h, w = im.shape[:2]
        if task == "eval":
            short = min(w, h)
            w, h = w * SHORT_SIDE // short, h * SHORT_SIDE // short
            im = cv2.resize(im, (w, h), interpolation=method)
            x, y = (w - SIZE) // 2, (h - SIZE) // 2
            im = im[y:y + SIZE, x:x + SIZE]
        else:
            x, y, right, bottom = random_box(w, h)
            im = cv2.resize(im[y:bottom, x:right], (SIZE, SIZE), interpolation=method)
            if random.random() < 0.5:
                im = cv2.flip(im, 1)
        return cv2.cvtColor(im, cv2.COLOR_BGR2RGB)
    return sample


class Dali:
    """A pipeline of one thread that keeps nothing ahead, so that its time is that of its images."""

    BATCH = 10

    def __init__(self, task, filter_name, where):
        fn, types = have("nvidia.dali.fn"), have("nvidia.dali.types")
        method = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}[filter_name]
        self.pipe = have("nvidia.dali").Pipeline(self.BATCH, num_threads=1, device_id=None,
                                                 exec_async=False, exec_pipelined=False)
        with self.pipe:
            if where.startswith("wds:"):
                files = fn.readers.webdataset(paths=shards(where), ext=["jpg"])
                files = files[0] if isinstance(files, (list, tuple)) else files
            else:
                files = fn.readers.file(files=read_lines(where))[0]
            if task == "eval":
                im = fn.decoders.image(files, device="cpu")
                im = fn.resize(im, resize_shorter=SHORT_SIDE, interp_type=method, antialias=True)
                im = fn.crop(im, crop=(SIZE, SIZE))
            else:
                im = fn.decoders.image_random_crop(
                    files, device="cpu", random_area=[0.08, 1], random_aspect_ratio=[3 / 4, 4 / 3])
                im = fn.resize(im, size=(SIZE, SIZE), interp_type=method, antialias=True)
                im = fn.flip(im, horizontal=fn.random.coin_flip())
            self.pipe.set_outputs(im)
        self.pipe.build()

    def batch(self):
        return self.pipe.run()


# ---- where the files come from ----

def shards(pattern):
    found = re.fullmatch(r"wds:(.*)\{(\d+)\.\.(\d+)\}(.*)", pattern)
    first, last, width = int(found[2]), int(found[3]), len(found[2])
    return [f"{found[1]}{i:0{width}}{found[4]}" for i in range(first, last + 1)]


def tar_images(pattern):
    for path in itertools.cycle(shards(pattern)):
        with tarfile.open(path, "r|") as archive:  # a stream, as webdataset reads it
            for member in archive:
                if member.name.endswith(".jpg"):
                    yield io.BytesIO(archive.extractfile(member).read())


def webdataset_images(pattern):
    wds = have("webdataset")
    while True:
        for sample in wds.WebDataset(shards(pattern), shardshuffle=False):
            yield io.BytesIO(sample["jpg"])


def read_lines(file):
    with open(file, encoding="utf-8", errors="surrogateescape") as lines:
        return lines.read().splitlines()


def folder_images(list_file, start):
    paths = read_lines(list_file)
    for i in itertools.count(start):
        with open(paths[i % len(paths)], "rb") as file:
            yield file


streams = {}


def images(where, start, read_shards=tar_images):
    """Shards go on where the last request ended, files from `start` on."""
    if not where.startswith("wds:"):
        return folder_images(where, start)
    key = where, read_shards
    if key not in streams:
        streams[key] = read_shards(where)
    return streams[key]


# ---- requests ----

pipelines = {}


def dali(task, filter_name, start, count, where):
    if task == "policy":
        return "no: another policy"
    key = task, filter_name, where
    if key not in pipelines:
        pipelines[key] = Dali(*key)
        pipelines[key].batch()
    wall, cpu, done = time.perf_counter(), time.process_time(), 0
    while done < count:
        pipelines[key].batch()
        done += Dali.BATCH
    return f"{done} {time.perf_counter() - wall} {time.process_time() - cpu}"


def single(make, task, filter_name, start, count, where):
    sample = make(task, filter_name)
    tars = make is webdataset
    if not sample or tars and not where.startswith("wds:"):
        return "no: not this task"
    read_shards = webdataset_images if tars else tar_images
    files = images(where, start, read_shards)
    first = images(where, start, read_shards)
    sample(next(first))
    wall, cpu = time.perf_counter(), time.process_time()
    for _ in range(count):
        sample(next(files))
    return f"{count} {time.perf_counter() - wall} {time.process_time() - cpu}"


def dataloader(make, filter_name, workers, seconds, where):
    data = have("torch.utils.data")
    sample = make("crop", filter_name)

    class Files(data.IterableDataset):
        def __iter__(self):
            info = data.get_worker_info()
            return (sample(f) for f in images(where, 1000003 * info.id))

    batches = iter(data.DataLoader(Files(), batch_size=32, num_workers=workers))
    for _ in range(workers):
        next(batches)
    count, wall = 0, time.perf_counter()
    while time.perf_counter() - wall < seconds:
        count += len(next(batches))
    return f"{count} {time.perf_counter() - wall} 0"


def answer(makers, line):
    name, task, filter_name, a, b, where = line.rstrip("\n").split(" ", 5)
    if task == "loader":
        if name != "torchvision":
            return "no: it has no loader of its own"
        return dataloader(makers[name], filter_name, int(a), float(b), where)
    if name == "dali":
        return dali(task, filter_name, int(a), int(b), where)
    return single(makers[name], task, filter_name, int(a), int(b), where)


def serve():
    makers = {}
    out = os.fdopen(os.dup(1), "w")  # libraries that talk shall not be taken for an answer
    os.dup2(2, 1)

    def say(*words):
        print(*words, file=out, flush=True)

    def offer(name, about, make):
        makers[name] = make
        say("peer", name, about)
    if Image:
        what = "Pillow-SIMD" if "post" in PIL.__version__ else "Pillow"
        offer("pillow", f"{what} {PIL.__version__}: open, convert, resize(box), transpose; "
              "uint8 HWC", pillow)
    torch, tv = have("torch"), have("torchvision")
    if Image and torch and tv:
        torch.set_num_threads(1)
        offer("torchvision", f"{tv.__version__} (torch {torch.__version__}) over {what}, with "
              "ToTensor and Normalize; float CHW", torchvision)
    cv2 = have("cv2")
    if cv2:
        offer("opencv", f"{cv2.__version__}: imdecode, resize (not antialiased), flip; uint8 HWC",
              opencv)
    wds = have("webdataset")
    if Image and wds:
        offer("webdataset", f"{wds.__version__}: tar shards alone; its stream, then as pillow; "
              "uint8 HWC", webdataset)
    nvidia = have("nvidia.dali")
    if nvidia:
        offer("dali", f"{nvidia.__version__} on the CPU: decoders.image_random_crop, resize "
              "(antialiased), flip; uint8 HWC", None)
    say("ready")
    failed = set()
    for line in sys.stdin:
        try:
            result = answer(makers, line)
        except Exception as error:  # a peer that fails is left out of the table
            result = "no: " + type(error).__name__
            if line.split()[0] not in failed:
                print("peer failed:", line.strip(), repr(error)[:300], file=sys.stderr)
            failed.add(line.split()[0])
        say(line.split()[0], result)


def large(path, count, seconds, draft):
    done, wall, cpu = 0, time.perf_counter(), time.process_time()
    while done < count or time.perf_counter() - wall < seconds:
        im = Image.open(path)
        w, h = im.size
        box, scale = random_box(w, h), 8 if draft else 1
        while scale > 1 and min(box[2] - box[0], box[3] - box[1]) < 2 * SIZE * scale:
            scale //= 2
        if scale > 1:
            im.draft("RGB", (w // scale, h // scale))
        scale = w / im.size[0]
        im = im.convert("RGB")
        im.resize((SIZE, SIZE), Image.BILINEAR, box=[v / scale for v in box]).tobytes()
        done += 1
    print(done, time.perf_counter() - wall, time.process_time() - cpu)


if len(sys.argv) == 5:
    large(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "draft")
else:
    serve()
