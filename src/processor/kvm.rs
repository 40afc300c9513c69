//! The processor of the host, through /dev/kvm.
//!
//! [`plain`] boots a guest without VMX on it; [`micro`] runs small loops that make one kind of exit each. Both are
//! built on [`host`], which opens the device and says what is wrong with it, and [`vm`], a VM with its RAM.

pub mod bare;
pub mod cpuid;
pub mod error;
pub mod host;
pub mod micro;
pub mod plain;
pub mod registers;
pub mod vcpu;
pub mod vm;
