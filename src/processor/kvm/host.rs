//! Opens /dev/kvm and finds out what is wrong with it.

use std::arch::x86_64::__cpuid;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use kvm_ioctls::{Cap, Kvm};

use super::error::KvmError;

/// The device.
pub const DEVICE: &str = "/dev/kvm";
/// The version of the interface since Linux 2.6.22.
const API_VERSION: i32 = 12;

/// What a VM of ours cannot do without.
#[rustfmt::skip]
pub(super) const FOR_ANY_VM: &[Needed] = &[
    needed(Cap::UserMemory,         "KVM_CAP_USER_MEMORY",           "guest RAM"),
    needed(Cap::SetTssAddr,         "KVM_CAP_SET_TSS_ADDR",          "real mode"),
    needed(Cap::SetIdentityMapAddr, "KVM_CAP_SET_IDENTITY_MAP_ADDR", "real mode"),
    needed(Cap::ExtCpuid,           "KVM_CAP_EXT_CPUID",             "CPUID"),
];

/// A capability and what it is for.
pub(super) struct Needed {
    cap: Cap,
    name: &'static str,
    purpose: &'static str,
}

pub(super) const fn needed(cap: Cap, name: &'static str, purpose: &'static str) -> Needed {
    Needed { cap, name, purpose }
}

/// Opens KVM's device and checks that it speaks our version of the interface.
///
/// # Errors
/// What is wrong with the device, with the remedy.
pub fn open(path: &Path) -> Result<Kvm, KvmError> {
    let c_path = CString::new(path.as_os_str().as_bytes())
        .map_err(|source| KvmError::Open { path: path.into(), source: source.into() })?;
    let kvm = Kvm::new_with_path(c_path).map_err(|error| refusal(path, error.into()))?;
    match kvm.get_api_version() {
        API_VERSION => Ok(kvm),
        found => Err(KvmError::Version { path: path.into(), found, expected: API_VERSION }),
    }
}

/// Checks that `kvm` has all that is in `list`.
///
/// # Errors
/// The first capability that it lacks.
pub(super) fn require(kvm: &Kvm, list: &[Needed]) -> Result<(), KvmError> {
    match list.iter().find(|needed| !kvm.check_extension(needed.cap)) {
        None => Ok(()),
        Some(lacking) => Err(KvmError::Capability { capability: lacking.name, purpose: lacking.purpose }),
    }
}

/// Does the processor have VMX or SVM? A KVM without either emulates every instruction of its guests.
#[must_use]
pub fn has_virtualization() -> bool {
    /// CPUID.1:ECX.VMX. SDM Vol. 3, "Discovering Support for VMX".
    const VMX: u32 = 1 << 5;
    /// CPUID.80000001H:ECX.SVM, AMD's.
    const SVM: u32 = 1 << 2;
    let extended = __cpuid(0x8000_0000).eax >= 0x8000_0001;
    __cpuid(1).ecx & VMX != 0 || (extended && __cpuid(0x8000_0001).ecx & SVM != 0)
}

/// Why the device did not open.
fn refusal(path: &Path, source: io::Error) -> KvmError {
    let path = path.to_path_buf();
    match source.raw_os_error() {
        // A device node without its driver answers ENXIO or ENODEV.
        Some(libc::ENOENT | libc::ENXIO | libc::ENODEV) => KvmError::Missing { path, source },
        Some(libc::EACCES | libc::EPERM) => {
            let group = fs::metadata(&path).map_or_else(|_| "kvm".into(), |meta| group_name(meta.gid()));
            KvmError::Permission { path, group, source }
        }
        _ => KvmError::Open { path, source },
    }
}

/// A group's name from /etc/group, or its number. (A static binary has no name service.)
fn group_name(gid: u32) -> String {
    let groups = fs::read_to_string("/etc/group").unwrap_or_default();
    let name = groups.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(gid)).then(|| name.to_owned())
    });
    name.unwrap_or_else(|| gid.to_string())
}

/// /dev/kvm for a test, or None, said on the real stderr, where this host has none.
#[cfg(test)]
pub(super) fn kvm_or_skip(test: &str) -> Option<Kvm> {
    use std::io::Write;
    open(Path::new(DEVICE))
        .inspect_err(|error| {
            // Not eprintln!, which the test harness keeps to itself.
            let _ = writeln!(io::stderr(), "SKIPPED {test}: {error}");
        })
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused_with(errno: i32) -> KvmError {
        refusal(Path::new("/"), io::Error::from_raw_os_error(errno))
    }

    #[test]
    fn each_refusal_names_its_remedy() {
        assert!(matches!(refused_with(libc::ENOENT), KvmError::Missing { .. }));
        assert!(matches!(refused_with(libc::ENXIO), KvmError::Missing { .. }));
        assert!(matches!(refused_with(libc::EMFILE), KvmError::Open { .. }));
        let denied = refused_with(libc::EACCES);
        // "/" belongs to root's group.
        assert!(denied.to_string().contains("usermod -aG root"), "{denied}");
        assert!(std::error::Error::source(&denied).is_some());
    }

    #[test]
    fn a_missing_device_and_one_that_is_not_kvm_are_told_apart() {
        let missing = open(Path::new("/nonexistent/kvm")).expect_err("no such device");
        assert!(matches!(missing, KvmError::Missing { .. }), "{missing}");
        let other = open(Path::new("/dev/null")).expect_err("not KVM");
        assert!(matches!(other, KvmError::Version { .. }), "{other}");
    }

    #[test]
    fn a_group_without_a_name_is_its_number() {
        assert_eq!(group_name(0), "root");
        assert_eq!(group_name(4_000_000_000), "4000000000");
    }
}
