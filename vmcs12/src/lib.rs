//! What the architecture says of VMX: fields, controls, capability MSRs and profiles, check rules, exit records,
//! and the 4-KiB VMCS region in guest memory. It knows no policy, does no I/O and holds no unsafe code.
//! Start with [`field`] (the VMCS as a value) and [`control`]; then [`caps`] and [`offer`] (what a processor may do and
//! what a guest is told), [`check`] (the rules of VM entry) and [`exit`].
#![forbid(unsafe_code)]

pub mod addr;
pub mod arch;
pub mod bits;
pub mod caps;
pub mod check;
pub mod control;
pub mod cpu_state;
pub mod cpuid;
pub mod error;
pub mod exit;
pub mod field;
pub mod implemented;
pub mod offer;
pub mod profile;
pub mod region;
