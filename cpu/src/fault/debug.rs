//! Debug exceptions, and what else is due between two instructions.
//! SDM Vol. 3, "Debug Exceptions"; "Priority Among Concurrent Events".

use super::Delivery;
use crate::state::Cpu;
use vmcs12::arch::debugctl;
use vmcs12::arch::event::{EventKind, RecordedEvent, vector};
use vmcs12::arch::rflags;
use vmcs12::arch::state::PendingDebugExceptions;
use vmcs12::exit::{Cause, Reason};

/// DR6. SDM Vol. 3, "Debug Status Register (DR6)".
#[allow(missing_docs, reason = "the manual's own names")]
pub(crate) mod dr6 {
    pub const B: u64 = 0xf;
    pub const BD: u64 = 1 << 13;
    pub const BS: u64 = 1 << 14;
    pub const BT: u64 = 1 << 15;
    /// Bits 11:4 and 31:16 always read as 1.
    pub const FIXED: u64 = 0xffff_0ff0;
}

/// DR7. SDM Vol. 3, "Debug Control Register (DR7)".
#[allow(missing_docs, reason = "the manual's own names")]
pub(crate) mod dr7 {
    /// Bit 10 always reads as 1.
    pub const FIXED: u64 = 1 << 10;
    pub const GD: u64 = 1 << 13;
    /// Every bit that can be written.
    pub const WRITABLE: u64 = 0xffff_23ff;
}

impl Cpu {
    /// The instruction that has just retired ran with RFLAGS.TF set; without a branch it would have led to
    /// `sequential`. SDM Vol. 3, "Single-Stepping on Branches".
    pub(crate) fn single_step_trap(&mut self, sequential: u64) {
        let suppressed = std::mem::take(&mut self.trap_suppressed);
        let wanted = self.debugctl & debugctl::BTF == 0 || self.rip != sequential;
        if wanted && !suppressed {
            self.pending_debug |= PendingDebugExceptions::BS.mask();
            self.attention = true;
        }
    }

    /// One instruction has retired alone.
    pub(crate) fn after_step(&mut self) {
        self.trap_suppressed = false;
        if !std::mem::take(&mut self.resume_loaded) {
            self.rflags &= !rflags::RF;
        }
    }

    /// What is due before the instruction at RIP, in the order of priority.
    pub(crate) fn at_boundary(&mut self) -> Option<Cause> {
        let blocked = self.mov_ss_shadow == self.retired;
        if self.pending_debug != 0 && !blocked {
            let bits = std::mem::take(&mut self.pending_debug) & (dr6::B | dr6::BS);
            self.refresh_attention();
            return self.debug_exception(bits);
        }
        if let Some(cause) = self.window_exit() {
            return Some(cause);
        }
        let matched = self.matched_code_breakpoints();
        if matched != 0 && !blocked && self.rflags & rflags::RF == 0 {
            return self.debug_exception(matched);
        }
        None
    }

    /// The instruction breakpoints at RIP. SDM Vol. 3, "Instruction-Breakpoint Exception Condition".
    fn matched_code_breakpoints(&mut self) -> u64 {
        if !self.has_code_breakpoints() {
            return 0;
        }
        let (linear, dr7) = (self.code_linear(self.rip), self.dr7);
        let dr = self.state().dr;
        let matches = |&i: &usize| dr7 >> (2 * i) & 3 != 0 && dr7 >> (16 + 4 * i) & 3 == 0 && dr[i] == linear;
        (0..4).filter(matches).fold(0, |bits, i| bits | 1 << i)
    }

    /// #DB that no fault of an instruction is: RFLAGS.RF of the image is what RFLAGS has.
    fn debug_exception(&mut self, bits: u64) -> Option<Cause> {
        if self.controls.exception_bitmap >> vector::DB & 1 != 0 {
            let event = RecordedEvent::new(EventKind::HardwareException, vector::DB, false);
            self.record_event_exit(Reason::ExceptionOrNmi, bits, event, 0, 0);
            return Some(Cause::Vm(Reason::ExceptionOrNmi));
        }
        self.note_debug_exception(bits);
        let event = Delivery::exception(vector::DB, None, self.rip);
        self.deliver(event).or_else(|| self.trap_after_delivery())
    }

    /// DR6, DR7 and IA32_DEBUGCTL as a #DB that is delivered leaves them.
    pub(super) fn note_debug_exception(&mut self, bits: u64) {
        let state = self.state();
        state.dr6 = (state.dr6 & !dr6::B) | bits;
        self.dr7 &= !dr7::GD;
        self.debugctl &= !(debugctl::LBR | debugctl::BTF);
    }
}
