#!/usr/bin/env bash
# Build the apptainer image from env/hpc_stres.def:
#   env/build_image.sh [hpc_stres.sif]
# Where apptainer is not allowed to build on a login node: build elsewhere and copy the one file.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
image=${1:-hpc_stres.sif}
builder=$(command -v apptainer || command -v singularity || true)
if [ -z "$builder" ]; then
  echo "build_image: neither apptainer nor singularity is installed here" >&2
  echo "build on a machine that has one; tests/image proves the recipe's %post and %test without it" >&2
  exit 1
fi
# What git does not know stays out: data, runs and environments would make the image huge.
context=$(mktemp -d)
trap 'rm -rf "$context"' EXIT
git ls-files -z | xargs -0 cp --parents -t "$context"
temporary=$image.part.sif
(cd "$context" && "$builder" build --force "$OLDPWD/$temporary" env/hpc_stres.def)
mv "$temporary" "$image"
echo "image: $image"
