//! A logical processor with VMX, as L0 sees it.

use thiserror::Error;
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::{Budget, Exit, Invalidation};
use vmcs12::field::VmcsSet;

pub mod kvm;

/// A logical processor with VMX.
pub trait Processor {
    /// VM entry under `vmcs.current`, until the next VM exit or the end of `until`; guest state and exit
    /// information are then in `vmcs.current`.
    ///
    /// # Errors
    /// What the host refuses. Nothing that a guest does.
    fn enter(&mut self, vmcs: &mut VmcsSet, state: &mut CpuState, until: Budget) -> Result<Exit, HostError>;
    /// INVEPT and INVVPID by tag.
    fn invalidate(&mut self, what: Invalidation);
}

/// Why the VMM cannot go on. Nothing that a guest does ends up here.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum HostError {
    /// A host system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// What the host said.
        source: std::io::Error,
    },
    /// The host's KVM refused something.
    #[error(transparent)]
    Kvm(#[from] kvm::error::KvmError),
}
