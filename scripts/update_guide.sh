#!/usr/bin/env bash
# Puts what examples/walkthrough.cpp prints into docs/guide.md: every block ```text takes the part of the output that begins
# like it ("2. ..."; "The world" for the lines before the first number). A test holds the two together.
#   scripts/update_guide.sh [PROGRAM]      PROGRAM: a walkthrough that was built; default: it is built
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

guide=$sae_root/docs/guide.md
program=${1:-}
if [ -z "$program" ]; then
  mkdir -p "$sae_root/build"
  configure_and_build quickstart --target example_walkthrough
  program=$sae_root/build/quickstart/examples/walkthrough
fi
output=$(mktemp)
trap 'rm -f "$output" "$guide.partial"' EXIT
"$program" >"$output"
awk '
  function key(line) { return match(line, /^[0-9]+\. /) ? substr(line, 1, RLENGTH) : "" }
  FNR == NR { if (key($0) != "") part = key($0); text[part] = text[part] $0 "\n"; next }
  $0 == "```text" { print; first = 1; next }
  first { first = 0; inside = 1; part = key($0); printf "%s", text[part]; used[part] = 1 }
  inside && $0 == "```" { inside = 0 }
  !inside { print }
  END {
    for (part in text) if (!(part in used)) { print "docs/guide.md has no block for part \"" part "\"" >"/dev/stderr"; bad = 1 }
    exit bad
  }' "$output" "$guide" >"$guide.partial"
if cmp -s "$guide" "$guide.partial"; then
  echo "docs/guide.md is up to date"
else
  cat "$guide.partial" >"$guide"
  echo "docs/guide.md was updated"
fi
