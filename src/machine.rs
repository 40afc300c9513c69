//! One machine, from its parts to its end.

pub mod board;
pub(crate) mod soft;

use crate::config::{Console, Nested, ProcessorKind, RunConfig, RunError, RunOutcome};
use crate::processor::kvm::plain;

/// Builds the machine that `config` describes, boots it, and runs it until it ends.
///
/// # Errors
/// Files that are no guest, options that name nothing, what the host refuses.
pub fn run(config: &RunConfig, console: Console) -> Result<RunOutcome, RunError> {
    match (config.processor, config.nested) {
        (ProcessorKind::Soft, _) => soft::run(config, console),
        (ProcessorKind::Kvm, Nested::Off) => plain::run(config, console),
        (ProcessorKind::Kvm, Nested::On) => Err(RunError::Unavailable {
            what: "--processor kvm does not offer VMX to its guest in this version".into(),
            remedy: "use --nested off, or --processor soft".into(),
        }),
        (ProcessorKind::KvmNested, _) => Err(RunError::Unavailable {
            what: "--processor kvm-nested is not available in this version".into(),
            remedy: "use --processor soft".into(),
        }),
    }
}
