#!/usr/bin/env bash
# Makes a base image without a registry: Debian with Python as a tar file, for `podman import FILE NAME`. Needs root.
# Usage: debootstrap-base.sh FILE
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder" "$1.part"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder"
tar -C "$folder" --exclude=./var/cache/apt --exclude=./var/lib/apt/lists -cf "$1.part" .
mv "$1.part" "$1"
