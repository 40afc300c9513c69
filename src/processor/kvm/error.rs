//! What may be wrong with a host's KVM, each with its remedy.

use std::io;
use std::path::PathBuf;

use thiserror::Error;

/// Why /dev/kvm cannot be used, or cannot go on. Nothing that a guest may do ends up here.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum KvmError {
    /// There is no such device.
    #[error(
        "{} does not exist: load kvm_intel or kvm_amd (in a virtual machine, its own hypervisor must allow nested \
         virtualization), or use --processor soft, which needs no KVM",
        .path.display()
    )]
    Missing {
        /// The device.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The device is somebody else's.
    #[error(
        "no permission to open {}: it belongs to group {group}; join it (sudo usermod -aG {group} \"$USER\", then \
         log in again), or use --processor soft, which needs no KVM",
        .path.display()
    )]
    Permission {
        /// The device.
        path: PathBuf,
        /// The group that may open it, by name if it has one.
        group: String,
        /// What the host said.
        source: io::Error,
    },
    /// The device is there and does not open.
    #[error("cannot open {}", .path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// What the host said.
        source: io::Error,
    },
    /// The device is not KVM, or one of another time.
    #[error("{} speaks version {found} of the KVM interface; version {expected} is needed", .path.display())]
    Version {
        /// The device.
        path: PathBuf,
        /// KVM_GET_API_VERSION's answer.
        found: i32,
        /// The only version that was ever stable.
        expected: i32,
    },
    /// The kernel is too old, or was built without something.
    #[error(
        "the host's KVM lacks {capability}, needed for {purpose}; use a newer kernel, or --processor soft"
    )]
    Capability {
        /// The capability, by its name in <linux/kvm.h>.
        capability: &'static str,
        /// What it is for.
        purpose: &'static str,
    },
    /// More vCPUs than this KVM runs.
    #[error("{asked} vCPUs asked for; the host's KVM runs at most {most}")]
    TooManyVcpus {
        /// Asked for.
        asked: u32,
        /// KVM_CAP_MAX_VCPUS.
        most: usize,
    },
    /// A request failed.
    #[error("{request} failed")]
    Request {
        /// The request, by its name in <linux/kvm.h>.
        request: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// Guest RAM could not be mapped.
    #[error("cannot map {bytes} bytes of guest RAM")]
    Memory {
        /// The size.
        bytes: u64,
        /// What the host said.
        source: io::Error,
    },
    /// A thread could not be started.
    #[error("cannot start a thread for {purpose}")]
    Thread {
        /// What for.
        purpose: &'static str,
        /// What the host said.
        source: io::Error,
    },
    /// The hardware refused the guest state.
    #[error("the processor refused to enter the guest at RIP {rip:#x}: hardware reason {reason:#x}")]
    EntryFailed {
        /// KVM_EXIT_FAIL_ENTRY's hardware reason.
        reason: u64,
        /// Where the guest was.
        rip: u64,
    },
    /// KVM gave up on the guest, mostly on an instruction that it had to emulate and does not know.
    #[error("KVM gave up on the guest at RIP {rip:#x}: internal error {suberror}, instruction bytes {}", hex(.bytes))]
    Internal {
        /// KVM_EXIT_INTERNAL_ERROR's suberror.
        suberror: u32,
        /// Where the guest was.
        rip: u64,
        /// The instruction bytes, if KVM told them.
        bytes: Vec<u8>,
    },
    /// An exit that none of our requests asks for.
    #[error("KVM stopped the guest at RIP {rip:#x} for an unexpected reason: {exit}")]
    Unexpected {
        /// The exit.
        exit: String,
        /// Where the guest was.
        rip: u64,
    },
}

impl KvmError {
    /// For `map_err` on a request of KVM's.
    pub(super) fn request(request: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Self {
        move |error| Self::Request { request, source: error.into() }
    }
}

fn hex(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return "unknown".into();
    }
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(" ")
}
