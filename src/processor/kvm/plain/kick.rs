//! Getting a vCPU's thread out of KVM_RUN.

use std::io;
use std::mem;
use std::os::unix::thread::JoinHandleExt;
use std::ptr;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use crate::processor::kvm::error::KvmError;

/// Between two signals to a thread that has not ended yet: the first may come just before KVM_RUN.
const AGAIN: Duration = Duration::from_millis(1);

/// The signal that interrupts KVM_RUN and does nothing else.
fn signal() -> libc::c_int {
    libc::SIGRTMIN()
}

extern "C" fn interrupt(_: libc::c_int) {}

/// Prepares the process for [`until_ended`].
pub(super) fn prepare() -> Result<(), KvmError> {
    // SAFETY: all zeroes is a valid `sigaction`: no flags (SA_RESTART in particular), an empty mask.
    let mut action: libc::sigaction = unsafe { mem::zeroed() };
    action.sa_sigaction = interrupt as extern "C" fn(libc::c_int) as libc::sighandler_t;
    // SAFETY: `action` is initialized, and its handler touches nothing.
    if unsafe { libc::sigaction(signal(), &raw const action, ptr::null_mut()) } != 0 {
        return Err(KvmError::Request { request: "sigaction", source: io::Error::last_os_error() });
    }
    Ok(())
}

/// Signals the thread until it has ended, which it does by itself once it is out of KVM_RUN.
pub(super) fn until_ended<T>(thread: &JoinHandle<T>) {
    while !thread.is_finished() {
        // SAFETY: the thread has not been joined, so that its id is still its own.
        unsafe { libc::pthread_kill(thread.as_pthread_t(), signal()) };
        thread::sleep(AGAIN);
    }
}
