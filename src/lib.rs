//! The VMM: machine, devices, boot, processors, run loop, command line and reports.
//! It knows nothing of how an instruction is executed (crate `cpu`) nor of what nested VMX means (crate `shadow`).
//! Start with [`config`] for what a run is, and [`processor`] for what executes it.

pub mod boot;
pub mod cli;
pub mod clock;
pub mod config;
pub mod console;
pub mod device;
pub mod guest;
pub mod machine;
pub mod memory;
pub mod observe;
pub mod processor;
pub mod status;
pub mod vcpu;
