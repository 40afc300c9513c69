//! `testudo micro`: what the ready-made guest's L1 runs for `testudo run --micro`.

use clap::Args;

use super::Failure;
use crate::processor::kvm::micro;
use crate::status;

/// How long the loops are.
#[derive(Args, Debug)]
pub struct Arguments {
    /// Turns of each loop
    #[arg(long, value_name = "N", default_value_t = super::run::MICRO_EXITS)]
    exits: u64,
    /// Turns of the loop that touches fresh pages
    #[arg(long, value_name = "N", default_value_t = super::run::MICRO_PAGES)]
    pages: u64,
}

/// Runs the loops.
///
/// # Errors
/// What the host refuses.
pub fn run(arguments: &Arguments) -> Result<u8, Failure> {
    micro::micro(arguments.exits, arguments.pages)?;
    Ok(status::DONE)
}
