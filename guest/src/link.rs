//! Link: where the answers and the output of a process go: the channel, and the credit of its streams.
use serde_json::Value;

use crate::channel::{Channel, BACKLOG_BYTES};
use crate::error::Refusal;
use crate::mux::Mux;
use crate::wire::{Kind, PAYLOAD_BYTES};

/// Where bytes for the host go.
pub struct Link<'a> {
    pub channel: &'a mut Channel,
    pub mux: &'a mut Mux,
}

impl Link<'_> {
    /// Bytes of output the host takes now.
    pub fn room(&self, stream: u32) -> usize {
        room(self.channel.backlog(), self.mux, stream)
    }

    pub fn put(&mut self, stream: u32, flags: u8, bytes: &[u8]) {
        self.channel.put(stream, Kind::Data, flags, bytes);
        self.mux.sent(stream, bytes.len());
    }

    /// The stream is over.
    pub fn answer(&mut self, stream: u32, answer: Result<Value, Refusal>) {
        match answer {
            Ok(result) => self.channel.put_json(stream, Kind::Result, &result),
            Err(refusal) => self.channel.put_json(stream, Kind::Error, &refusal.to_json()),
        }
        self.mux.close(stream);
    }

    /// Bytes of the host have found their place.
    pub fn grant(&mut self, stream: u32, bytes: usize) {
        if let Some(credit) = self.mux.consumed(stream, bytes) {
            self.channel.put(stream, Kind::Credit, 0, &credit.to_le_bytes());
        }
    }
}

/// Bytes of output the host takes now.
pub fn room(backlog: usize, mux: &Mux, stream: u32) -> usize {
    if backlog >= BACKLOG_BYTES {
        return 0;
    }
    mux.sendable(stream).min(PAYLOAD_BYTES)
}
