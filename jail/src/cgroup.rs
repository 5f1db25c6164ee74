//! Cgroups, version 2: where this process may make a group for each VM.
use crate::sys;
use std::fs;
use std::path::{Path, PathBuf};

/// What limits a VM; without `memory` a group is not worth making.
const CONTROLLERS: [&str; 3] = ["memory", "pids", "cpu"];

const UNIFIED: &str = "boot with systemd.unified_cgroup_hierarchy=1";

/// A directory in which groups with these controllers can be made and entered.
#[derive(Debug)]
pub struct Delegation {
    pub parent: PathBuf,
    pub controllers: Vec<String>,
}

/// Why there is none.
#[derive(Debug)]
pub struct Absence {
    pub reason: String,
    pub hint: Option<String>,
}

/// Looks at `given` alone, or from this process's own group upwards.
pub fn find(given: Option<&Path>) -> Result<Delegation, Absence> {
    if let Some(directory) = given {
        return examine(directory).map_err(|reason| Absence { reason, hint: None });
    }
    let Some(mount) = mount_point() else {
        return Err(Absence { reason: "this host has no cgroup v2 hierarchy".into(), hint: Some(UNIFIED.into()) });
    };
    let groups = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    if groups.lines().any(|line| line.split(':').nth(1) == Some("memory")) {
        return Err(Absence { reason: "this host manages memory by cgroup v1".into(), hint: Some(UNIFIED.into()) });
    }
    let own = own_group(&groups);
    let own = mount.join(own.unwrap_or_default());
    let mut reasons = Vec::new();
    for directory in own.ancestors().take_while(|directory| directory.starts_with(&mount)) {
        match examine(directory) {
            Ok(delegation) => return Ok(delegation),
            Err(reason) => reasons.push(reason), // The group above may allow it: that of a user's manager, say.
        }
    }
    let hint = (sys::effective_uid() != 0).then(|| "systemd-run --user --scope -p Delegate=yes sbx …".into());
    Err(Absence { reason: reasons.join("; "), hint })
}

/// Mount point of the v2 hierarchy, from `/proc/self/mountinfo`.
fn mount_point() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "))?;
    line.split(' ').nth(4).map(PathBuf::from)
}

/// The path after `0::`, relative to the mount point.
fn own_group(text: &str) -> Option<PathBuf> {
    let path = text.lines().find_map(|line| line.strip_prefix("0::/"))?;
    // A process moved out of its cgroup namespace sees `/../…`: nothing below the mount point is its own.
    (!path.split('/').any(|part| part == "..")).then(|| PathBuf::from(path))
}

/// Really makes a group there and moves a child into it.
fn examine(directory: &Path) -> Result<Delegation, String> {
    let shown = directory.display();
    let enabled = fs::read_to_string(directory.join("cgroup.subtree_control"))
        .map_err(|error| format!("{shown} is not a cgroup v2 directory: {error}"))?;
    let controllers: Vec<String> = CONTROLLERS
        .iter()
        .filter(|&name| enabled.split_whitespace().any(|word| word == *name))
        .map(|&s| s.into())
        .collect();
    if !controllers.iter().any(|name| name == "memory") {
        return Err(format!("{shown} does not pass the memory controller on"));
    }
    let group = directory.join(format!("sbx-probe-{}", sys::pid()));
    fs::create_dir(&group).map_err(|error| format!("cannot create a group in {shown}: {error}"))?;
    let entered = enter_in_child(&group);
    let removed = fs::remove_dir(&group);
    entered.map_err(|error| format!("cannot move a process from its group into one of {shown}: {error}"))?;
    removed.map_err(|error| format!("cannot remove a group in {shown}: {error}"))?;
    Ok(Delegation { parent: directory.into(), controllers })
}

fn enter_in_child(group: &Path) -> std::io::Result<()> {
    let Some(child) = sys::fork()? else {
        let error = fs::write(group.join("cgroup.procs"), "0").err();
        sys::exit_now(error.map_or(0, |error| error.raw_os_error().unwrap_or(libc::EIO)));
    };
    match sys::wait_for(child)? {
        sys::Ending::Exited(0) => Ok(()),
        sys::Ending::Exited(errno) => Err(std::io::Error::from_raw_os_error(errno)),
        sys::Ending::Killed(_) => Err(std::io::Error::from_raw_os_error(libc::EIO)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_group_is_that_of_version_2() {
        assert_eq!(own_group("4:memory:/x\n0::/user.slice/a b\n"), Some("user.slice/a b".into()));
        assert_eq!(own_group("0::/\n"), Some("".into()));
        assert_eq!(own_group("4:memory:/x\n"), None);
        assert_eq!(own_group("0::/../other\n"), None);
    }

    #[test]
    fn a_directory_that_is_no_cgroup_is_refused_with_a_reason() {
        let trouble = find(Some(Path::new("/nonexistent"))).map(|found| found.parent);
        assert!(trouble.is_err_and(|absence| absence.reason.contains("/nonexistent is not a cgroup v2 directory")));
    }
}
