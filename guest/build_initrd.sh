#!/bin/sh
# Builds the agent and packs it as an initrd, for work on the agent alone; a release's initrd comes from the images build.
#
#   sh guest/build_initrd.sh OUTPUT.cpio [TARGET]      TARGET: x86_64-unknown-linux-gnu (default) or aarch64-unknown-linux-gnu
#
# Needs cpio, and root for the device node. Format newc: `/init` (the agent, 0755) and `/dev/console` (character device 5:1), which
# the kernel opens as the agent's standard streams.
set -eu
output=$(realpath "$1")
target=${2:-x86_64-unknown-linux-gnu}
cd "$(dirname "$0")"
cargo build --quiet --locked --release --target "$target"

pack_initrd() { # AGENT OUTPUT: published by rename, so that a reader never sees half of it
  tree=$(mktemp -d)
  mkdir "$tree/dev"
  install -m 0755 "$1" "$tree/init"
  mknod -m 0600 "$tree/dev/console" c 5 1
  (cd "$tree" && printf '%s\n' init dev dev/console | cpio --quiet -o -H newc -R 0:0) >"$2.part"
  mv "$2.part" "$2"
  rm -r "$tree"
}

pack_initrd "${CARGO_TARGET_DIR:-target}/$target/release/sbx-agent" "$output"
