//! The parts of the ready-made guest: a kernel, its modules, busybox.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::kernel_module::{self, KernelModule};
use super::{GuestError, apt, cache, own_program};
use crate::config::{Image, Stop};

/// Directories below the one that `--modules` names, at most; the modules of one kernel need six.
const DEPTH_LIMIT: usize = 12;
const BUSYBOX_PLACES: &[&str] = &["/bin/busybox", "/usr/bin/busybox"];

/// What the initramfs is made of.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The kernel of L1 and of L2.
    pub kernel: Image,
    /// The modules that L1 loads, in that order.
    pub modules: Vec<KernelModule>,
    /// A static busybox.
    pub busybox: Vec<u8>,
    /// Where they are from.
    pub origin: String,
}

/// Where the parts are to be had.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Source {
    /// Debian's packages, kept in the cache.
    Debian {
        /// The cache's directory.
        cache: PathBuf,
        /// When to ask Debian.
        fetch: Fetch,
    },
    /// The user's own files.
    Files {
        /// A bzImage.
        kernel: PathBuf,
        /// A directory with its modules somewhere below.
        modules: PathBuf,
        /// A static busybox; else one of the host's.
        busybox: Option<PathBuf>,
    },
}

/// When to ask Debian for packages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fetch {
    /// If nothing is in the cache.
    IfMissing,
    /// Never.
    Never,
    /// Now, for the newest.
    Now,
}

impl Parts {
    /// Gathers the parts.
    ///
    /// # Errors
    /// What is missing, with the remedy; what apt said; what the host refused.
    pub fn from_source(source: &Source, stop: &Stop) -> Result<Self, GuestError> {
        match source {
            Source::Debian { cache, fetch } => cache::parts(cache, *fetch, stop, apt::fetch),
            Source::Files { kernel, modules, busybox } => from_files(kernel, modules, busybox.as_deref()),
        }
    }
}

fn from_files(kernel: &Path, modules: &Path, busybox: Option<&Path>) -> Result<Parts, GuestError> {
    Ok(Parts {
        kernel: image(kernel)?,
        modules: modules_below(modules)?,
        busybox: static_busybox(busybox)?,
        origin: format!("{} and the modules in {}", kernel.display(), modules.display()),
    })
}

/// A file for the guest.
///
/// # Errors
/// What the host refuses.
pub fn image(path: &Path) -> Result<Image, GuestError> {
    let bytes = std::fs::read(path).map_err(GuestError::file("cannot read", path))?;
    Ok(Image { name: path.display().to_string(), bytes: Arc::new(bytes) })
}

fn modules_below(directory: &Path) -> Result<Vec<KernelModule>, GuestError> {
    let mut files = BTreeMap::new();
    collect_modules(directory, &mut files, 0)?;
    let dep = std::fs::read_to_string(directory.join("modules.dep")).ok();
    kernel_module::load_order(&files, dep.as_deref())
}

/// Reads the modules that KVM may need: in a tree laid out as in /lib/modules those in KVM's places, in a flat
/// directory all.
fn collect_modules(
    directory: &Path,
    files: &mut BTreeMap<String, Vec<u8>>,
    depth: usize,
) -> Result<(), GuestError> {
    let list = |error| GuestError::file("cannot list", directory)(error);
    for entry in std::fs::read_dir(directory).map_err(list)? {
        let entry = entry.map_err(list)?;
        let path = entry.path();
        let text = path.to_string_lossy().into_owned();
        if entry.file_type().map_err(list)?.is_dir() {
            if depth < DEPTH_LIMIT {
                collect_modules(&path, files, depth + 1)?;
            }
        } else if kernel_module::may_be_needed(&text)
            || (depth == 0 && kernel_module::name_of(&text).is_some())
        {
            files.insert(text, std::fs::read(&path).map_err(GuestError::file("cannot read", &path))?);
        }
    }
    Ok(())
}

fn static_busybox(named: Option<&Path>) -> Result<Vec<u8>, GuestError> {
    let read = |path: &Path| std::fs::read(path).map_err(GuestError::file("cannot read", path));
    if let Some(path) = named {
        let bytes = read(path)?;
        return if own_program::is_static(&bytes) { Ok(bytes) } else { Err(no_busybox(path.display())) };
    }
    let of_host = BUSYBOX_PLACES.iter().filter_map(|place| std::fs::read(place).ok());
    of_host.into_iter().find(|bytes| own_program::is_static(bytes)).ok_or_else(|| no_busybox("this host"))
}

fn no_busybox(place: impl std::fmt::Display) -> GuestError {
    GuestError::Missing {
        what: format!("{place}: no statically linked busybox there"),
        remedy: "--busybox takes one, as Debian's package busybox-static has it".into(),
    }
}
