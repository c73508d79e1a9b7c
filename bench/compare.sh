#!/usr/bin/env bash
# Times training steps and encodes of PyTorch, SAELens and dictionary_learning beside ours and writes one table (docs/performance.md has
# such a one). They are installed from PyPI into the cache (~/.cache/sae, or $SAE_CACHE) at the first run: 7 GB with all that the wheels
# of PyTorch want, though nothing here uses a GPU. About ten minutes then.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../scripts/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/../scripts/lib.sh"

usage() {
  cat <<'EOT'
usage: bench/compare.sh [--threads N] [--seconds N] [--out FILE]
  --threads N  of the first table; the second is of one thread; default: 2
  --seconds N  to measure for, each table; default: 240
  --out FILE   default: build/compare.md
EOT
}

threads=2 seconds=240 out=$sae_root/build/compare.md
while [ $# -gt 0 ]; do
  case $1 in
    --threads | --seconds | --out)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --threads) threads=$2 ;;
        --seconds) seconds=$2 ;;
        --out) out=$2 ;;
      esac
      shift
      ;;
    -h | --help)
      usage
      exit 0
      ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
  shift
done
[[ $threads =~ ^[1-9][0-9]*$ && $seconds =~ ^[1-9][0-9]*$ ]] || fail "--threads and --seconds are whole numbers of at least 1"

# The commit, the CPU, how busy it was.
about() {
  local cpu commit
  cpu=$(sed -n 's/^model name[^:]*: //p' /proc/cpuinfo | head -n 1)
  commit=$(git -C "$sae_root" rev-parse --short HEAD 2>/dev/null || echo unknown)
  printf '%s, %s CPUs, load %s before; %s; commit %s.' "$cpu" "$(nproc)" "$(cut -d ' ' -f 1 /proc/loadavg)" "$(date +%Y-%m-%d)" "$commit"
}

mkdir -p "$sae_root/build" "$sae_cache"
packages=(g++ cmake ninja-build libeigen3-dev libbenchmark-dev libopenblas-dev)
need_packages "${packages[@]}"
need_peers
say "Building"
configure_and_build bench -DSAE_NATIVE=OFF --target sae_bench_compare

say "Measuring, $((2 * seconds / 60)) minutes"
"$peers/bin/python" -W ignore "$sae_root/bench/compare.py" --threads "$threads" --seconds "$seconds" \
  --program "$sae_root/build/bench/bench/sae_bench_compare" --about "$(about)" --out "$out"
say "The table is in $out"
