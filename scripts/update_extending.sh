#!/usr/bin/env bash
# Puts the programs of docs/extending.md into it: the block ```cpp behind a line <!-- examples/NAME.cpp --> takes that file's text.
# A test holds the two together.
#   scripts/update_extending.sh
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
page=$root/docs/extending.md
trap 'rm -f "$page.partial"' EXIT
awk -v root="$root" '
  match($0, /^<!-- examples\/[a-z_]+\.cpp -->$/) { file = root "/" substr($0, 6, length($0) - 9) }
  inside && $0 == "```" { inside = 0 }
  !inside { print }
  file != "" && $0 == "```cpp" {
    while ((status = (getline line < file)) > 0) print line
    if (status < 0) { print "no file " file >"/dev/stderr"; exit 1 }
    close(file)
    file = ""
    inside = 1
  }' "$page" >"$page.partial"
if cmp -s "$page" "$page.partial"; then
  echo "docs/extending.md is up to date"
else
  cat "$page.partial" >"$page"
  echo "docs/extending.md was updated"
fi
