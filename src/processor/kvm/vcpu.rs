//! A vCPU of KVM's, and why it stops.

use std::slice;
use std::sync::Arc;

use kvm_bindings::{kvm_regs, kvm_run, kvm_sregs};
use kvm_ioctls::{VcpuExit, VcpuFd};

use super::error::KvmError;
use super::vm::Ram;

/// A vCPU, and the RAM that it may touch.
pub struct Vcpu {
    fd: VcpuFd,
    // The guest reaches RAM for as long as it has a vCPU.
    _ram: Arc<Ram>,
}

/// Why a vCPU is back in user space.
#[derive(Debug)]
pub enum Exit<'a> {
    /// OUT or OUTS: `data` is one or more values of `width` bytes each, in order.
    Out {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        width: usize,
        /// The values.
        data: &'a [u8],
    },
    /// IN or INS: `data` is to be filled in with one or more values of `width` bytes each.
    In {
        /// The port.
        port: u16,
        /// 1, 2 or 4.
        width: usize,
        /// Where KVM takes the values from at the next entry.
        data: &'a mut [u8],
    },
    /// A read of memory that is not RAM; `data` is to be filled in.
    MmioRead {
        /// The guest-physical address.
        address: u64,
        /// Where KVM takes the value from at the next entry.
        data: &'a mut [u8],
    },
    /// A write to memory that is not RAM.
    MmioWrite {
        /// The guest-physical address.
        address: u64,
        /// The value.
        data: &'a [u8],
    },
    /// HLT, in a VM without interrupt controllers in the kernel.
    Halt,
    /// A triple fault.
    Shutdown,
    /// A signal for this thread.
    Interrupted,
}

/// [`VcpuExit`] without its borrows, and with what is not ours to handle as one case.
enum Kind {
    Port,
    MmioRead,
    MmioWrite,
    Halt,
    Shutdown,
    Interrupted,
    EntryFailed(u64),
    Internal,
    Other(String),
}

impl Vcpu {
    pub(super) fn new(fd: VcpuFd, ram: Arc<Ram>) -> Self {
        Self { fd, _ram: ram }
    }

    /// The vCPU's own requests.
    #[must_use]
    pub fn fd(&self) -> &VcpuFd {
        &self.fd
    }

    /// Gives the vCPU these registers. `change` gets the system registers as KVM has them, mostly as after reset.
    ///
    /// # Errors
    /// What KVM refuses.
    pub fn set_registers(
        &self,
        regs: &kvm_regs,
        change: impl FnOnce(&mut kvm_sregs),
    ) -> Result<(), KvmError> {
        let mut sregs = self.fd.get_sregs().map_err(KvmError::request("KVM_GET_SREGS"))?;
        change(&mut sregs);
        self.fd.set_sregs(&sregs).map_err(KvmError::request("KVM_SET_SREGS"))?;
        self.fd.set_regs(regs).map_err(KvmError::request("KVM_SET_REGS"))
    }

    /// Lets the guest run until it needs user space.
    ///
    /// # Errors
    /// KVM cannot go on.
    pub fn run(&mut self) -> Result<Exit<'_>, KvmError> {
        let kind = match self.fd.run() {
            Ok(VcpuExit::IoOut(..) | VcpuExit::IoIn(..)) => Kind::Port,
            Ok(VcpuExit::MmioRead(..)) => Kind::MmioRead,
            Ok(VcpuExit::MmioWrite(..)) => Kind::MmioWrite,
            Ok(VcpuExit::Hlt) => Kind::Halt,
            Ok(VcpuExit::Shutdown) => Kind::Shutdown,
            Ok(VcpuExit::Intr) => Kind::Interrupted,
            Ok(VcpuExit::FailEntry(reason, _)) => Kind::EntryFailed(reason),
            Ok(VcpuExit::InternalError) => Kind::Internal,
            // KVM_EXIT_SYSTEM_EVENT and the like are for hypercall interfaces that nobody enabled.
            Ok(other) => Kind::Other(format!("{other:?}")),
            // EAGAIN: the vCPU waited for a start-up IPI and was woken without one.
            Err(error) if matches!(error.errno(), libc::EINTR | libc::EAGAIN) => Kind::Interrupted,
            Err(error) => return Err(KvmError::request("KVM_RUN")(error)),
        };
        match kind {
            Kind::Port => Ok(self.port_access()),
            Kind::MmioRead => {
                let (address, data) = self.mmio();
                Ok(Exit::MmioRead { address, data })
            }
            Kind::MmioWrite => {
                let (address, data) = self.mmio();
                Ok(Exit::MmioWrite { address, data })
            }
            Kind::Halt => Ok(Exit::Halt),
            Kind::Shutdown => Ok(Exit::Shutdown),
            Kind::Interrupted => Ok(Exit::Interrupted),
            Kind::EntryFailed(reason) => Err(KvmError::EntryFailed { reason, rip: self.rip() }),
            Kind::Internal => Err(self.internal_error()),
            Kind::Other(exit) => Err(KvmError::Unexpected { exit, rip: self.rip() }),
        }
    }

    /// Where the guest is; 0 if KVM does not tell, which it does as long as there is a vCPU.
    #[must_use]
    pub fn rip(&self) -> u64 {
        self.fd.get_regs().map_or(0, |regs| regs.rip)
    }

    /// kvm-ioctls gives the bytes without their width, which string instructions need.
    fn port_access(&mut self) -> Exit<'_> {
        let run: *mut kvm_run = self.fd.get_kvm_run();
        // SAFETY: the last exit was KVM_EXIT_IO, for which KVM fills in `io`.
        let io = unsafe { (*run).__bindgen_anon_1.io };
        let (port, width) = (io.port, usize::from(io.size));
        let bytes = io.count as usize * width;
        // SAFETY: KVM keeps the `bytes` at `data_offset` inside the mapping of `kvm_run`, which the VcpuFd owns; it
        // touches them only inside KVM_RUN, which needs `self` mutably, as the slice's lifetime does.
        let data = unsafe { slice::from_raw_parts_mut(run.cast::<u8>().add(io.data_offset as usize), bytes) };
        match u32::from(io.direction) {
            kvm_bindings::KVM_EXIT_IO_IN => Exit::In { port, width, data },
            _ => Exit::Out { port, width, data },
        }
    }

    fn mmio(&mut self) -> (u64, &mut [u8]) {
        // SAFETY: the last exit was KVM_EXIT_MMIO, for which KVM fills in `mmio`.
        let mmio = unsafe { &mut self.fd.get_kvm_run().__bindgen_anon_1.mmio };
        let length = (mmio.len as usize).min(mmio.data.len());
        (mmio.phys_addr, &mut mmio.data[..length])
    }

    fn internal_error(&mut self) -> KvmError {
        let rip = self.rip();
        // SAFETY: the last exit was KVM_EXIT_INTERNAL_ERROR, for which KVM fills in `internal`.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        // SAFETY: as above; `emulation_failure` is the same words under other names.
        let failure = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.emulation_failure };
        let has_bytes = internal.suberror == kvm_bindings::KVM_INTERNAL_ERROR_EMULATION
            && failure.ndata >= 4
            && failure.flags & u64::from(kvm_bindings::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES)
                != 0;
        // SAFETY: the union has this one member.
        let told = unsafe { failure.__bindgen_anon_1.__bindgen_anon_1 };
        let told = told.insn_bytes.iter().copied().take(told.insn_size.into());
        let bytes = if has_bytes { told.collect() } else { Vec::new() };
        KvmError::Internal { suberror: internal.suberror, rip, bytes }
    }
}
