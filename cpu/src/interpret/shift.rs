//! Shifts and rotates.

use super::arith::Binary;
use super::operand::{Place, Source, Width, register};
use super::{attempt, next};
use crate::block::Op;
use crate::flags::Status;
use crate::state::Cpu;
use std::marker::PhantomData;

/// A shift: the value and the count (masked, not 0) to the result and the status.
pub(crate) trait Shift: 'static {
    fn compute<T: Width>(value: T, count: u32, status: Status) -> (T, Status);
}

/// The handlers of a [`Shift`].
pub(crate) struct By<F>(PhantomData<F>);

impl<F: Shift> Binary for By<F> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        // The count is an immediate or CL.
        let Some(count) = S::quick::<u8>(cpu, this) else { return slowly::<F, T, D, S>(cpu, op) };
        let count = u32::from(count) & if T::SIZE == 8 { 63 } else { 31 };
        if count == 0 || D::MEMORY {
            return slowly::<F, T, D, S>(cpu, op);
        }
        let (value, status) = F::compute(register::<T>(cpu, this.dst), count, cpu.status);
        super::operand::set_register(cpu, this.dst, value);
        cpu.status = status;
        next!(cpu, op)
    }
}

/// The forms with a register and an immediate count, of which nobody reads the status.
pub(crate) struct Quiet<F>(PhantomData<F>);

impl<F: Shift> Binary for Quiet<F> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let count = this.imm as u32 & if T::SIZE == 8 { 63 } else { 31 };
        let value: T = register(cpu, this.dst);
        let value = if count == 0 { value } else { F::compute(value, count, cpu.status).0 };
        super::operand::set_register(cpu, this.dst, value);
        next!(cpu, op)
    }
}

#[inline(never)]
fn slowly<F: Shift, T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
    // SAFETY: handlers are called with a live operation.
    let this = unsafe { &*op };
    let count = u32::from(attempt!(cpu, op, S::get::<u8>(cpu, this))) & if T::SIZE == 8 { 63 } else { 31 };
    let value = attempt!(cpu, op, D::get_for_update::<T>(cpu, this));
    if count == 0 {
        if !D::MEMORY {
            // A 32-bit destination is written, and so its upper half cleared, even by a count of 0.
            attempt!(cpu, op, D::put::<T>(cpu, this, value));
        }
        next!(cpu, op);
    }
    let (value, status) = F::compute(value, count, cpu.status);
    attempt!(cpu, op, D::put::<T>(cpu, this, value));
    cpu.status = status;
    next!(cpu, op)
}

fn top<T: Width>(value: u64) -> bool {
    value >> (T::BITS - 1) & 1 != 0
}

/// SHL.
pub(crate) struct Shl;
impl Shift for Shl {
    #[inline(always)]
    fn compute<T: Width>(value: T, count: u32, _: Status) -> (T, Status) {
        // Before its last step the value fits: 32 + 30 bits, or 64 bits of which only the top one is asked for.
        let almost = value.to_u64() << (count - 1);
        let result = T::from_u64(almost << 1);
        let carry = almost >> (T::BITS - 1) & 1 != 0;
        (result, Status::explicit(result.sign_extended(), carry, top::<T>(result.to_u64()) != carry))
    }
}

/// SHR.
pub(crate) struct Shr;
impl Shift for Shr {
    #[inline(always)]
    fn compute<T: Width>(value: T, count: u32, _: Status) -> (T, Status) {
        let value = value.to_u64();
        let result = T::from_u64(value >> count);
        let carry = value >> (count - 1) & 1 != 0;
        // OF is the top bit of the original operand; after more than one step, of the last intermediate value.
        let overflow = top::<T>(result.to_u64() << 1 & width_mask::<T>());
        (result, Status::explicit(result.sign_extended(), carry, overflow))
    }
}

/// SAR.
pub(crate) struct Sar;
impl Shift for Sar {
    #[inline(always)]
    fn compute<T: Width>(value: T, count: u32, _: Status) -> (T, Status) {
        let value = value.sign_extended() as i64;
        let result = T::from_u64((value >> count) as u64);
        (result, Status::explicit(result.sign_extended(), value >> (count - 1) & 1 != 0, false))
    }
}

fn width_mask<T: Width>() -> u64 {
    u64::MAX >> (64 - T::BITS)
}

/// ROL.
pub(crate) struct Rol;
impl Shift for Rol {
    #[inline(always)]
    fn compute<T: Width>(value: T, count: u32, status: Status) -> (T, Status) {
        let result = value.rotated_left(count).to_u64();
        let carry = result & 1 != 0;
        (T::from_u64(result), status.with_carry_overflow(carry, top::<T>(result) != carry))
    }
}

/// ROR.
pub(crate) struct Ror;
impl Shift for Ror {
    #[inline(always)]
    fn compute<T: Width>(value: T, count: u32, status: Status) -> (T, Status) {
        let result = value.rotated_left(T::BITS - count % T::BITS).to_u64();
        let overflow = top::<T>(result) != (result >> (T::BITS - 2) & 1 != 0);
        (T::from_u64(result), status.with_carry_overflow(top::<T>(result), overflow))
    }
}

/// RCL.
pub(crate) struct Rcl;
impl Shift for Rcl {
    fn compute<T: Width>(value: T, count: u32, status: Status) -> (T, Status) {
        let bits = T::BITS + 1;
        let n = count % bits;
        if n == 0 {
            let carry = status.carry();
            return (value, status.with_carry_overflow(carry, top::<T>(value.to_u64()) != carry));
        }
        let wide = u128::from(value.to_u64()) | u128::from(status.carry()) << T::BITS;
        let rotated = (wide << n | wide >> (bits - n)) & (u128::MAX >> (128 - bits));
        let carry = rotated >> T::BITS != 0;
        let result = T::from_u64(rotated as u64);
        (result, status.with_carry_overflow(carry, top::<T>(result.to_u64()) != carry))
    }
}

/// RCR.
pub(crate) struct Rcr;
impl Shift for Rcr {
    fn compute<T: Width>(value: T, count: u32, status: Status) -> (T, Status) {
        let bits = T::BITS + 1;
        let n = count % bits;
        let wide = u128::from(value.to_u64()) | u128::from(status.carry()) << T::BITS;
        let rotated =
            if n == 0 { wide } else { (wide >> n | wide << (bits - n)) & (u128::MAX >> (128 - bits)) };
        let result = T::from_u64(rotated as u64);
        let overflow = top::<T>(result.to_u64()) != (result.to_u64() >> (T::BITS - 2) & 1 != 0);
        (result, status.with_carry_overflow(rotated >> T::BITS != 0, overflow))
    }
}

/// SHLD (`LEFT`) and SHRD; the count is the immediate, or CL if `BY_CL`.
pub(crate) struct Double<const LEFT: bool, const BY_CL: bool>;
impl<const LEFT: bool, const BY_CL: bool> Binary for Double<LEFT, BY_CL> {
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let count = if BY_CL { cpu.gpr[1] as u8 } else { this.imm as u8 };
        let count = u32::from(count) & if T::SIZE == 8 { 63 } else { 31 };
        let fill: T = register(cpu, this.src);
        let value = attempt!(cpu, op, D::get_for_update::<T>(cpu, this));
        let (result, status) = if count == 0 {
            (value, cpu.status)
        } else {
            double::<T, LEFT>(value.to_u64(), fill.to_u64(), count)
        };
        attempt!(cpu, op, D::put::<T>(cpu, this, result));
        cpu.status = status;
        next!(cpu, op)
    }
}

/// With a count beyond the width the result is undefined; a 16-bit operand then rotates the 32-bit pair, as Intel's do.
fn double<T: Width, const LEFT: bool>(value: u64, fill: u64, count: u32) -> (T, Status) {
    let bits = T::BITS;
    let (value, fill, mask) = (u128::from(value), u128::from(fill), u128::from(width_mask::<T>()));
    let (result, carry) = match (LEFT, bits) {
        (true, 64) => ((value << 64 | fill) << count >> 64, value >> (64 - count) & 1),
        (false, 64) => ((fill << 64 | value) >> count & mask, value >> (count - 1) & 1),
        (true, _) => {
            let shifted = (value << (2 * bits) | fill << bits | value) << count;
            (shifted >> (2 * bits) & mask, shifted >> (3 * bits) & 1)
        }
        (false, _) => {
            let triple = value << (2 * bits) | fill << bits | value;
            (triple >> count & mask, triple >> (count - 1) & 1)
        }
    };
    let result = T::from_u64(result as u64);
    let overflow = top::<T>(result.to_u64()) != top::<T>(value as u64);
    (result, Status::explicit(result.sign_extended(), carry != 0, overflow))
}

/// SHLX, SHRX, SARX, RORX: no flags. `KIND` 0 SHL, 1 SHR, 2 SAR, 3 ROR; the source is `src`'s operand form.
pub(crate) struct Flagless<const KIND: u8>;
impl<const KIND: u8> Flagless<KIND> {
    fn compute<T: Width>(value: T, count: u64) -> T {
        let count = count as u32 & (T::BITS - 1);
        T::from_u64(match KIND {
            0 => value.to_u64() << count,
            1 => value.to_u64() >> count,
            2 => (value.sign_extended() as i64 >> count) as u64,
            _ if count == 0 => value.to_u64(),
            _ => value.to_u64() >> count | value.to_u64() << (T::BITS - count),
        })
    }
}

impl<const KIND: u8> Binary for Flagless<KIND> {
    /// The count is the immediate for RORX, else the register in the low byte of `imm`.
    unsafe fn run<T: Width, D: Place, S: Source>(cpu: &mut Cpu, op: *const Op) -> *const Op {
        // SAFETY: handlers are called with a live operation.
        let this = unsafe { &*op };
        let value = attempt!(cpu, op, S::get::<T>(cpu, this));
        let count = if KIND == 3 { this.imm } else { register::<u64>(cpu, this.imm as u8) };
        attempt!(cpu, op, D::put::<T>(cpu, this, Self::compute(value, count)));
        next!(cpu, op)
    }
}
