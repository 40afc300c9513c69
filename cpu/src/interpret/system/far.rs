//! Far JMP, CALL and RET. SDM Vol. 2, "JMP—Jump", "CALL—Call Procedure", "RET—Return From Procedure"; Vol. 3, "Call
//! Gates", "Treatment of Task Switches".

use super::{End, Flow, MEMORY, Step, finish, general_protection, handler, qualified_exit};
use crate::block::Op;
use crate::decode::{Decoding, Selected};
use crate::fault::frame::Frame;
use crate::mmu::Fault;
use crate::mmu::access::is_canonical;
use crate::segment::{
    Descriptor, Entry, Gate, is_null, kind, null_stack, rpl, selector_code, unusable, virtual_8086,
};
use crate::state::Cpu;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::{AccessRights, Segment, SegmentRegister};
use vmcs12::cpu_state::gpr::RSP;
use vmcs12::exit::Reason;
use vmcs12::exit::qualification::TaskSwitch;

use SegmentRegister::{Cs, Ds, Es, Fs, Gs, Ss};

/// Where the selector of a far pointer stands in [`Op::imm`].
const SELECTOR_SHIFT: u32 = 32;

pub(super) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Code::*;
    let inst = d.inst;
    let (size, handler) = match inst.code() {
        Jmp_ptr1616 | Jmp_m1616 => (2, handler!(jump)),
        Jmp_ptr1632 | Jmp_m1632 => (4, handler!(jump)),
        Jmp_m1664 => (8, handler!(jump)),
        Call_ptr1616 | Call_m1616 => (2, handler!(call)),
        Call_ptr1632 | Call_m1632 => (4, handler!(call)),
        Call_m1664 => (8, handler!(call)),
        Retfw | Retfw_imm16 => (2, handler!(ret)),
        Retfd | Retfd_imm16 => (4, handler!(ret)),
        Retfq | Retfq_imm16 => (8, handler!(ret)),
        _ => return None,
    };
    op.dst = size;
    let pointer = |offset: u32| u64::from(inst.far_branch_selector()) << SELECTOR_SHIFT | u64::from(offset);
    match inst.code() {
        Jmp_ptr1616 | Call_ptr1616 => op.imm = pointer(u32::from(inst.far_branch16())),
        Jmp_ptr1632 | Call_ptr1632 => op.imm = pointer(inst.far_branch32()),
        Retfw_imm16 | Retfd_imm16 | Retfq_imm16 => op.imm = u64::from(inst.immediate16()),
        Retfw | Retfd | Retfq => {}
        _ => op.extra |= MEMORY,
    }
    Some(Selected::end(handler))
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Transfer {
    Call,
    Jump,
}

/// What asks for a task switch. SDM Vol. 3, "Exit Qualification for Task Switches".
#[derive(Clone, Copy)]
pub(super) enum TaskSource {
    Call = 0,
    Iret = 1,
    Jump = 2,
}

/// The exit that takes the place of a task switch.
pub(super) fn task_exit<T>(selector: u16, source: TaskSource) -> Result<T, End> {
    let qualification =
        TaskSwitch::default().with(TaskSwitch::SELECTOR, selector).with(TaskSwitch::SOURCE, source as u8);
    qualified_exit(Reason::TaskSwitch, qualification.0)
}

fn jump(cpu: &mut Cpu, op: &Op) -> Step {
    transfer(cpu, op, Transfer::Jump)
}

fn call(cpu: &mut Cpu, op: &Op) -> Step {
    transfer(cpu, op, Transfer::Call)
}

fn far_pointer(cpu: &mut Cpu, op: &Op) -> Result<(u16, u64), End> {
    if op.extra & MEMORY == 0 {
        return Ok(((op.imm >> SELECTOR_SHIFT) as u16, op.imm & 0xffff_ffff));
    }
    let offset = match op.dst {
        2 => u64::from(cpu.load_operand::<u16>(op, 0)?),
        4 => u64::from(cpu.load_operand::<u32>(op, 0)?),
        _ => cpu.load_operand::<u64>(op, 0)?,
    };
    Ok((cpu.load_operand::<u16>(op, u64::from(op.dst))?, offset))
}

fn transfer(cpu: &mut Cpu, op: &Op, transfer: Transfer) -> Step {
    let (selector, offset) = far_pointer(cpu, op)?;
    if !cpu.protected() || cpu.virtual_8086() {
        return transfer_real(cpu, op, transfer, selector, offset);
    }
    if is_null(selector) {
        return general_protection();
    }
    let entry = cpu.descriptor(selector, Exception::gp, 0)?;
    match (entry.descriptor.system_kind(), cpu.long_mode()) {
        (None, _) => to_segment(cpu, op, transfer, &entry, offset),
        (Some(kind::CALL_GATE), _) | (Some(kind::CALL_GATE_16), false) => {
            through_gate(cpu, op, transfer, &entry)
        }
        (Some(kind::TASK_GATE | kind::TSS | kind::TSS_16), false) => to_task(cpu, transfer, &entry),
        _ => Err(Exception::gp(selector_code(selector)).into()),
    }
}

fn transfer_real(cpu: &mut Cpu, op: &Op, transfer: Transfer, selector: u16, offset: u64) -> Step {
    if !cpu.in_code_limit(offset) {
        return general_protection();
    }
    if transfer == Transfer::Call {
        let frame = stage_return(cpu, op, u64::from(op.dst))?;
        write(cpu, &frame);
    }
    let code = if cpu.virtual_8086() { virtual_8086(selector) } else { cpu.real_segment(Cs, selector) };
    cpu.set_segment(Cs, code);
    cpu.refresh_mode();
    Ok(Flow::To(offset))
}

/// CS and the next RIP, staged on the stack in use.
fn stage_return(cpu: &mut Cpu, op: &Op, size: u64) -> Result<Frame, Fault> {
    let (cs, rip) = (u64::from(cpu.segment(Cs).selector), cpu.next_rip(op));
    let mut frame = cpu.frame_on_stack(size as usize);
    cpu.stage(&mut frame, cs)?;
    cpu.stage(&mut frame, rip)?;
    Ok(frame)
}

/// Writes a frame and moves RSP below it.
fn write(cpu: &mut Cpu, frame: &Frame) {
    cpu.write_frame(frame);
    cpu.gpr[RSP] = frame.stack_pointer(cpu.gpr[RSP]);
}

/// To a code segment at the same privilege.
fn to_segment(cpu: &mut Cpu, op: &Op, transfer: Transfer, entry: &Entry, offset: u64) -> Step {
    let code = selector_code(entry.selector);
    let descriptor = entry.descriptor;
    let dpl = descriptor.get(Descriptor::DPL);
    let permitted = if descriptor.is_conforming() {
        dpl <= cpu.cpl
    } else {
        rpl(entry.selector) <= cpu.cpl && dpl == cpu.cpl
    };
    if !descriptor.is_code() || !permitted || cpu.has_both_sizes(descriptor) {
        return Err(Exception::gp(code).into());
    }
    if !descriptor.get(Descriptor::P) {
        return Err(Exception::np(code).into());
    }
    let frame = match transfer {
        Transfer::Call => Some(stage_return(cpu, op, u64::from(op.dst))?),
        Transfer::Jump => None,
    };
    cpu.check_far_target(descriptor, offset)?;
    cpu.mark(entry, kind::ACCESSED)?;
    if let Some(frame) = &frame {
        write(cpu, frame);
    }
    cpu.load_code(entry, cpu.cpl);
    cpu.refresh_mode();
    Ok(Flow::To(offset))
}

fn through_gate(cpu: &mut Cpu, op: &Op, transfer: Transfer, entry: &Entry) -> Step {
    let gate = Gate(entry.descriptor.0);
    let gate_code = selector_code(entry.selector);
    check_privilege(cpu, entry)?;
    if !gate.get(Gate::P) {
        return Err(Exception::np(gate_code).into());
    }
    let long = cpu.long_mode();
    let high = if long { cpu.descriptor_high(entry, Exception::gp, 0)? << 32 } else { 0 };
    let offset = gate.offset() | high;
    let selector = gate.get(Gate::SELECTOR);
    if is_null(selector) {
        return general_protection();
    }
    let code = selector_code(selector);
    let target = cpu.descriptor(selector, Exception::gp, 0)?;
    let descriptor = target.descriptor;
    let dpl = descriptor.get(Descriptor::DPL);
    let unfit = long && (!descriptor.get(Descriptor::L) || descriptor.get(Descriptor::DB));
    let too_far = transfer == Transfer::Jump && !descriptor.is_conforming() && dpl != cpu.cpl;
    if !descriptor.is_code() || dpl > cpu.cpl || unfit || too_far {
        return Err(Exception::gp(code).into());
    }
    if !descriptor.get(Descriptor::P) {
        return Err(Exception::np(code).into());
    }
    let size = if long {
        8
    } else if gate.is_wide() {
        4
    } else {
        2
    };
    if transfer == Transfer::Call && !descriptor.is_conforming() && dpl < cpu.cpl {
        return call_inner(cpu, op, gate, &target, offset, size);
    }
    let frame = match transfer {
        Transfer::Call => Some(stage_return(cpu, op, size)?),
        Transfer::Jump => None,
    };
    cpu.check_far_target(descriptor, offset)?;
    cpu.mark(&target, kind::ACCESSED)?;
    if let Some(frame) = &frame {
        write(cpu, frame);
    }
    cpu.load_code(&target, cpu.cpl);
    cpu.refresh_mode();
    Ok(Flow::To(offset))
}

/// Through a call gate to more privilege: the stack changes. SDM Vol. 3, "Stack Switching".
fn call_inner(cpu: &mut Cpu, op: &Op, gate: Gate, target: &Entry, offset: u64, size: u64) -> Step {
    let cpl = target.descriptor.get(Descriptor::DPL);
    let (stack, mut frame) = if cpu.long_mode() {
        let pointer = cpu.tss_stack_64(u64::from(cpl), 0)?;
        (null_stack(cpl), Frame::long(pointer, size as usize, cpl, Exception::ss(0)))
    } else {
        let (pointer, selector) = cpu.inner_stack(cpl, 0)?;
        if is_null(selector) {
            return Err(Exception::ts(0).into());
        }
        let stack = cpu.stack_of(selector, cpl, Exception::ts, 0)?;
        let beyond = Exception::ss(selector_code(selector));
        (stack, Frame::in_segment(stack, pointer, size as usize, cpl, beyond))
    };
    let (ss, sp) = (u64::from(cpu.segment(Ss).selector), cpu.gpr[RSP]);
    cpu.stage(&mut frame, ss)?;
    cpu.stage(&mut frame, sp)?;
    let parameters = if cpu.long_mode() { 0 } else { u64::from(gate.get(Gate::PARAMETERS)) };
    for i in (0..parameters).rev() {
        let value = cpu.peek_sized(op, size, i * size)?;
        cpu.stage(&mut frame, value)?;
    }
    let (cs, rip) = (u64::from(cpu.segment(Cs).selector), cpu.next_rip(op));
    cpu.stage(&mut frame, cs)?;
    cpu.stage(&mut frame, rip)?;
    cpu.check_far_target(target.descriptor, offset)?;
    cpu.mark(target, kind::ACCESSED)?;
    cpu.write_frame(&frame);
    cpu.gpr[RSP] = frame.stack_pointer(0);
    cpu.set_segment(Ss, stack);
    cpu.load_code(target, cpl);
    cpu.cpl = cpl;
    cpu.refresh_mode();
    Ok(Flow::To(offset))
}

/// A gate or TSS must be reachable from CPL and RPL.
fn check_privilege(cpu: &Cpu, entry: &Entry) -> Result<(), End> {
    let dpl = entry.descriptor.get(Descriptor::DPL);
    let reachable = dpl >= cpu.cpl && dpl >= rpl(entry.selector);
    if reachable { Ok(()) } else { Err(Exception::gp(selector_code(entry.selector)).into()) }
}

fn to_task(cpu: &mut Cpu, transfer: Transfer, entry: &Entry) -> Step {
    check_privilege(cpu, entry)?;
    let gate = Gate(entry.descriptor.0);
    let selector = if gate.kind() == Some(kind::TASK_GATE) {
        if !gate.get(Gate::P) {
            return Err(Exception::np(selector_code(entry.selector)).into());
        }
        gate.get(Gate::SELECTOR)
    } else {
        entry.selector
    };
    cpu.check_task(selector, Exception::gp, false, 0)?;
    let source = if transfer == Transfer::Call { TaskSource::Call } else { TaskSource::Jump };
    task_exit(selector, source)
}

/// Far RET.
fn ret(cpu: &mut Cpu, op: &Op) -> Step {
    let size = u64::from(op.dst);
    let (rip, selector) = (cpu.peek_sized(op, size, 0)?, cpu.peek_sized(op, size, size)? as u16);
    if !cpu.protected() || cpu.virtual_8086() {
        if !cpu.in_code_limit(rip) {
            return general_protection();
        }
        cpu.release_stack(2 * size + op.imm);
        let code = if cpu.virtual_8086() { virtual_8086(selector) } else { cpu.real_segment(Cs, selector) };
        cpu.set_segment(Cs, code);
        cpu.refresh_mode();
        return Ok(Flow::To(rip));
    }
    let entry = cpu.return_segment(selector)?;
    if rpl(selector) == cpu.cpl {
        cpu.check_far_target(entry.descriptor, rip)?;
        cpu.mark(&entry, kind::ACCESSED)?;
        cpu.release_stack(2 * size + op.imm);
        cpu.load_code(&entry, cpu.cpl);
        cpu.refresh_mode();
        return Ok(Flow::To(rip));
    }
    let above = 2 * size + op.imm;
    let (pointer, ss) = (cpu.peek_sized(op, size, above)?, cpu.peek_sized(op, size, above + size)? as u16);
    let stack = cpu.return_stack(ss, &entry)?;
    cpu.check_far_target(entry.descriptor, rip)?;
    cpu.mark(&entry, kind::ACCESSED)?;
    cpu.return_outward(&entry, stack, pointer);
    cpu.release_stack(op.imm);
    Ok(Flow::To(rip))
}

impl Cpu {
    /// A frame on the stack in use.
    fn frame_on_stack(&self, size: usize) -> Frame {
        let (pointer, beyond) = (self.gpr[RSP], Exception::ss(0));
        if self.is_64() {
            Frame::long(pointer, size, self.cpl, beyond)
        } else {
            Frame::in_segment(*self.segment(Ss), pointer, size, self.cpl, beyond)
        }
    }

    /// In IA-32e mode, L and D of a code segment exclude each other.
    fn has_both_sizes(&self, descriptor: Descriptor) -> bool {
        self.long_mode() && descriptor.get(Descriptor::L) && descriptor.get(Descriptor::DB)
    }

    /// Is the target in the code segment, or canonical?
    pub(super) fn check_far_target(&self, descriptor: Descriptor, rip: u64) -> Result<(), Fault> {
        let inside = if self.long_mode() && descriptor.get(Descriptor::L) {
            is_canonical(rip)
        } else {
            rip <= u64::from(descriptor.limit())
        };
        if inside { Ok(()) } else { Err(Exception::gp(0).into()) }
    }

    /// Loads CS; `refresh_mode` must follow.
    pub(super) fn load_code(&mut self, entry: &Entry, cpl: u8) {
        let segment = entry.segment();
        self.set_segment(Cs, Segment { selector: (segment.selector & !3) | u16::from(cpl), ..segment });
    }

    /// The code segment that RET or IRET returns to.
    pub(super) fn return_segment(&mut self, selector: u16) -> Result<Entry, Fault> {
        if is_null(selector) {
            return Err(Exception::gp(0).into());
        }
        let code = selector_code(selector);
        let entry = self.descriptor(selector, Exception::gp, 0)?;
        let descriptor = entry.descriptor;
        let (dpl, to) = (descriptor.get(Descriptor::DPL), rpl(selector));
        let permitted = to >= self.cpl && if descriptor.is_conforming() { dpl <= to } else { dpl == to };
        if !descriptor.is_code() || !permitted || self.has_both_sizes(descriptor) {
            return Err(Exception::gp(code).into());
        }
        if !descriptor.get(Descriptor::P) {
            return Err(Exception::np(code).into());
        }
        Ok(entry)
    }

    /// The stack segment that RET or IRET returns to with this code segment.
    pub(super) fn return_stack(&mut self, selector: u16, code: &Entry) -> Result<Segment, Fault> {
        let cpl = rpl(code.selector);
        if is_null(selector) {
            let allowed =
                self.long_mode() && code.descriptor.get(Descriptor::L) && cpl != 3 && rpl(selector) == cpl;
            return if allowed { Ok(null_stack(cpl)) } else { Err(Exception::gp(0).into()) };
        }
        self.stack_of(selector, cpl, Exception::gp, 0)
    }

    /// Loads CS, SS, RSP and CPL, and takes away data segments that the new CPL may not use.
    pub(super) fn return_outward(&mut self, code: &Entry, stack: Segment, pointer: u64) {
        let cpl = rpl(code.selector);
        let outward = cpl > self.cpl;
        self.load_code(code, cpl);
        self.set_segment(Ss, stack);
        self.cpl = cpl;
        self.refresh_mode();
        if self.is_64() {
            self.gpr[RSP] = pointer
        } else {
            self.set_stack_pointer::<false>(pointer)
        }
        if outward {
            [Es, Ds, Fs, Gs].into_iter().for_each(|register| self.forget_inner(register));
        }
    }

    fn forget_inner(&mut self, register: SegmentRegister) {
        let rights = self.segment(register).rights;
        let kind = rights.get(AccessRights::TYPE);
        let conforming = kind & 0b1100 == 0b1100;
        if rights.is_usable() && !conforming && rights.get(AccessRights::DPL) < self.cpl {
            self.set_segment(register, unusable(0));
        }
    }
}
