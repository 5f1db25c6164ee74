//! Layer: the disk with a request's packages, or the workshop in which one is made.
use rustix::fs::{self, FileType, Gid, Mode, Uid, CWD};
use rustix::mount::{self, MountFlags};

use crate::confine::{GROUP_ID, USER_ID};
use crate::error::{Action, Fatal};
use crate::init::{self, Machine};
use crate::memory;

/// Where packages lie: the same path when they are installed and when they are used.
const PLACE: &str = "/root/opt/packages";
/// In the workshop: more files than any set of packages has had (tmpfs takes memory for each).
const WORKSHOP_INODES: u32 = 1 << 20;
/// The workshop's disks: where memory goes that is too much, and where the layer is written to.
const SCRATCH: &str = "vdb";
const RESULT: &str = "/dev/vdc";
/// The second under the name it has for the user.
const USER_RESULT: &str = "/root/dev/layer";

/// Mounts the packages, or makes an empty place for them, as the kernel's command line says. The root is not switched yet.
pub fn mount(command_line: &str) -> Result<(), Fatal> {
    match parameter(command_line) {
        Some("packages") => {
            let flags = MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
            mount::mount("/dev/vdb", PLACE, "erofs", flags, c"").action("mount the packages")
        }
        Some("workshop") => make_workshop(),
        Some(other) => Err(Fatal::Parameter(format!("sbx.layer must be packages or workshop, got {other:.64?}"))),
        None => Ok(()),
    }
}

/// Memory beyond the machine's own, once the faster swap is there.
pub fn add_memory(machine: &Machine) {
    if parameter(&machine.command_line) != Some("workshop") {
        return;
    }
    if let Err(error) = memory::swap_to_disk(machine, SCRATCH) {
        eprintln!("sbx-agent: no swap on {SCRATCH}: {error}");
    }
}

fn parameter(command_line: &str) -> Option<&str> {
    command_line.split_ascii_whitespace().find_map(|word| word.strip_prefix("sbx.layer="))
}

/// A place as large as the disk behind it, and that disk's other half: a device to write the layer to.
fn make_workshop() -> Result<(), Fatal> {
    let bytes = memory::disk_bytes(SCRATCH).action("measure the scratch disk")?;
    let options = format!("mode=0755,uid={USER_ID},gid={GROUP_ID},size={bytes},nr_inodes={WORKSHOP_INODES}");
    init::mount("tmpfs", PLACE, MountFlags::NOSUID | MountFlags::NODEV, &init::to_c_string(&options))?;
    let result = fs::stat(RESULT).action("find the layer's disk")?;
    fs::mknodat(CWD, USER_RESULT, FileType::BlockDevice, Mode::from_raw_mode(0o600), result.st_rdev)
        .and_then(|()| fs::chown(USER_RESULT, Some(Uid::from_raw(USER_ID)), Some(Gid::from_raw(GROUP_ID))))
        .action("make the layer's device")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_says_what_a_layer_is() {
        assert_eq!(parameter("quiet sbx.layer=packages sbx.language=python"), Some("packages"));
        assert_eq!(parameter("quiet xsbx.layer=packages"), None);
        assert!(mount("quiet sbx.language=python").is_ok());
        assert!(mount("sbx.layer=other").is_err());
    }
}
