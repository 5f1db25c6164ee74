//! Mount namespace: an empty root directory in which only the given files and devices exist.
use crate::args::{Access, Device, File, Plan, User};
use crate::layer::{Failure, InLayer, Layer};
use crate::sys;
use libc::c_ulong;
use std::ffi::{CStr, CString};
use std::fs::{DirBuilder, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// The new root is built on top of one of these: they exist everywhere and hold no file of ours, which the mount would hide.
const MOUNT_POINTS: [&str; 4] = ["/sys", "/proc", "/mnt", "/media"];
const ROOT_OPTIONS: &CStr = c"mode=0755,size=64k,nr_inodes=4096";

/// Builds the root and enters it. Called inside a new mount namespace. `device_owner`: make devices for that user
/// instead of binding the host's, which only root can.
pub fn enter_empty_root(plan: &Plan, device_owner: Option<User>) -> Result<(), Failure> {
    let layer = Layer::MountNamespace;
    // Nothing mounted from here on may be seen outside, nothing from outside in here.
    sys::mount(c"", c"/", c"", libc::MS_REC | libc::MS_PRIVATE, c"").in_layer(layer, "make the mounts private")?;
    let base = MOUNT_POINTS.iter().find(|path| Path::new(path).is_dir()).unwrap_or(&"/");
    let base = sys::c_path(Path::new(base)).in_layer(layer, "name the mount point")?;
    let mut flags = libc::MS_NOSUID | libc::MS_NOEXEC;
    if device_owner.is_none() {
        flags |= libc::MS_NODEV;
    }
    sys::mount(c"sbx", &base, c"tmpfs", flags, ROOT_OPTIONS).in_layer(layer, "mount an empty root")?;
    // The working directory is the new root; absolute paths still mean the old one.
    std::env::set_current_dir(Path::new(base.to_str().unwrap_or("/"))).in_layer(layer, "enter the empty root")?;
    for file in &plan.files {
        bind(file).in_layer(layer, format_args!("provide {}", file.path.display()))?;
    }
    for device in &plan.devices {
        add_device(device, device_owner).in_layer(layer, format_args!("provide /dev/{}", device.name))?;
    }
    sys::pivot_into_working_directory().in_layer(layer, "pivot into the empty root")?;
    std::env::set_current_dir("/").in_layer(layer, "enter the empty root")?;
    let root_flags = sys::MOUNT_RDONLY | sys::MOUNT_NOSUID | sys::MOUNT_NOEXEC;
    restrict_mount(c"/", root_flags, false).in_layer(layer, "make the root read-only")
}

fn bind(file: &File) -> io::Result<()> {
    let is_directory = std::fs::metadata(&file.path)?.is_dir();
    let target = make_mount_point(&file.path, is_directory)?;
    // A directory's own submounts come along: without them the kernel refuses in a user namespace.
    let recursive = if is_directory { libc::MS_REC } else { 0 };
    sys::mount(&sys::c_path(&file.path)?, &target, c"", libc::MS_BIND | recursive, c"")?;
    let attributes = sys::MOUNT_NOSUID
        | sys::MOUNT_NODEV
        | if file.access == Access::Write { 0 } else { sys::MOUNT_RDONLY }
        | if file.access == Access::Execute { 0 } else { sys::MOUNT_NOEXEC };
    restrict_mount(&target, attributes, is_directory)
}

fn add_device(device: &Device, owner: Option<User>) -> io::Result<()> {
    let path = PathBuf::from("/dev").join(device.name);
    if let Some(owner) = owner {
        // A device of its own: the user is in none of the groups that may open the host's.
        make_parents(&path)?;
        let made = sys::make_device(
            &sys::c_path(&beneath(&path))?,
            libc::makedev(device.major, device.minor),
            owner.uid,
            owner.gid,
        );
        match made {
            // Some containers forbid making devices, but let the host's be used.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {}
            other => return other,
        }
    }
    let target = make_mount_point(&path, false)?;
    sys::mount(&sys::c_path(&path)?, &target, c"", libc::MS_BIND, c"")?;
    restrict_mount(&target, sys::MOUNT_NOSUID | sys::MOUNT_NOEXEC, false)
}

/// The same path, relative to the new root.
fn beneath(path: &Path) -> PathBuf {
    Path::new(".").join(path.strip_prefix("/").unwrap_or(path))
}

fn make_parents(path: &Path) -> io::Result<()> {
    match beneath(path).parent() {
        Some(parent) => DirBuilder::new().recursive(true).mode(0o755).create(parent),
        None => Ok(()),
    }
}

fn make_mount_point(path: &Path, is_directory: bool) -> io::Result<CString> {
    let target = beneath(path);
    make_parents(path)?;
    if is_directory {
        DirBuilder::new().recursive(true).mode(0o755).create(&target)?;
    } else if !target.exists() {
        OpenOptions::new().write(true).create_new(true).mode(0o444).open(&target)?;
    }
    sys::c_path(&target)
}

/// Adds restrictions to a mount. Kernels before 5.12 set all flags at once, so what the mount already has is kept by hand:
/// in a user namespace the kernel refuses to take a flag off.
fn restrict_mount(target: &CStr, attributes: u64, is_recursive: bool) -> io::Result<()> {
    match sys::add_mount_attributes(target, attributes, is_recursive) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {}
        other => return other,
    }
    let mut flags = libc::MS_BIND | libc::MS_REMOUNT;
    let present = sys::mount_flags(target)?;
    let pairs = [
        (sys::MOUNT_RDONLY, libc::ST_RDONLY, libc::MS_RDONLY),
        (sys::MOUNT_NOSUID, libc::ST_NOSUID, libc::MS_NOSUID),
        (sys::MOUNT_NODEV, libc::ST_NODEV, libc::MS_NODEV),
        (sys::MOUNT_NOEXEC, libc::ST_NOEXEC, libc::MS_NOEXEC),
        (0, libc::ST_NOATIME, libc::MS_NOATIME),
        (0, libc::ST_NODIRATIME, libc::MS_NODIRATIME),
        (0, libc::ST_RELATIME, libc::MS_RELATIME),
    ];
    for (attribute, state, flag) in pairs {
        if attributes & attribute != 0 || present & state as c_ulong != 0 {
            flags |= flag;
        }
    }
    sys::mount(c"", target, c"", flags, c"")
}
