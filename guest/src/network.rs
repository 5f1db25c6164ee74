//! Network: what the agent does for it. It makes the interface and the files that programs read, and starts the process that carries the
//! flows (`net::role`), again when that ends.
use std::ffi::CString;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{Pid, Signal};
use serde_json::{json, Value};

use crate::cgroup::Group;
use crate::channel;
use crate::confine;
use crate::error::{Code, Refusal};
use crate::init::{self, Machine};
use crate::net::{rehearsal, role, GATEWAY, GUEST, GUEST_V6, MTU};
use crate::routing;
use crate::spawn::flag;
use crate::sys::{self, net as interfaces};
use crate::trust;

const INTERFACE: &str = "sbx0";
/// The gateway is the only neighbour.
const MASK: Ipv4Addr = Ipv4Addr::new(255, 255, 255, 252);
/// IPv6 is off for an interface until the host says that it has it.
const IPV6_SWITCH: &str = "/proc/sys/net/ipv6/conf/sbx0/disable_ipv6";
/// `/etc/resolv.conf` leads here.
const RESOLVER_FILE: &str = "/run/resolv.conf";
const PORT_NAME: &[u8] = b"sbx.net";
/// The process is started again after this time, and not more often than that in one life of the machine.
const RESTART_US: u64 = 100_000;
const RESTARTS: u32 = 100;
/// The process before has not let go of the port yet.
const BUSY_US: u64 = 5_000;
/// Two for each flow that there may be: they may all end at once.
const QUEUED_PACKETS: u32 = 8_192;
const NICENESS: i32 = -10;

/// What the host lets the guest try to reach.
#[derive(Clone, Copy)]
struct Reach {
    is_outbound: bool,
    /// The host itself has IPv6.
    has_ipv6: bool,
}

/// A request whose certificates are on their way.
struct Pending {
    stream: u32,
    reach: Reach,
    bytes: usize,
    certificates: Vec<u8>,
}

#[derive(Default)]
pub struct Network {
    /// Absent in tests.
    machine: Option<Machine>,
    pending: Option<Pending>,
    tun: Option<OwnedFd>,
    role: Option<Pid>,
    restart_at_us: Option<u64>,
    restarts: u32,
    /// Programs are told of further certificates.
    has_certificates: bool,
}

impl Network {
    pub fn new(machine: Machine) -> Self {
        Network { machine: Some(machine), ..Network::default() }
    }

    pub fn has(&self, stream: u32) -> bool {
        self.pending.as_ref().is_some_and(|pending| pending.stream == stream)
    }

    /// The request `net`; None when its body is to come.
    pub fn open(&mut self, stream: u32, open: &Value, now_us: u64) -> Option<Result<Value, Refusal>> {
        let parse = || {
            let bytes = open["caBytes"].as_u64().ok_or_else(|| Refusal::bad_request("Cannot connect: caBytes must be a whole number"))?;
            if bytes > trust::CERTIFICATES_BYTES {
                return Err(Refusal::beyond("connect", "certificateBytes", bytes, trust::CERTIFICATES_BYTES, "bytes"));
            }
            if self.pending.is_some() {
                return Err(Refusal::new(Code::Busy, "Cannot connect: another request is on its way"));
            }
            let has_ipv6 = !open["ipv6"].is_null() && flag(open, "ipv6")?;
            Ok((Reach { is_outbound: flag(open, "outbound")?, has_ipv6 }, bytes as usize))
        };
        if open["rehearse"] == true {
            return Some(self.rehearse());
        }
        match parse() {
            Err(refusal) => Some(Err(refusal)),
            Ok((reach, 0)) => Some(self.connect(reach, now_us)),
            Ok((reach, bytes)) => {
                self.pending = Some(Pending { stream, reach, bytes, certificates: Vec::new() });
                None
            }
        }
    }

    pub fn on_data(&mut self, bytes: &[u8]) -> Result<(), Refusal> {
        let Some(pending) = &mut self.pending else { return Ok(()) };
        pending.certificates.extend_from_slice(bytes);
        match pending.certificates.len() <= pending.bytes {
            true => Ok(()),
            false => {
                self.pending = None;
                Err(Refusal::bad_request("Cannot connect: the body is longer than announced"))
            }
        }
    }

    /// The body is over.
    pub fn on_end(&mut self, now_us: u64) -> Result<Value, Refusal> {
        let Some(pending) = self.pending.take() else { return Ok(json!({})) };
        if pending.certificates.len() != pending.bytes {
            return Err(Refusal::bad_request("Cannot connect: the body is shorter than announced"));
        }
        trust::check(&pending.certificates)?;
        if self.machine.is_some() {
            trust::add(&pending.certificates)?;
        }
        self.has_certificates = true;
        self.connect(pending.reach, now_us)
    }

    pub fn cancel(&mut self) {
        self.pending = None;
    }

    /// What programs have in their environment beside the usual.
    pub fn environment(&self) -> &'static [(&'static str, &'static str)] {
        if self.has_certificates {
            &trust::ENVIRONMENT
        } else {
            &[]
        }
    }

    fn connect(&mut self, reach: Reach, now_us: u64) -> Result<Value, Refusal> {
        self.try_connect(reach, now_us).map_err(|error| Refusal::new(Code::Internal, format!("Cannot connect: {error}")))?;
        Ok(json!({}))
    }

    fn try_connect(&mut self, reach: Reach, now_us: u64) -> Result<(), Errno> {
        let Some(machine) = &self.machine else { return Ok(()) };
        if self.tun.is_none() {
            self.tun = Some(make_tun(machine)?);
        }
        outbound(reach)?;
        if self.role.is_none() {
            self.start(now_us);
        }
        Ok(())
    }

    /// Does once what a clone with a network will do, before the machine is saved; nothing of it is left.
    fn rehearse(&mut self) -> Result<Value, Refusal> {
        let refusal = |error: Errno| Refusal::new(Code::Internal, format!("Cannot rehearse the network: {error}"));
        if self.role.is_some() || self.restart_at_us.is_some() {
            return Err(Refusal::new(Code::Busy, "Cannot rehearse the network: it is in use"));
        }
        let Some(machine) = &self.machine else { return Ok(json!({})) };
        let reach = Reach { is_outbound: true, has_ipv6: true };
        let tun = make_tun(machine).and_then(|tun| outbound(reach).map(|()| tun)).map_err(refusal)?;
        let pid = spawn(rehearsal::ARGUMENT, &tun, rustix::stdio::stderr()).map_err(refusal)?;
        let ended = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
        let _ = fs::unlink(RESOLVER_FILE);
        match ended.map_err(refusal)?.and_then(|(_, status)| status.exit_status()) {
            Some(0) => Ok(json!({})),
            status => Err(Refusal::new(Code::Internal, format!("Cannot rehearse the network: it ended with {status:?}"))),
        }
    }

    /// The host is another, or the machine is about to be copied: nothing of the network is left.
    pub fn stop(&mut self) {
        (self.pending, self.restart_at_us, self.tun) = (None, None, None);
        if let Some(pid) = self.role.take() {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            let _ = fs::unlink(RESOLVER_FILE);
        }
    }

    /// When `on_time` is due.
    pub fn next_us(&self) -> Option<u64> {
        self.restart_at_us
    }

    pub fn on_time(&mut self, now_us: u64) {
        if self.restart_at_us.is_some_and(|at_us| at_us <= now_us) {
            self.start(now_us);
        }
    }

    /// A child has ended. What to log when it was ours.
    pub fn reaped(&mut self, pid: Pid, status: i32, now_us: u64) -> Option<String> {
        if self.role != Some(pid) {
            return None;
        }
        self.role = None;
        if status == role::STATUS_HOST_GONE {
            return Some("the host has closed the network".to_owned());
        }
        if self.restarts < RESTARTS {
            self.restarts += 1;
            self.restart_at_us = Some(now_us + RESTART_US);
        }
        Some(format!("the network's process ended with {status}"))
    }

    fn start(&mut self, now_us: u64) {
        self.restart_at_us = None;
        match self.try_start() {
            Ok(pid) => self.role = pid,
            Err(Errno::BUSY) => self.restart_at_us = Some(now_us + BUSY_US),
            Err(error) => eprintln!("sbx-agent: cannot start the network's process: {error}"),
        }
    }

    fn try_start(&self) -> Result<Option<Pid>, Errno> {
        let (Some(machine), Some(tun)) = (&self.machine, &self.tun) else { return Ok(None) };
        let port = channel::find_port(machine, PORT_NAME)?;
        let pid = spawn(role::ARGUMENT, tun, port.as_fd())?;
        // Only a wish: the user's programs may be many.
        let _ = rustix::process::setpriority_process(Some(pid), NICENESS);
        Ok(Some(pid))
    }
}

/// Gives the guest a way out, or takes it.
fn outbound(Reach { is_outbound, has_ipv6 }: Reach) -> Result<(), Errno> {
    let mut interface = interfaces::Interface::named(INTERFACE)?;
    if !is_outbound {
        let _ = fs::unlink(RESOLVER_FILE);
        // Its routes go with it, and its address of IPv6.
        return interface.set_up(false);
    }
    interface.set_up(true)?;
    interface.add_default_route(GATEWAY)?;
    // A kernel without IPv6 has no such switch.
    if init::write_file(IPV6_SWITCH, if has_ipv6 { "0" } else { "1" }).is_ok() && has_ipv6 {
        routing::add_address(interface.index, GUEST_V6)?;
        routing::add_default_route(interface.index)?;
    }
    trust::write(RESOLVER_FILE, format!("nameserver {GATEWAY}\n").as_bytes())
}

/// Starts this binary again, as another.
fn spawn(argument: &str, tun: &OwnedFd, port: BorrowedFd<'_>) -> Result<Pid, Errno> {
    let group = Group::make_network().ok();
    let entrance = group.as_ref().map(Group::entrance).transpose()?;
    sys::spawn(&sys::Spawn {
        programs: &[c"/proc/self/exe".to_owned()],
        args: &[c"sbx-agent".to_owned(), CString::new(argument).unwrap_or_default()],
        env: &[],
        directory: c"/",
        stdin: tun.as_fd(),
        stdout: port,
        stderr: rustix::stdio::stderr(),
        control: None,
        has_terminal: false,
        report: None,
        cgroup: entrance.as_ref().map(AsFd::as_fd),
        confinement: Some(&confine::network_confinement()),
    })
}

fn make_tun(machine: &Machine) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let tun = fs::openat(&machine.devices, "net/tun", flags, Mode::empty())?;
    interfaces::make_tun(&tun, INTERFACE)?;
    let mut interface = interfaces::Interface::named(INTERFACE)?;
    interface.set_mtu(MTU)?;
    interface.set_queue(QUEUED_PACKETS)?;
    interface.set_address(GUEST, MASK)?;
    Ok(tun)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn open(network: &mut Network, outbound: Value, bytes: Value) -> Option<Result<Value, Refusal>> {
        network.open(1, &json!({ "method": "net", "outbound": outbound, "caBytes": bytes }), 0)
    }

    #[test]
    fn a_request_without_certificates_is_answered_at_once() {
        let mut network = Network::default();
        assert_eq!(open(&mut network, true.into(), 0.into()), Some(Ok(json!({}))));
        assert!(network.environment().is_empty() && !network.has(1));
    }

    #[test]
    fn a_rehearsal_is_refused_while_the_network_is_in_use() {
        let rehearse = |network: &mut Network| network.open(1, &json!({ "method": "net", "rehearse": true }), 0);
        let mut network = Network::default();
        assert_eq!(rehearse(&mut network), Some(Ok(json!({}))));
        network.role = Pid::from_raw(1);
        assert!(rehearse(&mut network).is_some_and(|answer| answer.is_err()));
    }

    #[test]
    fn a_request_that_makes_no_sense_is_refused() {
        let mut network = Network::default();
        for (outbound, bytes) in [
            (Value::Null, json!(0)),
            (json!(1), json!(0)),
            (json!(true), Value::Null),
            (json!(true), json!(-1)),
            (json!(true), json!((1 << 20) + 1)),
        ] {
            assert!(open(&mut network, outbound.clone(), bytes.clone()).is_some_and(|answer| answer.is_err()), "{outbound} {bytes}");
        }
    }

    #[test]
    fn certificates_are_awaited_whole_and_no_longer() {
        const PEM: &[u8] = b"-----BEGIN CERTIFICATE-----\n";
        let mut network = Network::default();
        assert_eq!(open(&mut network, true.into(), PEM.len().into()), None);
        assert!(open(&mut network, true.into(), 0.into()).is_some_and(|answer| answer.is_err()), "one at a time");
        assert!(network.has(1) && network.on_data(&PEM[..5]).is_ok() && network.on_data(&PEM[5..]).is_ok());
        assert_eq!(network.on_end(0), Ok(json!({})));
        assert!(!network.environment().is_empty());
        for body in [&PEM[..PEM.len() - 1], &b"x".repeat(PEM.len())] {
            let mut network = Network::default();
            open(&mut network, true.into(), PEM.len().into());
            assert!(network.on_data(body).is_ok() && network.on_end(0).is_err());
        }
        open(&mut network, true.into(), 1.into());
        assert!(network.on_data(b"ab").is_err() && !network.has(1));
    }
}
