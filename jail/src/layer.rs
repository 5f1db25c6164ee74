//! Layers: their names, and the failure of one.
use std::fmt;

/// One layer of confinement.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Layer {
    Pdeathsig,
    Cgroup,
    UserNamespace,
    MountNamespace,
    PidNamespace,
    NetworkNamespace,
    IpcNamespace,
    UtsNamespace,
    CgroupNamespace,
    Rlimits,
    OwnUid,
    Capabilities,
    NoNewPrivs,
    Landlock,
    Seccomp,
}

impl Layer {
    /// In the order in which they are put on.
    pub const ALL: [Layer; 15] = [
        Layer::Pdeathsig,
        Layer::Cgroup,
        Layer::UserNamespace,
        Layer::MountNamespace,
        Layer::PidNamespace,
        Layer::NetworkNamespace,
        Layer::IpcNamespace,
        Layer::UtsNamespace,
        Layer::CgroupNamespace,
        Layer::Rlimits,
        Layer::OwnUid,
        Layer::Capabilities,
        Layer::NoNewPrivs,
        Layer::Landlock,
        Layer::Seccomp,
    ];

    /// The name on the command line, in messages and in the probe's answer.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Pdeathsig => "pdeathsig",
            Layer::Cgroup => "cgroup",
            Layer::UserNamespace => "user_namespace",
            Layer::MountNamespace => "mount_namespace",
            Layer::PidNamespace => "pid_namespace",
            Layer::NetworkNamespace => "network_namespace",
            Layer::IpcNamespace => "ipc_namespace",
            Layer::UtsNamespace => "uts_namespace",
            Layer::CgroupNamespace => "cgroup_namespace",
            Layer::Rlimits => "rlimits",
            Layer::OwnUid => "own_uid",
            Layer::Capabilities => "capabilities",
            Layer::NoNewPrivs => "no_new_privs",
            Layer::Landlock => "landlock",
            Layer::Seccomp => "seccomp",
        }
    }

    pub fn from_name(name: &str) -> Option<Layer> {
        Layer::ALL.into_iter().find(|layer| layer.name() == name)
    }
}

/// A set of layers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Layers(u32);

impl Layers {
    pub fn all() -> Layers {
        Layers::of(&Layer::ALL)
    }

    pub fn of(layers: &[Layer]) -> Layers {
        let mut set = Layers::default();
        for &layer in layers {
            set.insert(layer);
        }
        set
    }

    pub fn has(self, layer: Layer) -> bool {
        self.0 & 1 << layer as u32 != 0
    }

    pub fn insert(&mut self, layer: Layer) {
        self.0 |= 1 << layer as u32;
    }

    pub fn remove(&mut self, layer: Layer) {
        self.0 &= !(1 << layer as u32);
    }
}

/// A layer that was asked for and cannot be had.
#[derive(Debug)]
pub struct Failure {
    pub layer: Layer,
    pub reason: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.layer.name(), self.reason)
    }
}

/// Says which layer an error belongs to, and what was being done.
pub trait InLayer<T> {
    fn in_layer(self, layer: Layer, action: impl fmt::Display) -> Result<T, Failure>;
}

impl<T, E: fmt::Display> InLayer<T> for Result<T, E> {
    fn in_layer(self, layer: Layer, action: impl fmt::Display) -> Result<T, Failure> {
        self.map_err(|error| Failure { layer, reason: format!("cannot {action}: {error}") })
    }
}
