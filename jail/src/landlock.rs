//! Landlock: the kernel's own list of what this process may open; works without any privilege.
use crate::args::{Access, Plan};
use crate::layer::{Failure, InLayer, Layer};
use crate::sys;
use std::path::{Path, PathBuf};

const EXECUTE: u64 = 1;
const WRITE_FILE: u64 = 1 << 1;
const READ_FILE: u64 = 1 << 2;
const READ_DIR: u64 = 1 << 3;
const TRUNCATE: u64 = 1 << 14;
const IOCTL_DEV: u64 = 1 << 15;
/// What applies to a file; the others name directories, and the kernel refuses them on a file.
const FILE_RIGHTS: u64 = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV;
const NETWORK_RIGHTS: u64 = 0b11; // bind and connect of TCP
const SCOPES: u64 = 0b11; // abstract sockets and signals stay inside

/// All file rights that a kernel with this ABI knows.
fn file_rights(abi: u32) -> u64 {
    let count = match abi {
        1 => 13,
        2 => 14,
        3 | 4 => 15,
        _ => 16,
    };
    (1 << count) - 1
}

/// Bytes of the ruleset's description that a kernel with this ABI knows.
fn description_size(abi: u32) -> usize {
    match abi {
        1..=3 => 8,
        4 | 5 => 16,
        _ => 24,
    }
}

/// From now on only the plan's files can be opened, no TCP be used, and nothing outside be signalled.
pub fn restrict(plan: &Plan) -> Result<(), Failure> {
    let layer = Layer::Landlock;
    let abi = sys::landlock_abi().in_layer(layer, "ask for its version")?;
    let handled = file_rights(abi);
    let ruleset = sys::landlock_create(handled, NETWORK_RIGHTS, SCOPES, description_size(abi))
        .in_layer(layer, "create a ruleset")?;
    let files = plan.files.iter().map(|file| (file.path.clone(), rights_of(file.access)));
    let devices =
        plan.devices.iter().map(|device| (Path::new("/dev").join(device.name), READ_FILE | WRITE_FILE | IOCTL_DEV));
    for (path, rights) in files.chain(devices) {
        allow(&ruleset, &path, rights & handled).in_layer(layer, format_args!("allow {}", path.display()))?;
    }
    sys::landlock_restrict(&ruleset).in_layer(layer, "restrict itself")
}

fn rights_of(access: Access) -> u64 {
    match access {
        Access::Read => READ_FILE | READ_DIR,
        Access::Write => READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE,
        Access::Execute => READ_FILE | READ_DIR | EXECUTE,
    }
}

fn allow(ruleset: &std::os::fd::OwnedFd, path: &PathBuf, rights: u64) -> std::io::Result<()> {
    let is_directory = std::fs::metadata(path)?.is_dir();
    let parent = sys::open_path(&sys::c_path(path)?)?;
    sys::landlock_allow(ruleset, &parent, if is_directory { rights } else { rights & FILE_RIGHTS })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rights_grow_with_the_abi() {
        assert_eq!(file_rights(1), 0x1fff);
        assert_eq!(file_rights(3), 0x7fff);
        assert_eq!(file_rights(7), 0xffff);
        assert!(file_rights(1) & TRUNCATE == 0 && file_rights(3) & TRUNCATE != 0);
    }
}
