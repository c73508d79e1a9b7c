#!/usr/bin/env bash
# From nothing to a trained, measured and steered sparse autoencoder of a real language model; about 7 minutes on two
# cores the first time. Installs what is missing on Debian or Ubuntu (as root or with sudo), keeps llama.cpp and the model
# in a cache (~/.cache/sae, or $SAE_CACHE) and its results in ./sae-demo. A second run goes on where the first one stopped.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'EOT'
usage: scripts/demo.sh [--quick] [--text FILE] [--out DIR] [--prompt TEXT]
  --quick        no language model, no network: the quickstart example on synthetic data (under 90 seconds)
  --text FILE    the text that the model reads instead of the King James Bible; half a megabyte or more
  --out DIR      where the results go (default: ./sae-demo)
  --prompt TEXT  what the model continues, without and with a latent turned up
EOT
}

quick=no text='' out=sae-demo prompt='I opened the door and saw'
while [ $# -gt 0 ]; do
  case $1 in
    --quick) quick=yes ;;
    --text | --out | --prompt)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --text) text=$2 ;;
        --out) out=$2 ;;
        --prompt) prompt=$2 ;;
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

mkdir -p "$sae_root/build"
packages=(g++ cmake ninja-build libeigen3-dev)

if [ "$quick" = yes ]; then
  need_packages "${packages[@]}"
  say "Building the quickstart example"
  configure_and_build quickstart --target example_quickstart
  say "A synthetic world whose directions are known, and an autoencoder that finds them"
  "$sae_root/build/quickstart/examples/quickstart"
  say "Done. The program: examples/quickstart.cpp; the whole story: docs/guide.md"
  exit 0
fi

layer=15 latents=4608 k=32
rows=50000        # tokens of text that become training rows
held_out=4000     # tokens that the autoencoder never sees, for the figures
recover=2000      # tokens over which the language model is asked how well it predicts
passes=8          # over the training rows

if [ -n "$text" ]; then
  [ -s "$text" ] || fail "the text $text is missing or empty"
  text=$(realpath "$text")
else
  packages+=(bible-kjv)
fi
need_packages "${packages[@]}" nlohmann-json3-dev libcli11-dev zlib1g-dev python3-pip
need_llama
need_model

mkdir -p "$out"
out=$(cd "$out" && pwd)
if [ -z "$text" ]; then
  text=$out/text.txt
  if [ ! -s "$text" ]; then
    say "Writing the King James Bible, without verse numbers, to $text"
    bible -f gen1:1-rev22:21 | sed 's/^[^ ]* //' >"$text.partial"
    mv "$text.partial" "$text"
  fi
fi
settings="layer $layer, $latents latents, k $k, $rows rows, $passes passes, text $(sha256sum <"$text" | cut -c 1-16)"
if [ -e "$out/settings" ] && [ "$(cat "$out/settings")" != "$settings" ]; then
  fail "$out holds a run with other settings ($(cat "$out/settings")); choose another --out, or remove it"
fi
echo "$settings" >"$out/settings"

say "Building the program for this machine"
configure_and_build release "-DCMAKE_PREFIX_PATH=$sae_llama" -DSAE_WITH_LLAMA=ON -DSAE_BUILD_EXAMPLES=OFF --target sae_cli
program=$sae_root/build/release/cli/sae

# run ARGUMENTS...: shows the command before running it
run() {
  local word line='$ sae'
  for word in "$@"; do
    case $word in
      *[!A-Za-z0-9_./,:=+-]*) line+=" '$word'" ;;
      *) line+=" $word" ;;
    esac
  done
  echo "$line"
  "$program" "$@"
}
# once FILE WORDS...: whether a step is still to do; says so either way
once() {
  local file=$1
  shift
  if [ -e "$file" ]; then
    say "$* - reused from $file"
    return 1
  fi
  say "$*"
}
source_options=(--model "$sae_model" --text "$text" --layer "$layer" --site residual)

if once "$out/rows" "Collecting $rows activations of SmolLM2-135M behind layer $layer (2 to 3 minutes)"; then
  run collect "${source_options[@]}" --tokens "$rows" --out "$out/rows"
fi
if once "$out/held-out" "Collecting $held_out more that training will not see"; then
  run collect "${source_options[@]}" --skip-tokens $((rows + 5000)) --tokens "$held_out" --out "$out/held-out"
fi
if once "$out/sae" "Training a TopK autoencoder, 576 -> $latents, $k latents active per row"; then
  run train --data "$out/rows" --activation topk --latents "$latents" --k "$k" --tokens $((rows * passes)) --batch 1024 \
    --lr 2e-3 --seed 1 --log "$out/train.jsonl" --resume --out "$out/sae"
fi

say "How well it reconstructs rows that it has not seen"
run eval --sae "$out/sae" --data "$out/held-out"

say "How well the language model predicts with the reconstruction in the place of its activations"
run recover "${source_options[@]}" --skip-tokens $((rows + 5000)) --tokens "$recover" --sae "$out/sae"

if once "$out/latents" "Choosing latents that are rare, strong and active on many different tokens"; then
  run encode --sae "$out/sae" --data "$out/rows" --sparse --force --out "$out/codes.safetensors"
  python3 "$sae_root/scripts/choose_latents.py" "$out/codes.safetensors" "$out/rows/tokens.npy" 5 >"$out/latents.partial"
  mv "$out/latents.partial" "$out/latents"
fi
chosen=$(cat "$out/latents")

say "The contexts in which the latents $chosen are most active"
run top --sae "$out/sae" --data "$out/rows" --latent "$chosen" --count 4

say "A prompt continued without and with a latent turned up, for two of them"
IFS=, read -r -a list <<<"$chosen"
for latent in "${list[@]:0:2}"; do
  run steer --model "$sae_model" --layer "$layer" --sae "$out/sae" --latent "$latent" --scale 40 --prompt "$prompt" --tokens 32
done

say "Done. In $out: rows and held-out (activations), sae (the autoencoder, as SAELens reads it), train.jsonl (the log).
        Try more: $program --help"
