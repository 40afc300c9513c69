//! One machine, from its parts to its end.

use crate::config::{Console, ProcessorKind, RunConfig, RunError, RunOutcome};
use crate::processor::kvm::plain;

/// Builds the machine that `config` describes, boots it, and runs it until it ends.
///
/// # Errors
/// Files that are no guest, options that name nothing, what the host refuses.
pub fn run(config: &RunConfig, console: Console) -> Result<RunOutcome, RunError> {
    if config.processor == ProcessorKind::Kvm {
        return plain::run(config, console);
    }
    drop(console);
    Err(RunError::Unavailable {
        what: format!("--processor {} runs no guest in this version", config.processor.name()),
        remedy: "use a later one".into(),
    })
}
