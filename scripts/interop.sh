#!/usr/bin/env bash
# Writes SAEs in the layouts of SAELens, dictionary_learning, sparsify and Gemma Scope and lets these libraries themselves (numpy for the
# last) open them: their codes and reconstructions must be ours. Then asks for every SAE by the name that SAELens has for it: the download
# that is named must be what SAELens fetches. The libraries are installed from PyPI into the cache (~/.cache/sae, or $SAE_CACHE) at the
# first run: 7 GB. A few minutes then, one after. Ends with code 1 where one differs.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

if [ $# -gt 0 ]; then
  echo "usage: scripts/interop.sh"
  if [ "$1" = --help ] || [ "$1" = -h ]; then exit 0; fi
  exit 2
fi

mkdir -p "$sae_root/build" "$sae_cache"
need_packages g++ cmake ninja-build libeigen3-dev nlohmann-json3-dev libcli11-dev zlib1g-dev
need_peers
say "Building the program"
configure_and_build release -DSAE_WITH_ZLIB=ON -DSAE_BUILD_EXAMPLES=OFF --target sae_cli
say "Writing and opening"
"$peers/bin/python" -W ignore "$sae_root/scripts/interop.py" --program "$sae_root/build/release/cli/sae" \
  --fixtures "$sae_root/tests/data/peers/inference"
say "Asking for every name that SAELens has"
"$peers/bin/python" "$sae_root/scripts/names.py" --program "$sae_root/build/release/cli/sae" \
  --table "$(echo "$peers"/lib/python3*/site-packages/sae_lens/pretrained_saes.yaml)"
