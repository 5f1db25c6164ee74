//! Wire: bytes ↔ frames of the control channel and the net port. Pure; `tests/fixtures/wire_frames.json` is shared with the host.

/// Bytes of a frame's header.
pub const HEADER_BYTES: usize = 12;
/// Most payload bytes of a frame.
pub const PAYLOAD_BYTES: usize = 65_536;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Hello = 1,
    Open = 2,
    Data = 3,
    Credit = 4,
    End = 5,
    Result = 6,
    Error = 7,
    Cancel = 8,
    /// On the net port alone.
    Accept = 9,
}

/// The flags of DATA.
pub mod data {
    /// Host → guest: the body of a request.
    pub const BODY: u8 = 0;
    pub const STDOUT: u8 = 1;
    pub const STDERR: u8 = 2;
    pub const DISPLAY: u8 = 3;
    /// JSON that tells of a change.
    pub const EVENT: u8 = 4;
}

/// One frame; its payload lies in the buffer it was read from.
#[derive(Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    pub stream: u32,
    pub kind: Kind,
    pub flags: u8,
    pub payload: &'a [u8],
}

/// Why bytes are no frame. Each is a protocol error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Malformed {
    TooLong,
    UnknownKind,
    Reserved,
    Flags,
    Stream,
    Length,
}

impl Malformed {
    pub fn as_str(self) -> &'static str {
        match self {
            Malformed::TooLong => "too_long",
            Malformed::UnknownKind => "unknown_kind",
            Malformed::Reserved => "reserved",
            Malformed::Flags => "flags",
            Malformed::Stream => "stream",
            Malformed::Length => "length",
        }
    }
}

/// Takes the first frame off `bytes`: the frame and how many bytes it took, or `None` while it is not complete.
/// The header is judged as soon as it is there, before its payload.
pub fn parse(bytes: &[u8]) -> Result<Option<(Frame<'_>, usize)>, Malformed> {
    let Some(header) = bytes.first_chunk::<HEADER_BYTES>() else { return Ok(None) };
    let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]) as usize;
    let stream = u32::from_le_bytes([header[4], header[5], header[6], header[7]]);
    let flags = header[9];
    if length > PAYLOAD_BYTES {
        return Err(Malformed::TooLong);
    }
    let kind = kind_of(header[8]).ok_or(Malformed::UnknownKind)?;
    if header[10] != 0 || header[11] != 0 {
        return Err(Malformed::Reserved);
    }
    if flags > if kind == Kind::Data { data::EVENT } else { 0 } {
        return Err(Malformed::Flags);
    }
    if (stream == 0) != (kind == Kind::Hello) {
        return Err(Malformed::Stream);
    }
    if (kind == Kind::Credit && length != 4) || (matches!(kind, Kind::End | Kind::Accept) && length != 0) {
        return Err(Malformed::Length);
    }
    let end = HEADER_BYTES + length;
    Ok(bytes.get(HEADER_BYTES..end).map(|payload| (Frame { stream, kind, flags, payload }, end)))
}

/// Appends the header of a frame whose payload of `length` bytes the caller appends.
pub fn put_header(out: &mut Vec<u8>, stream: u32, kind: Kind, flags: u8, length: usize) {
    debug_assert!(length <= PAYLOAD_BYTES);
    out.extend_from_slice(&(length as u32).to_le_bytes());
    out.extend_from_slice(&stream.to_le_bytes());
    out.extend_from_slice(&[kind as u8, flags, 0, 0]);
}

/// Sets the payload length of the frame whose header begins at `at`, once the payload is known.
pub fn set_length(out: &mut [u8], at: usize, length: usize) {
    debug_assert!(length <= PAYLOAD_BYTES);
    out[at..at + 4].copy_from_slice(&(length as u32).to_le_bytes());
}

fn kind_of(byte: u8) -> Option<Kind> {
    Some(match byte {
        1 => Kind::Hello,
        2 => Kind::Open,
        3 => Kind::Data,
        4 => Kind::Credit,
        5 => Kind::End,
        6 => Kind::Result,
        7 => Kind::Error,
        8 => Kind::Cancel,
        9 => Kind::Accept,
        _ => return None,
    })
}

#[cfg(test)]
#[path = "wire_tests.rs"]
mod tests;
