//! The parts of the ready-made guest on disk, so that Debian is asked once.
//!
//! Below the cache's directory each version of the parts has a directory of its own, `current` is a link to the one in
//! use, and `lock` is held while they are read or made. A version is made in a directory beside the others and renamed
//! when it is complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::GuestError;
use super::kernel_module::KernelModule;
use super::parts::{Fetch, Parts};
use crate::config::{Image, Stop};

const CURRENT: &str = "current";
const LOCK: &str = "lock";
const MANIFEST: &str = "manifest.json";
const UNFINISHED: &str = ".unfinished-";
const LOCK_POLL: Duration = Duration::from_millis(100);

const KERNEL: &str = "vmlinuz";
const BUSYBOX: &str = "busybox";

/// What was fetched, before it is stored.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Fetched {
    /// The packages with their versions; the first one's names the directory.
    pub packages: Vec<String>,
    /// The kernel.
    pub kernel: Vec<u8>,
    /// The modules, in load order.
    pub modules: Vec<KernelModule>,
    /// A static busybox.
    pub busybox: Vec<u8>,
}

/// What is in a version's directory.
#[derive(Serialize, Deserialize)]
struct Manifest {
    packages: Vec<String>,
    kernel: Listed,
    busybox: Listed,
    modules: Vec<Listed>,
}

#[derive(Serialize, Deserialize)]
struct Listed {
    name: String,
    sha256: String,
}

/// Where caches are kept by the XDG Base Directory Specification: `$XDG_CACHE_HOME/testudo`, else `~/.cache/testudo`.
///
/// # Errors
/// An environment that names neither.
pub fn directory() -> Result<PathBuf, GuestError> {
    let absolute = |name: &str| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let base = absolute("XDG_CACHE_HOME").or_else(|| absolute("HOME").map(|home| home.join(".cache")));
    base.map(|base| base.join("testudo")).ok_or_else(|| GuestError::Missing {
        what: "neither XDG_CACHE_HOME nor HOME names a directory for the cache".into(),
        remedy: "set one of them, or pass --kernel and --initrd".into(),
    })
}

/// The parts in `directory`; `make` makes them in an empty directory when they are missing or `fetch` says so.
///
/// # Errors
/// `make`'s, a cache that is damaged, what the host refuses.
pub fn parts(
    directory: &Path,
    fetch: Fetch,
    stop: &Stop,
    make: impl FnOnce(&Path, &Stop) -> Result<Fetched, GuestError>,
) -> Result<Parts, GuestError> {
    fs::create_dir_all(directory).map_err(GuestError::file("cannot create", directory))?;
    let _lock = lock(&directory.join(LOCK), stop)?;
    let current = directory.join(CURRENT);
    match (fetch, current.exists()) {
        (Fetch::IfMissing | Fetch::Never, true) => {}
        (Fetch::Never, false) => return Err(nothing_cached(directory)),
        (Fetch::IfMissing, false) | (Fetch::Now, _) => refill(directory, stop, make)?,
    }
    read(&current)
}

fn nothing_cached(directory: &Path) -> GuestError {
    GuestError::Missing {
        what: format!(
            "the ready-made guest is not in {}, and --fetch never forbids to fetch it",
            directory.display()
        ),
        remedy: "run once without --fetch never".into(),
    }
}

/// Waits for the lock without missing the user's wish to end.
fn lock(path: &Path, stop: &Stop) -> Result<File, GuestError> {
    let file = File::options().create(true).truncate(false).write(true).open(path);
    let file = file.map_err(GuestError::file("cannot create", path))?;
    let mut announced = false;
    loop {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(fs::TryLockError::Error(error)) => return Err(GuestError::file("cannot lock", path)(error)),
            Err(fs::TryLockError::WouldBlock) if stop.requested().is_some() => {
                return Err(GuestError::Interrupted);
            }
            Err(fs::TryLockError::WouldBlock) => {
                if !std::mem::replace(&mut announced, true) {
                    eprintln!("testudo: waiting for another testudo to finish with {}", path.display());
                }
                std::thread::sleep(LOCK_POLL);
            }
        }
    }
}

fn refill(
    directory: &Path,
    stop: &Stop,
    make: impl FnOnce(&Path, &Stop) -> Result<Fetched, GuestError>,
) -> Result<(), GuestError> {
    remove_unfinished(directory);
    let unfinished = |suffix: &str| {
        tempfile::Builder::new()
            .prefix(UNFINISHED)
            .suffix(suffix)
            .tempdir_in(directory)
            .map_err(GuestError::file("cannot create a directory in", directory))
    };
    let scratch = unfinished("-fetch")?;
    let fetched = make(scratch.path(), stop)?;
    let version = unfinished("-version")?;
    write(version.path(), &fetched)?;
    publish(directory, version, &key(&fetched))
}

/// A directory name for this version of the parts.
fn key(fetched: &Fetched) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || "-._+~".contains(c) { c } else { '_' };
    fetched.packages.join("+").chars().map(plain).collect()
}

/// Those who held the lock before and were killed left these.
fn remove_unfinished(directory: &Path) {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(UNFINISHED)) {
        let path = entry.path();
        let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
    }
}

fn write(directory: &Path, fetched: &Fetched) -> Result<(), GuestError> {
    let listed = |name: String, bytes: &[u8]| -> Result<Listed, GuestError> {
        let path = directory.join(&name);
        fs::write(&path, bytes).map_err(GuestError::file("cannot write", &path))?;
        Ok(Listed { name, sha256: sha256(bytes) })
    };
    let modules = fetched.modules.iter().map(|module| listed(format!("{}.ko", module.name), &module.bytes));
    let manifest = Manifest {
        packages: fetched.packages.clone(),
        kernel: listed(KERNEL.into(), &fetched.kernel)?,
        busybox: listed(BUSYBOX.into(), &fetched.busybox)?,
        modules: modules.collect::<Result<_, _>>()?,
    };
    let path = directory.join(MANIFEST);
    let text = serde_json::to_vec_pretty(&manifest).expect("a manifest is strings");
    fs::write(&path, text).map_err(GuestError::file("cannot write", &path))
}

/// Gives the finished version its name, makes it the current one, and removes the one before.
fn publish(directory: &Path, version: TempDir, key: &str) -> Result<(), GuestError> {
    let (path, current) = (directory.join(key), directory.join(CURRENT));
    let before = fs::read_link(&current).ok().map(|target| directory.join(target));
    let replace = || -> io::Result<()> {
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::rename(version.path(), &path)?;
        let link = directory.join(format!("{UNFINISHED}link"));
        std::os::unix::fs::symlink(key, &link)?;
        fs::rename(&link, &current)
    };
    replace().map_err(GuestError::file("cannot replace", &path))?;
    // Renamed: there is nothing left for its drop to remove.
    let _ = version.keep();
    if let Some(before) = before.filter(|before| *before != path) {
        let _ = fs::remove_dir_all(before);
    }
    Ok(())
}

fn read(version: &Path) -> Result<Parts, GuestError> {
    let path = version.join(MANIFEST);
    let text = fs::read(&path).map_err(GuestError::file("cannot read", &path))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|error| damaged(&path, &error.to_string()))?;
    let modules = manifest.modules.iter().map(|listed| {
        let name = listed.name.trim_end_matches(".ko").to_owned();
        Ok(KernelModule { name, bytes: intact(version, listed)? })
    });
    Ok(Parts {
        kernel: Image {
            name: version.join(&manifest.kernel.name).display().to_string(),
            bytes: Arc::new(intact(version, &manifest.kernel)?),
        },
        modules: modules.collect::<Result<_, GuestError>>()?,
        busybox: intact(version, &manifest.busybox)?,
        origin: manifest.packages.join(", "),
    })
}

/// The listed file, if it is still what was stored.
fn intact(version: &Path, listed: &Listed) -> Result<Vec<u8>, GuestError> {
    let path = version.join(&listed.name);
    let bytes = fs::read(&path).map_err(GuestError::file("cannot read", &path))?;
    if sha256(&bytes) == listed.sha256 { Ok(bytes) } else { Err(damaged(&path, "its SHA-256 has changed")) }
}

fn damaged(path: &Path, how: &str) -> GuestError {
    GuestError::Malformed {
        file: path.display().to_string(),
        reason: format!("{how}; --fetch now replaces it"),
    }
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::StopReason;

    fn fetched(version: &str) -> Fetched {
        Fetched {
            packages: vec![format!("linux-image={version}"), "busybox-static=1:1.35".into()],
            kernel: format!("kernel {version}").into_bytes(),
            modules: vec![KernelModule { name: "irqbypass".into(), bytes: b"module".to_vec() }],
            busybox: b"busybox".to_vec(),
        }
    }

    fn names(directory: &Path) -> Vec<String> {
        let entries = fs::read_dir(directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn makes_once_then_reads() {
        let cache = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        let first = parts(cache.path(), Fetch::IfMissing, &stop, |_, _| Ok(fetched("6.1"))).unwrap();
        assert_eq!(&first.kernel.bytes[..], b"kernel 6.1");
        assert_eq!(first.modules, fetched("6.1").modules);
        for fetch in [Fetch::IfMissing, Fetch::Never] {
            let again = parts(cache.path(), fetch, &stop, |_, _| unreachable!("it is in the cache")).unwrap();
            assert_eq!(again.origin, "linux-image=6.1, busybox-static=1:1.35");
        }
    }

    #[test]
    fn a_refresh_leaves_one_version() {
        let cache = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        for version in ["6.1", "6.2", "6.2"] {
            let parts = parts(cache.path(), Fetch::Now, &stop, |_, _| Ok(fetched(version))).unwrap();
            assert_eq!(&parts.kernel.bytes[..], format!("kernel {version}").as_bytes());
        }
        assert_eq!(names(cache.path()), ["current", "linux-image_6.2+busybox-static_1_1.35", "lock"]);
    }

    #[test]
    fn a_failure_or_a_kill_leaves_nothing_half_made() {
        let cache = tempfile::tempdir().unwrap();
        fs::create_dir(cache.path().join(".unfinished-of-one-killed")).unwrap();
        let error = parts(cache.path(), Fetch::IfMissing, &Stop::default(), |scratch, _| {
            fs::write(scratch.join("half"), b"").unwrap();
            Err(GuestError::Interrupted)
        });
        assert!(matches!(error, Err(GuestError::Interrupted)));
        assert_eq!(names(cache.path()), ["lock"]);
    }

    #[test]
    fn a_damaged_file_is_named() {
        let cache = tempfile::tempdir().unwrap();
        let stop = Stop::default();
        parts(cache.path(), Fetch::IfMissing, &stop, |_, _| Ok(fetched("6.1"))).unwrap();
        fs::write(cache.path().join("current/busybox"), b"other").unwrap();
        let error = parts(cache.path(), Fetch::Never, &stop, |_, _| unreachable!()).unwrap_err();
        assert!(error.to_string().contains("busybox: its SHA-256 has changed"), "{error}");
    }

    #[test]
    fn nothing_cached_and_no_fetch_is_an_error_with_a_remedy() {
        let cache = tempfile::tempdir().unwrap();
        let error = parts(cache.path(), Fetch::Never, &Stop::default(), |_, _| unreachable!()).unwrap_err();
        assert!(error.to_string().contains("--fetch never"));
    }

    #[test]
    fn waiting_for_the_lock_can_be_interrupted() {
        let cache = tempfile::tempdir().unwrap();
        let holder = File::create(cache.path().join(LOCK)).unwrap();
        holder.lock().unwrap();
        let stop = Stop::default();
        stop.request(StopReason::User);
        let error = parts(cache.path(), Fetch::IfMissing, &stop, |_, _| unreachable!()).unwrap_err();
        assert!(matches!(error, GuestError::Interrupted));
    }
}
