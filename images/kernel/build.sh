#!/bin/sh
# Builds the guest kernel. usage: build.sh SOURCE.tar.xz ARCH OUT     (in an empty directory, which it fills)
# Prints one line per step; `make` lines carry the progress.
set -eu
source=$1 arch=$2 out=$3
here=$(cd "$(dirname "$0")" && pwd)
jobs=$(getconf _NPROCESSORS_ONLN)
case $arch in
  x86_64) ARCH=x86_64 target=vmlinux image=vmlinux ;;
  aarch64) ARCH=arm64 target=Image image=arch/arm64/boot/Image ;;
  *) echo "build.sh: unknown architecture $arch" >&2 && exit 2 ;;
esac
export ARCH
host=$(uname -m)
if [ "$host" != "$arch" ]; then CROSS_COMPILE=$arch-linux-gnu- && export CROSS_COMPILE; fi
# One date, user and host in every build: the same source gives the same bytes.
export KBUILD_BUILD_TIMESTAMP="1970-01-01 00:00:00 UTC" KBUILD_BUILD_USER=sbx KBUILD_BUILD_HOST=sbx KBUILD_BUILD_VERSION=1 LC_ALL=C

# Half of the tree is text and register lists of graphics cards, which no step below reads.
tar --strip-components=1 --exclude='*/Documentation/*/*' --exclude='*/drivers/gpu/drm/amd/include/*' --exclude='*/tools/testing/*' -xf "$source"
for patch in "$here"/patches/*.patch; do
  case ${patch##*/} in x86-*) [ "$ARCH" = x86_64 ] || continue ;; arm64-*) [ "$ARCH" = arm64 ] || continue ;; esac
  echo "patch ${patch##*/}"
  patch -p1 --fuzz=0 < "$patch"
done

make -s tinyconfig
cat "$here/common.config" "$here/$arch.config" > wanted.config
cat wanted.config >> .config
make -s olddefconfig
sh "$here/check_config.sh" wanted.config .config

make -j"$jobs" $target
${CROSS_COMPILE:-}strip -o "$out/vmlinux-sbx" "$image" 2>/dev/null || cp "$image" "$out/vmlinux-sbx"
make -s kernelversion > "$out/version.txt"
