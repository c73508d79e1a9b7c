#!/usr/bin/env bash
# Builds and runs the tests. On a fresh Debian or Ubuntu it installs what is missing (as root or with sudo) and builds
# llama.cpp once into a cache (~/.cache/sae, or $SAE_CACHE).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'EOT'
usage: scripts/test.sh [--no-llama] [--clang | --sanitize | --threads] [-- ctest options]
  (nothing)    all tests: library, program, examples, language model host, headers alone, consumers
  --no-llama   without llama.cpp and what needs it
  --clang      the same without llama.cpp, by clang++
  --sanitize   the library's tests by clang++ under the address and undefined behaviour sanitizers
  --threads    the tests that share work among threads, under the thread sanitizer
  --style      no tests: formatting (clang-format 14) and the scripts (shellcheck)
  --tidy       no tests: clang-tidy over every header (minutes)
Builds lie in build/PRESET (CMakePresets.json). SAE_SHARED_DATA names a folder with reference data that some tests
compare with; without it they are skipped.
EOT
}

leg=all llama=yes
ctest_options=()
while [ $# -gt 0 ]; do
  case $1 in
    --no-llama) llama=no ;;
    --clang | --sanitize | --threads | --style | --tidy) leg=${1#--} ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      ctest_options=("$@")
      break
      ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
  shift
done

cd "$sae_root"
mkdir -p build
# Less time to compile all: several test files in a translation unit, and nothing for a debugger.
quick=(-DSAE_TESTS_UNITE=6 -DCMAKE_CXX_FLAGS_DEBUG=-O1)
packages=(g++ cmake ninja-build libeigen3-dev catch2 nlohmann-json3-dev libcli11-dev zlib1g-dev)

# Warnings are errors of the compilers that the project is kept free of warnings for; others see some where there is nothing.
werror() {
  local major
  major=$("$1" -dumpversion 2>/dev/null | cut -d. -f1)
  if [ "$1 $major" = "c++ 12" ] || [ "$1 $major" = "clang++ 14" ]; then echo -DSAE_WERROR=ON; else echo -DSAE_WERROR=OFF; fi
}

# run_tests PRESET [ctest options]
run_tests() {
  local preset=$1
  shift
  say "Running the tests ($preset)"
  ctest --test-dir "build/$preset" --no-tests=error --output-on-failure -j "$(sae_jobs)" "$@" "${ctest_options[@]}"
}

case $leg in
  all)
    if [ "$llama" = yes ]; then
      need_packages "${packages[@]}" python3-pip
      need_llama
      say "Building library tests, examples, program and language model host"
      configure_and_build dev-llama "$(werror c++)" "${quick[@]}" "-DCMAKE_PREFIX_PATH=$sae_llama"
      run_tests dev-llama
    else
      need_packages "${packages[@]}"
      say "Building library tests, examples and program"
      configure_and_build dev "$(werror c++)" "${quick[@]}"
      run_tests dev
    fi
    ;;
  clang)
    need_packages "${packages[@]}" clang
    say "Building everything by clang++"
    configure_and_build clang "$(werror clang++)" "${quick[@]}"
    run_tests clang
    ;;
  sanitize)
    need_packages "${packages[@]}" clang libclang-rt-dev
    say "Building the library's tests by clang++ under the address and undefined behaviour sanitizers"
    configure_and_build sanitize "$(werror clang++)" "${quick[@]}" --target sae_tests
    run_tests sanitize -L unit
    ;;
  threads)
    need_packages "${packages[@]}"
    say "Building under the thread sanitizer"
    configure_and_build tsan "$(werror c++)" "${quick[@]}" --target sae_tests
    run_tests tsan -L unit
    ;;
  style)
    need_packages clang-format shellcheck
    say "Checking format and scripts"
    format=clang-format
    if have clang-format-14; then format=clang-format-14; fi
    # Another version sets the same file differently, so only the one of Debian 12 judges.
    if "$format" --version | grep -q 'version 14\.'; then
      git ls-files -z '*.hpp' '*.cpp' | xargs -0 "$format" --dry-run --Werror
    else
      echo "formatting not checked: needs clang-format 14, here is $("$format" --version)"
    fi
    git ls-files -z 'scripts/*.sh' 'bench/*.sh' .ci/run | xargs -0 shellcheck -x
    ;;
  tidy)
    need_packages "${packages[@]}" clang clang-tidy
    say "Running clang-tidy over every header"
    configure_and_build clang --target sae_headers_alone
    find build/clang/tests/alone -name '*.cpp' -print0 | xargs -0 -n 1 -P "$(sae_jobs)" clang-tidy --quiet -p build/clang
    ;;
esac
