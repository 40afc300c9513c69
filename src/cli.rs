//! The command line: one file a subcommand.

pub mod micro;
pub mod run;
pub mod value;

use std::io::{self, IsTerminal};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use crate::status;

/// Runs guest hypervisors and their guests in software: a virtual machine monitor with Intel VMX inside.
#[derive(Parser, Debug)]
#[command(
    version,
    about,
    after_help = "Logs go to stderr; RUST_LOG chooses what is logged, as RUST_LOG=testudo=debug."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Boot a guest; without --kernel the ready-made one, a Debian Linux that runs a Linux under its KVM
    Run(Box<run::Arguments>),
    /// Time nested exits from inside: loops in a small VM under /dev/kvm
    #[command(hide = true)]
    Micro(micro::Arguments),
}

/// Parses the arguments, does what they say, and returns the exit status.
#[must_use]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    log_to_stderr();
    let status = match cli.command {
        Command::Run(arguments) => run::run(&arguments),
        Command::Micro(arguments) => micro::run(&arguments),
    };
    ExitCode::from(status.unwrap_or_else(|error| {
        eprintln!("testudo: {error}");
        status::ERROR
    }))
}

/// Why a subcommand failed: for the user's eyes only.
type Failure = Box<dyn std::error::Error>;

fn log_to_stderr() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let colours = io::stderr().is_terminal();
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(colours).init();
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_options_are_consistent() {
        Cli::command().debug_assert();
    }
}
