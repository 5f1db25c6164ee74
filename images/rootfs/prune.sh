#!/bin/sh
# Turns an unpacked Debian tree into the root of a guest: removes what no program of ours needs, adds our user and links.
# usage: prune.sh TREE LANGUAGE      LANGUAGE: python, javascript or raw. Needs no privilege; ownership is set when the image is made.
set -eu
tree=$1 language=$2
cd "$tree"
[ -x usr/bin/bash ] || { echo "prune.sh: $tree is no Debian tree: usr/bin/bash is missing" >&2; exit 1; }
chmod -R u+w .
libs=$(echo usr/lib/*-linux-gnu)

# Package management: the root is read-only, and packages come as layers.
rm -rf var/lib/dpkg var/lib/apt var/cache usr/lib/dpkg usr/share/dpkg etc/dpkg etc/apt usr/bin/dpkg* usr/bin/update-alternatives usr/bin/debconf* \
  usr/share/debconf usr/share/perl5 usr/bin/deb-systemd* usr/bin/apt* "$libs"/libapt* usr/lib/apt

# Texts for people.
rm -rf usr/share/doc usr/share/man usr/share/info usr/share/locale usr/share/lintian usr/share/bug usr/share/doc-base usr/share/gdb usr/share/pixmaps \
  usr/share/applications usr/share/icons usr/share/menu usr/share/bash-completion usr/share/zsh usr/share/fish usr/share/common-licenses usr/share/gitweb \
  usr/share/polkit-1 usr/share/metainfo usr/share/readline usr/share/base-passwd usr/share/gcc usr/share/git-core/contrib

# perl: only git's mail and Subversion helpers and maintainer scripts want it.
for script in $(grep -rlIE -m1 '^#! ?/usr/bin/(env )?perl' usr/bin usr/lib/git-core 2>/dev/null || true); do rm -f "$script"; done
rm -rf usr/bin/perl* usr/share/perl "$libs"/perl "$libs"/perl-base "$libs"/libperl.so* etc/perl "$libs"/libdb-5.3.so "$libs"/libgdbm*

# git: servers, mail and the second copy of the program.
for name in git-shell scalar git-http-backend git-daemon git-imap-send git-http-push git-http-fetch git-cvsserver git-svn; do
  rm -f "usr/bin/$name" "usr/lib/git-core/$name"
done
if [ -d usr/lib/git-core ]; then
  # The same program once more.
  ln -sf ../../bin/git usr/lib/git-core/git
fi

# Boot, accounts, services and everything set-user-id: the agent is PID 1 and there is one user.
rm -rf usr/lib/systemd usr/lib/tmpfiles.d usr/lib/sysusers.d usr/lib/udev usr/lib/init usr/lib/initcpio etc/init.d etc/rc?.d etc/cron* etc/logrotate.d \
  etc/systemd etc/pam.d etc/pam.conf etc/security etc/kernel etc/skel etc/sysctl* etc/selinux usr/share/pam* "$libs"/security "$libs"/systemd var/log var/backups \
  var/lib/systemd var/lib/pam var/lib/ucf var/spool var/mail boot media srv
for name in su passwd chsh chfn chage gpasswd newgrp expiry mount umount login newuidmap newgidmap pidwait; do rm -f "usr/bin/$name"; done
find usr/sbin -mindepth 1 ! -name ldconfig ! -name chroot ! -name nologin ! -name sysctl -delete 2>/dev/null || true
find . -xdev -perm /6000 -type f -exec chmod a-s {} +
rm -f "$libs"/libpam* "$libs"/libdrop_ambient* "$libs"/sasl2/libsasldb* "$libs"/libaudit* etc/shadow- etc/passwd- etc/group- etc/gshadow*

# glibc: a dozen conversions instead of 250, no tracing helpers.
if [ -d "$libs/gconv" ]; then
  find "$libs/gconv" -name '*.so' ! -name 'UTF-*' ! -name UNICODE.so ! -name 'ISO8859-1.so' ! -name 'ISO8859-15.so' ! -name 'CP125[012].so' ! -name CP437.so \
    ! -name 'EUC-JP.so' ! -name SJIS.so ! -name GBK.so ! -name GB18030.so ! -name BIG5.so ! -name EUC-KR.so ! -name 'libJIS*' ! -name 'libKSC*' ! -name libGB.so -delete
  rm -f "$libs"/gconv/gconv-modules.cache
fi
rm -f "$libs"/libmemusage.so "$libs"/libpcprofile.so "$libs"/libc_malloc_debug.so* usr/bin/localedef usr/bin/sotruss usr/bin/sprof usr/bin/pldd usr/bin/tzselect
rm -rf "$libs"/audit usr/share/i18n

# Terminal descriptions that somebody may meet.
if [ -d usr/share/terminfo ] || [ -d usr/lib/terminfo ] || [ -d lib/terminfo ]; then
  find usr/share/terminfo usr/lib/terminfo -type f 2>/dev/null | grep -vE '/(xterm|xterm-256color|linux|vt100|vt220|screen|screen-256color|tmux|tmux-256color|dumb|ansi)$' |
    while read -r file; do rm -f "$file"; done
fi

# Time zones: the compiled ones, and every older name (US/Eastern, Asia/Calcutta), which Debian keeps in a package four times the size, as a link.
if [ -f usr/share/zoneinfo/tzdata.zi ]; then
  (
    cd usr/share/zoneinfo
    sed -n 's/^L //p' tzdata.zi | while read -r target name; do
      case $name in */*) mkdir -p "${name%/*}" ;; esac
      [ -e "$name" ] || ln -sfn "$(echo "$name" | sed 's#[^/]*/#../#g; s#[^/]*$##')$target" "$name"
    done
    rm -rf right posix posixrules localtime tzdata.zi leap* ./*.tab
  )
fi

# Static and debugging libraries; the compiler's other front ends, link-time optimisation and sanitizers. liblto_plugin.so (72 KB) stays: the
# compiler gives it to every link and does not link without.
find usr/lib -name '*.a' ! -name 'libc_nonshared.a' ! -name 'libgcc.a' ! -name 'libgcc_eh.a' ! -name 'libpthread.a' ! -name 'libdl.a' ! -name 'librt.a' ! -name 'libm.a' \
  ! -name libutil.a -delete 2>/dev/null || true
find usr/lib usr/libexec -type f \( -name lto1 -o -name lto-wrapper -o -name g++-mapper-server \) -delete 2> /dev/null || true
rm -f usr/bin/*lto-dump* usr/bin/*gcov* usr/bin/*gp-* usr/bin/*gprof* usr/bin/*dwp usr/bin/*ld.gold usr/bin/*elfedit usr/bin/*-c++filt
rm -rf "$libs"/libasan.so* "$libs"/libtsan.so* "$libs"/libubsan.so* "$libs"/liblsan.so* "$libs"/libhwasan.so* "$libs"/libitm.so* "$libs"/libcc1.so* \
  "$libs"/gprofng "$libs"/libgprofng* usr/lib/gcc/*/*/plugin usr/lib/bfd-plugins usr/lib/compat-ld usr/lib/gold-ld etc/gprofng.rc
find usr/lib/gcc -name 'lib*san*' -delete 2>/dev/null || true
rm -rf usr/include/drm usr/include/sound usr/include/rdma usr/include/video usr/include/mtd usr/include/xen usr/include/misc usr/include/scsi usr/lib/linux/uapi/*/drm \
  usr/lib/linux/uapi/*/sound usr/lib/linux/uapi/*/rdma usr/lib/linux/uapi/*/mtd usr/lib/linux/uapi/*/xen usr/lib/linux/uapi/*/video usr/lib/linux/uapi/*/scsi

case $language in
  python)
    ln -sf python3.14 usr/bin/python3
    ln -sf python3 usr/bin/python
    rm -f usr/lib/python3*/EXTERNALLY-MANAGED usr/bin/pdb3* usr/bin/pydoc3* usr/bin/pygettext3* usr/bin/py3*
    rm -rf usr/share/python3 usr/share/python usr/lib/python3.14/test usr/lib/python3.14/idlelib usr/lib/python3.14/turtledemo usr/lib/python3.14/pydoc_data \
      usr/lib/python3.14/config-3.14-*/libpython* usr/lib/valgrind
    # Old database formats (sqlite3 and dbm.dumb stay) and the library for embedding.
    rm -f usr/lib/python3.14/lib-dynload/_dbm.* usr/lib/python3.14/lib-dynload/_gdbm.* "$libs"/libpython3.14.so*
    # What a layer of packages holds is imported by every Python of the guest, as from a site directory of its own.
    echo 'import os, site; os.path.isdir("/opt/packages") and os.listdir("/opt/packages") and site.addsitedir("/opt/packages")' > usr/lib/python3/dist-packages/sbx-packages.pth
    # Only our own interpreter's byte code, not the optimised variants.
    find usr/lib/python3* \( -name '*.opt-1.pyc' -o -name '*.opt-2.pyc' \) -delete
    ;;
  javascript)
    # Programs that call node get Bun, which answers to that name.
    ln -sf bun usr/bin/bunx
    ln -sf bun usr/bin/node
    # Modules of a layer are found from wherever a program lies.
    ln -sfn /opt/packages/node_modules node_modules
    ;;
esac

# Our user, names and mount points. /run, /tmp, /home/user and /dev/shm become tmpfs; the agent writes the resolver's address to /run.
touch etc/shadow
sed -i '/^user:/d' etc/passwd etc/group etc/shadow
echo 'user:x:1000:1000::/home/user:/bin/bash' >> etc/passwd
echo 'user:x:1000:' >> etc/group
echo 'user:*:20000:0:99999:7:::' >> etc/shadow
echo sandbox > etc/hostname
printf '127.0.0.1\tlocalhost sandbox\n' > etc/hosts
ln -sfn /run/resolv.conf etc/resolv.conf
rm -f etc/mtab etc/machine-id
ln -sf /proc/self/mounts etc/mtab
rm -rf tmp run home dev proc sys mnt opt var/tmp var/run var/lock root
mkdir -p tmp run home/user dev proc sys mnt root opt/packages
ln -sfn /tmp var/tmp
ln -sfn /run var/run
ln -sfn /run/lock var/lock

find . -xdev -type l ! -exec test -e {} \; -print 2>/dev/null | while read -r link; do
  # A link into what was removed; links that only resolve inside the guest begin with a slash.
  case $(readlink "$link") in /*) [ -e ".$(readlink "$link")" ] || case $(readlink "$link") in /proc/* | /run* | /tmp* | /opt/packages/*) ;; *) rm -f "$link" ;; esac ;; *) rm -f "$link" ;; esac
done
find . -xdev -name '*.dpkg-*' -delete
