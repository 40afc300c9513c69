//! The nested engine: what L0 does so that L1 sees VMX. It executes L1's VMX instructions, merges vmcs01 and vmcs12
//! into vmcs02, decides who owns an exit from L2, fills ept02, and shows L1 the exits that are L1's. It decides and
//! never runs anything: memory, registers and time are passed in, and it knows no processor, device or clock.
//! Start with [`engine`].
#![forbid(unsafe_code)]

mod areas;
pub mod counters;
pub mod cr;
mod current;
pub mod engine;
pub mod ept;
pub mod ept01;
mod event;
pub mod instruction;
pub mod invalidations;
mod keep;
pub mod merge;
pub mod mode;
mod msr;
mod reflect;
pub mod route;
mod timer;
mod vpid;

pub use engine::{Decision, Engine, Host, L2Exit, Msrs, Outcome, Pending, Taken, Task};
pub use ept01::Ept01;
