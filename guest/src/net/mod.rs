//! Net: the guest's side of the network. `role` is a process of its own; the others are its parts.
mod credit;
mod exposed;
mod flows;
#[cfg(test)]
mod fuzz_tests;
mod packet;
mod port;
pub mod rehearsal;
pub mod role;
mod tcp;

pub use packet::{GATEWAY, GUEST, GUEST_V6, MTU};
