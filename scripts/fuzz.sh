#!/usr/bin/env bash
# Searches, by libFuzzer under the address and undefined behaviour sanitizers, for bytes that break a reader of files: a crash, a hang, a
# leak, or an allocation above twice the bytes and 64 MB. It starts from tests/fuzz/*.zip, which the tests fuzz_replay and package_fuzz read again.
# On a fresh Debian or Ubuntu it installs what is missing (as root or with sudo).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

readers=(safetensors index npy zip pickle config yaml package)
usage() {
  cat <<EOT
usage: scripts/fuzz.sh [--runs N] [--keep] [READER ...]
  READER    of ${readers[*]}; default: all.
            package: a folder of settings and weights, opened by load and used
  --runs N  executions of each; default: 100000
  --keep    write the smallest set of inputs that reaches as far to tests/fuzz/READER.zip
EOT
}

runs=100000 keep=false chosen=()
while [ $# -gt 0 ]; do
  case $1 in
    --runs)
      [ $# -ge 2 ] || fail "--runs needs a value"
      runs=$2
      shift
      ;;
    --keep) keep=true ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      [[ " ${readers[*]} " = *" $1 "* ]] || { usage >&2 && exit 2; }
      chosen+=("$1")
      ;;
  esac
  shift
done
[[ $runs =~ ^[1-9][0-9]*$ ]] || fail "--runs is a whole number of at least 1"
[ ${#chosen[@]} -gt 0 ] || chosen=("${readers[@]}")

need_packages clang libclang-rt-dev libeigen3-dev nlohmann-json3-dev python3
cd "$sae_root"
folder=build/fuzz
rm -rf "$folder/corpus" "$folder/found"
mkdir -p "$folder/found"
for reader in "${chosen[@]}"; do
  # Bytes of an input (an allocation of 64 MB and twice as many is the largest), and of one that is kept.
  longest=2048 kept=400
  if [ "$reader" = package ]; then longest=8192 kept=2048; fi
  say "Building the search of $reader"
  clang++ -std=c++20 -O1 -g -fsanitize=fuzzer,address,undefined -fno-sanitize-recover=all -Iinclude -isystem /usr/include/eigen3 \
    "tests/fuzz/${reader}_fuzz.cpp" -o "$folder/$reader"
  corpus=$folder/corpus/$reader
  mkdir -p "$corpus"
  if [ -f "tests/fuzz/$reader.zip" ]; then python3 -m zipfile -e "tests/fuzz/$reader.zip" "$corpus"; fi
  say "Searching, $runs executions"
  "$folder/$reader" "$corpus" -runs="$runs" -max_len="$longest" -timeout=10 -rss_limit_mb=2560 -malloc_limit_mb=65 \
    -artifact_prefix="$folder/found/$reader-" -print_final_stats=1 2>"$folder/$reader.log" ||
    { tail -n 40 "$folder/$reader.log" >&2 && fail "$reader: $folder/found has what broke it"; }
  sed -n 's/^stat::number_of_executed_units: *//p' "$folder/$reader.log" | sed "s/\$/ executions of $reader, nothing found/"
  $keep || continue
  mkdir -p "$folder/smallest/$reader"
  rm -f "$folder/smallest/$reader"/*
  "$folder/$reader" -set_cover_merge=1 -max_len="$kept" "$folder/smallest/$reader" "$corpus" 2>>"$folder/$reader.log"
  (cd "$folder/smallest/$reader" && find . -type f -printf '%f\n' | LC_ALL=C sort | python3 -c '
import sys, zipfile
out = zipfile.ZipFile(sys.argv[1], "w")  # stored
for number, name in enumerate(sys.stdin.read().split()):
    out.writestr(zipfile.ZipInfo(str(number)), open(name, "rb").read())
' "$sae_root/tests/fuzz/$reader.zip")
done
