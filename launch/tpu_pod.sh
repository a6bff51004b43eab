#!/usr/bin/env bash
# Train on a Cloud TPU pod slice: the same command on all of its workers; the arguments are those of launch/train.py:
#
#   TPU=my-slice ZONE=us-central2-b launch/tpu_pod.sh --config configs/cifar10_pgd.py --workdir /mnt/shared/runs/cifar10
#
# Run it from the root of the repository: it copies the files of the current commit to every worker, installs them and
# starts. --workdir must be on a file system that all workers mount. DRY_RUN=1 prints the commands and runs none.
set -euo pipefail
: "${TPU:?set TPU to the name of the slice}" "${ZONE:?set ZONE to its zone}"

run() {
    if [ -n "${DRY_RUN:-}" ]; then
        printf '%q ' "$@" && echo
    else
        "$@"
    fi
}
on_workers() {
    run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$1"
}

archive=${TMPDIR:-/tmp}/spa_jax_$TPU.tar
run git archive --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$TPU:spa_jax.tar" --zone="$ZONE" --worker=all
on_workers "mkdir -p spa_jax && tar -xf spa_jax.tar -C spa_jax && python3 -m venv spa_jax/.venv"
on_workers "cd spa_jax && .venv/bin/pip install --quiet -e . -U 'jax[tpu]'"
on_workers "cd spa_jax && .venv/bin/python launch/train.py --distributed --join_timeout=600$(printf ' %q' "$@")"
