//! Probe: which layers this host allows, found by putting each on in a child process.
use crate::args::{Access, File, Plan, User, UID_BASE};
use crate::cgroup::{self, Delegation};
use crate::confine::confine;
use crate::launch::{launch, Trouble};
use crate::layer::{Failure, Layer, Layers};
use crate::sys::{self, Ending};
use std::ffi::CString;
use std::fmt::Write as _;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;

/// The hidden argument with which the last check runs this very program inside the whole jail.
pub const CHECK: &str = "--check";

/// One layer's verdict.
struct Finding {
    layer: Layer,
    failure: Option<(String, Option<String>)>, // reason, command that mends it
}

/// Whose right it is to make the namespaces.
#[derive(Clone, Copy, PartialEq)]
enum Maker {
    /// Root makes them itself, and can run QEMU as another user in them.
    Root,
    /// They come with a user namespace: for an ordinary user, and for root in a container that lets it do little.
    UserNamespace,
    Nobody,
}

/// One line of JSON.
pub fn probe(cgroup_parent: Option<&Path>) -> String {
    let is_root = sys::effective_uid() == 0;
    let maker = if is_root && attempt_layers(&[Layer::UtsNamespace]).is_ok() {
        Maker::Root
    } else if attempt_layers(&[Layer::UserNamespace]).is_ok() {
        Maker::UserNamespace
    } else {
        Maker::Nobody
    };
    let mut findings: Vec<Finding> = Layer::ALL
        .into_iter()
        .filter(|&layer| layer != Layer::Cgroup)
        .map(|layer| Finding { layer, failure: try_layer(layer, is_root, maker) })
        .collect();
    settle(&mut findings);
    let delegation = cgroup::find(cgroup_parent);
    let failure = delegation.as_ref().err().map(|trouble| (trouble.reason.clone(), trouble.hint.clone()));
    findings.push(Finding { layer: Layer::Cgroup, failure });
    to_json(&findings, delegation.ok().as_ref())
}

fn try_layer(layer: Layer, is_root: bool, maker: Maker) -> Option<(String, Option<String>)> {
    let result = match layer {
        Layer::UserNamespace if maker == Maker::Root => {
            Err("not needed: root makes the other namespaces itself".into())
        }
        Layer::OwnUid if !is_root => Err("only root can run QEMU as another user".into()),
        Layer::OwnUid if maker != Maker::Root => {
            Err("root may not make namespaces here: another user could not reach the files in our private directories"
                .into())
        }
        Layer::Landlock => attempt(|| {
            confine(&plan(&[Layer::NoNewPrivs, Layer::Landlock])).map_err(|failure| failure.reason)?;
            refused(fs::read_dir("/").map(drop), "a directory outside could still be read")
        }),
        Layer::Seccomp => attempt(|| {
            confine(&plan(&[Layer::NoNewPrivs, Layer::Seccomp])).map_err(|failure| failure.reason)?;
            refused(sys::try_socket(libc::AF_UNIX), "a socket could still be opened")
        }),
        Layer::PidNamespace => attempt(|| {
            confine(&plan(&with_user(layer, maker))).map_err(|failure| failure.reason)?;
            first_process_of_namespace()
        }),
        _ => attempt_layers(&with_user(layer, maker)),
    };
    result.err().map(|reason| {
        let hint = hint_for(layer);
        (reason, hint)
    })
}

/// Namespaces, and a full set of capabilities to drop, come with the user namespace when not root.
fn with_user(layer: Layer, maker: Maker) -> Vec<Layer> {
    match layer {
        Layer::MountNamespace
        | Layer::PidNamespace
        | Layer::NetworkNamespace
        | Layer::IpcNamespace
        | Layer::UtsNamespace
        | Layer::CgroupNamespace
        | Layer::Capabilities
            if maker == Maker::UserNamespace =>
        {
            vec![Layer::UserNamespace, layer]
        }
        _ => vec![layer],
    }
}

fn refused(result: std::io::Result<()>, otherwise: &str) -> Result<(), String> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::EACCES)) => Ok(()),
        Err(error) => Err(format!("the check of it failed: {error}")),
        Ok(()) => Err(otherwise.into()),
    }
}

fn first_process_of_namespace() -> Result<(), String> {
    match sys::fork().map_err(|error| format!("cannot fork: {error}"))? {
        None => sys::exit_now(if sys::pid() == 1 { 0 } else { 1 }),
        Some(child) => match sys::wait_for(child) {
            Ok(Ending::Exited(0)) => Ok(()),
            _ => Err("the child is not process 1".into()),
        },
    }
}

fn plan(layers: &[Layer]) -> Plan {
    let mut plan = Plan::new(Layers::of(layers));
    plan.rlimits = vec![(libc::RLIMIT_CORE, 0)];
    let uid = UID_BASE + sys::pid();
    plan.user = Some(User { uid, gid: uid });
    plan
}

fn attempt_layers(layers: &[Layer]) -> Result<(), String> {
    attempt(|| confine(&plan(layers)).map_err(|failure| failure.reason))
}

/// Does the work in a child process, whose end undoes it.
fn attempt(work: impl FnOnce() -> Result<(), String>) -> Result<(), String> {
    let trouble = |error: std::io::Error| format!("cannot start a child to try it: {error}");
    let (reader, writer) = sys::pipe().map_err(trouble)?;
    let Some(child) = sys::fork().map_err(trouble)? else {
        drop(reader);
        let status = match work() {
            Ok(()) => 0,
            Err(reason) => {
                let _ = fs::File::from(writer).write_all(reason.as_bytes()); // The status tells of the failure anyway.
                1
            }
        };
        sys::exit_now(status);
    };
    drop(writer);
    let mut reason = String::new();
    let _ = fs::File::from(reader).read_to_string(&mut reason); // As above.
    match sys::wait_for(child) {
        Ok(Ending::Exited(0)) => Ok(()),
        Ok(Ending::Exited(_)) => Err(reason),
        Ok(Ending::Killed(signal)) => Err(format!("the child that tried it was ended by signal {signal}")),
        Err(error) => Err(trouble(error)),
    }
}

/// All layers together, up to running a program: what works alone but not with the others is taken out.
fn settle(findings: &mut [Finding]) {
    for _ in 0..Layer::ALL.len() {
        keep_own_uid_reachable(findings);
        let active: Vec<Layer> =
            findings.iter().filter(|finding| finding.failure.is_none()).map(|finding| finding.layer).collect();
        let Err(text) =
            attempt(|| run_self(&active).map_err(|failure| format!("{}\n{}", failure.layer.name(), failure.reason)))
        else {
            return;
        };
        let (name, reason) = text.split_once('\n').unwrap_or((Layer::MountNamespace.name(), &text));
        let culprit = findings.iter_mut().find(|finding| finding.layer.name() == name && finding.failure.is_none());
        let Some(finding) = culprit else { return };
        finding.failure = Some((format!("together with the other layers: {reason}"), None));
    }
}

/// Another user reaches the files of our private directories only where a mount namespace puts them into its own root.
fn keep_own_uid_reachable(findings: &mut [Finding]) {
    let is_active = |layer| findings.iter().any(|finding| finding.layer == layer && finding.failure.is_none());
    if is_active(Layer::MountNamespace) || !is_active(Layer::OwnUid) {
        return;
    }
    for finding in findings.iter_mut().filter(|finding| finding.layer == Layer::OwnUid) {
        let reason = "without a mount namespace another user cannot reach the files in our private directories";
        finding.failure = Some((reason.into(), None));
    }
}

fn run_self(layers: &[Layer]) -> Result<(), Failure> {
    let in_mount = |reason: String| Failure { layer: Layer::MountNamespace, reason };
    let program = std::env::current_exe().map_err(|error| in_mount(format!("cannot find this program: {error}")))?;
    let mut plan = plan(layers);
    plan.files = vec![File { path: program.clone(), access: Access::Execute }];
    let program = CString::new(program.into_os_string().into_vec()).map_err(|error| in_mount(error.to_string()))?;
    plan.command = vec![program, c"--check".into()];
    let Err(trouble) = launch(&plan);
    match trouble {
        Trouble::Layer(failure) => Err(failure),
        Trouble::Exec(_, error) => Err(in_mount(format!("a program cannot be run in it: {error}"))),
    }
}

/// The command that mends a missing layer, where there is one.
fn hint_for(layer: Layer) -> Option<String> {
    let setting = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_string()).unwrap_or_default();
    let hint = match layer {
        Layer::Landlock if sys::landlock_abi().is_err() => {
            "boot a kernel of at least 5.13 with `landlock` in its `lsm=` list"
        }
        Layer::UserNamespace
        | Layer::MountNamespace
        | Layer::PidNamespace
        | Layer::NetworkNamespace
        | Layer::IpcNamespace
        | Layer::UtsNamespace
        | Layer::CgroupNamespace
        | Layer::Capabilities => {
            if setting("/proc/sys/kernel/unprivileged_userns_clone") == "0" {
                "sudo sysctl -w kernel.unprivileged_userns_clone=1"
            } else if setting("/proc/sys/kernel/apparmor_restrict_unprivileged_userns") == "1" {
                "sudo sysctl -w kernel.apparmor_restrict_unprivileged_userns=0"
            } else if setting("/proc/sys/user/max_user_namespaces") == "0" {
                "sudo sysctl -w user.max_user_namespaces=15000"
            } else {
                return None;
            }
        }
        _ => return None,
    };
    Some(hint.into())
}

fn to_json(findings: &[Finding], delegation: Option<&Delegation>) -> String {
    let mut json = String::from("{\"schema\":1,\"landlockAbi\":");
    match sys::landlock_abi() {
        Ok(abi) => json.push_str(&abi.to_string()),
        Err(_) => json.push_str("null"),
    }
    json.push_str(",\"cgroup\":");
    match delegation {
        None => json.push_str("null"),
        Some(found) => {
            let controllers: Vec<String> = found.controllers.iter().map(|name| quote(name)).collect();
            let parent = quote(&found.parent.to_string_lossy());
            let _ = write!(json, "{{\"parent\":{parent},\"controllers\":[{}]}}", controllers.join(","));
            // Into a String: cannot fail.
        }
    }
    json.push_str(",\"layers\":[");
    for (index, finding) in findings.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        let name = quote(finding.layer.name());
        let (reason, hint) = match &finding.failure {
            None => ("null".into(), "null".into()),
            Some((reason, hint)) => (quote(reason), hint.as_deref().map_or("null".into(), quote)),
        };
        let active = finding.failure.is_none();
        let _ = write!(json, "{comma}{{\"name\":{name},\"active\":{active},\"reason\":{reason},\"hint\":{hint}}}");
        // As above.
    }
    json.push_str("]}");
    json
}

fn quote(text: &str) -> String {
    let mut quoted = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            control if (control as u32) < 0x20 => {
                let _ = write!(quoted, "\\u{:04x}", control as u32); // Into a String: cannot fail.
            }
            other => quoted.push(other),
        }
    }
    quoted.push('"');
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_escapes_what_json_forbids() {
        assert_eq!(quote("a\"b\\c\nd é"), "\"a\\\"b\\\\c\\u000ad é\"");
    }

    #[test]
    fn a_failed_attempt_reports_its_reason() {
        assert_eq!(attempt(|| Err("no such luck".into())), Err("no such luck".into()));
        assert_eq!(attempt(|| Ok(())), Ok(()));
    }
}
