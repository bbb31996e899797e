#!/bin/sh
# Train on GPUS devices of one machine, in the precision of ACCELERATE_MIXED_PRECISION; the arguments are those of the script.
#
# What is started replaces this shell and becomes process 1 of the container, so that it gets the signal of `docker stop`. The
# launcher passes it on to several processes, but not to one: that one is started without a launcher.
set -eu
if [ "$GPUS" -eq 1 ]; then
    exec python train_accelerate.py "$@"
fi
exec accelerate launch --quiet --num_machines 1 --num_processes "$GPUS" --multi_gpu --main_process_port 0 \
    --mixed_precision "$ACCELERATE_MIXED_PRECISION" --dynamo_backend no train_accelerate.py "$@"
