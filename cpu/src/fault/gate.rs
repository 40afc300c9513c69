//! Delivery through the IDT, mode by mode. SDM Vol. 3, "Exception- or Interrupt-Handler Procedures", "64-Bit Mode
//! Interrupt and Exception Handling"; Vol. 2, "INT n/INTO/INT3/INT1—Call to Interrupt Procedure".

use super::frame::Frame;
use super::{Delivery, Interruption};
use crate::mmu::access::is_canonical;
use crate::segment::{
    Descriptor, Entry, Gate, contains, is_null, kind, null_stack, rpl, selector_code, unusable,
};
use crate::state::{CodeSize, Cpu};
use vmcs12::arch::event::Exception;
use vmcs12::arch::rflags;
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::cpu_state::gpr::RSP;

use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};

/// Bit 1 of an error code: the index is a vector. SDM Vol. 3, "Error Code".
const IDT: u32 = 1 << 1;
/// IST1 is this number among the TSS's stack pointers.
const IST: u64 = 4;

/// Error code of a fault that an entry of the IDT makes.
fn vector_code(event: &Delivery) -> u32 {
    u32::from(event.vector) << 3 | IDT | event.ext()
}

/// Where a handler runs.
struct Handler {
    code: Entry,
    cpl: u8,
    rip: u64,
    /// RFLAGS.IF is cleared.
    interrupt: bool,
}

impl Cpu {
    /// Delivers one event, or says what stopped it; then nothing visible has changed.
    pub(super) fn deliver_once(&mut self, event: &Delivery) -> Result<(), Interruption> {
        if !self.protected() {
            self.deliver_real(event)
        } else if self.long_mode() {
            self.deliver_long(event)
        } else {
            self.deliver_protected(event)
        }
    }

    /// SDM Vol. 3, "Interrupt and Exception Handling" of real-address mode.
    fn deliver_real(&mut self, event: &Delivery) -> Result<(), Interruption> {
        let offset = u32::from(event.vector) * 4;
        if offset + 3 > self.idtr.1 {
            return Err(Exception::plain(vmcs12::arch::event::vector::GP).into());
        }
        let far = u32::from_le_bytes(self.read_system::<4>(self.idtr.0.wrapping_add(u64::from(offset)))?);
        let (rip, selector) = (u64::from(far & 0xffff), (far >> 16) as u16);
        let mut frame = self.frame_here(2, event);
        self.stage(&mut frame, self.full_rflags())?;
        self.stage(&mut frame, u64::from(self.segment(Cs).selector))?;
        self.stage(&mut frame, event.return_rip)?;
        self.write_frame(&frame);
        self.gpr[RSP] = frame.stack_pointer(self.gpr[RSP]);
        let code = self.real_segment(Cs, selector);
        self.set_segment(Cs, code);
        self.rip = rip;
        self.set_full_rflags(self.full_rflags() & !(rflags::IF | rflags::TF | rflags::AC | rflags::RF));
        self.refresh_mode();
        Ok(())
    }

    /// A frame on the stack in use.
    fn frame_here(&self, size: usize, event: &Delivery) -> Frame {
        let beyond = Exception::ss(event.ext());
        Frame::in_segment(*self.segment(Ss), self.gpr[RSP], size, self.cpl, beyond)
    }

    /// Reads and checks a gate, but for what its type leads to.
    fn gate(&mut self, event: &Delivery, size: u32) -> Result<Gate, Interruption> {
        let code = vector_code(event);
        let offset = u32::from(event.vector) * size;
        if offset + size - 1 > self.idtr.1 {
            return Err(Exception::gp(code).into());
        }
        let linear = self.idtr.0.wrapping_add(u64::from(offset));
        let gate = Gate(u64::from_le_bytes(self.read_system::<8>(linear)?));
        let known = match gate.kind() {
            Some(kind::INTERRUPT_GATE | kind::TRAP_GATE) => true,
            Some(kind::TASK_GATE | kind::INTERRUPT_GATE_16 | kind::TRAP_GATE_16) => !self.long_mode(),
            _ => false,
        };
        if !known || (event.is_software() && gate.get(Gate::DPL) < self.cpl) {
            return Err(Exception::gp(code).into());
        }
        if !gate.get(Gate::P) {
            return Err(Exception::np(code).into());
        }
        Ok(gate)
    }

    /// The code segment that a gate leads to, and the CPL in it.
    fn handler(&mut self, event: &Delivery, gate: Gate, rip: u64) -> Result<Handler, Interruption> {
        let selector = gate.get(Gate::SELECTOR);
        let ext = event.ext();
        if is_null(selector) {
            return Err(Exception::gp(ext).into());
        }
        let code = selector_code(selector) | ext;
        let entry = self.descriptor(selector, Exception::gp, ext)?;
        let descriptor = entry.descriptor;
        let dpl = descriptor.get(Descriptor::DPL);
        let unfit = self.long_mode() && (!descriptor.get(Descriptor::L) || descriptor.get(Descriptor::DB));
        if !descriptor.is_code() || dpl > self.cpl || unfit {
            return Err(Exception::gp(code).into());
        }
        if !descriptor.get(Descriptor::P) {
            return Err(Exception::np(code).into());
        }
        let cpl = if descriptor.is_conforming() { self.cpl } else { dpl };
        if self.virtual_8086() && cpl != 0 {
            return Err(Exception::gp(code).into());
        }
        let interrupt = matches!(gate.kind(), Some(kind::INTERRUPT_GATE | kind::INTERRUPT_GATE_16));
        Ok(Handler { code: entry, cpl, rip, interrupt })
    }

    fn deliver_protected(&mut self, event: &Delivery) -> Result<(), Interruption> {
        let gate = self.gate(event, 8)?;
        if gate.kind() == Some(kind::TASK_GATE) {
            let selector = gate.get(Gate::SELECTOR);
            self.check_task(selector, Exception::gp, false, event.ext())?;
            return Err(Interruption::Task(selector));
        }
        let handler = self.handler(event, gate, gate.offset())?;
        let size = if gate.is_wide() { 4 } else { 2 };
        let inner = handler.cpl < self.cpl;
        let (stack, mut frame) = if inner {
            let (stack, frame) = self.inner_frame(event, handler.cpl, size)?;
            (Some(stack), frame)
        } else {
            (None, self.frame_here(size, event))
        };
        let virtual_8086 = self.virtual_8086();
        if inner {
            if virtual_8086 {
                for register in [Gs, Fs, Ds, Es] {
                    self.stage(&mut frame, u64::from(self.segment(register).selector))?;
                }
            }
            self.stage(&mut frame, u64::from(self.segment(Ss).selector))?;
            self.stage(&mut frame, self.gpr[RSP])?;
        }
        self.stage_return(&mut frame, event)?;
        if handler.rip > u64::from(handler.code.descriptor.limit()) {
            return Err(Exception::gp(event.ext()).into());
        }
        self.mark(&handler.code, kind::ACCESSED)?;
        self.write_frame(&frame);
        self.gpr[RSP] = frame.stack_pointer(if inner { 0 } else { self.gpr[RSP] });
        if virtual_8086 {
            [Gs, Fs, Ds, Es].into_iter().for_each(|register| self.set_segment(register, unusable(0)));
        }
        self.enter_handler(&handler, stack);
        Ok(())
    }

    /// The stack of a more privileged handler.
    fn inner_frame(
        &mut self,
        event: &Delivery,
        cpl: u8,
        size: usize,
    ) -> Result<(Segment, Frame), Interruption> {
        let ext = event.ext();
        let (pointer, selector) = self.inner_stack(cpl, ext)?;
        if is_null(selector) {
            return Err(Exception::ts(ext).into());
        }
        let stack = self.stack_of(selector, cpl, Exception::ts, ext)?;
        let beyond = Exception::ss(selector_code(selector) | ext);
        Ok((stack, Frame::in_segment(stack, pointer, size, cpl, beyond)))
    }

    /// RFLAGS, CS, RIP and the error code.
    fn stage_return(&mut self, frame: &mut Frame, event: &Delivery) -> Result<(), Interruption> {
        self.stage(frame, self.full_rflags())?;
        self.stage(frame, u64::from(self.segment(Cs).selector))?;
        self.stage(frame, event.return_rip)?;
        if let Some(code) = event.error_code {
            self.stage(frame, u64::from(code))?;
        }
        Ok(())
    }

    /// SDM Vol. 3, "64-Bit Mode Stack Frame", "Stack Switching in IA-32e Mode", "Interrupt Stack Table".
    fn deliver_long(&mut self, event: &Delivery) -> Result<(), Interruption> {
        let gate = self.gate(event, 16)?;
        let linear = self.idtr.0.wrapping_add(u64::from(event.vector) * 16 + 8);
        let high = u64::from(u32::from_le_bytes(self.read_system::<4>(linear)?));
        let handler = self.handler(event, gate, gate.offset() | high << 32)?;
        let ext = event.ext();
        let inner = handler.cpl < self.cpl;
        let ist = u64::from(gate.get(Gate::IST));
        let pointer = if ist != 0 {
            self.tss_stack_64(IST + ist - 1, ext)?
        } else if inner {
            self.tss_stack_64(u64::from(handler.cpl), ext)?
        } else {
            self.gpr[RSP] & if self.code_size == CodeSize::Bits64 { u64::MAX } else { 0xffff_ffff }
        };
        let mut frame = Frame::long(pointer & !0xf, 8, handler.cpl, Exception::ss(ext));
        self.stage(&mut frame, u64::from(self.segment(Ss).selector))?;
        self.stage(&mut frame, self.gpr[RSP])?;
        self.stage_return(&mut frame, event)?;
        if !is_canonical(handler.rip) {
            return Err(Exception::gp(ext).into());
        }
        self.mark(&handler.code, kind::ACCESSED)?;
        self.write_frame(&frame);
        self.gpr[RSP] = frame.pointer;
        let stack = inner.then(|| null_stack(handler.cpl));
        self.enter_handler(&handler, stack);
        Ok(())
    }

    /// Nothing can fault any more.
    fn enter_handler(&mut self, handler: &Handler, stack: Option<Segment>) {
        let code = handler.code.segment();
        debug_assert!(rpl(code.selector) <= 3 && code.rights.get(AccessRights::S));
        self.set_segment(Cs, Segment { selector: (code.selector & !3) | u16::from(handler.cpl), ..code });
        if let Some(stack) = stack {
            self.set_segment(Ss, stack);
        }
        self.cpl = handler.cpl;
        self.rip = handler.rip;
        let cleared = rflags::TF
            | rflags::NT
            | rflags::VM
            | rflags::RF
            | if handler.interrupt { rflags::IF } else { 0 };
        self.set_full_rflags(self.full_rflags() & !cleared);
        self.refresh_mode();
    }

    /// Does an offset lie in the code segment in use?
    pub(crate) fn in_code_limit(&self, rip: u64) -> bool {
        contains(self.segment(Cs), rip, 1, true)
    }
}
