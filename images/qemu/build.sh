#!/bin/sh
# Builds the minimal static QEMU. usage: build.sh SOURCE PYTHON ARCH OUT
# SOURCE: unpacked source package; PYTHON: an interpreter whose environment has meson and pycotap.
set -eu
source=$1 python=$2 arch=$3 out=$4
here=$(cd "$(dirname "$0")" && pwd)
case $arch in
  x86_64) devices="MICROVM VIRTIO_MMIO VIRTIO_BLK VIRTIO_SERIAL VIRTIO_RNG VIRTIO_BALLOON" ;;
  aarch64) devices="ARM_VIRT VIRTIO_MMIO VIRTIO_BLK VIRTIO_SERIAL VIRTIO_RNG VIRTIO_BALLOON" ;;
  *) echo "build.sh: unknown architecture $arch" >&2 && exit 2 ;;
esac
cd "$source"
for patch in "$here"/patches/*.patch; do patch -p1 --batch < "$patch"; done
# The device list is the attack surface: six models instead of some two hundred.
for device in $devices; do echo "CONFIG_$device=y"; done > "configs/devices/$arch-softmmu/sbx.mak"
mkdir -p build && cd build
export SOURCE_DATE_EPOCH=0
# Paths of the build stay out of the program: the same source gives the same bytes wherever it is built.
paths="-ffile-prefix-map=$(cd .. && pwd)=."
../configure --python="$python" --static --target-list="$arch-softmmu" --without-default-features --without-default-devices \
  "--with-devices-$arch=sbx" --enable-system --enable-kvm --enable-tcg --enable-seccomp --enable-fdt=system --enable-lto --enable-strip \
  --extra-cflags="$paths" --disable-docs --disable-tools --disable-install-blobs --disable-werror
ninja "qemu-system-$arch"
strip -o "$out/qemu-sbx" "qemu-system-$arch"
cat ../VERSION > "$out/version.txt"
