"""How fast images are read, cropped and resized for training on one core: ours beside timm's loader and other decoders.

    make bench-loader                                                   # the 200 photographs of ../shared/data
    python benchmarks/loader_speed.py FOLDER --set phone --interpolation bicubic

Each contender runs in a process of its own on one core and waits while another is timed, so that a noisy machine
disturbs all alike. Loaders (ours, timm's) are timed as a whole, batches included; the other rows are the fastest way to
get the same crops out of a decoder: they decode the whole image, and Pillow resizes a part of it. Crops are
random-resized (8 to 100 % of the area), bilinear by default, as uint8. The floor is the entropy decoding of all rows
down to the lower edge of the crop, which cannot be skipped in a JPEG. Rows are appended to
benchmarks/results/loader_speed.csv. Packages that are not installed (see the Makefile) are left out, which is said.

    python benchmarks/loader_speed.py FOLDER --workers

measures our loader with 1 and 2 workers that are threads or processes, each on as many cores: img/s, seconds from
making the loader to its first batch (with the modules loaded), and what a worker adds to the memory (proportional set
size). These rows go to benchmarks/results/loader_workers.csv.
"""

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import date
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
from PIL import Image

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "loader_speed.csv"
PEERS = HERE.parent / ".peers" / "loaders"
SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)
#: What is timed: set -> (size of the crops, images a pass).
SETS = {"photographs": 224, "phone": 224, "small": 32}
EVERYTHING = 1 << 40
Read = Callable[[], int]


# --- images -----------------------------------------------------------------------------------------------------------


def make_phone(photographs: list[Path], folder: Path) -> None:
    """16 photographs of 12 megapixels as phones save them (4:2:0, quality 90, lying on their side): enlarged ones."""
    exif = Image.Exif()
    exif[0x0112] = 6
    for number, path in enumerate(photographs[:16]):
        large = Image.open(path).convert("RGB").resize((4000, 3000), Image.Resampling.BICUBIC)
        noise = np.random.default_rng(number).normal(
            0, 4, (3000, 4000, 1)
        )  # a sensor's; enlarged images have no detail
        noisy = np.clip(np.asarray(large) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{number}.jpg", quality=90, exif=exif)


def images(folder: Path, kind: str, at: Path) -> list[Path]:
    """The images of a set, in class folders below `at`."""
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))
    target = at / "a"
    target.mkdir(parents=True)
    if kind == "phone":
        make_phone(found, target)
        return sorted(target.iterdir())
    for path in found[:4000]:
        shutil.copy(path, target / path.name)
    return sorted(target.iterdir())


# --- contenders -------------------------------------------------------------------------------------------------------


def boxes(width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """A box as in torchvision: left, top, right, bottom."""
    for _ in range(10):
        area, ratio = width * height * rng.uniform(*SCALE), np.exp(rng.uniform(*np.log(RATIO)))
        w, h = round(float(np.sqrt(area * ratio))), round(float(np.sqrt(area / ratio)))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(0, width - w + 1)), int(rng.integers(0, height - h + 1))
            return left, top, left + w, top + h
    return 0, 0, width, height


def excite_loader(
    paths: list[Path], args: argparse.Namespace, workers: int = 0, kind: str = "auto", first: bool = False
) -> Read:
    """`first`: read one batch, not an epoch."""
    from excite.data import FileImages, TrainLoader
    from excite.data.config import AugmentConfig, DataConfig
    from excite.runtime.device import keep_freed_memory

    keep_freed_memory()  # as in `excite train` on a CPU
    files = FileImages([str(path) for path in paths], [0] * len(paths))
    data = DataConfig(
        source="folder",
        image_size=args.size,
        interpolation=args.interpolation,
        workers=workers,
        worker_kind=kind,
        max_pixels=10**8,
    )
    augment = AugmentConfig(crop="random_resized", scale=list(SCALE), ratio=list(RATIO))
    loader = TrainLoader(
        files, batch_size=args.batch, seed=0, device="cpu", augment=augment, data_config=data, drop_last=False
    )
    epochs = iter(range(EVERYTHING))
    if first:
        return lambda: len(next(iter(loader.epoch(0)))[1])
    return lambda: sum(len(labels) for _, labels in loader.epoch(next(epochs)))


def excite_packed(paths: list[Path], args: argparse.Namespace) -> Read:
    """The same images, packed once with a shorter side of 256 pixels, as ``excite data pack`` does by default."""
    from excite.data import TrainLoader
    from excite.data.config import AugmentConfig, DataConfig
    from excite.data.contents import Part
    from excite.data.pack import Smaller, pack
    from excite.data.sources import source_contents
    from excite.runtime.device import keep_freed_memory

    keep_freed_memory()
    folder = Path(tempfile.mkdtemp())
    for number, path in enumerate(paths):
        (folder / "files" / "ab"[number % 2]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder / "files" / "ab"[number % 2])
    size = {"image_size": args.size, "interpolation": args.interpolation, "workers": 0}
    pack(DataConfig(source="folder", root=str(folder / "files"), **size), folder / "shards", smaller=Smaller(256))
    data = DataConfig(source="webdataset", root=str(folder / "shards"), **size)
    (part,) = (part for part in source_contents(data).parts.values() if len(part))
    assert isinstance(part, Part)
    augment = AugmentConfig(crop="random_resized", scale=list(SCALE), ratio=list(RATIO))
    loader = TrainLoader(
        part.images, batch_size=args.batch, seed=0, device="cpu", augment=augment, data_config=data, drop_last=False
    )
    epochs = iter(range(EVERYTHING))
    return lambda: sum(len(labels) for _, labels in loader.epoch(next(epochs)))


def timm_loader(paths: list[Path], args: argparse.Namespace) -> Read:
    sys.path.insert(0, str(HERE))
    from peers import import_timm

    import_timm()
    import torch
    from timm.data import ImageDataset, create_transform
    from timm.data.loader import fast_collate

    transform = create_transform(
        args.size, is_training=True, use_prefetcher=True, hflip=0.0, color_jitter=None, scale=SCALE, ratio=RATIO,
        interpolation=args.interpolation,
    )  # fmt: skip
    dataset = ImageDataset(str(paths[0].parents[1]), transform=transform)
    loader = torch.utils.data.DataLoader(dataset, batch_size=args.batch, shuffle=True, collate_fn=fast_collate)
    return lambda: sum(len(labels) for _, labels in loader)


def one_by_one(paths: list[Path], args: argparse.Namespace, decode: Callable[[bytes], Image.Image]) -> Read:
    """Whole images from a decoder, from which Pillow resizes a part."""
    kind, rng = Image.Resampling[args.interpolation.upper()], np.random.default_rng(0)

    def read() -> int:
        for path in paths:
            image = decode(path.read_bytes())
            crop = image.resize((args.size, args.size), kind, box=boxes(*image.size, rng))
            np.asarray(crop)
        return len(paths)

    return read


def by_pillow(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    return image if image.mode == "RGB" else image.convert("RGB")


def by_simplejpeg(data: bytes) -> Image.Image:
    import simplejpeg

    return Image.fromarray(simplejpeg.decode_jpeg(data, strict=False))


def by_kornia(data: bytes) -> Image.Image:
    from kornia_rs import io as kornia

    grey = Image.open(io.BytesIO(data)).mode == "L"
    pixels = np.asarray(kornia.decode_image_jpeg(data))
    return Image.fromarray(pixels.repeat(3, 2) if grey else pixels)


def by_imagecodecs(data: bytes) -> Image.Image:
    import imagecodecs

    return Image.fromarray(imagecodecs.jpeg8_decode(data, outcolorspace="RGB"))


def by_opencv(data: bytes) -> Image.Image:
    import cv2

    cv2.setNumThreads(1)
    return Image.fromarray(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB))


def by_spdl(data: bytes) -> Image.Image:
    import spdl.io

    packets = spdl.io.demux_image(data)
    frames = spdl.io.decode_packets(packets, filter_desc=spdl.io.get_filter_desc(packets, pix_fmt="rgb24"))
    return Image.fromarray(spdl.io.to_numpy(spdl.io.convert_frames(frames)))


def by_dali(paths: list[Path], args: argparse.Namespace) -> Read:
    """DALI's fused decoding of a random part; its resize is the antialiased one."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=args.batch, num_threads=1, device_id=None, seed=0, prefetch_queue_depth=1)
    def pipeline() -> Any:
        files, labels = fn.readers.file(files=[str(path) for path in paths], random_shuffle=True)
        crops = fn.decoders.image_random_crop(
            files, device="cpu", random_area=list(SCALE), random_aspect_ratio=list(RATIO)
        )
        kind = {"bilinear": types.INTERP_TRIANGULAR, "bicubic": types.INTERP_CUBIC}[args.interpolation]
        return fn.resize(crops, size=[args.size, args.size], interp_type=kind, antialias=True), labels

    running = pipeline()
    running.build()

    def read() -> int:
        done = 0
        while done < len(paths):
            done += len(running.run()[0])
        return done

    return read


FLOOR = r"""
#include <cstddef>
#include <cstdio>
#include <cstdlib>
#include <csetjmp>
#include <jpeglib.h>
struct Errors { jpeg_error_mgr pub; jmp_buf jump; };
static void stop(j_common_ptr c) { longjmp(reinterpret_cast<Errors*>(c->err)->jump, 1); }
static void quiet(j_common_ptr, int) {}
extern "C" int entropy_decode(const unsigned char* data, long size, unsigned rows) {
  jpeg_decompress_struct c; Errors e;
  c.err = jpeg_std_error(&e.pub); e.pub.error_exit = stop; e.pub.emit_message = quiet;
  if (setjmp(e.jump)) { jpeg_destroy_decompress(&c); return 1; }
  jpeg_create_decompress(&c); jpeg_mem_src(&c, data, size); jpeg_read_header(&c, TRUE); jpeg_start_decompress(&c);
  jpeg_skip_scanlines(&c, rows < c.output_height ? rows : c.output_height - 1);
  jpeg_destroy_decompress(&c);
  return 0;
}
"""


def floor(paths: list[Path], args: argparse.Namespace) -> Read:
    """The entropy code of the rows down to the lower edge of the crop, and nothing else."""
    import ctypes

    import PIL

    (decoder,) = Path(PIL.__file__).parents[1].glob("pillow.libs/libjpeg*")  # Pillow's own
    folder = Path(tempfile.mkdtemp())
    (folder / "floor.cpp").write_text(FLOOR)
    library = folder / "floor.so"
    subprocess.run(
        ["g++", "-O2", "-w", "-shared", "-fPIC", str(folder / "floor.cpp"), str(decoder), "-o", str(library)],
        check=True,
    )
    decode = ctypes.CDLL(str(library)).entropy_decode
    decode.argtypes = [ctypes.c_char_p, ctypes.c_long, ctypes.c_uint]
    rng = np.random.default_rng(0)

    def read() -> int:
        for path in paths:
            data = path.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                size = image.size
            decode(data, len(data), boxes(*size, rng)[3])
        return len(paths)

    return read


CONTENDERS: dict[str, Callable[[list[Path], argparse.Namespace], Read]] = {
    "excite": excite_loader,
    "excite without kernels": excite_loader,
    "excite, packed at 256": excite_packed,
    "timm": timm_loader,
    "Pillow": lambda paths, args: one_by_one(paths, args, by_pillow),
    "simplejpeg": lambda paths, args: one_by_one(paths, args, by_simplejpeg),
    "kornia-rs": lambda paths, args: one_by_one(paths, args, by_kornia),
    "imagecodecs": lambda paths, args: one_by_one(paths, args, by_imagecodecs),
    "OpenCV": lambda paths, args: one_by_one(paths, args, by_opencv),
    "SPDL": lambda paths, args: one_by_one(paths, args, by_spdl),
    "DALI (CPU)": by_dali,
    "floor": floor,
}


# --- workers ----------------------------------------------------------------------------------------------------------

KINDS = [("main process", 0), ("thread", 1), ("process", 1), ("thread", 2), ("process", 2)]


def memory_mb() -> float:
    """Proportional set size of this process and those that it has started, in MB."""
    import psutil

    own = psutil.Process()
    return sum(each.memory_full_info().pss for each in [own, *own.children(recursive=True)]) / 2**20


def work(args: argparse.Namespace) -> None:
    """In a process of its own: one kind of workers."""
    kind, workers = args.contender.rsplit(" ", 1)
    os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[-max(1, int(workers)) :]))
    import torch

    torch.set_num_threads(1)
    paths = sorted((Path(args.folder) / "a").iterdir()) * 4
    excite_loader(paths, args, first=True)()  # which loads the modules
    began = time.perf_counter()
    read = excite_loader(paths, args, int(workers), kind if kind in ("thread", "process") else "auto", first=True)
    read()
    first = time.perf_counter() - began
    read = excite_loader(paths, args, int(workers), kind if kind in ("thread", "process") else "auto")
    read()
    print(json.dumps({"first": first, "memory": memory_mb()}), flush=True)
    for _ in sys.stdin:
        started, count = time.perf_counter(), read()
        print(json.dumps({"speed": count / (time.perf_counter() - started)}), flush=True)


def compare_workers(folder: Path, args: argparse.Namespace) -> None:
    """Rows of all kinds, timed in turns."""
    from record import append_rows, commit

    running = {kind: start(f"{kind[0]} {kind[1]}", folder, args) for kind in KINDS}
    about = {kind: answer(process) for kind, process in running.items()}
    speeds: dict[tuple[str, int], list[float]] = {kind: [] for kind in KINDS}
    for _ in range(args.rounds):
        for kind, process in running.items():
            speeds[kind].append(ask(process)["speed"])
    for process in running.values():
        process.kill()
    rows = []
    for kind, workers in KINDS:
        low, middle, high = quantiles(speeds[kind, workers], n=4)
        added = (about[kind, workers]["memory"] - about[KINDS[0]]["memory"]) / max(1, workers)
        row = {"date": date.today().isoformat(), "device": this_device(), "excite": commit(), "set": args.set}
        row |= {"kind": kind, "workers": workers, "images_per_second": round(middle, 1)}
        row |= {"lower_quartile": round(low, 1), "upper_quartile": round(high, 1)}
        row |= {"first_batch_s": round(about[kind, workers]["first"], 3), "mb_per_worker": round(added, 1)}
        rows.append(row)
        print(f"{kind:14} {workers}: " + ", ".join(f"{key} {value}" for key, value in list(row.items())[6:]))
    append_rows(RESULTS.with_name("loader_workers.csv"), rows)


def this_device() -> str:
    import torch

    from excite.runtime.device import device_name

    return device_name(torch.device("cpu"))


# --- timing -----------------------------------------------------------------------------------------------------------


def contend(args: argparse.Namespace) -> None:
    """In a contender's process: a pass whenever the main process asks for one."""
    os.sched_setaffinity(0, {args.core})
    if args.contender.endswith("without kernels"):
        os.environ["EXCITE_KERNELS"] = "off"
    sys.path.append(str(PEERS))
    import torch

    torch.set_num_threads(1)
    paths = sorted((Path(args.folder) / "a").iterdir())
    try:
        read = CONTENDERS[args.contender](paths, args)
        read()
    except Exception as error:
        print(json.dumps({"fails": f"{type(error).__name__}: {error}"[:300]}), flush=True)
        return
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        started, count = time.perf_counter(), 0
        while time.perf_counter() - started < args.seconds:
            count += read()
        print(json.dumps({"speed": count / (time.perf_counter() - started)}), flush=True)


def start(name: str, folder: Path, args: argparse.Namespace) -> "subprocess.Popen[str]":
    command = [sys.executable, __file__, str(folder), "--contender", name, "--size", str(args.size)]
    for option in ("batch", "seconds", "core", "interpolation"):
        command += [f"--{option}", str(getattr(args, option))]
    dali = PEERS / "nvidia" / "nvimgcodec"  # DALI loads it by name
    environment = {**os.environ, "LD_LIBRARY_PATH": f"{dali}:{os.environ.get('LD_LIBRARY_PATH', '')}"}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def answer(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdout is not None
    line = process.stdout.readline()
    while line and not line.startswith("{"):
        line = process.stdout.readline()
    found: dict[str, Any] = json.loads(line) if line else {"fails": "it ended"}
    return found


def ask(process: "subprocess.Popen[str]") -> dict[str, Any]:
    assert process.stdin is not None
    process.stdin.write("go\n")
    process.stdin.flush()
    return answer(process)


def measure(folder: Path, args: argparse.Namespace) -> Iterator[tuple[str, list[float]]]:
    running = {}
    for name in args.contenders:
        process = start(name, folder, args)
        said = answer(process)
        if "fails" in said:
            print(f"{name} is left out: {said['fails']}")
            continue
        running[name] = process
    speeds: dict[str, list[float]] = {name: [] for name in running}
    for _ in range(args.rounds):
        for name, process in running.items():
            speeds[name].append(ask(process)["speed"])
    for process in running.values():
        process.kill()
    yield from speeds.items()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--set", choices=SETS, default="photographs")
    parser.add_argument("--interpolation", choices=("bilinear", "bicubic"), default="bilinear")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--size", type=int)
    parser.add_argument("--workers", action="store_true")
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.contender:
        (contend if args.contender in CONTENDERS else work)(args)
        return
    args.size = args.size or SETS[args.set]
    with tempfile.TemporaryDirectory() as scratch:
        paths = images(Path(args.folder), args.set, Path(scratch))
        print(f"{len(paths)} images ({args.set}), crops of {args.size} pixels, {args.interpolation}")
        if args.workers:
            compare_workers(Path(scratch), args)
            return
        found = dict(measure(Path(scratch), args))
    report(found, args)


def report(found: dict[str, list[float]], args: argparse.Namespace) -> None:
    from record import append_rows, commit

    middle = {name: median(speeds) for name, speeds in found.items()}
    peers = [peer for peer in ("timm", "Pillow") if peer in middle]
    same = {"date": date.today().isoformat(), "device": this_device(), "excite": commit()}
    rows = []
    for name, speeds in found.items():
        low, _, high = quantiles(speeds, n=4)
        over = {f"over_{peer.lower()}": round(middle[name] / middle[peer], 3) for peer in peers}
        what = {"set": args.set, "size": args.size, "interpolation": args.interpolation, "contender": name}
        spread = {"lower_quartile": round(low, 1), "upper_quartile": round(high, 1)}
        rows.append(
            {**same, **what, "rounds": len(speeds), "images_per_second": round(middle[name], 1), **spread, **over}
        )
        print(f"{name:24} {middle[name]:8.1f} img/s  ({low:.0f} to {high:.0f})  {over}")
    append_rows(RESULTS, rows)


if __name__ == "__main__":
    main()
