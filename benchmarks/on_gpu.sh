#!/usr/bin/env bash
# All that wants a GPU, in one command:  benchmarks/on_gpu.sh [CIFAR10_ROOT]
#
# 1. The operators' tests, then the embedded digits in fp32, bf16 and fp16 on the device: accuracies, which should be near
#    the CPU's.
# 2. Speed: training beside timm's (benchmarks/results/train_speed.csv); the two-pass form against the textbook's
#    (fused_speed.csv); seresnet18 and seresnet50 per card in the references' precision and batch, and cifar_seresnet110 in
#    both forms at batch 128, eager and compiled (bench.csv).
# 3. With CIFAR10_ROOT: cifar10-seresnet110-tf, cifar10-seresnet110 and its ungated twin, to the end; a run that an earlier
#    call left unfinished goes on.
#
# DEVICE=cpu SMALL=1 tries the script out where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
out=${OUT:-runs}
results=benchmarks/results
small=() batch=256 size=224 cifar_batch=128 compile=off,default
speed=(--batch 256 --steps 30 --rounds 3)
networks=(seresnet50 resnet50)
bench=()
if [ -n "${SMALL:-}" ]; then
    small=(epochs=1 warmup_epochs=0 limit_train=512 limit_val=256)
    results=$out batch=2 size=32 cifar_batch=2 compile=off
    speed=(--model seresnet18 --batch 2 --size 32 --steps 2 --rounds 1 --results "$out/train_speed.csv")
    networks=(seresnet18 resnet18)
    bench=(--image-size 32 --steps 2 --rounds 1 --warm-up 2)
fi
"$python" -m pytest -q tests/ops
for precision in fp32 bf16 fp16; do
    "$python" -m excite train digits-seresnet20 "name=digits-$precision" "device=$device" "precision=$precision" \
        "${small[@]}" --out "$out"
done
"$python" benchmarks/train_speed.py --device "$device" "${speed[@]}"
"$python" benchmarks/fused_speed.py "${networks[@]}" --device "$device" --fused on --batch $batch --size $size \
    --results "$results/fused_speed.csv"
"$python" -m excite bench seresnet18 seresnet50 --batch $cifar_batch --precision fp16 --device "$device" "${bench[@]}" \
    --csv "$results/bench.csv"
"$python" -m excite bench cifar_seresnet110 cifar_seresnet110_tf --batch $cifar_batch --device "$device" \
    --compile $compile "${bench[@]}" --csv "$results/bench.csv"
if [ $# -gt 0 ]; then
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
