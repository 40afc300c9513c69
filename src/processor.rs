//! A logical processor with VMX, as L0 sees it.

use thiserror::Error;
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::{Budget, Exit, Invalidation};
use vmcs12::field::VmcsSet;

pub mod kvm;
pub mod soft;

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
    /// Guest RAM must be whole pages, and at least one.
    #[error("guest memory of {size} bytes is not a positive multiple of 4096")]
    MemorySize {
        /// The size asked for.
        size: u64,
    },
    /// The guest's tables do not fit into L0's arena.
    #[error("the arena for L0's own tables is used up")]
    ArenaFull,
    /// The processor lacks a control that L0 cannot do without.
    #[error("the processor does not allow the VMX control {name}")]
    MissingControl {
        /// The control.
        name: &'static str,
    },
}

impl HostError {
    /// A failed system call, or what stands for one.
    pub fn system(
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self::System { what: what.into(), source: std::io::Error::other(source) }
    }
}
