//! Address translation: linear to guest-physical by the guest's paging, guest-physical to machine-physical by EPT,
//! and the software TLB in front of both.

pub(crate) mod access;
pub(crate) mod ept;
mod flush;
pub(crate) mod linear;
pub mod memory;
pub(crate) mod paging;
pub(crate) mod tlb;

use vmcs12::arch::event::Exception;

/// What kind of access is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Kind {
    Read,
    Write,
    Fetch,
}

/// On whose behalf an access is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Privilege {
    /// A supervisor-mode access that an instruction at CPL < 3 makes; EFLAGS.AC suspends SMAP.
    Supervisor,
    /// An access to a system structure; SMAP is never suspended.
    Implicit,
    /// An access at CPL 3.
    User,
}

/// Why an access did not take place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Fault {
    /// The guest gets this exception.
    Exception(Exception),
    /// EPT violation: exit qualification, guest-physical address, linear address if there is one.
    EptViolation { qualification: u64, gpa: u64, linear: Option<u64> },
    /// EPT misconfiguration at this guest-physical address.
    EptMisconfiguration { gpa: u64 },
}

impl From<Exception> for Fault {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}
