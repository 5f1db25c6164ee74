//! Command line: what the caller asks for, checked.
use crate::layer::{Layer, Layers};
use crate::sys::Resource;
use std::ffi::{CString, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

pub const USAGE: &str = "\
usage: sbx-jail [options] -- PROGRAM [ARGUMENTS…]
       sbx-jail --probe [--cgroup-parent DIRECTORY]
       sbx-jail --version

Puts every layer of confinement on and becomes PROGRAM (an absolute path, among the --exec files).
  --parent-pid N        end when the parent ends, and at once unless it is N
  --ro PATH             PROGRAM may read this file or directory; the path is the same inside
  --rw PATH             … and write it
  --exec PATH           … and run it
  --ro-try, --exec-try  the same, where the path exists
  --dev NAME            PROGRAM may use /dev/NAME: null zero full random urandom kvm
  --rlimit NAME=VALUE   as core cpu data fsize memlock nofile nproc stack; a number or `unlimited`
  --uid N|auto          own user and group (root only); auto: 1900000000 + this process's number
  --gid N               another group than the number of the user
  --hostname NAME       default: sbx
  --cgroup DIRECTORY    cgroup v2 to create and enter; the caller removes it
  --cgroup-set FILE=VALUE
  --env NAME=VALUE      the environment is empty but for these
  --keep-fds 3,4,…      descriptors to pass on besides 0, 1 and 2
  --skip LAYER          leave a layer out; every other one must succeed
Layers: pdeathsig cgroup user_namespace mount_namespace pid_namespace network_namespace ipc_namespace
uts_namespace cgroup_namespace rlimits own_uid capabilities no_new_privs landlock seccomp
Status: that of PROGRAM; 125 a layer failed, 126 or 127 PROGRAM cannot be run, 2 usage.";

/// First of the users that `--uid auto` takes: above the ranges that systemd's and container tools' users lie in.
pub const UID_BASE: u32 = 1_900_000_000;
const HOSTNAME_MAX_BYTES: usize = 64;

/// What PROGRAM may do with a file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Access {
    Read,
    Write,
    Execute,
}

#[derive(Clone, Debug)]
pub struct File {
    pub path: PathBuf,
    pub access: Access,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug)]
pub struct Plan {
    pub layers: Layers,
    pub parent_pid: Option<u32>,
    pub user: Option<User>,
    pub files: Vec<File>,
    pub devices: Vec<&'static Device>,
    pub rlimits: Vec<(Resource, u64)>,
    pub hostname: String,
    pub cgroup: Option<PathBuf>,
    pub cgroup_values: Vec<(String, String)>,
    pub environment: Vec<CString>,
    pub keep_fds: Vec<u32>,
    pub command: Vec<CString>,
}

#[derive(Debug)]
pub struct Device {
    pub name: &'static str,
    pub major: u32,
    pub minor: u32,
}

pub const DEVICES: [Device; 6] = [
    Device { name: "null", major: 1, minor: 3 },
    Device { name: "zero", major: 1, minor: 5 },
    Device { name: "full", major: 1, minor: 7 },
    Device { name: "random", major: 1, minor: 8 },
    Device { name: "urandom", major: 1, minor: 9 },
    Device { name: "kvm", major: 10, minor: 232 },
];

const RLIMITS: [(&str, Resource); 9] = [
    ("as", libc::RLIMIT_AS),
    ("core", libc::RLIMIT_CORE),
    ("cpu", libc::RLIMIT_CPU),
    ("data", libc::RLIMIT_DATA),
    ("fsize", libc::RLIMIT_FSIZE),
    ("memlock", libc::RLIMIT_MEMLOCK),
    ("nofile", libc::RLIMIT_NOFILE),
    ("nproc", libc::RLIMIT_NPROC),
    ("stack", libc::RLIMIT_STACK),
];

/// What this start is to do.
pub enum Request {
    Help,
    Version,
    /// What the probe runs inside the whole jail: reaching it is the answer.
    Check,
    Probe {
        cgroup_parent: Option<PathBuf>,
    },
    Run(Box<Plan>),
}

impl Plan {
    /// Nothing asked for but the layers.
    pub fn new(layers: Layers) -> Plan {
        Plan {
            layers,
            parent_pid: None,
            user: None,
            files: Vec::new(),
            devices: Vec::new(),
            rlimits: Vec::new(),
            hostname: "sbx".into(),
            cgroup: None,
            cgroup_values: Vec::new(),
            environment: Vec::new(),
            keep_fds: Vec::new(),
            command: Vec::new(),
        }
    }
}

/// Reads the arguments (without the program's own name). The error is one line for the user.
pub fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let mut arguments = arguments.peekable();
    match arguments.peek().and_then(|first| first.to_str()) {
        Some("--help" | "-h") => return Ok(Request::Help),
        Some("--version" | "-V") => return Ok(Request::Version),
        Some(crate::probe::CHECK) => return Ok(Request::Check),
        Some("--probe") => return parse_probe(arguments.skip(1)),
        _ => {}
    }
    parse_plan(arguments).map(|plan| Request::Run(Box::new(plan)))
}

fn parse_probe(mut arguments: impl Iterator<Item = OsString>) -> Result<Request, String> {
    let mut cgroup_parent = None;
    while let Some(option) = arguments.next() {
        match option.to_str() {
            Some("--cgroup-parent") => cgroup_parent = Some(path(&mut arguments, "--cgroup-parent")?),
            _ => return Err(format!("unknown option {option:?} for --probe")),
        }
    }
    Ok(Request::Probe { cgroup_parent })
}

fn parse_plan(mut arguments: impl Iterator<Item = OsString>) -> Result<Plan, String> {
    let mut plan = Plan::new(Layers::all());
    let (mut uid, mut gid) = (None, None);
    loop {
        let option = arguments.next().ok_or("no PROGRAM: put it after `--`")?;
        let Some(name) = option.to_str() else { return Err(format!("unknown option {option:?}")) };
        match name {
            "--" => break,
            "--parent-pid" => plan.parent_pid = Some(number(&mut arguments, name)?),
            "--uid" => uid = Some(user_number(&mut arguments)?),
            "--gid" => gid = Some(number(&mut arguments, name)?),
            "--ro" => plan.files.push(File { path: path(&mut arguments, name)?, access: Access::Read }),
            "--rw" => plan.files.push(File { path: path(&mut arguments, name)?, access: Access::Write }),
            "--exec" => plan.files.push(File { path: path(&mut arguments, name)?, access: Access::Execute }),
            "--ro-try" => add_if_there(&mut plan.files, path(&mut arguments, name)?, Access::Read),
            "--exec-try" => add_if_there(&mut plan.files, path(&mut arguments, name)?, Access::Execute),
            "--dev" => plan.devices.push(device(&text(&mut arguments, name)?)?),
            "--rlimit" => plan.rlimits.push(rlimit(&text(&mut arguments, name)?)?),
            "--hostname" => plan.hostname = hostname(text(&mut arguments, name)?)?,
            "--cgroup" => plan.cgroup = Some(path(&mut arguments, name)?),
            "--cgroup-set" => plan.cgroup_values.push(cgroup_value(&text(&mut arguments, name)?)?),
            "--env" => plan.environment.push(variable(value(&mut arguments, name)?)?),
            "--keep-fds" => plan.keep_fds = descriptors(&text(&mut arguments, name)?)?,
            "--skip" => plan.layers.remove(layer(&text(&mut arguments, name)?)?),
            _ => return Err(format!("unknown option {name}")),
        }
    }
    for argument in arguments {
        plan.command.push(CString::new(argument.into_vec()).map_err(|_| "an argument contains NUL")?);
    }
    plan.user = uid.map(|uid| User { uid, gid: gid.unwrap_or(uid) });
    check(&plan, gid.is_some() && uid.is_none())?;
    // Parents before what lies in them: a later mount must not hide an earlier one.
    plan.files.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(plan)
}

fn add_if_there(files: &mut Vec<File>, path: PathBuf, access: Access) {
    if path.exists() {
        files.push(File { path, access });
    }
}

fn check(plan: &Plan, is_gid_alone: bool) -> Result<(), String> {
    let program = plan.command.first().ok_or("no PROGRAM after `--`")?;
    if !program.as_bytes().starts_with(b"/") {
        return Err(format!("PROGRAM must be an absolute path, got {program:?}"));
    }
    if plan.user.is_some() && plan.layers.has(Layer::OwnUid) && plan.layers.has(Layer::UserNamespace) {
        return Err("--uid needs `--skip user_namespace`: in a user namespace no other user exists".into());
    }
    if is_gid_alone {
        return Err("--gid needs --uid".into());
    }
    if plan.cgroup.is_none() && !plan.cgroup_values.is_empty() {
        return Err("--cgroup-set needs --cgroup".into());
    }
    Ok(())
}

fn value(arguments: &mut impl Iterator<Item = OsString>, option: &str) -> Result<OsString, String> {
    arguments.next().ok_or_else(|| format!("{option} needs a value"))
}

fn text(arguments: &mut impl Iterator<Item = OsString>, option: &str) -> Result<String, String> {
    value(arguments, option)?.into_string().map_err(|value| format!("{option}: not UTF-8: {value:?}"))
}

fn number(arguments: &mut impl Iterator<Item = OsString>, option: &str) -> Result<u32, String> {
    let text = text(arguments, option)?;
    // The highest number is the kernel's "no user" and "no change".
    match text.parse() {
        Ok(number) if number != u32::MAX => Ok(number),
        _ => Err(format!("{option} must be an integer from 0 to 4294967294, got {text:?}")),
    }
}

fn user_number(arguments: &mut impl Iterator<Item = OsString>) -> Result<u32, String> {
    let mut arguments = arguments.peekable();
    if arguments.next_if(|value| value == "auto").is_some() {
        return Ok(UID_BASE + crate::sys::pid());
    }
    match number(&mut arguments, "--uid")? {
        0 => Err("--uid must not be 0, that is no confinement".into()),
        uid => Ok(uid),
    }
}

fn path(arguments: &mut impl Iterator<Item = OsString>, option: &str) -> Result<PathBuf, String> {
    let value = value(arguments, option)?;
    let path = PathBuf::from(&value);
    let is_plain = path.is_absolute()
        && !value.as_bytes().contains(&0)
        && path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !is_plain || path == Path::new("/") {
        return Err(format!(
            "{option} must be an absolute path without `..` and not the root directory, got {value:?}"
        ));
    }
    Ok(path)
}

fn device(name: &str) -> Result<&'static Device, String> {
    DEVICES.iter().find(|device| device.name == name).ok_or_else(|| format!("--dev: unknown device {name:?}"))
}

fn rlimit(text: &str) -> Result<(Resource, u64), String> {
    let (name, value) = text.split_once('=').ok_or_else(|| format!("--rlimit must be NAME=VALUE, got {text:?}"))?;
    let resource = RLIMITS.iter().find(|known| known.0 == name);
    let resource = resource.ok_or_else(|| format!("--rlimit: unknown limit {name:?}"))?.1;
    let value = match value {
        "unlimited" => libc::RLIM_INFINITY,
        _ => value.parse().map_err(|_| format!("--rlimit {name} must be an integer or `unlimited`, got {value:?}"))?,
    };
    Ok((resource, value))
}

fn hostname(name: String) -> Result<String, String> {
    let is_valid = !name.is_empty()
        && name.len() <= HOSTNAME_MAX_BYTES
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    if !is_valid {
        return Err(format!("--hostname must be 1 to 64 letters, digits, `-` or `.`, got {name:?}"));
    }
    Ok(name)
}

fn cgroup_value(text: &str) -> Result<(String, String), String> {
    let (file, value) = text.split_once('=').ok_or_else(|| format!("--cgroup-set must be FILE=VALUE, got {text:?}"))?;
    if file.is_empty() || file.contains('/') || file.starts_with('.') {
        return Err(format!("--cgroup-set must name a file of the cgroup, got {file:?}"));
    }
    Ok((file.into(), value.into()))
}

fn variable(value: OsString) -> Result<CString, String> {
    let is_pair = value.as_bytes().iter().position(|&byte| byte == b'=').is_some_and(|at| at > 0);
    match CString::new(value.as_bytes()) {
        Ok(variable) if is_pair => Ok(variable),
        _ => Err(format!("--env must be NAME=VALUE, got {value:?}")),
    }
}

fn descriptors(text: &str) -> Result<Vec<u32>, String> {
    let parsed: Result<Vec<u32>, _> = text.split(',').filter(|part| !part.is_empty()).map(str::parse).collect();
    match parsed {
        Ok(mut fds) if fds.iter().all(|fd| (3..=i32::MAX as u32).contains(fd)) => {
            fds.sort_unstable();
            fds.dedup();
            Ok(fds)
        }
        _ => Err(format!("--keep-fds must be numbers of at least 3, separated by commas, got {text:?}")),
    }
}

fn layer(name: &str) -> Result<Layer, String> {
    Layer::from_name(name).ok_or_else(|| format!("--skip: unknown layer {name:?}"))
}
