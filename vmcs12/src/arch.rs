//! Registers and bit layouts of the architecture, one family a file.

pub mod cr;
pub mod debugctl;
pub mod efer;
pub mod eptp;
pub mod event;
pub mod msr;
pub mod rflags;
pub mod segment;
pub mod state;
