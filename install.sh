#!/bin/sh
# Builds sbx from this checkout and puts one program, `sbx`, into ~/.local/bin. Run as root, or as a user who may use sudo.
#   sh install.sh              everything; about 15 minutes on two cores the first time, seconds when nothing changed
#   sh install.sh --no-images  without kernel, QEMU and root images (`sbx images build` or `sbx prefetch` makes them later)
# EXEC_SANDBOX_CACHE_DIR says where tools and images go, SBX_BIN_DIR where the program goes. Running it again is harmless.
set -eu
cd "$(dirname "$0")"
with_images=yes
for argument in "$@"; do
  case $argument in
    --no-images) with_images=no ;;
    -h | --help) sed -n '2,5s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) echo "install.sh: unknown argument \"$argument\"; see sh install.sh --help" >&2 && exit 2 ;;
  esac
done
cache=${EXEC_SANDBOX_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/exec-sandbox}
bin=${SBX_BIN_DIR:-$HOME/.local/bin}
tools=$cache/tools

started=$(date +%s)
step_started=$started
step_name=
step() {
  finish_step
  step_name=$1
  step_started=$(date +%s)
  echo "==> $1"
}
finish_step() {
  [ -z "$step_name" ] || echo "    $step_name: $(($(date +%s) - step_started)) s"
  step_name=
}
fail() {
  echo "install.sh: $*" >&2
  exit 1
}

case $(uname -s)-$(uname -m) in
  Linux-x86_64) deno_package=@deno/linux-x64-glibc bun_package=@oven/bun-linux-x64 ;;
  Linux-aarch64) deno_package=@deno/linux-arm64-glibc bun_package=@oven/bun-linux-aarch64 ;;
  *) fail "the build needs Linux on x86-64 or arm64, this is $(uname -s) on $(uname -m)" ;;
esac
command -v apt-get > /dev/null || fail "the build needs Debian and its apt-get, which is not here"

new_enough_cargo() {
  for candidate in cargo "${CARGO_HOME:-$HOME/.cargo}/bin/cargo"; do
    minor=$("$candidate" --version 2> /dev/null | sed -n 's/^cargo 1\.\([0-9]*\).*/\1/p')
    if [ -n "$minor" ] && [ "$minor" -ge 85 ]; then return 0; fi
  done
  return 1
}

step "Debian packages"
wanted="build-essential bc bison flex libelf-dev patch xz-utils unzip ca-certificates debian-archive-keyring dpkg-dev
  mmdebstrap uidmap erofs-utils python3 python3-venv ninja-build pkg-config libglib2.0-dev libseccomp-dev libfdt-dev zlib1g-dev"
if [ $with_images = no ]; then wanted="ca-certificates"; fi
command -v npm > /dev/null || wanted="$wanted npm"
needs_cargo=no
if [ $with_images = yes ] && ! new_enough_cargo; then needs_cargo=yes; fi
missing=
for package in $wanted; do
  case $(dpkg-query -W -f '${Status}' "$package" 2> /dev/null) in *" installed") ;; *) missing="$missing $package" ;; esac
done
if [ -n "$missing" ] || [ $needs_cargo = yes ]; then
  if [ "$(id -u)" = 0 ]; then sudo=; else sudo=sudo; fi
  [ -z "$sudo" ] || command -v sudo > /dev/null || fail "installing$missing needs root: run this as root, or install sudo"
  export DEBIAN_FRONTEND=noninteractive
  log=$(mktemp)
  $sudo apt-get -q update > "$log" 2>&1 || { tail -n 20 "$log" >&2 && fail "apt-get update failed; the whole output is in $log"; }
  if [ $needs_cargo = yes ]; then
    # Debian 12 has the compiler under this name, renewed for its browsers; later releases have a new enough one under its own.
    if [ -n "$(apt-cache search --names-only '^cargo-web$')" ]; then missing="$missing cargo-web"; else missing="$missing cargo"; fi
  fi
  echo "    installing$missing"
  # --no-remove: never take a package away from the host to make room for one of ours.
  if ! $sudo apt-get -q install -y --no-install-recommends --no-remove $missing > "$log" 2>&1; then
    tail -n 20 "$log" >&2
    fail "apt-get could not install$missing; the whole output is in $log"
  fi
  rm -f "$log"
fi

step "Deno and Bun"
mkdir -p "$tools"
if ! cmp -s images/tools/package-lock.json "$tools/package-lock.json" || [ ! -d "$tools/node_modules" ]; then
  rm -rf "$tools/node_modules" "$tools/package-lock.json"
  cp images/tools/package.json "$tools/package.json"
  cp images/tools/package-lock.json "$tools/package-lock.json.new"
  # npm checks what it gets against the lock's hashes.
  mv "$tools/package-lock.json.new" "$tools/package-lock.json"
  if ! npm ci --prefix "$tools" --ignore-scripts --no-audit --no-fund --loglevel=error; then
    rm -rf "$tools/node_modules"
    fail "npm could not install Deno and Bun into $tools"
  fi
fi
mkdir -p "$tools/bin"
ln -sf "../node_modules/$deno_package/deno" "$tools/bin/deno"
ln -sf "../node_modules/$bun_package/bin/bun" "$tools/bin/bun"
chmod +x "$tools/node_modules/$deno_package/deno" "$tools/node_modules/$bun_package/bin/bun"
PATH=$tools/bin:$PATH
export PATH
deno install --frozen --quiet

step "the sbx program"
deno task --quiet compile:bun > /dev/null
mkdir -p "$bin"
# Renamed into place: a running sbx keeps its file, and nobody ever sees half of one.
cp dist/sbx "$bin/.sbx.new"
mv -f "$bin/.sbx.new" "$bin/sbx"
echo "    $("$bin/sbx" --version) in $bin"

if [ $with_images = yes ]; then
  step "kernel, QEMU, agent and root images (progress follows)"
  deno task --quiet images
fi
finish_step
echo "sbx is installed after $(($(date +%s) - started)) s."
try="sbx run 'print(\"Hello from sandbox\")'"
case :$PATH: in
  *:"$bin":*) echo "Try: $try" ;;
  *)
    # Root's PATH on Debian has no ~/.local/bin; a link where it looks, unless there is something of somebody else's.
    if [ -z "${SBX_BIN_DIR:-}" ] && [ "$(id -u)" = 0 ] && [ -d /usr/local/bin ] && { [ -L /usr/local/bin/sbx ] || [ ! -e /usr/local/bin/sbx ]; }; then
      ln -sf "$bin/sbx" /usr/local/bin/sbx
      echo "Linked as /usr/local/bin/sbx. Try: $try"
    else
      echo "Add $bin to PATH, then try: $try"
    fi
    ;;
esac
