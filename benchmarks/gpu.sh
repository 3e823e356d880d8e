#!/usr/bin/env bash
# All that wants a GPU, in one command:  benchmarks/gpu.sh [CIFAR10_ROOT]
#
# 1. Correctness: the two-pass operator against the textbook form on the device (three-way against float64, every gradient,
#    whole networks), eager and compiled; nothing is timed if it fails.
# 2. Speed, within 8 minutes: the Triton passes over the floor (results/triton_passes.csv); training at 224 pixels, bf16,
#    channels-last, in turns: our seresnet50 in each form of the operator, our resnet50 and geresnet50_theta_minus, timm's
#    seresnet50 and resnet50, eager and compiled; seresnet18 and seresnet50 in the references' fp16; cifar_seresnet110 in
#    both forms at batch 128 (all in results/bench.csv).
# 3. With CIFAR10_ROOT, beyond the 8 minutes: digits in fp32, bf16 and fp16; cifar10-seresnet110-tf, cifar10-seresnet110 and
#    its ungated twin to the end. A run that an earlier call left unfinished goes on.
#
# DEVICE=cpu SMALL=1 tries the script out where there is no GPU; PYTHON and OUT (the run folders) can be given, too.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
out=${OUT:-runs}
csv=benchmarks/results/bench.csv
small=() batch=256 cifar_batch=128 compile=off,default graphs=off,reduce-overhead
bench=(--device "$device" --rounds 2 --seconds 2) passes=(--device "$device")
gated=seresnet50 ungated=resnet50
if [ -n "${SMALL:-}" ]; then
    mkdir -p "$out"
    small=(epochs=1 warmup_epochs=0 limit_train=512 limit_val=256)
    csv=$out/bench.csv batch=2 cifar_batch=2 compile=off graphs=off
    bench=(--device "$device" --rounds 1 --image-size 32 --steps 2 --warm-up 2) passes=(--device "$device" --small)
    gated=seresnet18 ungated=resnet18
fi
EXCITE_TEST_DEVICE=$device "$python" -m pytest -q tests/ops/test_gated_norm.py tests/ops/test_operators.py \
    -k "near or projection or alike or nan or one_graph or inductor"
"$python" benchmarks/triton_passes.py "${passes[@]}"
"$python" -m excite bench "$gated,fused=off" "$gated,fused=on" "$gated,fused=plain" "$ungated,fused=off" \
    "$ungated,fused=on" "ge${ungated}_theta_minus,fused=on" "timm:$gated" "timm:$ungated" \
    --batch $batch --precision bf16 --compile $compile "${bench[@]}" --csv "$csv"
"$python" -m excite bench seresnet18 "$gated" --batch $cifar_batch --precision fp16 "${bench[@]}" --csv "$csv"
"$python" -m excite bench cifar_seresnet110,fused=off cifar_seresnet110,fused=on cifar_seresnet110_tf \
    --batch $cifar_batch --compile $graphs "${bench[@]}" --csv "$csv"
if [ $# -gt 0 ]; then
    for precision in fp32 bf16 fp16; do
        "$python" -m excite train digits-seresnet20 "name=digits-$precision" "device=$device" "precision=$precision" \
            "${small[@]}" --out "$out"
    done
    for recipe in cifar10-seresnet110-tf cifar10-seresnet110 cifar10-resnet110; do
        unfinished=$(find "$out" -maxdepth 1 -name "$recipe-2*" ! -exec test -e '{}/results.json' ';' -print -quit)
        if [ -n "$unfinished" ]; then
            "$python" -m excite train --resume "$unfinished" "data.root=$1"
        else
            scale=()
            # The reference's fp16 is emulated on a CPU, and starts from a loss scale that a few steps do not bring down.
            if [ -n "${SMALL:-}" ] && [ "$recipe" = cifar10-seresnet110-tf ]; then scale=(precision=fp32); fi
            "$python" -m excite train "$recipe" "data.root=$1" "device=$device" "${small[@]}" "${scale[@]}" --out "$out"
        fi
    done
fi
