//! The ready-made guest: Debian's kernel as L1 and L2, busybox, and this program as L1's VMM.
//!
//! [`ready_made`] takes the parts from the cache, which apt fills on first use, or from files of the user's, and packs
//! them into L1's initramfs. Nothing here knows how a guest is run.

pub mod apt;
pub mod cache;
pub mod compression;
pub mod cpio;
pub mod deb;
pub mod initramfs;
pub mod kernel_module;
pub mod own_program;
pub mod parts;
pub mod progress;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use thiserror::Error;

use crate::config::{Image, Stop};
use initramfs::Recipe;
use parts::{Parts, Source};

/// What both kernels are told when the user says nothing.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1";
/// The same, with their messages on the console.
pub const CMDLINE_VERBOSE: &str = "console=ttyS0 panic=-1";

/// A kernel and the initramfs that makes it the L1 of the demonstration.
#[derive(Clone, Debug)]
pub struct ReadyMade {
    /// L1's kernel, the same file as L2's.
    pub kernel: Image,
    /// L1's initramfs, with L2's kernel and initramfs inside.
    pub initrd: Image,
    /// Where the parts came from, for a line on stderr.
    pub origin: String,
}

/// Prepares the ready-made guest: its parts from `source`, its initramfs by `recipe`.
///
/// # Errors
/// What is missing, with the remedy; what apt said; what the host refused.
pub fn ready_made(source: &Source, recipe: &Recipe, stop: &Stop) -> Result<ReadyMade, GuestError> {
    let program = own_program::packable()?;
    let parts = Parts::from_source(source, stop)?;
    let initrd = initramfs::l1(&parts, &program, recipe);
    Ok(ReadyMade {
        kernel: parts.kernel,
        initrd: Image { name: "the ready-made initramfs".into(), bytes: Arc::new(initrd) },
        origin: parts.origin,
    })
}

/// Why the ready-made guest could not be prepared.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum GuestError {
    /// A file or directory could not be used.
    #[error("{what} {}: {source}", .path.display())]
    File {
        /// What was tried, as "cannot read".
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// Something is not there; the remedy says what to do.
    #[error("{what}; {remedy}")]
    Missing {
        /// What is missing.
        what: String,
        /// What to do.
        remedy: String,
    },
    /// A file is not what its name says.
    #[error("{file}: {reason}")]
    Malformed {
        /// The file.
        file: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A command of apt's failed.
    #[error("{command} failed ({status}); --kernel, --modules and --busybox do without it\n{output}")]
    Apt {
        /// The command and its arguments.
        command: String,
        /// Its exit status.
        status: String,
        /// What it printed.
        output: String,
    },
    /// The user asked for the end.
    #[error("interrupted while the guest was being prepared")]
    Interrupted,
}

impl GuestError {
    /// Wraps an I/O error with what was tried on which file; for `map_err`.
    pub fn file(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::File { what, path, source }
    }
}
