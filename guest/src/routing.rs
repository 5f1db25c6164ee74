//! Routing: an address and a way out for an interface, over IPv6. By rtnetlink, as the older calls (`sys_net`, for IPv4) make an address that
//! cannot be used until the kernel has found time to ask a link on which nobody else is.
use std::net::Ipv6Addr;

use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const HEADER_BYTES: usize = 16;
/// An answer repeats the question.
const ANSWER_BYTES: usize = 512;
const WHOLE_ADDRESS: u8 = 128;

/// Gives the interface with this index an address. No error if it has it.
pub fn add_address(index: u32, address: Ipv6Addr) -> Result<(), Errno> {
    // struct ifaddrmsg: family, prefix, flags, scope, interface.
    let mut body = vec![libc::AF_INET6 as u8, WHOLE_ADDRESS, libc::IFA_F_NODAD as u8, libc::RT_SCOPE_UNIVERSE];
    body.extend_from_slice(&index.to_ne_bytes());
    put_attribute(&mut body, libc::IFA_ADDRESS, &address.octets());
    ask(libc::RTM_NEWADDR, &body)
}

/// Everything that has no other way goes to the interface with this index. No error if it does.
pub fn add_default_route(index: u32) -> Result<(), Errno> {
    // struct rtmsg: family, two prefixes, service, table, who made it, scope, type, flags.
    let mut body = vec![libc::AF_INET6 as u8, 0, 0, 0, libc::RT_TABLE_MAIN, libc::RTPROT_BOOT, libc::RT_SCOPE_UNIVERSE, libc::RTN_UNICAST];
    body.extend_from_slice(&[0; 4]);
    put_attribute(&mut body, libc::RTA_OIF, &index.to_ne_bytes());
    ask(libc::RTM_NEWROUTE, &body)
}

/// `bytes` must be a multiple of four long.
fn put_attribute(body: &mut Vec<u8>, kind: u16, bytes: &[u8]) {
    body.extend_from_slice(&(bytes.len() as u16 + 4).to_ne_bytes());
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(bytes);
}

fn ask(kind: u16, body: &[u8]) -> Result<(), Errno> {
    let flags = libc::NLM_F_REQUEST | libc::NLM_F_ACK | libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    let mut message = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
    message.extend_from_slice(&kind.to_ne_bytes());
    message.extend_from_slice(&(flags as u16).to_ne_bytes());
    // Sequence and sender: one question at a time on a socket of its own.
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(body);
    let socket = net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    net::send(&socket, &message, SendFlags::empty())?;
    let mut answer = [0; ANSWER_BYTES];
    let (_, bytes) = net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    verdict(&answer[..bytes.min(ANSWER_BYTES)])
}

/// struct nlmsgerr: zero, or a negative errno.
fn verdict(answer: &[u8]) -> Result<(), Errno> {
    let is_verdict = answer.get(4..6) == Some(&(libc::NLMSG_ERROR as u16).to_ne_bytes()[..]);
    let errno = answer.get(HEADER_BYTES..).and_then(|rest| rest.first_chunk()).map(|bytes| i32::from_ne_bytes(*bytes));
    match errno.filter(|_| is_verdict) {
        Some(0) => Ok(()),
        Some(errno) if errno == -libc::EEXIST => Ok(()),
        Some(errno) => Err(Errno::from_raw_os_error(errno.wrapping_neg())),
        None => Err(Errno::IO),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_understands_both_and_refuses_them_for_no_interface() {
        // Without rights it refuses before it looks.
        let is_refusal = |result| matches!(result, Err(Errno::NODEV | Errno::PERM | Errno::ACCESS));
        assert!(is_refusal(add_address(0x7fff_fff0, Ipv6Addr::LOCALHOST)));
        assert!(is_refusal(add_default_route(0x7fff_fff0)));
    }

    #[test]
    fn what_is_there_already_is_no_error_and_what_is_no_answer_is() {
        let answer = |kind: i32, errno: i32| {
            let mut bytes = vec![0; 4];
            bytes.extend_from_slice(&(kind as u16).to_ne_bytes());
            bytes.resize(HEADER_BYTES, 0);
            bytes.extend_from_slice(&errno.to_ne_bytes());
            verdict(&bytes)
        };
        assert_eq!((answer(libc::NLMSG_ERROR, 0), answer(libc::NLMSG_ERROR, -libc::EEXIST)), (Ok(()), Ok(())));
        assert_eq!((answer(libc::NLMSG_ERROR, -libc::EPERM), answer(libc::NLMSG_DONE, 0)), (Err(Errno::PERM), Err(Errno::IO)));
        assert_eq!(verdict(&[]), Err(Errno::IO));
    }
}
