//! MOVS, CMPS, STOS, LODS, SCAS and their REP prefixes. Each iteration commits, and counts as one instruction.

use super::next;
use super::operand::{Width, address_mask, extra, register, set_register};
use crate::alu;
use crate::block::{Handler, Op};
use crate::decode::{Decoding, Selected, operand_size};
use crate::mmu::Kind;
use crate::state::Cpu;
use vmcs12::arch::rflags;
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::cpu_state::gpr::{RCX, RDI, RSI};

/// What one iteration does.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Action {
    Movs,
    Cmps,
    Stos,
    Lods,
    Scas,
}

const fn action(number: u8) -> Action {
    match number {
        0 => Action::Movs,
        1 => Action::Cmps,
        2 => Action::Stos,
        3 => Action::Lods,
        _ => Action::Scas,
    }
}

impl Action {
    const fn uses_source(self) -> bool {
        matches!(self, Self::Movs | Self::Cmps | Self::Lods)
    }
    const fn uses_destination(self) -> bool {
        !matches!(self, Self::Lods)
    }
    const fn compares(self) -> bool {
        matches!(self, Self::Cmps | Self::Scas)
    }
}

impl Cpu {
    /// Adds to an index or count register in the address size.
    pub(crate) fn advance(&mut self, op: &Op, index: usize, by: u64) {
        let mask = address_mask(op);
        let value = self.gpr[index].wrapping_add(by) & mask;
        self.gpr[index] = if mask == 0xffff { (self.gpr[index] & !mask) | value } else { value };
    }

    fn string_source(&mut self, op: &Op, size: usize) -> Option<u64> {
        let offset = self.gpr[RSI] & address_mask(op);
        self.segmented(op, op.segment, offset, size, Kind::Read)
    }

    fn string_destination(&mut self, op: &Op, size: usize, kind: Kind) -> Option<u64> {
        let offset = self.gpr[RDI] & address_mask(op);
        self.segmented(op, SegmentRegister::Es as u8, offset, size, kind)
    }
}

/// One iteration, registers included.
fn once<T: Width, const ACTION: u8>(cpu: &mut Cpu, op: &Op) -> Option<()> {
    let action = const { action(ACTION) };
    match action {
        Action::Movs => {
            let from = cpu.string_source(op, T::SIZE)?;
            let value = cpu.load::<T>(op, from)?;
            let to = cpu.string_destination(op, T::SIZE, Kind::Write)?;
            cpu.store::<T>(op, to, value)?;
        }
        Action::Cmps => {
            let from = cpu.string_source(op, T::SIZE)?;
            let a = cpu.load::<T>(op, from)?;
            let at = cpu.string_destination(op, T::SIZE, Kind::Read)?;
            let b = cpu.load::<T>(op, at)?;
            cpu.status = alu::sub(a, b, false).1;
        }
        Action::Stos => {
            let to = cpu.string_destination(op, T::SIZE, Kind::Write)?;
            let value: T = register(cpu, 0);
            cpu.store::<T>(op, to, value)?;
        }
        Action::Lods => {
            let from = cpu.string_source(op, T::SIZE)?;
            let value = cpu.load::<T>(op, from)?;
            set_register(cpu, 0, value);
        }
        Action::Scas => {
            let at = cpu.string_destination(op, T::SIZE, Kind::Read)?;
            let b = cpu.load::<T>(op, at)?;
            cpu.status = alu::sub(register::<T>(cpu, 0), b, false).1;
        }
    }
    let step = if cpu.rflags & rflags::DF != 0 { (T::SIZE as u64).wrapping_neg() } else { T::SIZE as u64 };
    if action.uses_source() {
        cpu.advance(op, RSI, step);
    }
    if action.uses_destination() {
        cpu.advance(op, RDI, step);
    }
    Some(())
}

unsafe fn single<T: Width, const ACTION: u8>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    if once::<T, ACTION>(cpu, unsafe { &*op }).is_none() {
        return cpu.stop_at(op);
    }
    next!(cpu, op)
}

/// Elements from a linear address to the end of its page.
fn room<T: Width>(linear: u64) -> u64 {
    (4096 - (linear & 0xfff)) / T::SIZE as u64
}

/// Does several iterations of a MOVS or STOS as one copy or fill, `most` at most, with both sides in one page each;
/// returns how many, and 0 if it cannot: then nothing was done.
fn many<T: Width>(cpu: &mut Cpu, op: &Op, action: Action, most: u64) -> u64 {
    if cpu.rflags & rflags::DF != 0 || !cpu.is_64() || most < 2 {
        return 0;
    }
    let done = match action {
        Action::Movs => copy::<T>(cpu, op, most),
        Action::Stos => fill::<T>(cpu, op, most),
        Action::Cmps | Action::Lods | Action::Scas => None,
    };
    done.unwrap_or(0)
}

fn fill<T: Width>(cpu: &mut Cpu, op: &Op, most: u64) -> Option<u64> {
    // 64-bit mode has no limits to check, so linear addresses follow from the bases.
    let to = cpu.string_destination(op, T::SIZE, Kind::Write)?;
    let n = most.min(room::<T>(to));
    if n == 0 {
        return None;
    }
    let place = cpu.string_place(to, Kind::Write)?.cast::<T>();
    let value: T = register(cpu, 0);
    for i in 0..n as usize {
        // SAFETY: `room` keeps all `n` elements in the page that `place` is in.
        unsafe { place.add(i).write_unaligned(value) };
    }
    cpu.advance(op, RDI, n * T::SIZE as u64);
    cpu.advance(op, RCX, n.wrapping_neg());
    Some(n)
}

fn copy<T: Width>(cpu: &mut Cpu, op: &Op, most: u64) -> Option<u64> {
    let from = cpu.string_source(op, T::SIZE)?;
    let to = cpu.string_destination(op, T::SIZE, Kind::Write)?;
    let n = most.min(room::<T>(from)).min(room::<T>(to));
    if n == 0 {
        return None;
    }
    let source = cpu.string_place(from, Kind::Read)?.cast_const();
    let place = cpu.string_place(to, Kind::Write)?;
    let bytes = n as usize * T::SIZE;
    if (place as usize).wrapping_sub(source as usize) >= bytes {
        // SAFETY: `room` keeps both ranges in their pages; the destination does not begin inside the source, so a copy
        // in one go equals the copy element by element.
        unsafe { std::ptr::copy(source, place, bytes) };
    } else {
        for i in 0..n as usize {
            // SAFETY: as above; the elements are copied in order, as the overlap demands.
            unsafe { place.cast::<T>().add(i).write_unaligned(source.cast::<T>().add(i).read_unaligned()) };
        }
    }
    cpu.advance(op, RSI, bytes as u64);
    cpu.advance(op, RDI, bytes as u64);
    cpu.advance(op, RCX, n.wrapping_neg());
    Some(n)
}

/// A repeated string instruction. It stops early, to be resumed, at the limit of the budget.
unsafe fn repeated<T: Width, const ACTION: u8>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let action = const { action(ACTION) };
    let mask = address_mask(this);
    if cpu.gpr[RCX] & mask == 0 {
        next!(cpu, op);
    }
    let allowance = cpu.rep_limit.saturating_sub(cpu.retired_before(this));
    let mut done = 0;
    loop {
        let count = cpu.gpr[RCX] & mask;
        if done == allowance && count != 0 {
            cpu.retired += done;
            return cpu.stop_at(op);
        }
        let n = many::<T>(cpu, this, action, count.min(allowance - done));
        if n != 0 {
            done += n;
        } else {
            cpu.stop = crate::state::Stop::Continue;
            if once::<T, ACTION>(cpu, this).is_none() {
                cpu.retired += done;
                return cpu.stop_at(op);
            }
            cpu.advance(this, RCX, u64::MAX);
            done += 1;
        }
        let finished = action.compares() && cpu.status.zero() != (this.extra & extra::REPNE == 0);
        if finished || cpu.gpr[RCX] & mask == 0 {
            // The instruction itself counts one of its iterations.
            cpu.retired += done - 1;
            // At the exact end of a budget nothing of the block may follow.
            if cpu.soft_limit == 0 {
                return cpu.leave_after(op);
            }
            next!(cpu, op);
        }
    }
}

macro_rules! handlers {
    ($size:expr, $repeat:expr, $action:literal) => {
        match ($size, $repeat) {
            (1, true) => repeated::<u8, $action>,
            (2, true) => repeated::<u16, $action>,
            (4, true) => repeated::<u32, $action>,
            (_, true) => repeated::<u64, $action>,
            (1, false) => single::<u8, $action>,
            (2, false) => single::<u16, $action>,
            (4, false) => single::<u32, $action>,
            (_, false) => single::<u64, $action>,
        }
    };
}

/// The handler of a string instruction; a repeated one ends its block when it may stop early.
pub(crate) fn select(d: &Decoding<'_>, op: &mut Op) -> Option<Selected> {
    use iced_x86::Mnemonic::*;
    // MOVSD and CMPSD are also names of SSE2 instructions.
    if d.inst.op0_register().is_xmm() || d.inst.op1_register().is_xmm() {
        return None;
    }
    let repeat = d.inst.has_rep_prefix() || d.inst.has_repne_prefix();
    let size = match d.inst.op_kind(0) {
        iced_x86::OpKind::Register => operand_size(d.inst, 0),
        _ => operand_size(d.inst, 0).max(operand_size(d.inst, 1)),
    };
    op.dst = 0;
    let run: Handler = match d.inst.mnemonic() {
        Movsb | Movsw | Movsd | Movsq => handlers!(size, repeat, 0),
        Cmpsb | Cmpsw | Cmpsd | Cmpsq => handlers!(size, repeat, 1),
        Stosb | Stosw | Stosd | Stosq => handlers!(size, repeat, 2),
        Lodsb | Lodsw | Lodsd | Lodsq => handlers!(size, repeat, 3),
        Scasb | Scasw | Scasd | Scasq => handlers!(size, repeat, 4),
        _ => return None,
    };
    Some(Selected::next(run))
}
