#!/bin/sh
# What both images hold beneath the project: install.sh LOCK, as root, on the Debian that the official Python images have.
set -eu
lock=$1

# git tells the record which commit was trained, g++ builds what `compile: true` asks for, and without the verbs NCCL leaves
# InfiniBand unused and says nothing. GPU drivers come from the host (--nv, --gpus), Slurm's commands stay there.
apt-get update
apt-get install --yes --no-install-recommends g++ git ibverbs-providers libibverbs1
rm -rf /var/lib/apt/lists/*

python -m pip install --no-cache-dir --disable-pip-version-check --requirement "$lock"
