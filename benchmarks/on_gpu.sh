#!/usr/bin/env bash
# All that wants a GPU, in one command:  benchmarks/on_gpu.sh [CIFAR10_ROOT]
#
# 1. The embedded digits in fp32, bf16 and fp16 on the device: accuracies, which should be near the CPU's.
# 2. Training speed beside timm's, appended to benchmarks/results/train_speed.csv.
# 3. With CIFAR10_ROOT: cifar10-seresnet110 and its ungated twin; a run that an earlier call left unfinished goes on.
#
# DEVICE=cpu SMALL=1 tries the script out where there is no GPU.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${DEVICE:-cuda}
python=${PYTHON:-python3}
out=${OUT:-runs}
small=()
speed=(--batch 256 --steps 30 --rounds 3)
if [ -n "${SMALL:-}" ]; then
    small=(epochs=1 warmup_epochs=0 limit_train=512 limit_val=256)
    speed=(--model seresnet18 --batch 2 --size 32 --steps 2 --rounds 1 --results "$out/train_speed.csv")
fi
for precision in fp32 bf16 fp16; do
    "$python" -m excite train digits-seresnet20 "name=digits-$precision" "device=$device" "precision=$precision" \
        "${small[@]}" --out "$out"
done
"$python" benchmarks/train_speed.py --device "$device" "${speed[@]}"
if [ $# -gt 0 ]; then
    for recipe in cifar10-seresnet110 cifar10-resnet110; do
        unfinished=$(find "$out" -maxdepth 1 -name "$recipe-*" ! -exec test -e '{}/results.json' ';' -print -quit)
        if [ -n "$unfinished" ]; then
            "$python" -m excite train --resume "$unfinished" "data.root=$1"
        else
            "$python" -m excite train "$recipe" "data.root=$1" "device=$device" "${small[@]}" --out "$out"
        fi
    done
fi
