//! Memory for generated code. One memory object is mapped twice, writable and executable, so that no page is
//! ever both.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr::{self, NonNull};

/// Address space reserved; the kernel backs what is used. Forms times immediates are some ten thousand thunks
/// of about 100 bytes: nothing that a guest does can need more.
const CAPACITY: usize = 16 << 20;
/// Thunks begin at multiples of this.
const ALIGNMENT: usize = 32;

/// Executable memory that only grows.
pub struct Arena {
    writable: NonNull<u8>,
    executable: NonNull<u8>,
    used: usize,
}

// SAFETY: the two mappings belong to this value alone, which has no thread affinity; `&Arena` only reads.
unsafe impl Send for Arena {}
// SAFETY: as above; writing needs `&mut Arena`.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves the memory.
    ///
    /// # Errors
    /// The host refuses a memory object or a mapping.
    pub fn new() -> io::Result<Self> {
        let object = memory_object()?;
        let writable = map(&object, libc::PROT_READ | libc::PROT_WRITE)?;
        let executable = map(&object, libc::PROT_READ | libc::PROT_EXEC).inspect_err(|_| unmap(writable))?;
        Ok(Self { writable, executable, used: 0 })
    }

    /// Copies the code and returns where it can be executed; `None` if the arena is full.
    pub fn add(&mut self, code: &[u8]) -> Option<NonNull<u8>> {
        let start = self.used;
        let end = start.checked_add(code.len()).filter(|&end| end <= CAPACITY)?;
        // SAFETY: `start..end` is inside the writable mapping, and nobody executes these bytes yet.
        unsafe { ptr::copy_nonoverlapping(code.as_ptr(), self.writable.as_ptr().add(start), code.len()) };
        self.used = end.next_multiple_of(ALIGNMENT);
        serialize();
        // SAFETY: `start` is inside the executable mapping.
        Some(unsafe { self.executable.add(start) })
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        unmap(self.writable);
        unmap(self.executable);
    }
}

/// Code written through another linear address is fetched as written after a serializing instruction.
/// SDM Vol. 3, "Self-Modifying Code".
fn serialize() {
    let _ = core::arch::x86_64::__cpuid(0);
}

fn memory_object() -> io::Result<OwnedFd> {
    // SAFETY: the name is a C string; the call has no other preconditions.
    let raw = unsafe { libc::memfd_create(c"testudo-thunks".as_ptr(), libc::MFD_CLOEXEC) };
    if raw < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was just created and is owned by nobody else.
    let object = unsafe { OwnedFd::from_raw_fd(raw) };
    // SAFETY: plain system call on a descriptor that we own.
    if unsafe { libc::ftruncate(object.as_raw_fd(), CAPACITY as libc::off_t) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(object)
}

fn map(object: &OwnedFd, protection: libc::c_int) -> io::Result<NonNull<u8>> {
    // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
    let at =
        unsafe { libc::mmap(ptr::null_mut(), CAPACITY, protection, libc::MAP_SHARED, object.as_raw_fd(), 0) };
    if at == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(at.cast()).ok_or_else(|| io::Error::other("mapped at address zero"))
}

fn unmap(at: NonNull<u8>) {
    // SAFETY: `at` came from `map` with this length, and its owner is going away.
    unsafe { libc::munmap(at.as_ptr().cast(), CAPACITY) };
}
