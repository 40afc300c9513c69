//! One machine, from its parts to its end.

use crate::config::{Console, RunConfig, RunError, RunOutcome};

/// Builds the machine that `config` describes, boots it, and runs it until it ends.
///
/// # Errors
/// Files that are no guest, options that name nothing, what the host refuses.
pub fn run(config: &RunConfig, console: Console) -> Result<RunOutcome, RunError> {
    drop(console);
    Err(RunError::Unavailable {
        what: format!("--processor {} runs no guest in this version", config.processor.name()),
        remedy: "use a later one".into(),
    })
}
