#!/usr/bin/env bash
# Compares SAEs that `sae train` makes with those of the Python libraries, on real activations: the same rows, the same split,
# the same number of steps. SmolLM2-135M behind layer 15, Jane Austen's six novels, three seeds; about half an hour on two
# cores. Text, model and rows are kept in the cache (~/.cache/sae, or $SAE_CACHE) for the next run. Ends with code 1 where a
# figure misses what is asked of it.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
  cat <<'EOT'
usage: scripts/quality.sh [--activation A] [--seeds N,N,...] [--out DIR] [--no-recover] [-- options of sae train]
  --activation A  as of sae train; default: topk
  --seeds N,...   default: 1,2,3
  --out DIR       where SAEs and reports go; replaced at each run (default: ./sae-quality)
  --no-recover    without the cross-entropies, which take most of the time
EOT
}

activation=topk seeds=1,2,3 out=sae-quality recover=yes
train_options=()
while [ $# -gt 0 ]; do
  case $1 in
    --activation | --seeds | --out)
      [ $# -ge 2 ] || fail "$1 needs a value"
      case $1 in
        --activation) activation=$2 ;;
        --seeds) seeds=$2 ;;
        --out) out=$2 ;;
      esac
      shift
      ;;
    --no-recover) recover=no ;;
    -h | --help)
      usage
      exit 0
      ;;
    --)
      shift
      train_options=("$@")
      break
      ;;
    *)
      usage >&2
      exit 2
      ;;
  esac
  shift
done
[[ $seeds =~ ^[0-9]+(,[0-9]+)*$ ]] || fail "--seeds $seeds: numbers with commas between them are meant"

layer=15 latents=4608 steps=558 batch=1024
case $activation in # all of them at the same mean number of active latents, or near it
  relu | gated) sparsity=() ;;
  jumprelu) sparsity=(--target-l0 32) ;;
  *) sparsity=(--k 32) ;;
esac
for word in "${train_options[@]}"; do
  case $word in --k | --k=* | --target-l0 | --target-l0=* | --l0 | --l0=*) sparsity=() ;; esac
done
context=256
train_tokens=$((560 * (context - 1))) held_tokens=$((40 * (context - 1)))  # a window is BOS and 255 tokens of the text
data=$sae_cache/quality

# need_austen: sets austen to the six novels in the order of the R package janeaustenr, as Debian ships it
need_austen() {
  local work root=()
  austen=$data/austen.txt
  [ ! -s "$austen" ] || return 0
  if ! have apt-get || ! have dpkg-deb; then
    fail "the text comes in a Debian package (r-cran-janeaustenr), and this is no Debian or Ubuntu"
  fi
  say "Downloading the six novels, once, into $data"
  work=$(mktemp -d "$data/building.XXXXXX")
  if ! (cd "$work" && apt-get download -q r-cran-janeaustenr) >"$work/log" 2>&1; then
    if [ "$(id -u)" != 0 ] && have sudo; then root=(sudo); fi
    if ! { "${root[@]}" apt-get update && cd "$work" && apt-get download -q r-cran-janeaustenr; } >>"$work/log" 2>&1; then
      tail -n 5 "$work/log" >&2
      rm -rf "$work"
      fail "could not download the package r-cran-janeaustenr"
    fi
  fi
  dpkg-deb -x "$work"/*.deb "$work/package"
  python3 "$sae_root/scripts/read_janeaustenr.py" "$work/package/usr/lib/R/site-library/janeaustenr/data/Rdata" "$work/text"
  mv "$work/text" "$austen"
  rm -rf "$work"
}

mkdir -p "$sae_root/build" "$data"
need_packages g++ cmake ninja-build libeigen3-dev nlohmann-json3-dev libcli11-dev zlib1g-dev python3-pip
need_llama
need_model
need_austen
text_sha256=db2cdbf60584de5e99d05bf89964819ec32e0b9968920e12c4f1217bd63cf87f
if ! echo "$text_sha256  $austen" | sha256sum --check --quiet >/dev/null 2>&1; then
  echo "quality.sh: warning: $austen is not the text on which the other libraries were measured" >&2
fi

say "Building the program for this machine"
configure_and_build release "-DCMAKE_PREFIX_PATH=$sae_llama" -DSAE_WITH_LLAMA=ON -DSAE_BUILD_EXAMPLES=OFF --target sae_cli
program=$sae_root/build/release/cli/sae

source_options=(--model "$sae_model" --text "$austen" --layer "$layer" --site residual --context "$context")
if [ ! -d "$data/train" ]; then
  say "Collecting the rows of 560 windows to train on (8 minutes on two cores), once"
  "$program" collect "${source_options[@]}" --tokens "$train_tokens" --force --out "$data/train"
fi
# All rows but BOS: `eval` leaves those above 10 medians out and shows both figures.
if [ ! -d "$data/held-out" ]; then
  say "Collecting the rows of 40 windows to measure on, once"
  "$program" collect "${source_options[@]}" --skip-tokens "$train_tokens" --tokens "$held_tokens" --max-norm none --force \
    --out "$data/held-out"
fi
rows=$(python3 -c 'import json, sys; print(json.load(open(sys.argv[1]))["rows"])' "$data/train/collect.json")

mkdir -p "$out"
for seed in ${seeds//,/ }; do
  say "Seed $seed: training, $activation, $latents latents, $steps steps of $batch rows"
  "$program" train --data "$data/train" --activation "$activation" --latents "$latents" --steps "$steps" --batch "$batch" \
    --seed "$seed" --force --out "$out/seed-$seed" "${sparsity[@]}" "${train_options[@]}"
  "$program" eval --sae "$out/seed-$seed" --data "$data/held-out" --max-norm 10x --json >"$out/seed-$seed-eval.json"
  "$program" eval --sae "$out/seed-$seed" --data "$data/train" --skip-rows $((rows - 100000)) --rows 100000 --json \
    >"$out/seed-$seed-dead.json"
  rm -f "$out/seed-$seed-recover.json"
  if [ "$recover" = yes ]; then
    say "Seed $seed: the language model with the SAE inside, 40 windows that training did not see"
    "$program" recover "${source_options[@]}" --skip-tokens "$train_tokens" --tokens "$held_tokens" --sae "$out/seed-$seed" \
      --mean-from "$data/train" --json >"$out/seed-$seed-recover.json"
  fi
done

say "SmolLM2-135M-Instruct, residual stream behind layer $layer, $activation, $latents latents, $steps steps of $batch rows"
python3 - "$data" "$out" "$seeds" "$activation" <<'EOT'
import json, os, sys

data, out, seeds, activation = sys.argv[1], sys.argv[2], sys.argv[3].split(","), sys.argv[4]

def load(*parts):
    with open(os.path.join(*parts)) as file:
        return json.load(file)

collected = load(data, "train", "collect.json")
dropped = collected["dropped"]
runs = []
for seed in seeds:
    run = {"name": "sae, seed " + seed}
    report = load(out, f"seed-{seed}-eval.json")
    run["ev"], run["all"] = report["explained_variance"], report["all_rows"]["explained_variance"]
    run["l0"], run["cosine"] = report["l0"], report["cosine"]
    run["dead"] = load(out, f"seed-{seed}-dead.json")["dead_latents"]
    if os.path.exists(os.path.join(out, f"seed-{seed}-recover.json")):
        spliced = load(out, f"seed-{seed}-recover.json")
        run["above"] = spliced["ce_sae"] - spliced["ce_clean"]
        run["zero"], run["mean"] = spliced["loss_recovered_zero"], spliced["loss_recovered_mean"]
    runs.append(run)
keys = [key for key in runs[0] if key != "name"]
mean = {key: sum(run[key] for run in runs) / len(runs) for key in keys}
mean["name"] = "sae, mean of %d" % len(runs)
# Measured with each library's own trainer on the same rows; a dash is what was not measured.
peers = {
    "topk": [
        {"name": "SAELens topk, lr 3e-4 (default)", "ev": 0.7275, "l0": 32, "cosine": 0.9379, "dead": 3803},
        {"name": "SAELens topk, lr 1e-3", "ev": 0.8168, "l0": 32, "cosine": 0.9590, "dead": 3316, "above": 0.109,
         "zero": 0.9901, "mean": 0.9801},
        {"name": "dictionary_learning topk, default", "ev": 0.7874, "l0": 32, "cosine": 0.9517, "dead": 0, "above": 0.205,
         "zero": 0.9814, "mean": 0.9623},
        {"name": "dictionary_learning topk, lr 1e-3", "ev": 0.8312, "l0": 32, "cosine": 0.9619, "dead": 0, "above": 0.080,
         "zero": 0.9928, "mean": 0.9854}],
    "batchtopk": [{"name": "SAELens batchtopk, lr 3e-4", "ev": 0.7161, "l0": 31.2, "cosine": 0.9346, "dead": 4113}],
    "relu": [{"name": "SAELens standard, l1 5, lr 1e-3", "ev": 0.7124, "l0": 55.5, "cosine": 0.9451, "dead": 19}],
    "jumprelu": [{"name": "SAELens jumprelu, tanh 1.2, lr 1e-3", "ev": 0.7883, "l0": 16.7, "cosine": 0.9519, "dead": 1661},
                 {"name": "SAELens jumprelu, tanh 5, lr 1e-3", "ev": 0.7127, "l0": 7.2, "cosine": 0.9343, "dead": 3115}],
}.get(activation, [])
columns = [("ev", "expl. var.", "%.4f"), ("all", "all rows", "%.4f"), ("l0", "L0", "%.1f"), ("cosine", "cosine", "%.4f"),
           ("dead", "dead", "%.0f"), ("above", "CE above clean", "%.4f"), ("zero", "rec. vs zero", "%.4f"),
           ("mean", "vs mean", "%.4f")]
print()
print("%-34s" % "" + "".join("%15s" % title for _, title, _ in columns))
for line in peers + runs + [mean]:
    print("%-34s" % line["name"] + "".join("%15s" % (form % line[key] if key in line else "-") for key, _, form in columns))
print(f"""
Rows: {collected["rows"]} to train on; left out {dropped["bos"]} of BOS, {dropped["norm"]} with a norm above 10 medians.
      {report["rows"]} held out, after leaving out {load(data, "held-out", "collect.json")["dropped"]["bos"]} of BOS and \
{report["rows_dropped"]} above 10 medians; "all rows" has the latter in.
Dead: never active on the last 100,000 rows to train on.""")
if "above" in mean:
    print(f"""CE: nats per token over {spliced["tokens"]} tokens; clean {spliced["ce_clean"]:.4f}, zeros {spliced["ce_zero"]:.4f}, \
mean row of the training rows {spliced["ce_mean"]:.4f}.
    BOS rows stay as they are in all conditions. Zero ablation then costs more than a uniform guess, so that loss recovered
    against it flatters; read the nats above clean first.""")
print()
good = True
def judge(key, name, limit, least):
    global good
    if key not in mean:
        print(f"not measured  {name}")
        return
    holds = mean[key] >= limit if least else mean[key] <= limit
    good = good and holds
    print(f"{'pass' if holds else 'FAIL'}  {name}: {mean[key]:.4g}, asked: at {'least' if least else 'most'} {limit}")
if activation == "topk":
    judge("ev", "held-out explained variance", 0.86, True)
    judge("dead", "dead latents", 50, False)
    judge("above", "cross-entropy above clean", 0.075, False)
# A peer with as many active latents, or more, is to be reached.
for peer in peers if activation != "topk" else []:
    if mean["l0"] <= 1.05 * peer["l0"]:
        judge("ev", f"explained variance of {peer['name']} at L0 {peer['l0']}", peer["ev"], True)
        judge("dead", f"dead latents, of {peer['name']}", max(peer["dead"], 50), False)
sys.exit(0 if good else 1)
EOT
