//! Bit tests, bit scans, BMI, POPCNT, CRC32, CMPXCHG8B and CMPXCHG16B.

use super::arith::{Binary, atomically};
use super::operand::{
    Address, Flat, Mem, Place, Reg, Segmented, Source, Src, Width, address_mask, register, set_register,
};
use super::{attempt, next, onward};
use crate::block::{Handler, Op};
use crate::decode::{Decoding, operand_size, register_offset};
use crate::flags::Status;
use crate::mmu::Kind;
use crate::state::Cpu;
use iced_x86::OpKind;
use vmcs12::arch::event::Exception;

/// What a bit test does to the bit: 0 BT, 1 BTS, 2 BTR, 3 BTC.
fn change<const KIND: u8>(value: u64, bit: u64) -> u64 {
    match KIND {
        0 => value,
        1 => value | bit,
        2 => value & !bit,
        _ => value ^ bit,
    }
}

/// BT, BTS, BTR, BTC with a register destination or an immediate bit number.
pub(crate) struct BitTest<const KIND: u8>;
impl<const KIND: u8> Binary for BitTest<KIND> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let number = attempt!(cpu, op, S::get::<T>(cpu, this)).to_u64() & u64::from(T::BITS - 1);
        let bit = 1 << number;
        if KIND == 0 {
            let value = attempt!(cpu, op, D::get::<T>(cpu, this)).to_u64();
            cpu.status = cpu.status.with_carry(value & bit != 0);
            next!(cpu, op);
        }
        let old = if let Some(place) = D::place::<T>(cpu, this) {
            // SAFETY: `place` is in a mapped page and may be written.
            unsafe { atomically(place, |a| (T::from_u64(change::<KIND>(a.to_u64(), bit)), a.to_u64())) }
        } else {
            let a = attempt!(cpu, op, D::get_for_update::<T>(cpu, this));
            attempt!(cpu, op, D::put::<T>(cpu, this, T::from_u64(change::<KIND>(a.to_u64(), bit))));
            a.to_u64()
        };
        cpu.status = cpu.status.with_carry(old & bit != 0);
        next!(cpu, op)
    }
}

/// The bit string in memory that a register indexes.
struct BitString<A>(std::marker::PhantomData<A>);

impl<A: Address> BitString<A> {
    fn linear<T: Width>(cpu: &mut Cpu, op: &Op, kind: Kind) -> Option<u64> {
        let number = register::<T>(cpu, op.src).sign_extended() as i64;
        let by = (number >> T::BITS.trailing_zeros()).wrapping_mul(T::SIZE as i64) as u64;
        let offset = cpu.effective_address(op).wrapping_add(by) & address_mask(op);
        cpu.segmented(op, op.segment, offset, T::SIZE, kind)
    }
}

unsafe fn bit_string<const KIND: u8, T: Width>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let kind = if KIND == 0 { Kind::Read } else { Kind::Write };
    let linear = attempt!(cpu, op, BitString::<Segmented>::linear::<T>(cpu, this, kind));
    let bit = 1 << (register::<T>(cpu, this.src).to_u64() & u64::from(T::BITS - 1));
    let old = if KIND == 0 {
        attempt!(cpu, op, cpu.load::<T>(this, linear)).to_u64()
    } else if let Some(place) = cpu.writable_host::<T>(linear) {
        // SAFETY: `writable_host` gives a place in a mapped page that may be written.
        unsafe { atomically(place, |a| (T::from_u64(change::<KIND>(a.to_u64(), bit)), a.to_u64())) }
    } else {
        attempt!(cpu, op, cpu.probe_write(this, linear, T::SIZE));
        let old = attempt!(cpu, op, cpu.load::<T>(this, linear)).to_u64();
        attempt!(cpu, op, cpu.store::<T>(this, linear, T::from_u64(change::<KIND>(old, bit))));
        old
    };
    cpu.status = cpu.status.with_carry(old & bit != 0);
    next!(cpu, op)
}

/// The handler of a bit test.
pub(crate) fn test<const KIND: u8>(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    if d.inst.op0_kind() == OpKind::Memory && d.inst.op1_kind() == OpKind::Register {
        op.src = register_offset(d.inst.op1_register());
        return Some(match operand_size(d.inst, 0) {
            2 => bit_string::<KIND, u16>,
            4 => bit_string::<KIND, u32>,
            _ => bit_string::<KIND, u64>,
        });
    }
    super::arith::binary::<BitTest<KIND>>(d, op)
}

/// A scan or count of one source: the result (if it is written) and the status.
pub(crate) trait Scan: 'static {
    fn compute<T: Width>(value: T, status: Status) -> (Option<u64>, Status);
}

/// The handlers of a [`Scan`].
pub(crate) struct Of<F>(std::marker::PhantomData<F>);
impl<F: Scan> Binary for Of<F> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let value = attempt!(cpu, op, S::get::<T>(cpu, this));
        let (result, status) = F::compute(value, cpu.status);
        if let Some(result) = result {
            set_register(cpu, this.dst, T::from_u64(result));
        }
        cpu.status = status;
        next!(cpu, op)
    }
}

macro_rules! scans {
    ($($(#[$meta:meta])* $name:ident: |$value:ident, $bits:ident, $status:ident| $body:expr;)*) => { $(
        $(#[$meta])*
        pub(crate) struct $name;
        impl Scan for $name {
            #[inline(always)]
            #[allow(unused_variables, reason = "each scan uses what it needs")]
            fn compute<T: Width>(value: T, $status: Status) -> (Option<u64>, Status) {
                let ($value, $bits) = (value.to_u64(), u64::from(T::BITS));
                $body
            }
        }
    )* };
}

/// ZF as given, CF as given; the others are undefined or 0.
fn zero_carry(zero: bool, carry: bool) -> Status {
    // A result of 1 has PF = 0 and SF = 0; a result of 0 would set PF.
    let cleared = Status::from_bits(if zero { vmcs12::arch::rflags::ZF } else { 0 });
    cleared.with_carry_overflow(carry, false)
}

scans! {
    /// BSF: a source of 0 leaves the destination unchanged.
    Bsf: |value, bits, s| if value == 0 { (None, zero_carry(true, false)) } else { (Some(u64::from(value.trailing_zeros())), zero_carry(false, false)) };
    /// BSR: a source of 0 leaves the destination unchanged.
    Bsr: |value, bits, s| if value == 0 { (None, zero_carry(true, false)) } else { (Some(63 - u64::from(value.leading_zeros())), zero_carry(false, false)) };
    /// TZCNT.
    Tzcnt: |value, bits, s| { let n = u64::from(value.trailing_zeros()).min(bits); (Some(n), zero_carry(n == 0, value == 0)) };
    /// LZCNT.
    Lzcnt: |value, bits, s| { let n = u64::from(value.leading_zeros()) - (64 - bits); (Some(n), zero_carry(n == 0, value == 0)) };
    /// POPCNT.
    Popcnt: |value, bits, s| (Some(u64::from(value.count_ones())), zero_carry(value == 0, false));
}

/// BLSR, BLSMSK, BLSI: `KIND` 0, 1, 2. The destination is VEX.vvvv.
pub(crate) struct Lowest<const KIND: u8>;
impl<const KIND: u8> Binary for Lowest<KIND> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let value = attempt!(cpu, op, S::get::<T>(cpu, this)).to_u64();
        let (result, carry) = match KIND {
            0 => (value.wrapping_sub(1) & value, value == 0),
            1 => (value.wrapping_sub(1) ^ value, value == 0),
            _ => (value.wrapping_neg() & value, value != 0),
        };
        let result = T::from_u64(result);
        set_register(cpu, this.dst, result);
        cpu.status = Status::explicit(result.sign_extended(), carry, false);
        next!(cpu, op)
    }
}

/// Instructions with three operands: `dst`, the register in `imm`, and `src`'s operand form.
/// `KIND` 0 ANDN, 1 BEXTR, 2 BZHI, 3 PDEP, 4 PEXT.
pub(crate) struct Three<const KIND: u8>;
impl<const KIND: u8> Binary for Three<KIND> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let operand = attempt!(cpu, op, S::get::<T>(cpu, this)).to_u64();
        let other = register::<T>(cpu, this.imm as u8).to_u64();
        let (value, carry) = match KIND {
            0 => (!other & operand, Some(false)),
            1 => (extract(operand, other, T::BITS), Some(false)),
            2 => zero_high(operand, other, T::BITS),
            3 => (deposit(other, operand), None),
            _ => (gather(other, operand), None),
        };
        let value = T::from_u64(value);
        set_register(cpu, this.dst, value);
        if let Some(carry) = carry {
            cpu.status = Status::explicit(value.sign_extended(), carry, false);
        }
        next!(cpu, op)
    }
}

fn extract(value: u64, control: u64, bits: u32) -> u64 {
    let (start, len) = (control as u32 & 0xff, control as u32 >> 8 & 0xff);
    let shifted = if start < bits { value >> start } else { 0 };
    if len < 64 { shifted & ((1 << len) - 1) } else { shifted }
}

fn zero_high(value: u64, index: u64, bits: u32) -> (u64, Option<bool>) {
    let n = index as u32 & 0xff;
    if n < bits { (value & ((1 << n) - 1), Some(false)) } else { (value, Some(true)) }
}

fn deposit(mut value: u64, mut mask: u64) -> u64 {
    let mut result = 0;
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        if value & 1 != 0 {
            result |= lowest;
        }
        value >>= 1;
        mask ^= lowest;
    }
    result
}

fn gather(value: u64, mut mask: u64) -> u64 {
    let (mut result, mut n) = (0, 0);
    while mask != 0 {
        let lowest = mask & mask.wrapping_neg();
        result |= u64::from(value & lowest != 0) << n;
        n += 1;
        mask ^= lowest;
    }
    result
}

/// The handler of an instruction whose operands are (register, `source`, `register_operand`), by operand number;
/// the extra register's offset goes to `imm`.
pub(crate) fn three<F: Binary>(
    d: &Decoding<'_>,
    op: &mut Op,
    source: u32,
    other: Option<u32>,
) -> Option<Handler> {
    op.dst = register_offset(d.inst.op0_register());
    match other {
        Some(i) if d.inst.op_kind(i) == OpKind::Register => {
            op.imm = u64::from(register_offset(d.inst.op_register(i)))
        }
        Some(i) => op.imm = d.inst.immediate(i),
        None => {}
    }
    if d.inst.op_kind(source) == OpKind::Register {
        op.src = register_offset(d.inst.op_register(source));
    }
    let long = match d.inst.op0_register() {
        register if register.is_gpr64() => true,
        register if register.is_gpr32() => false,
        _ => return three16::<F>(d, source),
    };
    Some(match (d.inst.op_kind(source), d.flat, long) {
        (OpKind::Register, _, true) => F::run::<u64, Reg, Src>,
        (OpKind::Register, _, false) => F::run::<u32, Reg, Src>,
        (OpKind::Memory, true, true) => F::run::<u64, Reg, Mem<Flat>>,
        (OpKind::Memory, true, false) => F::run::<u32, Reg, Mem<Flat>>,
        (OpKind::Memory, false, true) => F::run::<u64, Reg, Mem<Segmented>>,
        (OpKind::Memory, false, false) => F::run::<u32, Reg, Mem<Segmented>>,
        _ => return None,
    })
}

fn three16<F: Binary>(d: &Decoding<'_>, source: u32) -> Option<Handler> {
    Some(match (d.inst.op_kind(source), d.flat) {
        (OpKind::Register, _) => F::run::<u16, Reg, Src>,
        (OpKind::Memory, true) => F::run::<u16, Reg, Mem<Flat>>,
        (OpKind::Memory, false) => F::run::<u16, Reg, Mem<Segmented>>,
        _ => return None,
    })
}

/// The Castagnoli polynomial, bits reversed.
const CRC32C: u32 = 0x82f6_3b78;

unsafe fn crc32<T: Width, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let value = attempt!(cpu, op, S::get::<T>(cpu, this)).to_u64();
    let mut crc: u32 = register(cpu, this.dst);
    for byte in &value.to_le_bytes()[..T::SIZE] {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = (crc >> 1) ^ if crc & 1 != 0 { CRC32C } else { 0 };
        }
    }
    set_register(cpu, this.dst, u64::from(crc));
    next!(cpu, op)
}

/// CRC32.
pub(crate) fn select_crc32(d: &Decoding<'_>, op: &mut Op) -> Option<Handler> {
    op.dst = register_offset(d.inst.op0_register());
    let size = operand_size(d.inst, 1);
    if d.inst.op1_kind() == OpKind::Register {
        op.src = register_offset(d.inst.op1_register());
        return Some(match size {
            1 => crc32::<u8, Src>,
            2 => crc32::<u16, Src>,
            4 => crc32::<u32, Src>,
            _ => crc32::<u64, Src>,
        });
    }
    Some(match (size, d.flat) {
        (1, true) => crc32::<u8, Mem<Flat>>,
        (2, true) => crc32::<u16, Mem<Flat>>,
        (4, true) => crc32::<u32, Mem<Flat>>,
        (_, true) => crc32::<u64, Mem<Flat>>,
        (1, false) => crc32::<u8, Mem<Segmented>>,
        (2, false) => crc32::<u16, Mem<Segmented>>,
        (4, false) => crc32::<u32, Mem<Segmented>>,
        (_, false) => crc32::<u64, Mem<Segmented>>,
    })
}

/// CMPXCHG8B and, with `WIDE`, CMPXCHG16B: only ZF changes.
pub(crate) unsafe fn compare_exchange_pair<const WIDE: bool>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let size = if WIDE { 16 } else { 8 };
    let offset = cpu.effective_address(this);
    let linear = attempt!(cpu, op, cpu.segmented(this, this.segment, offset, size, Kind::Write));
    if WIDE && linear & 15 != 0 {
        return cpu.raise(op, Exception::gp(0));
    }
    let pair = |low: u64, high: u64| {
        if WIDE {
            u128::from(low) | u128::from(high) << 64
        } else {
            u128::from(low & 0xffff_ffff | high << 32)
        }
    };
    let expected = pair(cpu.gpr[0], cpu.gpr[2]);
    let new = pair(cpu.gpr[3], cpu.gpr[1]);
    let seen = match (WIDE, cpu.writable_host::<u64>(linear)) {
        // SAFETY: the place may be read and written; 16 aligned bytes lie in the page of their first 8.
        (true, Some(place)) => unsafe { compare_exchange_16(place, expected, new) },
        (false, Some(place)) => {
            // SAFETY: the place may be read and written.
            u128::from(unsafe { super::arith::compare_exchange(place, expected as u64, new as u64) })
        }
        (_, None) => {
            attempt!(cpu, op, cpu.probe_write(this, linear, size));
            let mut bytes = [0; 16];
            attempt!(cpu, op, cpu.read_bytes(this, linear, &mut bytes[..size]));
            let seen = u128::from_le_bytes(bytes);
            let stored = if seen == expected { new } else { seen };
            attempt!(cpu, op, cpu.write_bytes(this, linear, &stored.to_le_bytes()[..size]));
            seen
        }
    };
    let equal = seen == expected;
    if !equal {
        if WIDE {
            (cpu.gpr[0], cpu.gpr[2]) = (seen as u64, (seen >> 64) as u64);
        } else {
            set_register(cpu, 0, seen as u32);
            set_register(cpu, 16, (seen >> 32) as u32);
        }
    }
    let zf = vmcs12::arch::rflags::ZF;
    let bits = cpu.status.bits() & !zf;
    cpu.status = Status::from_bits(bits | if equal { zf } else { 0 });
    onward!(op)
}

/// LOCK CMPXCHG16B of the host's.
///
/// # Safety
/// `place` is 16-byte aligned, in a mapped page, and may be read and written.
unsafe fn compare_exchange_16(place: *mut u64, expected: u128, new: u128) -> u128 {
    let (mut low, mut high) = (expected as u64, (expected >> 64) as u64);
    // SAFETY: the caller's promise. RBX is LLVM's own, so it is exchanged around the instruction.
    unsafe {
        std::arch::asm!(
            "xchg {b}, rbx",
            "lock cmpxchg16b [{p}]",
            "mov rbx, {b}",
            b = inout(reg) new as u64 => _,
            p = in(reg) place,
            in("rcx") (new >> 64) as u64,
            inout("rax") low,
            inout("rdx") high,
            options(nostack)
        );
    }
    u128::from(low) | u128::from(high) << 64
}
