//! PUSH, POP, ENTER, LEAVE and the stack itself.

use super::operand::{Flat, Imm, Mem, Place, Reg, Segmented, Source, Width};
use super::{attempt, next, onward};
use crate::block::{Handler, Op};
use crate::decode::{Decoding, operand_size, register_offset};
use crate::mmu::Kind;
use crate::state::{CodeSize, Cpu};
use iced_x86::OpKind;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::cpu_state::gpr::{RBP, RSP};

const SS: u8 = SegmentRegister::Ss as u8;

impl Cpu {
    /// The linear address of a place on the stack.
    #[inline(always)]
    fn stack_linear<const LONG: bool>(
        &mut self,
        op: &Op,
        offset: u64,
        size: usize,
        kind: Kind,
    ) -> Option<u64> {
        if LONG {
            return Some(offset);
        }
        self.segmented(op, SS, offset, size, kind)
    }

    /// Pushes a value; RSP changes after the store.
    #[inline(always)]
    pub(crate) fn push<T: Width, const LONG: bool>(&mut self, op: &Op, value: T) -> Option<()> {
        let mask = if LONG { u64::MAX } else { self.stack_mask };
        let offset = self.gpr[RSP].wrapping_sub(T::SIZE as u64) & mask;
        let linear = self.stack_linear::<LONG>(op, offset, T::SIZE, Kind::Write)?;
        self.store_stack(op, linear, value)?;
        self.set_stack_pointer::<LONG>(offset);
        Some(())
    }

    #[inline(always)]
    fn store_stack<T: Width>(&mut self, op: &Op, linear: u64, value: T) -> Option<()> {
        self.store(op, linear, value).or_else(|| self.stack_fault())
    }

    /// A canonicality fault of an implicit stack access is #SS. SDM Vol. 3, "Stack Fault Exception".
    #[cold]
    fn stack_fault<T>(&mut self) -> Option<T> {
        if let crate::state::Stop::Fault(crate::mmu::Fault::Exception(exception)) = self.stop
            && exception == Exception::gp(0)
        {
            return self.fail(Exception::ss(0));
        }
        None
    }

    /// Pushes a value in 64-bit mode, if no check is left; says whether it did.
    #[inline(always)]
    pub(crate) fn push_quick<T: Width>(&mut self, value: T) -> bool {
        let offset = self.gpr[RSP].wrapping_sub(T::SIZE as u64);
        let Some(place) = self.writable_host::<T>(offset) else { return false };
        // SAFETY: the place is in a mapped page and may be written.
        unsafe { place.write_unaligned(value) };
        self.gpr[RSP] = offset;
        true
    }

    /// Reads a value `above` bytes above the top of the stack.
    #[inline(always)]
    pub(crate) fn peek<T: Width, const LONG: bool>(&mut self, op: &Op, above: u64) -> Option<T> {
        let mask = if LONG { u64::MAX } else { self.stack_mask };
        let offset = self.gpr[RSP].wrapping_add(above) & mask;
        let linear = self.stack_linear::<LONG>(op, offset, T::SIZE, Kind::Read)?;
        self.load(op, linear).or_else(|| self.stack_fault())
    }

    /// Adds to the stack pointer.
    #[inline(always)]
    pub(crate) fn move_stack<const LONG: bool>(&mut self, by: u64) {
        let offset = self.gpr[RSP].wrapping_add(by);
        self.set_stack_pointer::<LONG>(offset);
    }

    /// Writes the stack pointer in the stack's width.
    #[inline(always)]
    pub(crate) fn set_stack_pointer<const LONG: bool>(&mut self, offset: u64) {
        self.gpr[RSP] = if LONG {
            offset
        } else {
            let mask = self.stack_mask;
            if mask == 0xffff { (self.gpr[RSP] & !mask) | (offset & mask) } else { offset & mask }
        };
    }
}

unsafe fn push<T: Width, S: Source, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    if LONG
        && let Some(value) = S::quick::<T>(cpu, this)
        && cpu.push_quick(value)
    {
        next!(cpu, op);
    }
    push_slowly::<T, S, LONG>(cpu, op)
}

#[cold]
#[inline(never)]
fn push_slowly<T: Width, S: Source, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let value = attempt!(cpu, op, S::get::<T>(cpu, this));
    attempt!(cpu, op, cpu.push::<T, LONG>(this, value));
    next!(cpu, op)
}

unsafe fn pop_register<T: Width, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    if LONG && let Some(value) = cpu.load_quick::<T>(cpu.gpr[RSP]) {
        cpu.gpr[RSP] = cpu.gpr[RSP].wrapping_add(T::SIZE as u64);
        super::operand::set_register(cpu, this.dst, value);
        next!(cpu, op);
    }
    pop_slowly::<T, LONG>(cpu, op)
}

#[cold]
#[inline(never)]
fn pop_slowly<T: Width, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let value = attempt!(cpu, op, cpu.peek::<T, LONG>(this, 0));
    cpu.move_stack::<LONG>(T::SIZE as u64);
    super::operand::set_register(cpu, this.dst, value);
    next!(cpu, op)
}

/// POP to memory: an address that uses RSP is computed after the increment.
unsafe fn pop_memory<T: Width, D: Place, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let value = attempt!(cpu, op, cpu.peek::<T, LONG>(this, 0));
    let before = cpu.gpr[RSP];
    cpu.move_stack::<LONG>(T::SIZE as u64);
    if D::put::<T>(cpu, this, value).is_none() {
        cpu.gpr[RSP] = before;
        return cpu.stop_at(op);
    }
    next!(cpu, op)
}

macro_rules! sized {
    ($d:expr, $size:expr, $f:ident::<T, $s:ty, LONG>) => {
        match ($size, $d.size == CodeSize::Bits64) {
            (2, true) => $f::<u16, $s, true>,
            (_, true) => $f::<u64, $s, true>,
            (2, false) => $f::<u16, $s, false>,
            (_, false) => $f::<u32, $s, false>,
        }
    };
}

/// PUSH of a general register, memory or immediate.
pub(crate) fn select_push(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    use iced_x86::Code::*;
    Some(match d.inst.op0_kind() {
        OpKind::Register if d.inst.op0_register().is_gpr() => {
            op.dst = register_offset(d.inst.op0_register());
            sized!(d, operand_size(d.inst, 0), push::<T, Reg, LONG>)
        }
        OpKind::Memory if d.flat => sized!(d, operand_size(d.inst, 0), push::<T, Mem<Flat>, LONG>),
        OpKind::Memory => sized!(d, operand_size(d.inst, 0), push::<T, Mem<Segmented>, LONG>),
        kind if super::arith::is_immediate(kind) => {
            op.imm = d.inst.immediate(0);
            let size = match d.inst.code() {
                Push_imm16 | Pushw_imm8 => 2,
                _ => 4,
            };
            sized!(d, size, push::<T, Imm, LONG>)
        }
        _ => return None,
    })
}

/// POP of a general register or memory.
pub(crate) fn select_pop(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    let size = operand_size(d.inst, 0);
    Some(match d.inst.op0_kind() {
        OpKind::Register if d.inst.op0_register().is_gpr() => {
            op.dst = register_offset(d.inst.op0_register());
            match (size, d.size == CodeSize::Bits64) {
                (2, true) => pop_register::<u16, true>,
                (_, true) => pop_register::<u64, true>,
                (2, false) => pop_register::<u16, false>,
                (_, false) => pop_register::<u32, false>,
            }
        }
        OpKind::Memory if d.flat => sized!(d, size, pop_memory::<T, Mem<Flat>, LONG>),
        OpKind::Memory => sized!(d, size, pop_memory::<T, Mem<Segmented>, LONG>),
        _ => return None,
    })
}

unsafe fn leave<T: Width, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let mask = if LONG { u64::MAX } else { cpu.stack_mask };
    let frame = cpu.gpr[RBP] & mask;
    let linear = attempt!(cpu, op, cpu.stack_linear::<LONG>(this, frame, T::SIZE, Kind::Read));
    let value = cpu.load::<T>(this, linear).or_else(|| cpu.stack_fault());
    let value = attempt!(cpu, op, value);
    cpu.set_stack_pointer::<LONG>(frame.wrapping_add(T::SIZE as u64));
    super::operand::set_register(cpu, RBP as u8 * 8, value);
    next!(cpu, op)
}

/// LEAVE.
pub(crate) fn select_leave(d: &Decoding<'_>, _: &mut Op) -> Option<Handler> {
    use iced_x86::Code::*;
    Some(match (d.inst.code(), d.size == CodeSize::Bits64) {
        (Leaveq, _) => leave::<u64, true>,
        (Leavew, true) => leave::<u16, true>,
        (Leaved, _) => leave::<u32, false>,
        _ => leave::<u16, false>,
    })
}

/// ENTER: all pushes are checked by the first and last touching the stack below; nesting copies frame pointers.
unsafe fn enter<T: Width, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let (size, level) = (this.imm & 0xffff, this.imm >> 16 & 31);
    let (before, frame) = (cpu.gpr[RSP], T::from_u64(cpu.gpr[RBP]));
    let pushed = enter_pushes::<T, LONG>(cpu, this, level, frame);
    let top = cpu.gpr[RSP].wrapping_sub(size);
    let touched = pushed.and_then(|frame| {
        let mask = if LONG { u64::MAX } else { cpu.stack_mask };
        let linear = cpu.stack_linear::<LONG>(this, top & mask, T::SIZE, Kind::Write)?;
        cpu.probe_write(this, linear, T::SIZE).or_else(|| cpu.stack_fault())?;
        Some(frame)
    });
    let Some(frame) = touched else {
        cpu.gpr[RSP] = before;
        return cpu.stop_at(op);
    };
    cpu.set_stack_pointer::<LONG>(top);
    super::operand::set_register(cpu, RBP as u8 * 8, T::from_u64(frame));
    onward!(op)
}

fn enter_pushes<T: Width, const LONG: bool>(cpu: &mut Cpu, op: &Op, level: u64, old: T) -> Option<u64> {
    let mask = if LONG { u64::MAX } else { cpu.stack_mask };
    cpu.push::<T, LONG>(op, old)?;
    let frame = cpu.gpr[RSP];
    let mut from = cpu.gpr[RBP];
    for _ in 1..level {
        from = from.wrapping_sub(T::SIZE as u64);
        let linear = cpu.stack_linear::<LONG>(op, from & mask, T::SIZE, Kind::Read)?;
        let value = cpu.load::<T>(op, linear).or_else(|| cpu.stack_fault())?;
        cpu.push::<T, LONG>(op, value)?;
    }
    if level > 0 {
        cpu.push::<T, LONG>(op, T::from_u64(frame))?;
    }
    Some(frame)
}

/// ENTER.
pub(crate) fn select_enter(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    op.imm = (d.inst.immediate(0) & 0xffff) | (d.inst.immediate(1) & 0xff) << 16;
    use iced_x86::Code::*;
    Some(match (d.inst.code(), d.size == CodeSize::Bits64) {
        (Enterq_imm16_imm8, _) => enter::<u64, true>,
        (Enterw_imm16_imm8, true) => enter::<u16, true>,
        (Enterd_imm16_imm8, _) => enter::<u32, false>,
        _ => enter::<u16, false>,
    })
}

unsafe fn pusha<T: Width>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let before = cpu.gpr[RSP];
    for i in 0..8 {
        let value = if i == RSP { before } else { cpu.gpr[i] };
        if cpu.push::<T, false>(this, T::from_u64(value)).is_none() {
            cpu.gpr[RSP] = before;
            return cpu.stop_at(op);
        }
    }
    onward!(op)
}

unsafe fn popa<T: Width>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let mut values = [T::from_u64(0); 8];
    for (i, value) in values.iter_mut().rev().enumerate() {
        *value = attempt!(cpu, op, cpu.peek::<T, false>(this, (i * T::SIZE) as u64));
    }
    for (i, value) in values.into_iter().enumerate().filter(|&(i, _)| i != RSP) {
        super::operand::set_register(cpu, i as u8 * 8, value);
    }
    cpu.move_stack::<false>(8 * T::SIZE as u64);
    onward!(op)
}

/// PUSHA, PUSHAD.
pub(crate) fn select_pusha(d: &Decoding<'_>, _: &mut Op) -> Option<Handler> {
    Some(if d.inst.code() == iced_x86::Code::Pushaw { pusha::<u16> } else { pusha::<u32> })
}

/// POPA, POPAD.
pub(crate) fn select_popa(d: &Decoding<'_>, _: &mut Op) -> Option<Handler> {
    Some(if d.inst.code() == iced_x86::Code::Popaw { popa::<u16> } else { popa::<u32> })
}
