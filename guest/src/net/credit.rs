//! Credit: what may be sent on one flow, in each direction. Pure.

/// DATA bytes that may be sent on a fresh flow before the receiver grants more: small, for there may be thousands.
pub const INITIAL_BYTES: u32 = 65_536;
/// More than this outstanding is a protocol error.
pub const MAX_BYTES: u32 = 1_048_576;

/// Both directions of one flow.
#[derive(Debug)]
pub struct Credit {
    /// What we may still send.
    send: u32,
    /// What the host may still send.
    receive: u32,
    /// What the host may have sent that has not found its place in the guest.
    window: u32,
}

impl Credit {
    /// A flow whose receiver has room for `window` bytes, at least INITIAL_BYTES.
    pub fn new(window: u32) -> Self {
        Credit { send: INITIAL_BYTES, receive: INITIAL_BYTES, window }
    }

    pub fn sendable(&self) -> usize {
        self.send as usize
    }

    pub fn sent(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.sendable());
        self.send = self.send.saturating_sub(bytes as u32);
    }

    /// CREDIT came.
    pub fn granted(&mut self, bytes: u32) -> Result<(), &'static str> {
        let sum = self.send.checked_add(bytes).filter(|sum| *sum <= MAX_BYTES);
        self.send = sum.ok_or("more CREDIT than may be outstanding")?;
        Ok(())
    }

    /// DATA came.
    pub fn received(&mut self, bytes: usize) -> Result<(), &'static str> {
        let left = u32::try_from(bytes).ok().and_then(|bytes| self.receive.checked_sub(bytes));
        self.receive = left.ok_or("DATA beyond credit")?;
        Ok(())
    }

    /// What to grant now, if it is worth a frame, while `held` bytes of the host's wait here.
    pub fn grant(&mut self, held: usize) -> Option<u32> {
        let taken = self.receive.saturating_add(u32::try_from(held).unwrap_or(u32::MAX));
        let free = self.window.saturating_sub(taken);
        if free < self.window / 4 {
            return None;
        }
        self.receive += free;
        Some(free)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_may_send_what_it_was_granted_and_not_a_byte_more() {
        let mut credit = Credit::new(262_144);
        assert_eq!(credit.grant(0), Some(262_144 - INITIAL_BYTES));
        assert_eq!(credit.grant(0), None);
        assert_eq!(credit.received(262_144), Ok(()));
        assert!(credit.received(1).is_err());
        // All of it still waits.
        assert_eq!(credit.grant(262_144), None);
        assert_eq!(credit.grant(100_000), Some(162_144));
        assert_eq!(credit.received(162_144), Ok(()));
        assert!(credit.received(1).is_err() && credit.received(usize::MAX).is_err());
    }

    #[test]
    fn the_guest_may_send_what_the_host_grants_up_to_a_bound() {
        let mut credit = Credit::new(INITIAL_BYTES);
        credit.sent(INITIAL_BYTES as usize);
        assert_eq!(credit.sendable(), 0);
        assert_eq!(credit.granted(MAX_BYTES), Ok(()));
        assert_eq!(credit.sendable(), MAX_BYTES as usize);
        assert!(credit.granted(1).is_err() && credit.granted(u32::MAX).is_err());
    }

    #[test]
    fn more_that_waits_than_the_window_grants_nothing() {
        let mut credit = Credit::new(INITIAL_BYTES);
        assert_eq!((credit.grant(usize::MAX), credit.grant(INITIAL_BYTES as usize)), (None, None));
    }
}
