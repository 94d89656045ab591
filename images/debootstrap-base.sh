#!/usr/bin/env bash
# A base for the images without a registry: Debian with Python as localhost/stereo-base:bookworm. Needs root.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
debootstrap --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$folder"
tar -C "$folder" --exclude=./var/cache/apt --exclude=./var/lib/apt/lists -c . |
    "${ENGINE:-podman}" import - localhost/stereo-base:bookworm
