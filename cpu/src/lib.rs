//! A software x86-64 processor with VMX. It runs guest code under a VMCS and knows nothing of nesting, devices or
//! time beyond what it is handed. Start with [`Cpu::enter`] in `vmx/entry.rs`, then `run.rs` and `interpret.rs`.

pub(crate) mod alu;
pub(crate) mod block;
mod bus;
pub(crate) mod decode;
pub(crate) mod fault;
pub(crate) mod flags;
pub(crate) mod interpret;
pub(crate) mod mmu;
pub mod native;
mod run;
pub(crate) mod segment;
mod state;
pub(crate) mod vmx;

pub use bus::Bus;
pub use mmu::linear::LinearView;
pub use mmu::memory::{Memory, Region};
pub use state::{Cpu, Lacks, Model, Time, lacks};
