//! The `testudo` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    testudo::cli::main()
}
