//! Confinement: puts the layers of a plan on, in the one order that works.
use crate::args::{Access, Plan, User};
use crate::layer::{Failure, InLayer, Layer};
use crate::{files, landlock, seccomp, sys};
use std::fs;
use std::io;

/// Which namespaces exist, and the layer each one is.
const NAMESPACES: [(Layer, i32); 6] = [
    (Layer::MountNamespace, libc::CLONE_NEWNS),
    (Layer::PidNamespace, libc::CLONE_NEWPID),
    (Layer::NetworkNamespace, libc::CLONE_NEWNET),
    (Layer::IpcNamespace, libc::CLONE_NEWIPC),
    (Layer::UtsNamespace, libc::CLONE_NEWUTS),
    (Layer::CgroupNamespace, libc::CLONE_NEWCGROUP),
];

/// Puts on every layer of the plan but the pid namespace's fork, which `launch` does.
pub fn confine(plan: &Plan) -> Result<(), Failure> {
    let layers = plan.layers;
    follow_parent(plan)?;
    if layers.has(Layer::Cgroup) {
        enter_cgroup(plan)?;
    }
    if layers.has(Layer::UserNamespace) {
        enter_user_namespace()?;
    }
    enter_namespaces(plan)?;
    if layers.has(Layer::UtsNamespace) {
        sys::set_hostname(&plan.hostname).in_layer(Layer::UtsNamespace, "set the host name")?;
    }
    let user = if layers.has(Layer::OwnUid) { plan.user } else { None };
    if layers.has(Layer::MountNamespace) {
        // Its own user must be able to walk through the directories made for it, whatever the caller's mask.
        sys::set_umask(0o022);
        files::enter_empty_root(plan, user)?;
    }
    if layers.has(Layer::Rlimits) {
        for &(resource, value) in &plan.rlimits {
            // Raising a limit takes a privilege: one that is lower already stays.
            let value = sys::hard_limit(resource).map_or(value, |present| value.min(present));
            sys::set_limit(resource, value)
                .in_layer(Layer::Rlimits, format_args!("set limit {resource} to {value}"))?;
        }
    }
    drop_privileges(plan, user)?;
    if layers.has(Layer::NoNewPrivs) {
        sys::set_no_new_privs().in_layer(Layer::NoNewPrivs, "set it")?;
    }
    if layers.has(Layer::Landlock) {
        landlock::restrict(plan)?;
    }
    if layers.has(Layer::Seccomp) {
        seccomp::restrict()?;
    }
    // Every change of user or capabilities above has cleared the parent-death signal.
    follow_parent(plan)
}

/// Ends with the parent, also if it ended before this call.
fn follow_parent(plan: &Plan) -> Result<(), Failure> {
    if !plan.layers.has(Layer::Pdeathsig) {
        return Ok(());
    }
    sys::die_with_parent().in_layer(Layer::Pdeathsig, "ask for the signal")?;
    match plan.parent_pid {
        Some(expected) if expected != sys::parent_pid() => {
            let reason = format!("the parent must be process {expected}, but is {}", sys::parent_pid());
            Err(Failure { layer: Layer::Pdeathsig, reason })
        }
        _ => Ok(()),
    }
}

fn enter_cgroup(plan: &Plan) -> Result<(), Failure> {
    let Some(directory) = &plan.cgroup else { return Ok(()) };
    match fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
    .in_layer(Layer::Cgroup, format_args!("create {}", directory.display()))?;
    let own = ("cgroup.procs".to_string(), "0".to_string());
    // Limits first: the process is never in the group without them.
    for (file, value) in plan.cgroup_values.iter().chain([&own]) {
        let path = directory.join(file);
        fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
            .in_layer(Layer::Cgroup, format_args!("write {value} to {}", path.display()))?;
    }
    Ok(())
}

/// A user namespace in which only our own user and group exist, under their own numbers.
fn enter_user_namespace() -> Result<(), Failure> {
    let layer = Layer::UserNamespace;
    let (uid, gid) = (sys::effective_uid(), sys::effective_gid());
    sys::unshare(libc::CLONE_NEWUSER).in_layer(layer, "create it")?;
    fs::write("/proc/self/uid_map", format!("{uid} {uid} 1\n")).in_layer(layer, "map the user")?;
    // Without this the kernel does not let an ordinary user map a group.
    fs::write("/proc/self/setgroups", "deny").in_layer(layer, "forbid other groups")?;
    fs::write("/proc/self/gid_map", format!("{gid} {gid} 1\n")).in_layer(layer, "map the group")
}

fn enter_namespaces(plan: &Plan) -> Result<(), Failure> {
    let wanted = NAMESPACES.iter().filter(|(layer, _)| plan.layers.has(*layer));
    let flags = wanted.clone().fold(0, |flags, (_, flag)| flags | flag);
    if flags == 0 || sys::unshare(flags).is_ok() {
        return Ok(());
    }
    // One by one, to name the one that fails.
    for (layer, flag) in wanted {
        sys::unshare(*flag).in_layer(*layer, "create it")?;
    }
    Ok(())
}

fn drop_privileges(plan: &Plan, user: Option<User>) -> Result<(), Failure> {
    if plan.layers.has(Layer::Capabilities) {
        empty_bounding_set().in_layer(Layer::Capabilities, "empty the bounding set")?;
    }
    if let Some(user) = user {
        sys::become_user(user.uid, user.gid)
            .in_layer(Layer::OwnUid, format_args!("become user {} and group {}", user.uid, user.gid))?;
        check_access(plan, user)?;
    }
    if plan.layers.has(Layer::Capabilities) {
        sys::clear_ambient().in_layer(Layer::Capabilities, "empty the ambient set")?;
        sys::clear_capabilities().in_layer(Layer::Capabilities, "empty the sets")?;
    }
    Ok(())
}

fn empty_bounding_set() -> io::Result<()> {
    let mut was_empty = true;
    for capability in 0.. {
        match sys::is_in_bounding_set(capability) {
            Ok(true) => {
                was_empty = false;
                sys::drop_from_bounding_set(capability)?;
            }
            Ok(false) => {}
            Err(_) => break, // Past the last capability of this kernel.
        }
    }
    match sys::lock_no_root() {
        // Somebody emptied the set before us, and took the right to set this too: uid 0 gives nothing any more.
        Err(error) if was_empty && error.raw_os_error() == Some(libc::EPERM) => Ok(()),
        other => other,
    }
}

/// Says which file the own user cannot use; PROGRAM's own message would come later and be less clear.
fn check_access(plan: &Plan, user: User) -> Result<(), Failure> {
    for file in &plan.files {
        let mode = match file.access {
            Access::Read => libc::R_OK,
            Access::Write => libc::R_OK | libc::W_OK,
            Access::Execute => libc::R_OK | libc::X_OK,
        };
        sys::c_path(&file.path)
            .and_then(|path| sys::may_access(&path, mode))
            .in_layer(Layer::OwnUid, format_args!("use {} as user {}", file.path.display(), user.uid))?;
    }
    Ok(())
}
