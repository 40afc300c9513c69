//! MOV and its kin, conversions, exchanges, LEA.

use super::arith::{Binary, Unary};
use super::operand::{Flat, Mem, Place, Segmented, Source, Src, Width, register, set_register};
use super::{attempt, next};
use crate::block::{Handler, Op};
use crate::decode::{Decoding, operand_size, register_offset};
use crate::mmu::access::Scalar;
use crate::state::Cpu;
use iced_x86::OpKind;

/// MOV.
pub(crate) struct Mov;
impl Binary for Mov {
    #[inline(never)]
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let Some(value) = S::quick::<T>(cpu, this) else { return move_slowly::<T, D, S>(cpu, op) };
        if D::MEMORY {
            let Some(place) = D::place::<T>(cpu, this) else { return move_slowly::<T, D, S>(cpu, op) };
            // SAFETY: `place` is in a mapped page and may be written.
            unsafe { place.write_unaligned(value) };
        } else {
            set_register(cpu, this.dst, value);
        }
        next!(cpu, op)
    }
}

#[cold]
#[inline(never)]
fn move_slowly<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let value = attempt!(cpu, op, S::get::<T>(cpu, this));
    attempt!(cpu, op, D::put::<T>(cpu, this, value));
    next!(cpu, op)
}

/// MOV between the accumulator and a 64-bit absolute address, which stands in the immediate.
pub(crate) unsafe fn load_absolute<T: Width>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let linear =
        attempt!(cpu, op, cpu.segmented(this, this.segment, this.imm, T::SIZE, crate::mmu::Kind::Read));
    let value = attempt!(cpu, op, cpu.load::<T>(this, linear));
    set_register(cpu, 0, value);
    next!(cpu, op)
}

/// The store form of [`load_absolute`].
pub(crate) unsafe fn store_absolute<T: Width>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let linear =
        attempt!(cpu, op, cpu.segmented(this, this.segment, this.imm, T::SIZE, crate::mmu::Kind::Write));
    let value: T = register(cpu, 0);
    attempt!(cpu, op, cpu.store::<T>(this, linear, value));
    next!(cpu, op)
}

/// MOV, in all its general-register and memory forms.
pub(crate) fn mov(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    let memory = (0..2).find(|&i| d.inst.op_kind(i) == OpKind::Memory);
    let absolute = memory.is_some()
        && d.inst.memory_displ_size() == 8
        && d.inst.memory_base() == iced_x86::Register::None
        && d.inst.memory_index() == iced_x86::Register::None;
    if absolute && i64::from(op.disp) as u64 != d.inst.memory_displacement64() {
        return Some(match (memory, operand_size(d.inst, 0)) {
            (Some(1), 1) => load_absolute::<u8>,
            (Some(1), 2) => load_absolute::<u16>,
            (Some(1), 4) => load_absolute::<u32>,
            (Some(1), _) => load_absolute::<u64>,
            (_, 1) => store_absolute::<u8>,
            (_, 2) => store_absolute::<u16>,
            (_, 4) => store_absolute::<u32>,
            (_, _) => store_absolute::<u64>,
        });
    }
    super::arith::binary::<Mov>(d, op)
}

/// A conversion of a narrower source.
pub(crate) trait Extend: 'static {
    fn extend<F: Width>(value: F) -> u64;
}

/// MOVZX.
pub(crate) struct Zero;
impl Extend for Zero {
    #[inline(always)]
    fn extend<F: Width>(value: F) -> u64 {
        value.to_u64()
    }
}

/// MOVSX, MOVSXD.
pub(crate) struct Sign;
impl Extend for Sign {
    #[inline(always)]
    fn extend<F: Width>(value: F) -> u64 {
        value.sign_extended()
    }
}

unsafe fn run_extend<E: Extend, T: Width, F: Width, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let Some(value) = S::quick::<F>(cpu, this) else { return extend_slowly::<E, T, F, S>(cpu, op) };
    set_register(cpu, this.dst, T::from_u64(E::extend(value)));
    next!(cpu, op)
}

#[cold]
#[inline(never)]
fn extend_slowly<E: Extend, T: Width, F: Width, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let value = attempt!(cpu, op, S::get::<F>(cpu, this));
    set_register(cpu, this.dst, T::from_u64(E::extend(value)));
    next!(cpu, op)
}

/// The handler of a MOVZX or MOVSX.
pub(crate) fn extend<E: Extend>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    match (operand_size(d.inst, 0), operand_size(d.inst, 1)) {
        (2, 1) => extend_form::<E, u16, u8>(d, op),
        (4, 1) => extend_form::<E, u32, u8>(d, op),
        (8, 1) => extend_form::<E, u64, u8>(d, op),
        (2, 2) => extend_form::<E, u16, u16>(d, op),
        (4, 2) => extend_form::<E, u32, u16>(d, op),
        (8, 2) => extend_form::<E, u64, u16>(d, op),
        (2, 4) => extend_form::<E, u16, u32>(d, op),
        (4, 4) => extend_form::<E, u32, u32>(d, op),
        (8, 4) => extend_form::<E, u64, u32>(d, op),
        _ => None,
    }
}

fn extend_form<E: Extend, T: Width, F: Width>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    op.dst = register_offset(d.inst.op0_register());
    Some(match d.inst.op1_kind() {
        OpKind::Register => {
            op.src = register_offset(d.inst.op1_register());
            run_extend::<E, T, F, Src>
        }
        OpKind::Memory if d.flat => run_extend::<E, T, F, Mem<Flat>>,
        OpKind::Memory => run_extend::<E, T, F, Mem<Segmented>>,
        _ => return None,
    })
}

/// LEA with flat addressing, into a register of width `T`.
unsafe fn lea_flat<T: Scalar>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    // SAFETY: the decoder makes indices below `gpr.len()`.
    let part = |index: u8| unsafe { *cpu.gpr.get_unchecked(index as usize) };
    let value = part(this.base)
        .wrapping_add(part(this.scaled) << this.scale)
        .wrapping_add(i64::from(this.disp) as u64);
    set_register(cpu, this.dst, T::from_u64(value));
    next!(cpu, op)
}

unsafe fn lea_general<T: Scalar>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let value = cpu.effective_address(this);
    set_register(cpu, this.dst, T::from_u64(value));
    next!(cpu, op)
}

/// LEA.
pub(crate) fn lea(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    op.dst = register_offset(d.inst.op0_register());
    Some(match (operand_size(d.inst, 0), d.flat) {
        (2, true) => lea_flat::<u16>,
        (4, true) => lea_flat::<u32>,
        (8, true) => lea_flat::<u64>,
        (2, false) => lea_general::<u16>,
        (4, false) => lea_general::<u32>,
        (8, false) => lea_general::<u64>,
        _ => return None,
    })
}

macro_rules! accumulator {
    ($($(#[$meta:meta])* $name:ident: |$rax:ident, $rdx:ident| $body:expr;)*) => { $(
        $(#[$meta])*
        pub(crate) unsafe fn $name(cpu: &mut Cpu, op: *const Op) -> *const Op {
            #[allow(unused_variables, reason = "some read one register only")]
            let ($rax, $rdx) = (cpu.gpr[0], cpu.gpr[2]);
            (cpu.gpr[0], cpu.gpr[2]) = $body;
            next!(cpu, op)
        }
    )* };
}

fn low16(old: u64, value: u64) -> u64 {
    (old & !0xffff) | (value & 0xffff)
}

accumulator! {
    /// CBW.
    cbw: |rax, rdx| (low16(rax, rax as i8 as u64), rdx);
    /// CWDE.
    cwde: |rax, rdx| (u64::from(rax as i16 as u32), rdx);
    /// CDQE.
    cdqe: |rax, rdx| (rax as i32 as u64, rdx);
    /// CWD.
    cwd: |rax, rdx| (rax, low16(rdx, ((rax as i16) >> 15) as u64));
    /// CDQ.
    cdq: |rax, rdx| (rax, u64::from(((rax as i32) >> 31) as u32));
    /// CQO.
    cqo: |rax, rdx| (rax, ((rax as i64) >> 63) as u64);
}

/// BSWAP.
pub(crate) unsafe fn bswap<T: Width>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let value: T = register(cpu, this.dst);
    // A 16-bit BSWAP is undefined by the manual; processors clear the register's low half.
    let swapped = if T::SIZE == 2 { 0 } else { value.to_u64().swap_bytes() >> (64 - T::BITS) };
    set_register(cpu, this.dst, T::from_u64(swapped));
    next!(cpu, op)
}

/// MOVBE.
pub(crate) struct Movbe;
impl Binary for Movbe {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let value = attempt!(cpu, op, S::get::<T>(cpu, this));
        let swapped = value.to_u64().swap_bytes() >> (64 - T::BITS);
        attempt!(cpu, op, D::put::<T>(cpu, this, T::from_u64(swapped)));
        next!(cpu, op)
    }
}

/// CMOVcc: the source is read whatever the condition.
pub(crate) struct Cmov<const CONDITION: u8>;
impl<const CONDITION: u8> Binary for Cmov<CONDITION> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let new = attempt!(cpu, op, S::get::<T>(cpu, this));
        let old: T = register(cpu, this.dst);
        let taken = super::branch::condition::<CONDITION>(cpu.status);
        set_register(cpu, this.dst, if taken { new } else { old });
        next!(cpu, op)
    }
}

/// SETcc.
pub(crate) struct Set<const CONDITION: u8>;
impl<const CONDITION: u8> Unary for Set<CONDITION> {
    unsafe fn run<T: Width, D: Place>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let value = u64::from(super::branch::condition::<CONDITION>(cpu.status));
        attempt!(cpu, op, D::put::<T>(cpu, this, T::from_u64(value)));
        next!(cpu, op)
    }
}

/// XLAT.
pub(crate) unsafe fn xlat(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let offset = cpu.gpr[3].wrapping_add(cpu.gpr[0] & 0xff) & super::operand::address_mask(this);
    let linear = attempt!(cpu, op, cpu.segmented(this, this.segment, offset, 1, crate::mmu::Kind::Read));
    let value = attempt!(cpu, op, cpu.load::<u8>(this, linear));
    set_register(cpu, 0, value);
    next!(cpu, op)
}
