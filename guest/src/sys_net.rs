//! Sys net: the system calls that make network interfaces and give them addresses.
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{netdevice, socket_with, AddressFamily, SocketFlags, SocketType};

use super::check;

const TUN_F_CSUM: libc::c_ulong = 1;
const SIOCSIFTXQLEN: libc::c_ulong = 0x8943;

/// An interface, and a socket through which it is asked for.
pub struct Interface {
    socket: OwnedFd,
    request: libc::ifreq,
    pub index: u32,
}

impl Interface {
    pub fn named(name: &str) -> Result<Self, Errno> {
        let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
        let index = netdevice::name_to_index(&socket, name)?;
        Ok(Interface { socket, request: request(name)?, index })
    }

    pub fn set_up(&mut self, is_up: bool) -> Result<(), Errno> {
        self.ioctl(libc::SIOCGIFFLAGS)?;
        // SAFETY: the call before filled in the flags; the union is plain data.
        unsafe {
            let flags = self.request.ifr_ifru.ifru_flags & !(libc::IFF_UP as libc::c_short);
            self.request.ifr_ifru.ifru_flags = flags | if is_up { libc::IFF_UP as libc::c_short } else { 0 };
        }
        self.ioctl(libc::SIOCSIFFLAGS)
    }

    pub fn set_mtu(&mut self, bytes: usize) -> Result<(), Errno> {
        self.request.ifr_ifru.ifru_mtu = bytes as libc::c_int;
        self.ioctl(libc::SIOCSIFMTU)
    }

    /// How many packets wait for whoever reads the device before further ones are lost.
    pub fn set_queue(&mut self, packets: u32) -> Result<(), Errno> {
        // One number like the other, in the same place (`ifr_qlen`).
        self.request.ifr_ifru.ifru_mtu = packets as libc::c_int;
        self.ioctl(SIOCSIFTXQLEN)
    }

    pub fn set_address(&mut self, address: Ipv4Addr, mask: Ipv4Addr) -> Result<(), Errno> {
        self.request.ifr_ifru.ifru_addr = socket_address(address);
        self.ioctl(libc::SIOCSIFADDR)?;
        self.request.ifr_ifru.ifru_netmask = socket_address(mask);
        self.ioctl(libc::SIOCSIFNETMASK)
    }

    /// Everything that has no other way goes through `gateway`.
    pub fn add_default_route(&mut self, gateway: Ipv4Addr) -> Result<(), Errno> {
        // SAFETY: `rtentry` is plain data, and zero is a value of each field.
        let mut route: libc::rtentry = unsafe { std::mem::zeroed() };
        route.rt_dst = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_genmask = socket_address(Ipv4Addr::UNSPECIFIED);
        route.rt_gateway = socket_address(gateway);
        route.rt_flags = libc::RTF_UP | libc::RTF_GATEWAY;
        // SAFETY: the kernel reads one `rtentry`, which outlives the call and whose device is not set.
        match check(unsafe { libc::ioctl(self.socket.as_raw_fd(), libc::SIOCADDRT as _, &route) }) {
            Err(Errno::EXIST) => Ok(()),
            result => result.map(drop),
        }
    }

    fn ioctl(&mut self, number: libc::c_ulong) -> Result<(), Errno> {
        // SAFETY: each of these calls reads and writes one `ifreq`, which outlives it.
        check(unsafe { libc::ioctl(self.socket.as_raw_fd(), number as _, &mut self.request) }).map(drop)
    }
}

/// Makes the interface `name` behind `device` (/dev/net/tun): packets of IP, each behind a header that says about checksums.
pub fn make_tun(device: impl AsFd, name: &str) -> Result<(), Errno> {
    let fd = device.as_fd().as_raw_fd();
    let mut request = request(name)?;
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as libc::c_short;
    // SAFETY: the first call reads and writes one `ifreq`, which outlives it; the second takes a number.
    unsafe {
        check(libc::ioctl(fd, libc::TUNSETIFF as _, &mut request))?;
        check(libc::ioctl(fd, libc::TUNSETOFFLOAD as _, TUN_F_CSUM))?;
    }
    Ok(())
}

fn request(name: &str) -> Result<libc::ifreq, Errno> {
    // SAFETY: `ifreq` is plain data, and zero is a value of each field.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(Errno::NAMETOOLONG);
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn socket_address(address: Ipv4Addr) -> libc::sockaddr {
    let mut bytes = [0; 14];
    // Port, then address.
    for (to, from) in bytes[2..6].iter_mut().zip(address.octets()) {
        *to = from as libc::c_char;
    }
    libc::sockaddr { sa_family: libc::AF_INET as libc::sa_family_t, sa_data: bytes }
}
