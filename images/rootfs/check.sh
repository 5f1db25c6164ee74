#!/bin/sh
# Fails when a program or library of a guest root misses a library it was linked with, or the compiler what it needs to link.
# usage: check.sh TREE
set -eu
cd "$1"
list=$(mktemp)
trap 'rm -f "$list"' EXIT
find usr -name '*.so*' -printf '%f\n' | sort -u > "$list"
bad=0
for file in $(find usr/bin usr/sbin usr/lib -xdev -type f \( -perm /111 -o -name '*.so*' \)); do
  for needed in $(readelf -d "$file" 2>/dev/null | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p'); do
    grep -qxF "$needed" "$list" || { echo "check.sh: $file needs $needed, which is not in the image" >&2; bad=1; }
  done
done
for compiler in $(find usr/lib usr/libexec -name cc1 2>/dev/null); do
  for needed in collect2 liblto_plugin.so; do
    [ -e "${compiler%/*}/$needed" ] || { echo "check.sh: $compiler cannot link without $needed, which is not in the image" >&2; bad=1; }
  done
done
exit $bad
