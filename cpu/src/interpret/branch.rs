//! Near jumps, calls and returns.

use super::operand::{Flat, Mem, Reg, Segmented, Source, Width};
use super::{attempt, go, next};
use crate::block::{Handler, Op};
use crate::decode::{Decoding, operand_size, register_offset};
use crate::flags::Status;
use crate::mmu::access::{Scalar, is_canonical};
use crate::mmu::tlb;
use crate::state::{BLOCK_RIP, CodeSize, Cpu};
use iced_x86::OpKind;
use vmcs12::arch::event::Exception;
use vmcs12::arch::segment::SegmentRegister;
use vmcs12::cpu_state::gpr::RSP;

/// Set in [`Op::extra`] of a branch with 16-bit operand size: IP is 16 bits.
const IP_16: u16 = 1 << 15;
/// Set in [`Op::extra`] of a direct branch that leaves its page: no link, the jump cache leads on.
const CROSSES: u16 = 1 << 14;

/// A condition by its number in the opcode. SDM Vol. 1, "EFLAGS Condition Codes".
#[inline(always)]
pub(crate) fn condition<const CONDITION: u8>(status: Status) -> bool {
    let holds = match CONDITION >> 1 {
        0 => status.overflow(),
        1 => status.carry(),
        2 => status.zero(),
        3 => status.carry() || status.zero(),
        4 => status.sign(),
        5 => status.parity(),
        6 => status.sign() != status.overflow(),
        _ => status.zero() || status.sign() != status.overflow(),
    };
    holds != (CONDITION & 1 != 0)
}

impl Cpu {
    /// The block at `rip`: from the jump cache, or found.
    #[inline(always)]
    pub(crate) fn target(&mut self, rip: u64) -> *const Op {
        let linear = self.code_linear(rip);
        // SAFETY: `context` points to a context of `pool`, which lives as long as `self`.
        let context = unsafe { &*self.context };
        // SAFETY: the index is below the number of jumps.
        let jump = unsafe { *context.jumps.get_unchecked(tlb::Context::jump_index(linear)) };
        if jump.linear == linear ^ context.salt {
            self.gpr[BLOCK_RIP] = rip;
            return jump.target;
        }
        self.find(rip)
    }

    /// Retires a branch and goes to `rip`.
    #[inline(always)]
    unsafe fn jump_to(&mut self, op: *const Op, rip: u64) -> *const Op {
        // SAFETY: handlers pass the operation that they run.
        self.retired += u64::from(unsafe { (*op).index }) + 1;
        if self.retired >= self.soft_limit {
            self.rip = rip;
            return std::ptr::null();
        }
        self.go_cached(rip)
    }

    /// Goes to the block at `rip` by the jump cache.
    #[inline(always)]
    fn go_cached(&mut self, rip: u64) -> *const Op {
        let linear = self.code_linear(rip);
        // SAFETY: `context` points to a context of `pool`, which lives as long as `self`.
        let context = unsafe { &*self.context };
        // SAFETY: the index is below the number of jumps.
        let jump = unsafe { *context.jumps.get_unchecked(tlb::Context::jump_index(linear)) };
        if jump.linear != linear ^ context.salt {
            return self.go_find(rip);
        }
        self.gpr[BLOCK_RIP] = rip;
        let cpu = self;
        // SAFETY: `target` is the start of a live block.
        unsafe { go!(cpu, jump.target) }
    }

    /// Finds the block at `rip` and goes there. It is what a jump cache that misses ends in.
    #[cold]
    #[inline(never)]
    fn go_find(&mut self, rip: u64) -> *const Op {
        let target = self.find(rip);
        if target.is_null() {
            return target;
        }
        let cpu = self;
        // SAFETY: `target` is the start of a live block.
        unsafe { go!(cpu, target) }
    }

    /// Links a direct branch to its target and goes there.
    #[cold]
    #[inline(never)]
    fn go_link(&mut self, op: *const Op, rip: u64) -> *const Op {
        let target = self.link(op, rip);
        if target.is_null() {
            return target;
        }
        let cpu = self;
        // SAFETY: `target` is the start of a live block.
        unsafe { go!(cpu, target) }
    }

    /// As [`Cpu::jump_to`], for a target that is known when decoding: in the same page the block is linked.
    #[inline(always)]
    unsafe fn jump_direct(&mut self, op: *const Op, rip: u64) -> *const Op {
        // SAFETY: handlers pass the operation that they run.
        let this = unsafe { &*op };
        self.retired += u64::from(this.index) + 1;
        if self.retired >= self.soft_limit {
            self.rip = rip;
            return std::ptr::null();
        }
        let target = this.imm as *const Op;
        if target.is_null() {
            if this.extra & CROSSES != 0 {
                return self.go_cached(rip);
            }
            return self.go_link(op, rip);
        }
        self.gpr[BLOCK_RIP] = rip;
        let cpu = self;
        // SAFETY: `target` is the start of a live block: links stay inside a page, whose blocks live until all do.
        unsafe { go!(cpu, target) }
    }

    #[inline(never)]
    fn link(&mut self, op: *const Op, rip: u64) -> *const Op {
        // SAFETY: handlers pass the operation that they run.
        let this = unsafe { *op };
        let block = self.code_linear(self.gpr[BLOCK_RIP]);
        let end = block.wrapping_add(u64::from(this.delta) + u64::from(this.len) - 1);
        let (linear, flushes) = (self.code_linear(rip), self.blocks.flushes);
        let target = self.target(rip);
        if target.is_null() || self.blocks.flushes != flushes {
            return target;
        }
        // A target that spans two pages depends on the second's mapping: only the jump cache may lead to it.
        // SAFETY: `target` is the start of a live block.
        let spans = (linear & 0xfff) + u64::from(unsafe { (*target).len }) > 4096;
        if !spans && block >> 12 == linear >> 12 && block >> 12 == end >> 12 {
            // SAFETY: the operation is live, since nothing was flushed; handlers hold no reference across this call.
            unsafe { (*op.cast_mut()).imm = target as u64 };
        }
        target
    }

    /// The target of a direct branch.
    #[inline(always)]
    fn direct_target<const LONG: bool>(&self, op: &Op) -> u64 {
        let target = self.gpr[BLOCK_RIP].wrapping_add(i64::from(op.disp) as u64);
        if LONG {
            target
        } else if op.extra & IP_16 != 0 {
            target & 0xffff
        } else {
            target & 0xffff_ffff
        }
    }

    /// May control go to `rip`? SDM Vol. 2, "JMP", "CALL": the limit of CS, or canonical form.
    #[inline(always)]
    pub(crate) fn check_target<const LONG: bool>(&mut self, rip: u64) -> Option<()> {
        let allowed =
            if LONG { is_canonical(rip) } else { rip <= u64::from(self.segment(SegmentRegister::Cs).limit) };
        if allowed { Some(()) } else { self.fail(Exception::gp(0)) }
    }
}

unsafe fn jcc<const CONDITION: u8, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    if condition::<CONDITION>(cpu.status) {
        // SAFETY: handlers are called with a live operation.
        let rip = cpu.direct_target::<LONG>(unsafe { &*op });
        if !LONG {
            attempt!(cpu, op, cpu.check_target::<LONG>(rip));
        }
        // SAFETY: as above.
        return unsafe { cpu.jump_direct(op, rip) };
    }
    next!(cpu, op)
}

unsafe fn jmp<const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let rip = cpu.direct_target::<LONG>(unsafe { &*op });
    attempt!(cpu, op, cpu.check_target::<LONG>(rip));
    // SAFETY: as above.
    unsafe { cpu.jump_direct(op, rip) }
}

unsafe fn call<T: Width, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let rip = cpu.direct_target::<LONG>(this);
    let back = T::from_u64(cpu.next_rip(this));
    if LONG && is_canonical(rip) && cpu.push_quick(back) {
        // SAFETY: as above.
        return unsafe { cpu.jump_direct(op, rip) };
    }
    call_slowly::<T, LONG>(cpu, op)
}

#[cold]
#[inline(never)]
fn call_slowly<T: Width, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let rip = cpu.direct_target::<LONG>(this);
    attempt!(cpu, op, cpu.check_target::<LONG>(rip));
    let back = T::from_u64(cpu.next_rip(this));
    attempt!(cpu, op, cpu.push::<T, LONG>(this, back));
    // SAFETY: as above.
    unsafe { cpu.jump_direct(op, rip) }
}

unsafe fn jmp_indirect<T: Width, S: Source, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    if LONG
        && let Some(rip) = S::quick::<T>(cpu, this).map(Scalar::to_u64)
        && is_canonical(rip)
    {
        // SAFETY: as above.
        return unsafe { cpu.jump_to(op, rip) };
    }
    jump_slowly::<T, S, LONG>(cpu, op)
}

#[cold]
#[inline(never)]
fn jump_slowly<T: Width, S: Source, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let rip = attempt!(cpu, op, S::get::<T>(cpu, this)).to_u64();
    attempt!(cpu, op, cpu.check_target::<LONG>(rip));
    // SAFETY: as above.
    unsafe { cpu.jump_to(op, rip) }
}

unsafe fn call_indirect<T: Width, S: Source, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let rip = attempt!(cpu, op, S::get::<T>(cpu, this)).to_u64();
    attempt!(cpu, op, cpu.check_target::<LONG>(rip));
    let back = T::from_u64(cpu.next_rip(this));
    attempt!(cpu, op, cpu.push::<T, LONG>(this, back));
    // SAFETY: as above.
    unsafe { cpu.jump_to(op, rip) }
}

unsafe fn ret<T: Width, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    if LONG
        && let Some(rip) = cpu.load_quick::<T>(cpu.gpr[RSP]).map(Scalar::to_u64)
        && is_canonical(rip)
    {
        cpu.gpr[RSP] = cpu.gpr[RSP].wrapping_add(T::SIZE as u64 + this.imm);
        // SAFETY: as above.
        return unsafe { cpu.jump_to(op, rip) };
    }
    ret_slowly::<T, LONG>(cpu, op)
}

#[cold]
#[inline(never)]
fn ret_slowly<T: Width, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let rip = attempt!(cpu, op, cpu.peek::<T, LONG>(this, 0)).to_u64();
    attempt!(cpu, op, cpu.check_target::<LONG>(rip));
    cpu.move_stack::<LONG>(T::SIZE as u64 + this.imm);
    // SAFETY: as above.
    unsafe { cpu.jump_to(op, rip) }
}

/// LOOPcc and JCXZ: `KIND` 0 LOOPNE, 1 LOOPE, 2 LOOP, 3 JCXZ.
unsafe fn count_branch<const KIND: u8, const LONG: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let mask = super::operand::address_mask(this);
    let count = if KIND == 3 { cpu.gpr[1] & mask } else { (cpu.gpr[1] & mask).wrapping_sub(1) & mask };
    let taken = match KIND {
        0 => count != 0 && !cpu.status.zero(),
        1 => count != 0 && cpu.status.zero(),
        2 => count != 0,
        _ => count == 0,
    };
    let rip = cpu.direct_target::<LONG>(this);
    if taken {
        attempt!(cpu, op, cpu.check_target::<LONG>(rip));
    }
    if KIND != 3 {
        cpu.gpr[1] = match mask {
            0xffff => (cpu.gpr[1] & !0xffff) | count,
            _ => count,
        };
    }
    if taken {
        // SAFETY: as above.
        return unsafe { cpu.jump_direct(op, rip) };
    }
    next!(cpu, op)
}

fn direct(d: &Decoding<'_>, op: &mut Op) {
    op.imm = 0;
    if d.inst.op0_kind() == OpKind::NearBranch16 {
        op.extra |= IP_16;
    }
    let (ip, target) = (d.inst.ip(), d.inst.near_branch_target());
    if ip >> 12 != target >> 12 {
        op.extra |= CROSSES;
    }
    let block = ip.wrapping_sub(u64::from(op.delta));
    op.disp = target.wrapping_sub(block) as i32;
}

macro_rules! by_condition {
    ($number:expr, $long:expr; $($n:literal)*) => {
        match ($number, $long) {
            $(($n, true) => jcc::<$n, true>, ($n, false) => jcc::<$n, false>,)*
            _ => return None,
        }
    };
}

/// Jcc.
pub(crate) fn select_jcc(d: &Decoding<'_>, op: &mut Op, number: u8) -> Option<Handler> {
    direct(d, op);
    Some(by_condition!(number, d.size == CodeSize::Bits64; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15))
}

/// LOOPcc, JCXZ.
pub(crate) fn select_count(d: &Decoding<'_>, op: &mut Op, kind: u8) -> Option<Handler> {
    direct(d, op);
    // The count register's width is the address size, which iced has in the code.
    use super::operand::extra;
    op.extra = (op.extra & !(extra::ADDRESS_16 | extra::ADDRESS_32)) | count_size(d.inst);
    let long = d.size == CodeSize::Bits64;
    Some(match (kind, long) {
        (0, true) => count_branch::<0, true>,
        (1, true) => count_branch::<1, true>,
        (2, true) => count_branch::<2, true>,
        (_, true) => count_branch::<3, true>,
        (0, false) => count_branch::<0, false>,
        (1, false) => count_branch::<1, false>,
        (2, false) => count_branch::<2, false>,
        (_, false) => count_branch::<3, false>,
    })
}

fn count_size(inst: &iced_x86::Instruction) -> u16 {
    use super::operand::extra;
    use iced_x86::Code::*;
    match inst.code() {
        Jrcxz_rel8_16 | Jrcxz_rel8_64 | Loop_rel8_16_RCX | Loop_rel8_64_RCX | Loope_rel8_16_RCX
        | Loope_rel8_64_RCX | Loopne_rel8_16_RCX | Loopne_rel8_64_RCX => 0,
        Jcxz_rel8_16 | Jcxz_rel8_32 | Loop_rel8_16_CX | Loop_rel8_32_CX | Loope_rel8_16_CX
        | Loope_rel8_32_CX | Loopne_rel8_16_CX | Loopne_rel8_32_CX => extra::ADDRESS_16,
        _ => extra::ADDRESS_32,
    }
}

/// JMP near.
pub(crate) fn select_jmp(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    let long = d.size == CodeSize::Bits64;
    match d.inst.op0_kind() {
        OpKind::NearBranch16 | OpKind::NearBranch32 | OpKind::NearBranch64 => {
            direct(d, op);
            Some(if long { jmp::<true> } else { jmp::<false> })
        }
        OpKind::Register => {
            op.dst = register_offset(d.inst.op0_register());
            Some(match (operand_size(d.inst, 0), long) {
                (8, _) => jmp_indirect::<u64, Reg, true>,
                (4, _) => jmp_indirect::<u32, Reg, false>,
                _ => jmp_indirect::<u16, Reg, false>,
            })
        }
        OpKind::Memory if !d.inst.memory_size().is_packed() => {
            Some(match (operand_size(d.inst, 0), d.flat) {
                (8, true) => jmp_indirect::<u64, Mem<Flat>, true>,
                (8, false) => jmp_indirect::<u64, Mem<Segmented>, true>,
                (4, _) => jmp_indirect::<u32, Mem<Segmented>, false>,
                _ => jmp_indirect::<u16, Mem<Segmented>, false>,
            })
        }
        _ => None,
    }
}

/// CALL near.
pub(crate) fn select_call(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    match d.inst.op0_kind() {
        OpKind::NearBranch16 => {
            direct(d, op);
            Some(call::<u16, false>)
        }
        OpKind::NearBranch32 => {
            direct(d, op);
            Some(call::<u32, false>)
        }
        OpKind::NearBranch64 => {
            direct(d, op);
            Some(call::<u64, true>)
        }
        OpKind::Register => {
            op.dst = register_offset(d.inst.op0_register());
            Some(match operand_size(d.inst, 0) {
                8 => call_indirect::<u64, Reg, true>,
                4 => call_indirect::<u32, Reg, false>,
                _ => call_indirect::<u16, Reg, false>,
            })
        }
        OpKind::Memory => Some(match (operand_size(d.inst, 0), d.flat) {
            (8, true) => call_indirect::<u64, Mem<Flat>, true>,
            (8, false) => call_indirect::<u64, Mem<Segmented>, true>,
            (4, _) => call_indirect::<u32, Mem<Segmented>, false>,
            _ => call_indirect::<u16, Mem<Segmented>, false>,
        }),
        _ => None,
    }
}

/// RET near, with or without an immediate.
pub(crate) fn select_ret(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    op.imm = if d.inst.op_count() > 0 { d.inst.immediate(0) & 0xffff } else { 0 };
    use iced_x86::Code::*;
    Some(match d.inst.code() {
        Retnq | Retnq_imm16 => ret::<u64, true>,
        Retnd | Retnd_imm16 => ret::<u32, false>,
        Retnw | Retnw_imm16 => ret::<u16, false>,
        _ => return None,
    })
}
