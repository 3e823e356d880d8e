#!/usr/bin/env bash
# All that wants a GPU, in one command:  benchmarks/gpu.sh [CIFAR10_ROOT]
#
# Parts, in this order; PARTS=blocks,train runs some of them, so that what was cut off is run again alone. Seconds are
# estimates for an H100 with 16 cores and empty caches, most of which compilers take; none was at hand to time them.
#
#   correctness   90  the two-pass operator against the textbook form and float64, eager and compiled, whole networks,
#                     the Triton kernels themselves, CUDA graphs, streams, maps of more than 2^31 values
#   blocks        60  each Triton pass over the floor (triton_passes.csv)
#   train        180  224 pixels, bf16, channels-last, eager and compiled: our seresnet50, resnet50,
#                     geresnet50_theta_minus, timm's seresnet50 and resnet50 (bench.csv, as all that follows)
#   cifar        100  cifar_seresnet110 and its TensorFlow form at batch 128, eager and by CUDA graphs
#   infer         50  forward passes at batch 1 and 256
#   forms        240  not by default: other forms compiled, the references' fp16, textbook forms as CUDA graphs
#   recipes           not by default, hours: with CIFAR10_ROOT, digits in each precision, then the CIFAR-10 recipes to
#                     their end, cifar10-fast (seconds) first; a run that an earlier call left unfinished goes on
#
# A step that fails or outlasts its limit is named, the others go on, and the exit status is 1. Where "correctness" fails
# nothing is timed. All lands in OUT: gpu.log, steps.csv (what ran, how it ended), bench.csv, triton_passes.csv.
#
#   OUT        folder for results (runs/gpu)        ROUNDS  times each row is measured, in turns (1; 3 to quote figures)
#   DEVICE     cuda                                 LIMIT   seconds for all; later steps are not started (480)
#   PYTHON     python3                              COMMIT  what to call this source where there is no git
#   WHEELS     folder of wheels for a machine without package registries; only packages that are missing are taken.
#              benchmarks/gpu.sh wheels FOLDER collects them (x86-64; PYTHON_VERSION=3.12, WANTED="names").
#   DEVICE=cpu SMALL=1 tries the script out where there is no GPU (minutes).
set -uo pipefail
cd "$(dirname "$0")/.." || exit 2
python=${PYTHON:-python3}

# --- wheels -----------------------------------------------------------------------------------------------------------

collect_wheels() {
    local folder=${1:?benchmarks/gpu.sh wheels FOLDER} name version platforms=()
    local wanted=${WANTED:-pydantic pydantic_core annotated-types typing-inspection typing_extensions}
    wanted=${WANTED:-$wanted kornia kornia_rs captum pytorch_optimizer}
    for version in 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${version}_x86_64"); done
    for name in $wanted; do
        version=$(sed -n "s/^$name==//p" constraints.txt)
        "$python" -m pip download -q --disable-pip-version-check --no-deps --only-binary=:all: \
            --python-version "${PYTHON_VERSION:-3.12}" --implementation cp "${platforms[@]}" --platform manylinux2014_x86_64 \
            -d "$folder" "$name${version:+==$version}" || { echo "no wheel of $name" >&2; return 1; }
    done
    ls -l "$folder"
}

if [ "${1:-}" = wheels ]; then
    collect_wheels "${2:-}"
    exit
fi

# --- what is here -----------------------------------------------------------------------------------------------------

device=${DEVICE:-cuda} out=${OUT:-runs/gpu} rounds=${ROUNDS:-1} limit=${LIMIT:-480} cifar10=${1:-}
parts=${PARTS:-correctness,blocks,train,cifar,infer}${cifar10:+,recipes}
for part in ${parts//,/ }; do
    case $part in
        correctness | blocks | train | cifar | infer | forms | recipes) ;;
        *) echo "there is no part '$part' (correctness, blocks, train, cifar, infer, forms, recipes)" >&2; exit 2 ;;
    esac
done
mkdir -p "$out" || exit 2
out=$(cd "$out" && pwd)
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH=$site:$PWD/src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
if [ -d .peers ] && ! "$python" -c 'import timm' 2>/dev/null; then export EXCITE_PEERS=$PWD/.peers; fi

# What pyproject.toml asks for and the environment does not have, one a line.
missing() {
    "$python" - <<'PYTHON'
import re, tomllib
from importlib import metadata
from pathlib import Path

wanted = tomllib.loads(Path("pyproject.toml").read_text())["project"]["dependencies"]
names = [re.match(r"[\w.-]+", line).group() for line in wanted]
for name in [*names, "pytest", "timm"]:
    todo, seen = [name], set()
    while todo:
        one = todo.pop()
        try:
            needs = metadata.requires(one) or []
        except metadata.PackageNotFoundError:
            print(one)
            continue
        for need in needs:
            found = re.match(r"[\w.-]+", need).group()
            if ";" not in need and found not in seen:
                seen.add(found)
                todo.append(found)
PYTHON
}

prepare() {
    local lacking wheel name
    lacking=$(missing | sort -u) || return 1
    if [ -n "${WHEELS:-}" ] && [ -n "$lacking" ]; then
        for wheel in "$WHEELS"/*.whl; do
            name=$(basename "$wheel" | cut -d- -f1 | tr '_.' '--')
            if printf '%s\n' "$lacking" | tr '_.' '--' | grep -qix "$name" || ! "$python" -c "
import sys; from importlib import metadata; metadata.version('$name')" 2>/dev/null; then
                "$python" -m pip install -q --disable-pip-version-check --no-index --no-deps --no-compile --no-cache-dir \
                    --upgrade --target "$site" "$wheel" || return 1
            fi
        done
        lacking=$(missing | sort -u) || return 1
    fi
    # timm may lie beside the environment (.peers), and without it only its own rows fail.
    lacking=$(printf '%s\n' "$lacking" | grep -vix timm | tr '\n' ' ')
    if [ -n "${lacking// /}" ]; then
        echo "missing here: ${lacking% }; install them, or collect wheels elsewhere (benchmarks/gpu.sh wheels FOLDER)" \
            "and give WHEELS=FOLDER" >&2
        return 1
    fi
    # A copy of the source that nobody installed has no metadata, from which the version is read.
    if ! "$python" -c 'from importlib.metadata import version; version("excite")' 2>/dev/null; then
        name=$site/excite-$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml | head -1).dist-info
        mkdir -p "$name"
        printf 'Metadata-Version: 2.1\nName: excite\nVersion: %s\n' "$(basename "$name" .dist-info | cut -d- -f2)" >"$name/METADATA"
    fi
}
prepare || exit 2

export COMMIT=${COMMIT:-$(git rev-parse --short=10 HEAD 2>/dev/null || echo unknown)}
# Device, torch, triton, timm: four columns of steps.csv.
here=$("$python" - "$device" <<'PYTHON'
import os
import sys
from importlib.metadata import PackageNotFoundError, version

import torch

from excite.runtime.device import device_name


def of(name):
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


device = torch.device(sys.argv[1])
torch.empty(1, device=device)
sys.path.append(os.environ.get("EXCITE_PEERS", ""))
print(device_name(device).replace(",", " "), torch.__version__, of("triton"), of("timm"), sep=",")
PYTHON
) || { echo "there is no device '$device' that PyTorch can use here (see above)" >&2; exit 2; }

# --- steps ------------------------------------------------------------------------------------------------------------

log=$out/gpu.log steps=$out/steps.csv failed=()
[ -e "$steps" ] || echo "date,device,torch,triton,timm,excite,part,step,seconds,limit,status" >"$steps"

say() { printf '%s\n' "$*" | tee -a "$log"; }

# step PART NAME SECONDS COMMAND...    (SECONDS 0: as long as it takes, LIMIT or not)
step() {
    local part=$1 name=$2 most=$3 started=$SECONDS left=$((limit - SECONDS)) status code=0
    shift 3
    if [ "$most" -gt 0 ] && [ "$left" -lt 10 ]; then
        most=0 status="not started: the $limit s are used up" code=1
    else
        if [ "$most" -gt 0 ] && [ "$most" -gt "$left" ]; then most=$left; fi
        say "--- $part: $name$([ "$most" -eq 0 ] || echo " (at most $most s)")"
        # What the step started is stopped with it.
        timeout --kill-after=10 "$most" "$@" 2>&1 | tee -a "$log"
        code=${PIPESTATUS[0]}
        case $code in 0) status=ok ;; 124 | 137) status="stopped at its limit" ;; *) status="failed (exit status $code)" ;; esac
    fi
    [ "$code" -eq 0 ] || failed+=("$part: $name, $status")
    say "--- $part: $name: $status, $((SECONDS - started)) s"
    echo "$(date +%F),$here,$COMMIT,$part,$name,$((SECONDS - started)),$most,$status" >>"$steps"
    return "$code"
}

bench() { # PART NAME SECONDS ROWS-AND-OPTIONS...
    local part=$1 name=$2 most=$3
    shift 3
    step "$part" "$name" "$most" "$python" -m excite bench "$@" --device "$device" --csv "$out/bench.csv" "${bench[@]}"
}

bench=(--rounds "$rounds" --seconds 3) gated=seresnet50 ungated=resnet50 batch=256 cifar=cifar_seresnet110
large=1,256 compile=default graphs=reduce-overhead passes=() small=()
workers=$(($(nproc) - 2))
checks=(-m "slow or not slow") like="near or projection or alike or nan or one_graph or inductor"
if [ -n "${SMALL:-}" ]; then
    bench=(--rounds 1 --steps 2 --warm-up 2 --image-size 32) gated=seresnet18 ungated=resnet18 batch=4 cifar=cifar_seresnet20
    large=1,2 compile=off graphs=off passes=(--small) small=(epochs=1 warmup_epochs=0 limit_train=512 limit_val=256)
    workers=0 checks=(-k "forward or relu") like="projections_norm_that or one_value or no_variance or operators-True-True-False-False"
fi
# On a CPU, where this is only tried out, the kernels are interpreted, and times say nothing.
interpret=() slower=1
if [ "$device" = cpu ]; then interpret=(env TRITON_INTERPRET=1) slower=10; fi
limit=$((limit * slower))
of() { echo $(($1 * slower)); }
parallel=()
if [ "$workers" -gt 1 ] && "$python" -c 'import xdist' 2>/dev/null; then parallel=(-n "$((workers < 12 ? workers : 12))"); fi

correctness() {
    local code=0
    step correctness operators "$(of 120)" env "EXCITE_TEST_DEVICE=$device" "$python" -m pytest "${parallel[@]}" -p no:cacheprovider \
        tests/ops/test_gated_norm.py tests/ops/test_operators.py tests/ops/test_gpu.py -k "gpu or $like" || code=1
    step correctness kernels "$(of 120)" "${interpret[@]}" "$python" -m pytest "${parallel[@]}" -p no:cacheprovider \
        tests/ops/triton_checks.py "${checks[@]}" || code=1
    return $code
}

blocks() {
    step blocks "triton passes" "$(of 120)" "${interpret[@]}" "$python" benchmarks/triton_passes.py --device "$device" \
        --results "$out/triton_passes.csv" "${passes[@]}"
}

train() {
    # timm's train script leaves the optimizer unfused.
    bench train eager "$(of 120)" "$gated,fused=on" "$gated,fused=off" "$ungated,fused=on" "ge${ungated}_theta_minus,fused=on" \
        "timm:$gated,fused_sgd=false" "timm:$ungated" --batch $batch --precision bf16
    bench train compiled "$(of 240)" "$gated,fused=on" "$gated,fused=off" "timm:$gated" "timm:$ungated" \
        --batch $batch --precision bf16 --compile $compile
}

cifar() {
    bench cifar eager "$(of 60)" "$cifar,fused=on" "$cifar,fused=off" "cifar_seresnet110_tf,fused=off" --batch $((batch / 2)) --precision bf16
    bench cifar graphs "$(of 180)" "$cifar,fused=on" "cifar_seresnet110_tf,fused=on" --batch $((batch / 2)) --precision bf16 --compile $graphs
}

infer() {
    bench infer eager "$(of 100)" --infer "$gated,fused=on" "$gated,fused=off" "timm:$gated" --batch $large --precision bf16
}

forms() {
    bench forms compiled "$(of 300)" "$gated,fused=plain" "$ungated,fused=on" "$ungated,fused=off" \
        "ge${ungated}_theta_minus,fused=on" --batch $batch --precision bf16 --compile $compile
    bench forms fp16 "$(of 60)" seresnet18 "$gated" --batch $((batch / 2)) --precision fp16
    bench forms graphs "$(of 180)" "$cifar,fused=off" "cifar_seresnet110_tf,fused=off" --batch $((batch / 2)) --precision bf16 --compile $graphs
}

recipes() {
    local precision recipe unfinished scale
    [ -n "$cifar10" ] || { say "recipes: no CIFAR10_ROOT was given"; failed+=("recipes: no CIFAR10_ROOT"); return 1; }
    for precision in fp32 bf16 fp16; do
        step recipes "digits $precision" 0 "$python" -m excite train digits-seresnet20 "name=digits-$precision" "device=$device" \
            "precision=$precision" "${small[@]}" --out "$out"
    done
    for recipe in cifar10-fast cifar10-seresnet110-tf cifar10-seresnet110 cifar10-resnet110; do
        unfinished=$(find "$out" -maxdepth 1 -name "$recipe-2*" ! -exec test -e '{}/results.json' ';' -print -quit)
        if [ -n "$unfinished" ]; then
            step recipes "$recipe, resumed" 0 "$python" -m excite train --resume "$unfinished" "data.root=$cifar10"
            continue
        fi
        scale=()
        # The reference's fp16 is emulated on a CPU, and starts from a loss scale that a few steps do not bring down.
        if [ -n "${SMALL:-}" ] && [ "$recipe" = cifar10-seresnet110-tf ]; then scale=(precision=fp32); fi
        if [ -n "${SMALL:-}" ] && [ "$recipe" = cifar10-fast ]; then scale=(batch_size=64); fi
        step recipes "$recipe" 0 "$python" -m excite train "$recipe" "data.root=$cifar10" "device=$device" "${small[@]}" \
            "${scale[@]}" --out "$out"
    done
}

say "$here, $COMMIT, parts: $parts"
for part in ${parts//,/ }; do
    "$part"
    if [ $? -ne 0 ] && [ "$part" = correctness ]; then
        say "what computes wrong results is not timed"
        break
    fi
done
say "=== $SECONDS s; $out: $(cd "$out" && ls | tr '\n' ' ')"
if [ ${#failed[@]} -gt 0 ]; then
    for one in "${failed[@]}"; do say "FAILED  $one"; done
    exit 1
fi
