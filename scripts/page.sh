#!/usr/bin/env bash
# Tests the page of `sae dashboard` in a headless Chromium: search, sort, pages, keys, what the mouse finds, no error on the console, nothing loaded from
# elsewhere; 16,384 latents within a second; 200 latents as the JSON has them. Installs Chromium on Debian or Ubuntu (as root or with sudo).
#
# usage: scripts/page.sh [--shots DIR] [PAGE [OPTIONS]]
#   --shots DIR  also screenshots: light and dark, wide and narrow
#   PAGE         tests this page instead of made-up ones; OPTIONS are those of tests/report/page_test.py (--json FILE, --latents N)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

shots=()
if [ "${1:-}" = --shots ]; then
  [ $# -ge 2 ] || fail "--shots needs a folder"
  shots=(--shots "$2")
  shift 2
fi
need_packages chromium g++ libeigen3-dev nlohmann-json3-dev python3
test=$sae_root/tests/report/page_test.py
if [ $# -gt 0 ]; then
  exec python3 "$test" "$@" "${shots[@]}"
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
say "Building the sample"
${CXX:-g++} -std=c++20 -O2 -pthread -I"$sae_root/include" -isystem /usr/include/eigen3 "$sae_root/tests/report/page_sample.cpp" -o "$work/sample"
say "A page of 200 latents in one file"
"$work/sample" 200 "$work/page.html" "$work/page.json"
python3 "$test" "$work/page.html" --json "$work/page.json"
say "One of 16,384 latents in a folder"
"$work/sample" 16384 "$work/page" "$work/large.json"
python3 "$test" "$work/page/index.html" --json "$work/large.json" "${shots[@]}"
