//! What can be wrong with a file for the guest, and what to do about it.

use crate::config::RunError;
use thiserror::Error;

/// A file cannot be booted.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("{file}: {problem}")]
pub struct BootError {
    /// The file.
    pub file: String,
    /// What is wrong with it.
    pub problem: Problem,
}

/// What is wrong with a file.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[non_exhaustive]
pub enum Problem {
    /// None of the formats.
    #[error("not a kernel that can be booted: pass a bzImage, an ELF with a PVH note, or a multiboot kernel")]
    NotAKernel,
    /// The file ends too early.
    #[error(
        "truncated: {what} should reach to byte {needed}, the file has {length}; fetch or build it again"
    )]
    Truncated {
        /// What is cut off.
        what: &'static str,
        /// Where it would end.
        needed: u64,
        /// How long the file is.
        length: u64,
    },
    /// A header contradicts itself or the file.
    #[error("corrupt: {0}; fetch or build it again")]
    Corrupt(&'static str),
    /// The file is well-formed but asks for what is not offered.
    #[error("{what}; {remedy}")]
    Unsupported {
        /// What it asks for.
        what: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// Guest RAM is too small.
    #[error(
        "does not fit: it needs guest memory up to {needed_mib} MiB, there are {memory_mib} MiB below 3 GiB; give more with --memory"
    )]
    TooLarge {
        /// Where it would end, rounded up.
        needed_mib: u64,
        /// RAM below 4 GiB.
        memory_mib: u64,
    },
    /// The command line does not fit.
    #[error("takes a command line of at most {limit} bytes, this one has {length}; shorten --cmdline")]
    CommandLine {
        /// Its length.
        length: u64,
        /// The kernel's limit.
        limit: u64,
    },
    /// A command line with a NUL byte.
    #[error("the command line or a module's string contains a NUL byte; remove it")]
    Nul,
}

impl From<BootError> for RunError {
    fn from(error: BootError) -> Self {
        Self::Image { file: error.file, reason: error.problem.to_string() }
    }
}
