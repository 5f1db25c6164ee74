//! Trust: further certificate authorities, for every program of the guest. The root disk is read-only: a bundle in memory is mounted over
//! the one that is there, and programs that do not read that one are told by their environment.
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount;

use crate::error::{Code, Refusal};

/// As many bytes of certificates as the host may send.
pub const CERTIFICATES_BYTES: u64 = 1 << 20;
/// What curl, git and most others read.
const SYSTEM_BUNDLE: &str = "/etc/ssl/certs/ca-certificates.crt";
const BUNDLE: &str = "/run/sbx/ca-certificates.crt";
/// The further ones alone. Bun looks into it at its first TLS connection; it is not there before there are any.
pub const FURTHER: &str = "/run/sbx/ca-further.crt";

/// For programs that bring authorities of their own: Python's ssl, requests, httpx, uv; Bun and Node.js as children.
pub const ENVIRONMENT: [(&str, &str); 3] =
    [("SSL_CERT_FILE", SYSTEM_BUNDLE), ("REQUESTS_CA_BUNDLE", SYSTEM_BUNDLE), ("NODE_EXTRA_CA_CERTS", FURTHER)];

/// Checks what the host sent: text that holds certificates.
pub fn check(certificates: &[u8]) -> Result<(), Refusal> {
    let text = std::str::from_utf8(certificates).ok().filter(|text| !text.contains('\0'));
    match text.is_some_and(|text| text.contains("-----BEGIN CERTIFICATE-----")) {
        true => Ok(()),
        false => Err(Refusal::bad_request("Cannot trust: caBytes must be certificates in PEM")),
    }
}

/// From now on programs trust these authorities as well.
pub fn add(certificates: &[u8]) -> Result<(), Refusal> {
    try_add(certificates).map_err(|error| Refusal::new(Code::Internal, format!("Cannot trust: {error}")))
}

fn try_add(certificates: &[u8]) -> Result<(), Errno> {
    let read = |path: &str| std::fs::read(path).unwrap_or_default();
    let mut further = read(FURTHER);
    let is_first = further.is_empty();
    if further.windows(certificates.len()).any(|window| window == certificates) {
        return Ok(());
    }
    append_text(&mut further, certificates);
    // In place: both are open to readers under their names, and the second is mounted.
    let mut bundle = read(SYSTEM_BUNDLE);
    append_text(&mut bundle, certificates);
    write(BUNDLE, &bundle)?;
    write(FURTHER, &further)?;
    if is_first {
        mount::mount_bind(BUNDLE, SYSTEM_BUNDLE)?;
    }
    Ok(())
}

fn append_text(bytes: &mut Vec<u8>, text: &[u8]) {
    if !bytes.is_empty() && !bytes.ends_with(b"\n") {
        bytes.push(b'\n');
    }
    bytes.extend_from_slice(text);
}

/// A file of root's that all may read.
pub fn write(path: &str, bytes: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
    let file = fs::open(path, flags, Mode::from_raw_mode(0o444))?;
    let mut rest = bytes;
    while !rest.is_empty() {
        rest = &rest[rustix::io::write(&file, rest)?..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_certificates_are_taken() {
        assert_eq!(check(b"# name\n-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"), Ok(()));
        for bad in [&b""[..], b"text", b"-----BEGIN CERTIFICATE-----\0", b"-----BEGIN CERTIFICATE-----\xff"] {
            assert!(check(bad).is_err());
        }
    }

    #[test]
    fn texts_are_joined_at_a_line() {
        let mut text = b"a".to_vec();
        append_text(&mut text, b"b\n");
        append_text(&mut text, b"c");
        assert_eq!(text, b"a\nb\nc");
    }
}
