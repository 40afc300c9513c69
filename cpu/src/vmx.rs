//! VMX as the processor does it: entry, exit, and what a VMCS makes instructions do.

pub(crate) mod entry;
pub(crate) mod exit;

use crate::block::Op;
use crate::state::{Cpu, Stop};
use vmcs12::control::{Control, Word};
use vmcs12::cpu_state::CpuState;
use vmcs12::exit::{Cause, Reason};
use vmcs12::field::Vmcs;

/// The controls of the VMCS entered, decoded once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Controls {
    pin: u32,
    primary: u32,
    secondary: u32,
    exit: u32,
    entry: u32,
    pub exception_bitmap: u32,
    /// A window exit is asked for, or the instruction after an entry must be watched.
    pub windows: bool,
    pub monitor_trap: bool,
}

impl Controls {
    /// Is a control 1 and in force?
    #[inline(always)]
    pub fn has(&self, control: Control) -> bool {
        let word = match control.word {
            Word::PinBased => self.pin,
            Word::Primary => self.primary,
            Word::Secondary => self.secondary,
            Word::Exit => self.exit,
            Word::Entry => self.entry,
            Word::Tertiary | Word::SecondaryExit => 0,
        };
        u64::from(word) & control.mask() != 0
    }
}

impl Cpu {
    /// The VMCS entered.
    #[inline(always)]
    pub(crate) fn vmcs(&mut self) -> &mut Vmcs {
        // SAFETY: `enter` and `complete` set `vmcs` from a reference that they hold for their whole duration.
        unsafe { &mut (*self.vmcs).current }
    }

    /// State outside the VMCS.
    #[inline(always)]
    pub(crate) fn state(&mut self) -> &mut CpuState {
        // SAFETY: as for `vmcs`.
        unsafe { &mut *self.state }
    }

    /// Ends the instruction in a fault-like VM exit, with VM-exit instruction information: nothing has changed.
    #[inline(never)]
    pub(crate) fn instruction_exit_with(
        &mut self,
        op: *const Op,
        reason: Reason,
        qualification: u64,
        information: u32,
    ) -> *const Op {
        // SAFETY: handlers pass the operation that they run.
        let len = unsafe { (*op).len };
        self.stop_at(op);
        self.record_instruction_exit(reason, qualification, u32::from(len), information);
        self.stop = Stop::Exit(Cause::Vm(reason));
        std::ptr::null()
    }
}
