#!/usr/bin/env bash
# Builds tests for other CPUs and runs them by QEMU: that each CPU takes the kernels it has, and no instruction that it lacks. Figures of
# time mean nothing here. On a fresh Debian or Ubuntu it installs what is missing (as root or with sudo).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'EOT'
usage: scripts/emulated.sh [x86 | arm] [-- Catch2 options]
  (nothing)  both
  x86        this machine's build, on a Nehalem (portable C++) and a Haswell (AVX2); only where this machine is x86-64
  arm        a build by aarch64-linux-gnu-g++, on a Cortex-A72 (NEON) and a Neoverse N1 (NEON with dotprod)
EOT
}

machines=()
options=()
while [ $# -gt 0 ]; do
  case $1 in
    x86 | arm) machines+=("$1") ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      options=("$@")
      break
      ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
  shift
done
if [ ${#machines[@]} = 0 ]; then
  machines=(arm)
  if [ "$(uname -m)" = x86_64 ]; then machines=(x86 arm); fi
fi

cd "$sae_root"
# What rests on the kernels; more of it would take hours.
tests=(tests/core/half_test.cpp tests/kernels/*_test.cpp tests/activations/{topk,selection}_test.cpp tests/models/{screen,sparse_autoencoder,step,transcoder}_test.cpp
  tests/training/{routes,adam,optimizer,moments,aux_k,recipe}_test.cpp)

# build NAME COMPILER: the tests as build/emulated/NAME/tests, one program that needs no library of its machine
build() {
  local folder=build/emulated/$1 compiler=("$2") source running=0
  if have ccache; then compiler=(ccache "$2"); fi
  say "Building tests for $1"
  rm -rf "$folder"
  mkdir -p "$folder/include"
  # These alone: beside them lie the headers of this machine's C library.
  for source in eigen3/Eigen catch2 nlohmann; do ln -s "/usr/include/$source" "$folder/include/$(basename "$source")"; done
  printf '#define CATCH_CONFIG_MAIN\n#include <catch2/catch.hpp>\n' >"$folder/main.cpp"
  for source in "${tests[@]}" tests/support/*.cpp "$folder/main.cpp"; do
    if [ "$running" = "$(sae_jobs)" ]; then
      wait -n || fail "the tests could not be built for $1"
      running=$((running - 1))
    fi
    "${compiler[@]}" -std=c++20 -O1 -Iinclude -Itests/support -isystem "$folder/include" -DEIGEN_RUNTIME_NO_MALLOC \
      "-DSAE_TEST_DATA=\"$PWD/tests/data\"" -c "$source" -o "$folder/${source//\//_}.o" &
    running=$((running + 1))
  done
  while [ "$running" -gt 0 ]; do
    wait -n || fail "the tests could not be built for $1"
    running=$((running - 1))
  done
  "$2" -static "$folder"/*.o -o "$folder/tests" -pthread
}

# emulate NAME QEMU CPU
emulate() {
  say "Running the tests for $1 on a $3"
  "$2" -cpu "$3" "build/emulated/$1/tests" "${options[@]}"
}

packages=(libeigen3-dev catch2 nlohmann-json3-dev qemu-user)
for machine in "${machines[@]}"; do
  case $machine in
    x86)
      need_packages "${packages[@]}" g++
      build x86 c++
      emulate x86 qemu-x86_64 Nehalem
      emulate x86 qemu-x86_64 Haswell-noTSX,-pcid,-x2apic,-tsc-deadline,-invpcid # what QEMU lacks
      ;;
    arm)
      need_packages "${packages[@]}" g++-aarch64-linux-gnu
      build arm aarch64-linux-gnu-g++
      emulate arm qemu-aarch64 cortex-a72
      emulate arm qemu-aarch64 neoverse-n1
      ;;
  esac
done
