//! Mux: the streams of the control channel and their credit. Pure: it judges frames and counts bytes, others do the work.
use crate::limits::{INITIAL_CREDIT_BYTES, MAX_CREDIT_BYTES, OPEN_STREAMS};

/// Bytes consumed before credit is granted again: a short body costs no CREDIT frame at all.
const GRANT_BYTES: u32 = INITIAL_CREDIT_BYTES / 2;

/// One open stream.
#[derive(Debug)]
struct Stream {
    id: u32,
    /// DATA bytes the host may still send.
    receive_credit: u32,
    /// Received and consumed, not yet granted again.
    consumed: u32,
    /// DATA bytes the guest may still send.
    send_credit: u32,
    /// The host sent END.
    is_ended: bool,
}

/// What a frame for a stream is to us.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    /// For an open stream.
    Live,
    /// Its stream is over: it crossed with our RESULT on the way.
    Late,
}

/// The table of streams. Every `Err` is a protocol error.
#[derive(Debug, Default)]
pub struct Mux {
    streams: Vec<Stream>,
    last_id: u32,
}

impl Mux {
    /// A host that is new to us (a clone's) counts its streams from 1 again.
    pub fn reset(&mut self) {
        *self = Mux::default();
    }

    pub fn open(&mut self, id: u32) -> Result<(), &'static str> {
        if id <= self.last_id {
            return Err("OPEN of a used stream");
        }
        if self.streams.len() >= OPEN_STREAMS {
            return Err("too many open streams");
        }
        self.last_id = id;
        self.streams.push(Stream {
            id,
            receive_credit: INITIAL_CREDIT_BYTES,
            consumed: 0,
            send_credit: INITIAL_CREDIT_BYTES,
            is_ended: false,
        });
        Ok(())
    }

    /// The stream is over: RESULT or ERROR was sent.
    pub fn close(&mut self, id: u32) {
        self.streams.retain(|stream| stream.id != id);
    }

    pub fn judge(&self, id: u32) -> Result<Verdict, &'static str> {
        match self.streams.iter().any(|stream| stream.id == id) {
            true => Ok(Verdict::Live),
            false if id <= self.last_id => Ok(Verdict::Late),
            false => Err("a frame for a stream that was never opened"),
        }
    }

    /// DATA came.
    pub fn received(&mut self, id: u32, bytes: usize) -> Result<(), &'static str> {
        let Some(stream) = self.find(id) else { return Ok(()) };
        if stream.is_ended {
            return Err("DATA after END");
        }
        let left = u32::try_from(bytes).ok().and_then(|bytes| stream.receive_credit.checked_sub(bytes));
        stream.receive_credit = left.ok_or("DATA beyond credit")?;
        Ok(())
    }

    /// Received bytes found their place; returns the credit to grant now, if it is worth a frame.
    pub fn consumed(&mut self, id: u32, bytes: usize) -> Option<u32> {
        let stream = self.find(id)?;
        stream.consumed += bytes as u32;
        if stream.consumed < GRANT_BYTES {
            return None;
        }
        stream.receive_credit += stream.consumed;
        Some(std::mem::take(&mut stream.consumed))
    }

    pub fn ended(&mut self, id: u32) -> Result<(), &'static str> {
        let Some(stream) = self.find(id) else { return Ok(()) };
        if std::mem::replace(&mut stream.is_ended, true) {
            return Err("END after END");
        }
        Ok(())
    }

    /// CREDIT came.
    pub fn granted(&mut self, id: u32, bytes: u32) -> Result<(), &'static str> {
        let Some(stream) = self.find(id) else { return Ok(()) };
        let sum = stream.send_credit.checked_add(bytes).filter(|sum| *sum <= MAX_CREDIT_BYTES);
        stream.send_credit = sum.ok_or("more CREDIT than can be counted")?;
        Ok(())
    }

    /// DATA bytes the guest may send on the stream now.
    pub fn sendable(&self, id: u32) -> usize {
        self.streams.iter().find(|stream| stream.id == id).map_or(0, |stream| stream.send_credit as usize)
    }

    pub fn sent(&mut self, id: u32, bytes: usize) {
        if let Some(stream) = self.find(id) {
            debug_assert!(bytes <= stream.send_credit as usize);
            stream.send_credit = stream.send_credit.saturating_sub(bytes as u32);
        }
    }

    fn find(&mut self, id: u32) -> Option<&mut Stream> {
        self.streams.iter_mut().find(|stream| stream.id == id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_only_rise_and_late_frames_are_told_from_wrong_ones() {
        let mut mux = Mux::default();
        assert!(mux.judge(1).is_err());
        mux.open(1).expect("first");
        mux.open(5).expect("a gap");
        assert!(mux.open(5).is_err() && mux.open(3).is_err() && mux.open(0).is_err());
        mux.close(1);
        assert_eq!((mux.judge(1), mux.judge(5)), (Ok(Verdict::Late), Ok(Verdict::Live)));
        assert!(mux.judge(6).is_err());
        mux.reset();
        assert!(mux.judge(1).is_err());
        mux.open(1).expect("again after a reset");
    }

    #[test]
    fn streams_are_bounded() {
        let mut mux = Mux::default();
        for id in 1..=OPEN_STREAMS as u32 {
            mux.open(id).expect("room");
        }
        assert!(mux.open(65).is_err());
        mux.close(10);
        mux.open(66).expect("room again");
    }

    #[test]
    fn the_host_may_send_its_credit_and_not_one_byte_more() {
        let mut mux = Mux::default();
        mux.open(1).expect("open");
        mux.received(1, INITIAL_CREDIT_BYTES as usize).expect("all of it");
        assert!(mux.received(1, 1).is_err());
        let mut mux = Mux::default();
        mux.open(1).expect("open");
        assert!(mux.received(1, usize::MAX).is_err());
    }

    #[test]
    fn credit_returns_in_large_pieces() {
        let mut mux = Mux::default();
        mux.open(1).expect("open");
        mux.received(1, 200_000).expect("credit");
        assert_eq!(mux.consumed(1, 100_000), None);
        assert_eq!(mux.consumed(1, 100_000), Some(200_000));
        mux.received(1, INITIAL_CREDIT_BYTES as usize).expect("full again");
        assert!(mux.received(1, 1).is_err());
    }

    #[test]
    fn the_guest_may_send_what_it_was_granted() {
        let mut mux = Mux::default();
        mux.open(1).expect("open");
        mux.sent(1, INITIAL_CREDIT_BYTES as usize);
        assert_eq!(mux.sendable(1), 0);
        mux.granted(1, 10).expect("credit");
        assert_eq!((mux.sendable(1), mux.sendable(2)), (10, 0));
        mux.granted(1, MAX_CREDIT_BYTES - 10).expect("the most");
        assert!(mux.granted(1, 1).is_err());
        assert!(mux.granted(1, u32::MAX).is_err());
    }

    #[test]
    fn data_and_end_after_end_are_refused() {
        let mut mux = Mux::default();
        mux.open(1).expect("open");
        mux.ended(1).expect("once");
        assert!(mux.received(1, 1).is_err() && mux.ended(1).is_err());
        mux.close(1);
        assert_eq!((mux.received(1, 9), mux.ended(1), mux.granted(1, 9)), (Ok(()), Ok(()), Ok(())));
    }
}
