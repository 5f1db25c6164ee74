#!/bin/sh
# Compiles the Python library of a root being made. mmdebstrap runs it as the root's root; $1 is the root.
# Hash-based and unchecked: the image fixes all times, and byte code that carries its source's time would be thrown away at each start.
set -eu
root=$1
[ -x "$root/usr/bin/python3.14" ] || exit 0
chroot "$root" /usr/bin/python3.14 -m compileall -q -f --invalidation-mode unchecked-hash /usr/lib/python3.14 /usr/lib/python3/dist-packages
